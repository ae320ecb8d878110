"""Web pages -> their main text, and what they say about themselves: language, licence, objection to training.

The text is resiliparse's (the extra ``web``): on pages built by hand it keeps more of what a reader came for than
trafilatura, on real manuals about as much, and it takes a tenth of the time (``benchmarks/html_text.py``).
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import HanseError
from data_pipelines.annotate.opt_out import page_objection

HEAD = 1 << 14  # bytes in which a <meta> may name the encoding; the HTML standard wants it in the first 1024
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# What the encoding standard of the web (WHATWG) makes of names that mean another to Python.
WEB_NAMES = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
             "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949",
             "utf-16": "utf-16-le"}  # fmt: skip
META_CHARSET = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
CREATIVE_COMMONS = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/([a-z]{2,3})(?=/|$))?", re.I
)
LICENSE_METAS = ("dc.rights", "dcterms.rights", "dcterms.license", "dc.license", "license")
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Page:
    """What a page says. ``problem``: why it has no text; ``objection``: which signal of the page or its headers objects
    to training; ``license``: SPDX id, or the address of a licence without one, None where it names none or several."""

    text: str = ""
    title: str | None = None
    language: str | None = None  # of <html lang>, without region
    license: str | None = None
    objection: str = ""
    problem: str = ""

    @property
    def fields(self) -> dict[str, str | None]:
        """What can be a field of a record."""
        return {"title": self.title, "html_language": self.language, "license": self.license}


def page_of(body: bytes, content_type: str = "", headers: Mapping[str, str] | None = None) -> Page:
    """The page of the bytes of an HTML file.

    Args:
        body: as it came, its content encoding undone.
        content_type: the header, for its charset.
        headers: of the response, for objections.

    Raises:
        HanseError: resiliparse is not installed.
    """
    extract, tree_of = _library()
    html, problem = decoded(body, content_type)
    if html is None:
        return Page(problem=problem)
    tree = tree_of(html)
    root = tree.document.query_selector("html") if tree.document else None
    lang = (root.getattr("lang") or root.getattr("xml:lang") or "") if root else ""
    language = re.match(r"[a-z]{2,3}(?=$|[-_])", lang.strip().lower())
    return Page(
        text=extract(tree, main_content=True, list_bullets=False),
        title=(tree.title or "").strip() or None,
        language=language.group() if language else None,
        license=_license(tree),
        objection=page_objection(headers or {}, html),
    )


def decoded(body: bytes, content_type: str = "") -> tuple[str | None, str]:
    """(text, problem) of an HTML file, by the first of: byte order mark, header, ``<meta>``, UTF-8, windows-1252.

    What an encoding was declared for and cannot be read in it has a problem: a guess would put garbage into a corpus.
    """
    for mark, name in BOMS.items():
        if body.startswith(mark):
            return _in(body[len(mark) :], name)
    declared = re.search(r"charset\s*=\s*[\"']?([^\s;\"']+)", content_type, re.IGNORECASE)
    named = _web_name(declared.group(1)) if declared else None
    if named:
        return _in(body, named)
    inside = META_CHARSET.search(body[:HEAD])
    named = _web_name(inside.group(1).decode("ascii")) if inside else None
    if named:
        return _in(body, "utf-8" if named.startswith("utf-16") else named)  # the standard: it was read as ASCII so far
    found = _in(body, "utf-8")
    return found if found[0] is not None else _in(body, "cp1252")


def _in(body: bytes, name: str) -> tuple[str | None, str]:
    try:
        return body.decode(name), ""
    except UnicodeDecodeError:
        if (
            name == "cp1252"
        ):  # five bytes mean nothing to Python, and control characters, which nobody keeps, to the web
            return body.translate(None, b"\x81\x8d\x8f\x90\x9d").decode(name), ""
        return None, f"not {name}, as it says"


def _web_name(label: str) -> str | None:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    return WEB_NAMES.get(name, name)


def spdx(url: str) -> str:
    """The SPDX id of a Creative Commons address; any other address as it is."""
    found = CREATIVE_COMMONS.match(url.strip())
    if not found:
        return url.strip()
    kind, name, version, port = found.groups()
    if kind == "publicdomain":
        return {"zero": f"CC0-{version}", "mark": "public-domain"}.get(name, url.strip())
    return f"CC-{name.upper()}-{version}" + (f"-{port.upper()}" if port and port != "deed" else "")


def _license(tree: Any) -> str | None:
    """What the page says of its licence (``rel=license``, Dublin Core), if it says one thing."""
    found = set()
    for node in tree.document.query_selector_all("a[rel], link[rel], meta[name]") if tree.document else []:
        if node.tag == "meta":
            if (node.getattr("name") or "").lower() in LICENSE_METAS:
                content = (node.getattr("content") or "").strip()
                if CREATIVE_COMMONS.match(content):
                    found.add(spdx(content))
        elif "license" in (node.getattr("rel") or "").lower().split() and (node.getattr("href") or "").strip():
            found.add(spdx(node.getattr("href")))
    return found.pop() if len(found) == 1 else None


def _library() -> tuple[Any, Any]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise HanseError(
            "web pages need resiliparse, which is not installed: pip install 'hanse[web]' (or resiliparse)"
        ) from None
    return extract_plain_text, HTMLTree.parse


def response(block: bytes, longest: int) -> tuple[int, dict[str, str], bytes, str]:
    """(status, headers in lower case, body, problem) of an HTTP response as a WARC record holds it.

    Chunks and content encodings are undone, up to ``longest`` bytes: a small archive may claim to be a large one.
    """
    head, _, body = block.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(maxsplit=2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/") or not parts[1].isdecimal():
        return 0, {}, b"", "no HTTP response"
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    problem = ""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body, problem = _unchunked(body)
    for encoding in reversed([one.strip().lower() for one in headers.get("content-encoding", "").split(",") if one]):
        if not problem:
            body, problem = _unpacked(body, encoding, longest)
    return int(parts[1]), headers, body, problem


def _unchunked(body: bytes) -> tuple[bytes, str]:
    """Crawlers that undo the chunks may keep the header: what does not begin like chunks is taken as it is."""
    if not re.match(rb"[0-9A-Fa-f]{1,8}[ ;\r]", body):
        return body, ""
    made: list[bytes] = []
    place = 0
    while match := re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]*\r\n").match(body, place):
        size = int(match.group(1), 16)
        if not size:
            return b"".join(made), ""
        made.append(body[match.end() : match.end() + size])
        place = match.end() + size + 2
    return b"", "its chunks break off"


def _unpacked(body: bytes, encoding: str, longest: int) -> tuple[bytes, str]:
    if encoding in ("identity", ""):
        return body, ""
    if encoding in ("gzip", "x-gzip") and not body.startswith(b"\x1f\x8b"):
        return body, ""  # undone by the crawler
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return b"", f"content encoding {encoding}"
    for bits in (47, -15):  # gzip or zlib by their heads; deflate without one
        unpack = zlib.decompressobj(bits)
        try:
            made = unpack.decompress(body, longest + 1)
        except zlib.error:
            continue
        return (made, "") if unpack.eof or len(made) > longest else (b"", f"its {encoding} breaks off")
    return b"", f"not {encoding}, as it says"
