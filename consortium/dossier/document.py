"""A filled form as a document: headings in one language, content, and the evidence as numbered notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from consortium.dossier.fill import STATUSES
from consortium.dossier.forms import HERE, Field, Form

COLUMNS = ("name", "version", "link", "language", "licence", "part")  # of tables, as words.yaml names them


@dataclass(frozen=True)
class Table:
    """A table; every row has a cell a column."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Entry:
    """A field of the document.

    Attributes:
        status: one of :data:`consortium.dossier.fill.STATUSES`, or ``optional`` where nothing must be written.
        badge: what the status is called; ``reason``: why there is no content.
        lines: the content, a paragraph or list items; ``table``: instead of them.
        notes: numbers of the notes that prove it.
    """

    anchor: str
    label: str
    clause: str
    status: str
    badge: str
    reason: str
    lines: list[str]
    table: Table | None
    notes: list[int]


@dataclass(frozen=True)
class Section:
    """A section with its entries."""

    title: str
    clause: str
    entries: list[Entry]


@dataclass(frozen=True)
class Note:
    """A piece of evidence."""

    number: int
    file: str
    at: str
    sha256: str


@dataclass(frozen=True)
class Document:
    """Everything that a writer needs.

    Attributes:
        words: what is said around the content; ``counts``: (badge, number of fields) of each status there is.
        missing: entries that a person must still fill.
    """

    form: str
    language: str
    title: str
    law: str
    model: str
    version: str
    date: str
    words: dict[str, str]
    counts: list[tuple[str, str, int]]
    missing: list[Entry]
    sections: list[Section]
    notes: list[Note]


@cache
def words(language: str) -> dict[str, str]:
    """{key: what it is called in a language}."""
    told = yaml.safe_load((HERE / "words.yaml").read_text(encoding="utf-8"))
    return {key: one[language] for key, one in told.items()}


def document(form: Form, dossier: Mapping[str, Any], language: str) -> Document:
    """A form of a dossier (``dossier.json``) as a document."""
    said, notes = words(language), dict[tuple[str, str, str], int]()
    sections = []
    for section in form.sections:
        entries = [_entry(field, dossier["fields"][field.key], language, notes) for field in section.fields]
        sections.append(Section(section.title[language], section.clause, entries))
    every = [entry for section in sections for entry in section.entries]
    counts = [(status, said[status], sum(entry.status == status for entry in every)) for status in STATUSES]
    return Document(
        form=form.key,
        language=language,
        title=form.title[language],
        law=form.law,
        model=dossier["model"]["name"],
        version=dossier["model"]["version"],
        date=dossier["created"],
        words=said,
        counts=[one for one in counts if one[2]],
        missing=[entry for entry in every if entry.status == "missing"],
        sections=sections,
        notes=[Note(number, *key) for key, number in notes.items()],
    )


def _entry(field: Field, filled: Mapping[str, Any], language: str, notes: dict[tuple[str, str, str], int]) -> Entry:
    said, status = words(language), filled["status"]
    status = "optional" if status == "missing" and not field.required else status
    cited = [(one["file"], one["at"], one["sha256"]) for one in filled.get("evidence", [])]
    for one in cited:
        notes.setdefault(one, len(notes) + 1)
    table, lines = None, []
    value = filled["value"]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        table = _table(value, said)
    elif value is not None:
        lines = [_text(one, said, field) for one in (value if isinstance(value, list) else [value])]
    return Entry(
        anchor=field.key.replace(".", "-"),
        label=field.label[language],
        clause=field.clause,
        status=status,
        badge=said[status],
        reason=_reason(status, filled, field, said),
        lines=lines,
        table=table,
        notes=sorted({notes[one] for one in cited}),
    )


def _reason(status: str, filled: Mapping[str, Any], field: Field, said: Mapping[str, str]) -> str:
    if status == "missing":
        why = filled.get("reason", "").partition("asked of a person")[0].rstrip("; ")
        parts = [f"{said['answer_it']} {field.ask}" if field.ask else "", f"{said['not_known']} {why}" if why else ""]
        return "; ".join(filter(None, parts))
    return str(filled.get("reason", "")) if status == "not_applicable" else ""


def _table(rows: list[dict[str, Any]], said: Mapping[str, str]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = [said[key] if key in COLUMNS else key.replace("_", " ") for key in keys]
    return Table(head, [[str(row.get(key, "")) for key in keys] for row in rows])


def _text(value: Any, said: Mapping[str, str], field: Field) -> str:
    if field.kind == "choice" and value in ("Yes", "No"):
        return said[value.lower()]
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
