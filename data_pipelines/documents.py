"""Records -> documents: text normalised, identity and split derived from the content, what is malformed set aside."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from data_pipelines.config import SourceConfig
from data_pipelines.sources import LONGEST, Record

LINE_ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")


@dataclass
class Document:
    """What a record says. ``group``: its split goes by that; ``reason`` and ``detail``: why there is no text."""

    key: str
    text: str
    title: str | None
    url: str | None
    license: str
    date: str | None
    group: str | None
    reason: str = ""
    detail: str = ""
    objection: str = ""  # with which words a web page objects to training


def normalise(text: str) -> str:
    """NFC, line ends as ``\\n``, no control characters, no spaces before line ends, at most one empty line in a row."""
    # Of line ends, controls and white space only the space is printable, so that most texts need no search for them.
    printable = text.replace("\n", "").isprintable()
    if not printable:
        text = CONTROLS.sub("", LINE_ENDS.sub("\n", text.replace("\r\n", "\n")))
    # NFC after that: a control character may have stood between a letter and its accent.
    text = unicodedata.normalize("NFC", text)
    if not printable or " \n" in text:
        text = "\n".join(map(str.rstrip, text.split("\n")))  # a regular expression takes n^2 on runs of spaces
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


def document(record: Record, source: SourceConfig, longest: int = LONGEST) -> Document:
    """The document of a record: its text normalised, or set aside with the reason; at most ``longest`` bytes of it."""
    reason, detail = (record.reason, record.problem) if record.problem else _problem(record.fields, source, longest)
    return Document(
        key=_printable(record.key),
        text="" if reason else normalise(record.fields[source.text_field]),
        title=_optional(record, source.title_field),
        url=_optional(record, source.url_field) or source.url or None,
        license=_optional(record, source.license_field) or source.license,
        date=_optional(record, source.date_field) or source.snapshot_date or None,
        group=_optional(record, source.split_field),
        reason=reason,
        detail=detail,
        objection=record.objection,
    )


def id_of(source: str, key: str, text: str) -> str:
    """The source, the record's key, and 48 bits of the text's SHA-256.

    The same text at the same place has the same id in every run, and a text that changed has another.
    """
    return f"{source}:{key}:{hashlib.sha256(text.encode('utf-8')).hexdigest()[:12]}"


def content_of(text: str) -> bytes:
    """Digest of a text without case and spacing, 32 bytes: equal for exact duplicates."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8")).digest()


def split_of(key: bytes, validation_fraction: float, seed: int) -> str:
    """``train`` or ``validation``: a pure function of the key, so that a growing corpus moves no document."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:".encode() + key).digest()[:8], "big")
    return "validation" if drawn < validation_fraction * 2**64 else "train"


def _problem(fields: Any, source: SourceConfig, longest: int) -> tuple[str, str]:
    """(reason, detail) for a record without a usable text; ("", "") for any other."""
    value = fields.get(source.text_field)
    if value is None:
        return "malformed", f"no '{source.text_field}'"
    if isinstance(value, bytes):
        return "malformed", "not UTF-8"
    if not isinstance(value, str):
        return "malformed", f"'{source.text_field}' is {type(value).__name__}, not text"
    if 4 * len(value) > longest and (size := len(value.encode("utf-8", "surrogatepass"))) > longest:
        return "too_long", f"{size} bytes, more than {longest}"
    return ("", "") if _text(value) is not None else ("malformed", "not Unicode (half of a surrogate pair)")


def _optional(record: Record, field: str | None) -> str | None:
    return _text(record.fields.get(field)) if field else None


def _text(value: Any) -> str | None:
    """A value as text that can be stored as UTF-8; None where there is none."""
    if value is None or isinstance(value, bytes):
        return None
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return text


def _printable(key: str) -> str:
    return key.encode("utf-8", "replace").decode("utf-8")
