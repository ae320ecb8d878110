"""What a tokenizer costs each language, beside what others cost it, as plots: of a corpus's page, and on their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.charts import PALETTE, Table
from common.distributions import Strips, strips
from common.errors import HanseError
from common.files import read_json, write_text
from common.page import render
from data_pipelines.config import PARITY_UNITS

FORMULA = {
    "tokens_per_word": ("Tokens per word", "words parted by white space; fewer is cheaper"),
    "bytes_per_token": ("Bytes per token", "more is cheaper"),
}


@dataclass(frozen=True)
class Compared:
    """Counts of tokenizers on one validation split, cheapest first.

    Attributes:
        own: the name of the one that the folder holds.
        unit: of the gaps; tokens a ``document``, or a ``byte``.
        rows: {tokenizer: {language: {"tokens_per_word": ..., "bytes_per_token": ..., ...}}}.
        gaps: {tokenizer: tokens of the language served worst / of the one served best, for the same unit}.
    """

    own: str
    unit: str
    rows: dict[str, dict[str, dict[str, float]]]
    gaps: dict[str, float]

    @property
    def languages(self) -> list[str]:
        """Languages in alphabetical order."""
        return sorted(self.rows[self.own])

    @classmethod
    def read(cls, folder: Path) -> Compared | None:
        """What ``hanse tokenizer`` measured; None where it had nothing to measure on.

        Raises:
            HanseError: there is no such table, or it is not one.
        """
        from data_pipelines.fertility import gap

        own, path = read_json(folder / "fertility.json", "fertility table ('hanse tokenizer' writes one)"), folder
        if not own:
            return None
        try:
            unit, rows, name = "bytes", {"this tokenizer": own}, "this tokenizer"
            if (path := folder / "compared.json").is_file():
                value = read_json(path, "table of tokenizers")
                unit, rows = value["unit"], {one: held["languages"] for one, held in value["tokenizers"].items()}
                name = next(iter(rows))  # what was trained comes first
                if rows[name] != own:  # of a tokenizer that was here before
                    unit, rows, name = "bytes", {"this tokenizer": own}, "this tokenizer"
            mean = {one: _mean(held) for one, held in rows.items()}
            ordered = {one: rows[one] for one in sorted(rows, key=mean.__getitem__)}
            gaps = {one: gap(held, unit if unit in PARITY_UNITS else "bytes") for one, held in ordered.items()}
            return cls(name, "document" if unit == "documents" else "byte", ordered, gaps)
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration, ZeroDivisionError) as error:
            raise HanseError(f"{path}: not a fertility table ({error!r}); 'hanse tokenizer' writes one") from None


@dataclass(frozen=True)
class Section:
    """What ``fertility.html.j2`` shows."""

    strips: list[Strips]
    table: Table
    legend: dict[str, int]


def section(found: Compared) -> Section:
    """Points of every language in a row a tokenizer, and the numbers."""
    colours = colours_of(found.languages)
    gaps = {name: f"gap {value:.3f}" for name, value in found.gaps.items()}
    drawn = []
    for key, (title, unit) in FORMULA.items():
        values = {name: {language: float(rows[language][key]) for language in found.languages if language in rows}
                  for name, rows in found.rows.items()}  # fmt: skip
        labels = gaps if key == "tokens_per_word" else {
            name: f"mean {sum(row.values()) / len(row):.2f}" for name, row in values.items()}  # fmt: skip
        drawn.append(strips(title, unit, values, colours=colours, labels=labels, marked=found.own))
    head = ["tokenizer", *(f"{name}, tokens per word" for name in found.languages), "mean", "gap"]
    rows = [[name, *(f"{row[one]['tokens_per_word']:.3f}" if one in row else "" for one in found.languages),
             f"{_mean(row):.3f}", f"{found.gaps[name]:.3f}"] for name, row in found.rows.items()]  # fmt: skip
    note = (f"On the corpus's validation split. Gap: tokens a {found.unit} of the language served worst, to the one "
            "served best; 1 is parity.")  # fmt: skip
    legend = colours if len(set(colours.values())) > 1 else {}
    return Section(drawn, Table(head, rows, note), legend)


def write(folder: Path, name: str) -> Path | None:
    """Write ``fertility.html`` into a tokenizer's folder; None where nothing was measured."""
    found = Compared.read(folder)
    if found is None:
        return None
    path = folder / "fertility.html"
    write_text(path, render("data_pipelines", "tokenizer.html.j2", title=name, folder=folder, dated=False, found=found,
                            fertility=section(found)))  # fmt: skip
    return path


def colours_of(languages: list[str]) -> dict[str, int]:
    """The same colour for a language in every chart of a page; one for all where the palette is too small."""
    few = len(languages) <= PALETTE
    return {name: 1 + number if few else 1 for number, name in enumerate(sorted(languages))}


def _mean(rows: Mapping[str, Any]) -> float:
    return sum(row["tokens_per_word"] for row in rows.values()) / len(rows)
