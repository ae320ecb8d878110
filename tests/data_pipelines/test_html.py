"""Web pages: their encoding as declared, their main text, and what they say of themselves; out of WARC files too."""

import gzip
import zlib
from importlib.util import find_spec

import pytest

from common.errors import HanseError
from data_pipelines.html import decoded, page_of, response, spdx
from data_pipelines.sources import read
from data_pipelines.warc import pages
from tests.data_pipelines.web_pages import web_pages

installed = pytest.mark.skipif(find_spec("resiliparse") is None, reason="needs the extra 'web'")
LONG = "Une phrase qui dit assez de choses pour être le texte d'une page, été comme hiver. "


def record(kind, block, **headers):
    lines = [b"WARC/1.1", f"WARC-Type: {kind}".encode(), b"WARC-Date: 2026-11-01T10:00:00Z"]
    lines += [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    head = b"\r\n".join([*lines, f"Content-Length: {len(block)}".encode(), b"", b""])
    return gzip.compress(head + block + b"\r\n\r\n", mtime=0)


def http(body, status="200 OK", content_type="text/html; charset=utf-8", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def page(text=LONG * 4, head="", lang="fr"):
    return f'<html lang="{lang}"><head><title>Un titre</title>{head}</head><body><p>{text}</p></body></html>'


# ---------------------------------------------------------------- encodings
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("été".encode(), ""),
        ("été".encode(), "text/html; charset=UTF-8"),
        ("été".encode("cp1252"), "text/html; charset=ISO-8859-1"),
        ("été".encode("cp1252"), ""),  # declared nowhere and no UTF-8
        (b"\xef\xbb\xbf" + "été".encode(), "text/html; charset=latin1"),  # the mark counts more
        (b"\xff\xfe" + "été".encode("utf-16-le"), ""),
        (b'<meta charset="iso-8859-15">' + "été".encode("iso-8859-15"), "text/html"),
        (b'<meta http-equiv=Content-Type content="text/html; charset=windows-1250">' + "été".encode("cp1250"), ""),
        (b'<meta charset="utf-16">' + "été".encode(), ""),  # read as ASCII so far: it cannot be
        ("été".encode(), "text/html; charset=nonsense"),
    ],
)
def test_an_encoding_is_what_browsers_take_it_for(body, content_type):
    text, problem = decoded(body, content_type)
    assert problem == ""
    assert text.endswith("été")


def test_quotes_of_windows_in_a_page_that_calls_itself_latin():
    assert decoded(b"\x93a\x94 \x80 5 \x81", "text/html; charset=iso-8859-1") == ("“a” € 5 ", "")


def test_what_is_not_in_its_declared_encoding_is_set_aside():
    assert decoded(b"caf\xe9", "text/html; charset=utf-8") == (None, "not utf-8, as it says")
    assert decoded(b"<meta charset=utf-8>caf\xe9") == (None, "not utf-8, as it says")


# ---------------------------------------------------------------- what a page says of itself
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC-BY-SA-4.0"),
        ("http://creativecommons.org/licenses/by/3.0/de/", "CC-BY-3.0-DE"),
        ("https://creativecommons.org/licenses/by-nc-nd/2.0/deed.fr", "CC-BY-NC-ND-2.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "public-domain"),
        ("https://example.org/terms", "https://example.org/terms"),
    ],
)
def test_creative_commons_addresses(url, name):
    assert spdx(url) == name


@installed
@pytest.mark.parametrize(
    ("head", "license"),
    [
        ('<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">', "CC-BY-4.0"),
        ('<meta name="DC.rights" content="https://creativecommons.org/licenses/by/4.0/">', "CC-BY-4.0"),
        ('<meta name="DC.rights" content="all of them">', None),
        ('<a href="https://creativecommons.org/licenses/by/4.0/">of a photo</a>', None),
        ('<a rel="license nofollow" href="https://creativecommons.org/licenses/by/4.0/">x</a>'
         '<link rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">', None),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_page_declares_if_it_declares_one(head, license):
    assert page_of(page(head=head).encode()).license == license


@installed
def test_language_title_and_objections():
    found = page_of(page(head='<meta name="Robots" content="index, NOAI">', lang="pt-BR").encode())
    assert (found.language, found.title, found.objection) == ("pt", "Un titre", "meta robots: noai")
    assert page_of(page(head='<meta name="tdm-reservation" content="1">').encode()).objection == "meta tdm-reservation"
    assert page_of(page().encode(), headers={"tdm-reservation": "1"}).objection == "header tdm-reservation"
    assert page_of(page(lang="").encode()).objection == ""
    assert page_of(b"").text == ""


@installed
def test_the_text_is_what_a_reader_came_for(prose):
    recall, noise = [], []
    for one in web_pages(prose):
        text = " ".join(page_of(one.html.encode()).text.split())
        recall += [" ".join(wanted.split()) in text for wanted in one.wanted]
        noise += [unwanted in text for unwanted in one.unwanted]
        assert "nobody reads this" not in text
        assert "color: red" not in text
    assert sum(recall) / len(recall) > 0.99
    assert sum(noise) / len(noise) < 0.15


# ---------------------------------------------------------------- HTTP
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"text", {}),
        (b"2\r\nte\r\n2;x=y\r\nxt\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}),
        (b"text", {"Transfer-Encoding": "chunked"}),  # the crawler undid it
        (gzip.compress(b"text", mtime=0), {"Content-Encoding": "gzip"}),
        (b"text", {"Content-Encoding": "gzip"}),
        (zlib.compress(b"text"), {"Content-Encoding": "deflate"}),
        (zlib.compress(b"text", wbits=-15), {"Content-Encoding": "deflate"}),
    ],
)
def test_chunks_and_content_encodings_are_undone(body, headers):
    given = {name.replace("-", "_"): value for name, value in headers.items()}
    status, said, found, problem = response(http(body, **given), 100)
    assert (status, found, problem) == (200, b"text", "")
    assert said["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (b"garbage", "no HTTP response"),
        (http(b"ff\r\nte", Transfer_Encoding="chunked"), "its chunks break off"),
        (http(gzip.compress(b"text" * 99, mtime=0)[:-12], Content_Encoding="gzip"), "its gzip breaks off"),
        (http(b"\x1f\x8bxxxx", Content_Encoding="gzip"), "not gzip, as it says"),
        (http(b"text", Content_Encoding="br"), "content encoding br"),
    ],
)
def test_what_cannot_be_undone_has_a_reason(block, problem):
    assert response(block, 1000)[3] == problem


def test_a_small_archive_that_claims_to_be_large_is_not_unpacked(tmp_path):
    bomb = http(gzip.compress(b"x" * 10_000_000, mtime=0), Content_Encoding="gzip")
    assert len(response(bomb, 1000)[2]) == 1001


# ---------------------------------------------------------------- WARC
@installed
def test_the_pages_of_a_crawl_with_what_is_no_page_left_out_and_what_is_broken_set_aside(tmp_path, local):
    html = page(head='<link rel=license href="https://creativecommons.org/licenses/by/4.0/">').encode()
    url = {"WARC_Target_URI": "https://example.org/a"}
    parts = [
        record("warcinfo", b"software: x"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", **url),
        record("response", http(html), **url),
        record("response", http(html, status="404 Not Found"), **url),
        record("response", http(b"\x89PNG", content_type="image/png"), **url),
        record("response", http(html[:150]), WARC_Truncated="length", **url),
        record("response", http(b"caf\xe9"), **url),
        record("response", http(html * 99), **url),
        record("response", http(gzip.compress(html * 99, mtime=0), Content_Encoding="gzip"), **url),
        record("resource", html, Content_Type="text/html", **url),
        record("conversion", b"plain", **url),
        record("response", http(page(head="<meta name=robots content=noai>").encode()), **url),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(parts))
    source = local(tmp_path, reader="warc", url_field="url", date_field="date", license_field="license")
    found = list(read(source, tmp_path, longest=5000))
    assert [one.reason if one.problem else "" for one in found] == [
        "", "truncated", "malformed", "too_long", "too_long", "", "", ""]  # fmt: skip
    first = found[0].fields
    assert first["text"].startswith("Une phrase qui dit assez")
    assert (first["license"], first["html_language"], first["title"]) == ("CC-BY-4.0", "fr", "Un titre")
    assert found[6].fields["text"] == "plain"
    assert [one.objection for one in found] == [""] * 7 + ["meta robots: noai"]
    source.where = {"html_language": ["fr"]}
    assert len([one for one in read(source, tmp_path, longest=5000) if not one.problem]) == 3


@installed
def test_a_page_that_objects_is_removed_without_any_snapshot(tmp_path, local, make_corpus, rows_of, prose):
    for number, head in enumerate(["", '<meta name="tdm-reservation" content="1">']):
        (tmp_path / f"{number}.html").write_text(page(" ".join(prose("fr")[5 * number : 5 * number + 4]), head))
    manifest = make_corpus({"site": local(tmp_path, reader="html", title_field="title")})
    assert manifest.sources["site"].removed == {"opt_out": 1}
    (removed,) = rows_of(manifest, "removed")
    assert (removed["opt_out"], removed["opt_out_reason"]) == ("deny", "meta tdm-reservation")
    (kept,) = rows_of(manifest, "documents")
    assert (kept["title"], kept["opt_out"]) == ("Un titre", None)


def test_without_the_library_html_is_one_clear_error(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    (tmp_path / "a.warc.gz").write_bytes(record("response", http(b"<p>x")))
    with gzip.open(tmp_path / "a.warc.gz") as stream, pytest.raises(HanseError, match=r"pip install 'hanse\[web\]'"):
        list(pages(stream, 1000))
