"""The forms of the AI Act as data: every section and field, in five languages, with where its content comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FORMS = ("public_summary", "annex_xi", "annex_xii", "model_documentation_form", "copyright_policy")
LANGUAGES = ("en", "fr", "de", "es", "it")
KINDS = ("text", "date", "url", "number", "band", "list", "choice")
Texts = dict[str, str]  # {language: text}


@dataclass(frozen=True)
class Field:
    """One thing a form asks for.

    Attributes:
        key: ``FORM.SECTION.FIELD``, its name in ``dossier.json``.
        kind: one of :data:`KINDS`; ``choices``: the only values of a choice or a band, empty where any is allowed.
        clause: where the form or the Act asks for it.
        evidence: the key of :class:`consortium.dossier.evidence.Evidence` that fills it, if one does.
        ask: the key of ``dossier.yaml`` that a person answers where there is no such evidence, if any.
        words: how long the form recommends the text to be; 0: it does not say.
    """

    key: str
    label: Texts
    kind: str
    required: bool
    clause: str
    evidence: str | None
    ask: str | None
    choices: tuple[str, ...]
    words: int


@dataclass(frozen=True)
class Section:
    """A section of a form."""

    key: str
    clause: str
    title: Texts
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Form:
    """A form; ``law`` says what asks for it."""

    key: str
    title: Texts
    law: str
    sections: tuple[Section, ...]

    @property
    def fields(self) -> Iterator[Field]:
        """All fields in their order."""
        return (field for section in self.sections for field in section.fields)


@cache
def load_forms() -> dict[str, Form]:
    """{key: form}, in the order of :data:`FORMS`."""
    return {key: _form(key, _read(f"forms/{key}.yaml")) for key in FORMS}


def all_fields() -> dict[str, Field]:
    """{key: field} of all forms."""
    return {field.key: field for form in load_forms().values() for field in form.fields}


@cache
def bands(name: str) -> tuple[tuple[float | None, str], ...]:
    """(upper bound, exclusive; name of the band) in ascending order; the last bound is None."""
    return tuple((bound, label) for bound, label in _read("bands.yaml")[name])


def band_of(name: str, value: float) -> str:
    """The name of the band that a value lies in."""
    return next(label for bound, label in bands(name) if bound is None or value < bound)


def _form(key: str, value: dict[str, Any]) -> Form:
    sections = []
    for one in value["sections"]:
        name = f"{key}.{one['id']}"
        fields = tuple(_field(name, str(one["clause"]), field) for field in one["fields"])
        sections.append(Section(name, str(one["clause"]), one["title"], fields))
    return Form(key, value["title"], value["law"], tuple(sections))


def _field(section: str, clause: str, value: dict[str, Any]) -> Field:
    choices = value.get("choices", ())
    if isinstance(choices, str):  # "bands.NAME"
        choices = [label for _, label in bands(choices.partition(".")[2])]
    return Field(f"{section}.{value['id']}", value["label"], value["kind"], value.get("required", True),
                 value.get("clause", clause), value.get("from"), value.get("ask"), tuple(choices),
                 value.get("words", 0))  # fmt: skip


def _read(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
