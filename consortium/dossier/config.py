"""What the verbs that write papers take. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from consortium.config import is_day
from train.config import run_problems
from train.verb_config import EXPORT_DTYPES

DOSSIER_LANGUAGES, DOSSIER_FORMATS = ("en", "fr", "de", "es", "it"), ("md", "html", "docx")


@dataclass
class DossierConfig:
    """What ``hanse dossier`` takes."""

    run: str | None = None
    check: str | None = None
    report: str | None = None
    step: int | None = None
    registry: str | None = None
    parents: list[str] = field(default_factory=list)
    shards: str | None = None
    corpus: str | None = None
    answers: str = MISSING
    output: str = MISSING
    languages: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    date: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        if (self.run is None) == (self.check is None):
            return ["run, check: give one of them: run=FOLDER writes a dossier, check=FILE checks one"]
        if self.run is None:
            return []
        found = [] if Path(self.run).is_dir() else [f"run={self.run}: no such folder; name that of a run"]
        if self.report is not None:
            found.append(f"report={self.report}: belongs to check=FILE")
        found += _papers_problems(self.registry, self.date)
        for key, allowed in (("languages", DOSSIER_LANGUAGES), ("formats", DOSSIER_FORMATS)):
            given = getattr(self, key)
            if not set(given) <= set(allowed) or len(set(given)) != len(given):
                found.append(f"{key}={given}: each of {', '.join(allowed)} once at most")
        if not self.languages:
            found.append(f"languages: name one at least, of {', '.join(DOSSIER_LANGUAGES)}")
        return found


@dataclass
class PapersConfig:
    """What ``hanse papers`` takes."""

    run: str = MISSING
    step: int | None = None
    registry: str | None = None
    parents: list[str] = field(default_factory=list)
    shards: str | None = None
    corpus: str | None = None
    answers: str = MISSING
    output: str = MISSING
    date: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *_papers_problems(self.registry, self.date)]


@dataclass
class ReleaseConfig:
    """What ``hanse release`` takes."""

    run: str = MISSING
    output: str = MISSING
    step: int | None = None
    dtype: str = MISSING
    key: str | None = None
    decisions: str | None = None
    registry: str | None = None
    parents: list[str] = field(default_factory=list)
    shards: str | None = None
    tokenizer: str | None = None
    corpus: str | None = None
    answers: str = MISSING
    date: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [*run_problems(self.run), *_papers_problems(self.registry, self.date)]
        if self.dtype not in EXPORT_DTYPES:
            found.append(f"dtype={self.dtype}: one of {', '.join(EXPORT_DTYPES)}")
        if self.key and not Path(self.key).is_file():
            found.append(f"key={self.key}: no key here; 'hanse key new={self.key}' makes one")
        return found


def _papers_problems(registry: str | None, date: str | None) -> list[str]:
    """What is wrong with where a lineage is looked for, and with the date of its papers."""
    found = [f"registry={registry}: no such folder"] if registry and not Path(registry).is_dir() else []
    return found + ([f"date={date}: no day; write YYYY-MM-DD"] if date is not None and not is_day(date) else [])
