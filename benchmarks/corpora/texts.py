"""What documents are made of: clean running text out of HTML, XML, manual pages and LyX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from typing import Any

from lxml import etree, html


def names(text: str) -> frozenset[str]:
    """Names that are written one behind the other."""
    return frozenset(text.split())


SPACES = re.compile(r"[ \t\u00a0\u202f\r\f\v]+")
UNSEEN = dict.fromkeys(map(ord, "\u200b\ufeff\u00ad"))  # zero-width spaces, soft hyphens
WIDE = names("p div h1 h2 h3 h4 table ul ol dl pre section")  # stand behind an empty line
BLOCK = WIDE | names(
    "li dd dt td th tr h5 h6 blockquote br article title caption summary figcaption para simpara sect1 sect2 note "
    "steps item page desc"
)
NO_TEXT = names(
    "script style head nav header footer aside noscript button form input svg code-block math object iframe"
)


def clean(text: str) -> str:
    """NFC, nothing invisible, single spaces, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text.translate(UNSEEN))
    text = "\n".join(SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def chunks(paragraphs: list[str], characters: int) -> Iterator[str]:
    """Paragraphs put together to texts of just over so many characters; the last may be shorter."""
    held: list[str] = []
    for paragraph in paragraphs:
        held.append(paragraph)
        if sum(len(one) + 2 for one in held) > characters:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def page(content: bytes, where: str | None = None, without: Collection[str] = (), skip: Collection[str] = ()) -> str:
    """Text of an HTML page: inline text is joined, blocks break lines; nothing where the page has no such part.

    Args:
        content: the page, in UTF-8.
        where: XPath of the element that holds the text; None: the page.
        without: elements that are left out: of a class ``name``, or with the id ``#name``.
        skip: tags of further elements that are left out.
    """
    try:
        tree = html.fromstring(content, parser=html.HTMLParser(encoding="utf-8"))
    except etree.ParserError:  # an empty page
        return ""
    found = tree.xpath(where) if where else [tree]
    return _text(found[0], set(without), NO_TEXT | set(skip)) if found else ""


def mallard(content: bytes) -> str:
    """Text of a page of GNOME's help (Mallard or DocBook XML); entities stay unresolved."""
    tree = etree.fromstring(content, etree.XMLParser(recover=True, resolve_entities=False, no_network=True))
    return "" if tree is None else _text(tree, set(), NO_TEXT | {"info", "credit", "media", "revision"})


def _text(tree: Any, without: set[str], skip: frozenset[str]) -> str:
    out: list[str] = []

    def add(text: str | None, tag: str) -> None:
        if text:
            out.append(text if tag == "pre" else re.sub(r"\s+", " ", text))

    def walk(element: Any) -> None:
        tag = element.tag.rsplit("}", 1)[-1].lower() if isinstance(element.tag, str) else ""
        names = {f"#{element.get('id')}", *(element.get("class") or "").split()} if tag else set()
        if not tag or tag in skip or names & without:
            return
        if tag in BLOCK:
            out.append("\n\n" if tag in WIDE else "\n")
        add(element.text, tag)
        for child in element:
            walk(child)
            add(child.tail, tag)
        if tag in BLOCK and tag != "br":
            out.append("\n")

    walk(tree)
    return clean("".join(out))


TROFF_ESCAPES = [
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"\\f\[[^\]]*\]|\\f\(..|\\f.", ""),
        (r"\\s[+-]?\d+", ""),
        (r"\\\*\[[^\]]*\]|\\\*\(..|\\\*.", ""),
        (r"\\\(aq|\\\[aq\]", "'"),
        (r"\\\([lrd]q|\\\[[lrd]q\]", '"'),
        (r"\\\(em|\\\[em\]", "—"),
        (r"\\\(en|\\\[en\]", "–"),
        (r"\\\(bu|\\\[bu\]", "•"),
        (r"\\\[u([0-9A-F]{4,5})\]", lambda found: chr(int(found[1], 16))),
        (r"\\m\[[^\]]*\]|\\\[[^\]]*\]|\\\(..", ""),
        (r"\\[&|^/,%:]", ""),
        (r"\\-", "-"),
        (r"\\[~ ]", " "),
        (r"\\e|\\\\", r"\\"),
        (r"\\[cpdu]", ""),
    )
]
HEADINGS = {"SH", "SS", "Sh", "Ss"}
BREAKS = names("PP P LP TP IP HP RS RE Pp It Bl El sp TQ")
JOINED_FONTS = names("BR IR RB RI BI IB")
PHRASES = JOINED_FONTS | names("B I SM SB Nm Fl Ar Cm Xr Pa Em Sy Li Dv Va Nd UR MT")
CODE_ENDS = (".fi", ".EE")
NOT_TEXT = {".TS": (".TE",), ".nf": CODE_ENDS, ".EX": CODE_ENDS}  # tables and code: from where to where


def troff(text: str) -> str:
    """Running text of a manual page (man(7), mdoc(7)): arguments of macros stay, tables and code go."""
    out: list[str] = []
    until: tuple[str, ...] = ()
    for raw in text.split("\n"):
        line = re.sub(r'(?<!\\)\\".*$', "", raw)  # a comment
        if until or line[:3] in NOT_TEXT:
            until = until or NOT_TEXT[line[:3]]
            if line.startswith(until):
                until = ()
                out.append("")
        elif line[:1] not in (".", "'"):
            out.append(line if line.strip() else "")
        elif found := re.match(r"[.']\s*(\w+)\s*(.*)$", line):
            out += _macro(*found.groups())
    text = "\n".join(out)
    for pattern, instead in TROFF_ESCAPES:
        text = pattern.sub(instead, text)
    paragraphs = (re.sub(r"\s*\n\s*", " ", one).strip() for one in re.split(r"\n\s*\n", text))
    return "\n\n".join(one for one in paragraphs if one)


def _macro(name: str, argument: str) -> list[str]:
    if name in HEADINGS:
        return ["", argument.strip('" '), ""]
    if name in PHRASES:
        parts = re.findall(r'"([^"]*)"|(\S+)', argument)
        return [("" if name in JOINED_FONTS else " ").join(quoted or plain for quoted, plain in parts)]
    if name == "IP" and argument and not argument.startswith(('"\\', "\\")):
        return ["", re.sub(r'^"([^"]*)".*|^(\S+).*', r"\1\2", argument)]
    return [""] if name in BREAKS else []


LYX_CHARACTERS = {"LyX": "LyX", "TeX": "TeX", "LaTeX": "LaTeX", "menuseparator": " > ", "ldots": "…",
                  "nobreakdash": "-", "endofsentence": "."}  # fmt: skip


def lyx(text: str) -> Iterator[str]:
    """Paragraphs of a LyX document; insets (formulas, notes, references) are left out."""
    pieces: list[str] = []
    insets = layouts = 0
    for line in text.split("\n"):
        if line.startswith("\\begin_layout"):
            layouts += 1
        elif line.startswith("\\end_layout"):
            layouts -= 1
            if insets == 0:
                paragraph = re.sub(
                    r"\\SpecialChar (LyX|TeX|LaTeX\b)", r"\1", "".join(pieces)
                )  # in the middle of a line
                pieces = []
                if paragraph := re.sub(r"\s+", " ", paragraph).strip():
                    yield paragraph
        elif line.startswith("\\begin_inset"):
            insets += 1
            pieces += ['"'] if "Quotes" in line else []
        elif line.startswith("\\end_inset"):
            insets = max(0, insets - 1)
        elif insets or not layouts:
            continue
        elif line.startswith("\\SpecialChar"):
            pieces.append(LYX_CHARACTERS.get(line.removeprefix("\\SpecialChar").strip(), ""))
        elif not line.startswith("\\"):
            pieces.append(line)
