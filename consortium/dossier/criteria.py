"""What a criterion of the linter is, and the dossier as criteria see it: any JSON, asked for what it should hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.dossier import wording
from consortium.dossier.forms import Field

SEVERITIES = ("blocking", "warning", "note")
LONGEST = 20_000  # characters of a text that are looked at; no field needs more
Problem = tuple[str, str, str]  # field, what is wrong there, how to fix it


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dossier, where, and what to do about it."""

    criterion: str
    severity: str
    field: str
    what: str
    fix: str


@dataclass(frozen=True)
class Criterion:
    """A question that a program can answer about a dossier.

    Attributes:
        name: what it is called in findings.
        severity: of all its findings. ``blocking``: must not be published so; ``warning``: loses marks with those who
            assess summaries; ``note``: may be meant.
        source: the text that asks for it; D... and F... are metrics of the AIAL assessment.
        find: the problems of a dossier.
    """

    name: str
    severity: str
    source: str
    find: Callable[[Dossier], Iterable[Problem]]

    @property
    def meaning(self) -> str:
        """What must hold."""
        return " ".join((self.find.__doc__ or "").split())


CRITERIA: dict[str, Criterion] = {}
Find = Callable[["Dossier"], Iterable[Problem]]


def criterion(severity: str, source: str) -> Callable[[Find], Find]:
    """Make a function a criterion that is called as the function is; its docstring says what must hold."""

    def register(find: Find) -> Find:
        name = find.__name__.replace("_", "-")
        assert severity in SEVERITIES, name
        assert find.__doc__, name
        assert name not in CRITERIA, name
        CRITERIA[name] = Criterion(name, severity, source, find)
        return find

    return register


@dataclass(frozen=True)
class Entry:
    """What a dossier says in one field; ``value`` may be any JSON, ``field`` is None if no form has it."""

    key: str
    field: Field | None
    status: str
    value: Any
    reason: str
    evidence: tuple[Mapping[str, Any], ...]

    @property
    def filled(self) -> bool:
        """Whether a value is given, by evidence or by a person."""
        return self.status in ("evidence", "answered")

    @property
    def items(self) -> list[Any]:
        """What the value tells: the items of a list, or the value itself; blanks and bare 'n/a' tell nothing."""
        held = self.value if isinstance(self.value, list) else [self.value]
        choice = self.field is not None and self.field.kind == "choice"  # where "No" is an answer
        return [one for one in held if self.filled and not wording.is_nothing(one)
                and (choice or not wording.is_not_applicable(one))]  # fmt: skip

    @property
    def text(self) -> str:
        """All texts of the items, a line each."""
        return "\n".join(text[:LONGEST] for text in wording.texts(self.items))


@dataclass(frozen=True)
class Dossier:
    """A dossier that was read.

    Attributes:
        facts: numbers that fields tell in words, by their names; there need be none.
        entries: {key of a field: what it says}, in the order of the forms; those of no form last.
        folder: where it lies.
    """

    created: str
    model: Mapping[str, Any]
    facts: Mapping[str, Any]
    entries: Mapping[str, Entry]
    folder: Path

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def filled(self, key: str) -> bool:
        """Whether a field has a value."""
        return key in self.entries and self.entries[key].filled

    def not_applicable(self, key: str) -> bool:
        """Whether a field is said not to apply."""
        return key in self.entries and self.entries[key].status == "not_applicable"

    def text(self, *keys: str) -> str:
        """All texts of fields, a line each."""
        return "\n".join(self.entries[key].text for key in keys if key in self.entries)

    def items(self, key: str) -> list[Any]:
        """What a field tells (:attr:`Entry.items`); nothing where it is not there."""
        return self.entries[key].items if key in self.entries else []

    def number(self, key: str) -> float | None:
        """The number of a field, written as one or first in a text; None where there is none."""
        return number(self.entries[key].value) if self.filled(key) else None

    def fact(self, name: str) -> float | None:
        """A bare number of the facts, 0 or more; None where it is not told or is no number."""
        return number(self.facts.get(name)) if not isinstance(self.facts.get(name), str) else None

    def says(self, key: str, choice: str) -> bool:
        """Whether a choice was made."""
        return self.text(key).strip().casefold() == choice.casefold()


# 1234, 1,234.5, 1 234, 1.2e23, 1.2 × 10^23, 1.2 million
NUMBER = re.compile(
    r"(?<![\w.])(\d{1,3}(?:[,\u00a0\u202f ]\d{3}){1,8}(?!\d)|\d{1,40}(?!\d))(\.\d{1,40})?"
    r"(?:\s?[eE]\s?\+?(-?\d{1,3})\b|\s?[x×·*]\s?10\s?\^?\s?\{?(-?[0-9]{1,3}|[⁰¹²³⁴-⁹]{1,3})\}?)?"
    r"(?:\s?(thousand|million|billion|trillion|[kKMBTG])\b(?![/-]))?"
)
FACTOR = {"thousand": 1e3, "k": 1e3, "K": 1e3, "million": 1e6, "M": 1e6, "billion": 1e9, "B": 1e9, "G": 1e9,
          "trillion": 1e12, "T": 1e12}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def number(value: Any) -> float | None:
    """A finite number, 0 or more: a JSON number, or the first one in a text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value <= 1e300 else None  # an int may be too large for a float
    found = numbers(value) if isinstance(value, str) else []
    return found[0] if found else None


def numbers(text: str) -> list[float]:
    """All numbers that a text writes, in order; separators of thousands are commas and spaces."""
    found = []
    for whole, decimals, exponent, power, word in NUMBER.findall(text[:LONGEST]):
        digits = re.sub(r"\D", "", whole) + decimals
        places = int(exponent or power.translate(SUPERSCRIPTS) or 0)
        value = float(f"{digits}e{places}") * FACTOR.get(word, 1.0)
        if math.isfinite(value):
            found.append(value)
    return found


def significant_digits(value: float) -> int:
    """The digits that a number is written with, zeros at either end left out: 2 for 410 and for 0.041."""
    return len(f"{value:.12e}".partition("e")[0].replace(".", "").rstrip("0")) if value else 1


def close(one: float, other: float, share: float) -> bool:
    """Whether two numbers differ by no more than a share of the larger."""
    return abs(one - other) <= share * max(abs(one), abs(other))


def item_text(item: Any) -> str:
    """All texts of an item of a list, and its numbers, in one line."""
    return " ".join([*wording.texts(item), *([str(item)] if isinstance(item, int | float) else [])])[:LONGEST]


def part(item: Any, *names: str) -> Any:
    """What an item that is an object holds under the first of these names that it has; None for others."""
    if isinstance(item, Mapping):
        for name in names:
            if not wording.is_nothing(item.get(name)):
                return item[name]
    return None


def shown(value: Any, most: int = 60) -> str:
    """A value as it is quoted in a finding: short, and nothing in it that a terminal would obey."""
    text = value if isinstance(value, str) else repr(value)[: most + 1]
    text = "".join(letter if letter.isprintable() else "�" for letter in text[: most + 1])
    return f"'{text[:most]}…'" if len(text) > most else f"'{text}'"
