"""The corpus's page says what the files hold, shows nobody's data, and is safe and readable in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape

import pyarrow.parquet as pq
import pytest

from data_pipelines.manifest import CorpusManifest
from tests.browser import Browser, find_chromium
from tests.data_pipelines.rich_corpus import EMAIL, IBAN, LANGUAGES, make


@pytest.fixture(scope="module")
def rich(tmp_path_factory, hanse):
    """The folder around a corpus in which something of everything happens, with its page."""
    folder = make(tmp_path_factory.mktemp("rich") / "data", hanse)
    assert hanse("report", f"corpus={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def page(rich) -> str:
    return (rich / "corpus/report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader reads, roughly."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)))


def test_counts_are_those_of_the_files(rich, page):
    text = text_of(page).replace("\N{NO-BREAK SPACE}", " ")
    manifest = json.loads((rich / "corpus/manifest.json").read_text())
    shards = json.loads((rich / "shards/manifest.json").read_text())
    for language in LANGUAGES:
        one = manifest["languages"][language]
        tokens = sum(entry["tokens"] for entry in shards["shards"] if entry["language"] == language)
        gone = sum(one["removed"].values())
        assert re.search(rf" {language} {one['documents_in']} {one['documents_kept']} \S+ kB {tokens:,} \d\.\d\d "
                         rf"{one['validation_documents']} {gone} \(", text)  # fmt: skip
        assert re.search(rf" web_{language} {one['documents_in']} {one['documents_kept']} \S+ kB {tokens:,} ", text)
        for reason in ("wrong_language", "opt_out", "duplicate", "near_duplicate"):
            assert one["removed"][reason] >= 1
    sums = {reason: sum(one["removed"].get(reason, 0) for one in manifest["languages"].values())
            for reason in ("malformed", "opt_out")}  # fmt: skip
    assert f"malformed \N{MINUS SIGN}{sums['malformed']} (" in text
    assert f"opt out {sums['opt_out']} documents: the site objects" in text
    assert "deny: robots.txt: *" in text
    assert re.search(r"email 2 2 2 2 8 ", text)
    assert re.search(r"iban 1 1 1 1 4 ", text)


def test_hosts_clusters_and_medians_are_counted_in_the_documents(rich, page):
    text = text_of(page).replace("\N{NO-BREAK SPACE}", " ")
    rows = [row for language in LANGUAGES
            for row in pq.read_table(rich / f"corpus/documents/{language}.parquet").to_pylist()]  # fmt: skip
    of_host = sum(len(row["text"].encode()) for row in rows if "//host2.example" in row["url"])
    whole = sum(len(row["text"].encode()) for row in rows)
    assert f"host2.example {of_host / 1000:.3g} kB · {of_host / whole:.1%}" in text
    fours = sum(3 <= row["cluster_size"] <= 5 for row in rows)
    assert f"3 to 5 {fours} " in text
    words = sorted(row["quality_words"] for row in rows if row["language"] == "de")
    middle = (words[(len(words) - 1) // 2] + words[len(words) // 2]) / 2
    assert f'aria-label="de: median {middle:.3g}"' in page


def test_what_each_site_answers_is_in_a_file_and_those_that_deny_are_shown_first(rich, page):
    manifest = CorpusManifest.read(rich / "corpus")
    rows = [{**row, "language": language} for language in LANGUAGES
            for row in pq.read_table(manifest.file(f"opt_out/{language}.parquet")).to_pylist()]  # fmt: skip
    came = sum(one.documents_in for one in manifest.sources.values())
    assert (sum(row["documents"] for row in rows), sum(row["bytes"] for row in rows)) == (
        came, sum(one.bytes_in for one in manifest.sources.values()),
    )  # fmt: skip
    denied = {row["domain"] for row in rows if row["deny_bytes"]}
    allowed = {row["domain"] for row in rows if row["allow_bytes"] == row["bytes"] > 0}
    assert (denied, allowed) == ({"no.example"}, {"host1.example"})
    one = max(rows, key=lambda row: row["bytes"])
    size = f"{one['bytes'] / 1000:.3g} kB"
    shown = text_of(page).replace("\N{NO-BREAK SPACE}", " ")
    assert f"{one['domain']} ({one['language']}) {one['documents']} {size} 0 B 0 B {size}" in shown
    head = "site came in text allows denies unknown no.example ("
    assert head in shown
    assert f"{len(rows)} sites in all, those that deny first; in opt_out/ of the corpus." in shown
    assert f"| {one['domain']} | {one['language']} |" in (rich / "corpus/README.md").read_text(encoding="utf-8")


def test_examples_are_shown_but_nobodys_data_and_no_text_of_a_site_that_objects(rich, page):
    assert page.count("<blockquote>") >= 6 * len(LANGUAGES)
    assert "example.net" not in page
    assert EMAIL not in page
    assert IBAN not in page
    assert "&lt;EMAIL&gt;" in page
    objecting = pq.read_table(rich / "corpus/removed/fr.parquet").to_pylist()
    hidden = next(row["text"] for row in objecting if row["reason"] == "opt_out")
    assert hidden[:40] not in unescape(page)


def test_what_comes_out_of_files_is_text_and_never_markup(page):
    assert "<img" not in page
    assert "{{7*7}}" in page
    assert page.count("</script>") == 1


def test_without_shards_and_tokenizer_it_says_what_it_does_not_know(rich, tmp_path, hanse, capsys):
    shutil.copytree(rich / "corpus", tmp_path / "corpus")
    assert hanse("report", f"corpus={tmp_path / 'corpus'}", f"output={tmp_path / 'page.html'}") == 0
    text = text_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "tokens are not known" in text
    assert "What the tokenizer costs" not in text
    named = (f"shards={rich / 'shards'}", f"tokenizer={rich / 'tokenizer'}", f"output={tmp_path / 'page.html'}")
    assert hanse("report", f"corpus={tmp_path / 'corpus'}", *named) == 0
    assert "What the tokenizer costs" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "hanse tokenize" not in capsys.readouterr().out.rpartition("wrote")[2]


def test_what_does_not_belong_or_was_changed_is_one_clear_line(rich, tiny_data, tmp_path, hanse, capfd):
    assert hanse("report", f"corpus={rich}", f"shards={tiny_data / 'shards'}") == 2
    assert "made of another corpus" in capfd.readouterr().err
    assert hanse("report", f"corpus={rich}", f"tokenizer={tiny_data / 'tokenizer'}") == 2
    assert "measured on another corpus" in capfd.readouterr().err
    shutil.copytree(rich / "corpus", tmp_path / "corpus")
    shutil.copy(tmp_path / "corpus/documents/fr.parquet", tmp_path / "corpus/documents/de.parquet")
    assert hanse("report", f"corpus={tmp_path}") == 2
    assert "not the file that" in capfd.readouterr().err
    assert hanse("report", f"corpus={tmp_path / 'nowhere'}") == 2
    assert "no corpus manifest" in capfd.readouterr().err
    assert hanse("report") == 2
    assert "corpus=data/NAME for the page of a corpus" in capfd.readouterr().err


def test_a_corpus_of_other_columns_is_one_clear_line(rich, tmp_path, hanse, capfd):
    from dataclasses import replace

    from common.files import sha256_file
    from data_pipelines.manifest import CorpusManifest, FileEntry

    shutil.copytree(rich / "corpus", tmp_path / "corpus")
    path = tmp_path / "corpus/removed/fr.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.drop_columns(["detail"]), path)
    manifest = CorpusManifest.read(tmp_path / "corpus")
    entry = FileEntry(rows.num_rows, path.stat().st_size, sha256_file(path))
    replace(manifest, files={**manifest.files, "removed/fr.parquet": entry}).write()
    assert hanse("report", f"corpus={tmp_path}") == 2
    assert "not those of a corpus of this version" in capfd.readouterr().err


def test_of_many_numbers_every_nth_is_held(monkeypatch):
    import numpy as np

    from data_pipelines import counted

    monkeypatch.setattr(counted, "MOST", 16)
    for sizes in ([1] * 100, [7] * 30, [100], [3, 0, 64, 5, 1, 40], [16], [17], [33, 33]):
        whole, held, at = np.arange(sum(sizes), dtype=float), counted.Evenly(), 0
        for size in sizes:
            held.add(whole[at : at + size])
            at += size
        step = 1 if len(held.values) < 2 else int(held.values[1] - held.values[0])
        assert held.values.tolist() == whole[::step].tolist()
        assert 8 < len(held.values) <= 16


def test_many_languages_share_one_colour_and_one_axis():
    import numpy as np

    from common.distributions import logarithmic, ridges, strips
    from data_pipelines.fertility_plot import colours_of

    names = [f"l{number:02d}" for number in range(24)]
    assert set(colours_of(names).values()) == {1}
    values = {name: np.geomspace(10 + number, 5_000, 50) for number, name in enumerate(names)}
    drawn = ridges("Characters", "", values, colours_of(names), logarithmic(list(values.values())))
    assert len(drawn.rows) == 24
    assert [tick.label for tick in drawn.ticks] == ["10", "100", "1 k", "10 k"]
    made = strips("Cost", "", {"a": {"fr": 1.0, "de": 2.0}, "b": {"fr": 1.5, "de": 1.5}}, colours={"fr": 1, "de": 2},
                  labels={"a": "2", "b": "1"}, marked="b")  # fmt: skip
    assert [row.marked for row in made.rows] == [False, True]
    assert made.rows[0].ends[0] < made.rows[1].ends[0] == made.rows[1].ends[1] < made.rows[0].ends[1]


def test_fertility_is_drawn_beside_known_tokenizers(rich, tmp_path, hanse, capsys):
    shutil.copytree(rich / "tokenizer", tmp_path / "tokenizer")
    known = ("known=[file]", f"known.file.path={rich / 'tokenizer/tokenizer.json'}")
    settings = (f"corpus={rich / 'corpus'}", f"output={tmp_path / 'tokenizer'}", "vocabulary_size=1024")
    assert hanse("tokenizer", "name=rich", *settings, *known) == 0
    assert f"wrote {tmp_path / 'tokenizer/fertility.html'}" in capsys.readouterr().out
    page = (tmp_path / "tokenizer/fertility.html").read_text(encoding="utf-8")
    assert page.count('class="strip"') == 2 * 2
    assert page.count('class="point') == 2 * 2 * len(LANGUAGES)
    compared = json.loads((tmp_path / "tokenizer/compared.json").read_text())["tokenizers"]
    assert text_of(page).count(f"gap {compared['rich']['gap']:.3f}") == 2
    table = {row["tokens_per_word"] for row in compared["file"]["languages"].values()}
    assert all(f"{value:.3f}" in page for value in table)


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with Browser() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_a_browser_draws_everything_and_asks_for_nothing(browser, rich, width, dark):
    path = rich / "corpus/report.html"
    browser.open(path, width, 844, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.console == []
    assert browser.requests == [path.as_uri()]
    assert browser.run("document.title") == "rich · hanse report"
    assert browser.run("document.documentElement.scrollWidth") <= width
    drawn = "[...document.querySelectorAll('{}')].filter(one => one.getBoundingClientRect().width > 1).length"
    assert browser.run(drawn.format("path.filled")) == 7 * len(LANGUAGES)
    assert browser.run("document.querySelectorAll('path.point').length") == 2 * len(LANGUAGES)
    assert browser.run(drawn.format(".bars i")) >= 3 * len(LANGUAGES) + 8
    tables_fit = "[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth + 1)"
    assert browser.run(tables_fit)
    overlaps = """
    [...document.querySelectorAll(".axis")].flatMap(axis => {
        const boxes = [...axis.querySelectorAll("span")].map(span => span.getBoundingClientRect()).filter(b => b.width);
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => a.left < b.right && b.left < a.right));
    }).length"""
    assert browser.run(overlaps) == 0
