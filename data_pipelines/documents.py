"""Records -> documents: text normalised, identity and split derived from the content, what is malformed set aside."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from data_pipelines.config import SourceConfig
from data_pipelines.sources import Record

LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass
class Document:
    """A row of the curated corpus; ``reason`` and ``detail`` say why it was removed (empty: it was kept)."""

    id: str
    text: str
    language: str
    source: str
    title: str | None
    url: str | None
    license: str
    date: str | None
    split: str
    language_detected: str | None = None
    language_score: float | None = None
    duplicate_of: str | None = None
    reason: str = ""
    detail: str = ""
    content: bytes = b""  # digest of the text without case and spacing: equal for exact duplicates

    @property
    def bytes(self) -> int:
        """Size of the text in bytes of UTF-8."""
        return len(self.text.encode("utf-8"))


def normalise(text: str) -> str:
    """NFC, line ends as ``\\n``, no control characters, no spaces before line ends, at most one empty line in a row."""
    # NFC last of the two: a control character may have stood between a letter and its accent.
    text = unicodedata.normalize("NFC", CONTROLS.sub("", LINE_ENDS.sub("\n", text)))
    text = "\n".join(line.rstrip() for line in text.split("\n"))  # a regular expression takes n^2 on runs of spaces
    return EMPTY_LINES.sub("\n\n", text).strip()


def document(
    record: Record, name: str, source: SourceConfig, *, validation_fraction: float, split_seed: int
) -> Document:
    """The document of a record of the source called ``name``.

    Its id is the source, the record's key, and 48 bits of its text's SHA-256: the same text at the same place has the
    same id in every run, and a text that changed has another.
    """
    problem = record.problem or _problem(record.fields, source)
    text = "" if problem else normalise(record.fields[source.text_field])
    content = hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8")).digest()
    group = _text(record.fields.get(source.split_field)) if source.split_field else None
    return Document(
        id=f"{name}:{_printable(record.key)}:{hashlib.sha256(text.encode('utf-8')).hexdigest()[:12]}",
        text=text,
        language=source.language,
        source=name,
        title=_optional(record, source.title_field),
        url=_optional(record, source.url_field) or source.url or None,
        license=source.license,
        date=_optional(record, source.date_field) or source.snapshot_date or None,
        split=split_of(group.encode() if group else content, validation_fraction, split_seed),
        reason="malformed" if problem else "",
        detail=problem,
        content=content,
    )


def split_of(key: bytes, validation_fraction: float, seed: int) -> str:
    """``train`` or ``validation``: a pure function of the key, so that a growing corpus moves no document."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:".encode() + key).digest()[:8], "big")
    return "validation" if drawn < validation_fraction * 2**64 else "train"


def _problem(fields: Any, source: SourceConfig) -> str:
    value = fields.get(source.text_field)
    if value is None:
        return f"no '{source.text_field}'"
    if isinstance(value, bytes):
        return "not UTF-8"
    if not isinstance(value, str):
        return f"'{source.text_field}' is {type(value).__name__}, not text"
    return "" if _text(value) is not None else "not Unicode (half of a surrogate pair)"


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
