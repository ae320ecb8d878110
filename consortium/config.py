"""What may be configured in the verbs that read what runs leave behind. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from train.config import EXPORT_DTYPES, ZERO_STAGES, run_problems

SEAL_KINDS = ("files", "checkpoint", "corpus", "run", "evaluation", "review", "reproduction")
DOSSIER_LANGUAGES, DOSSIER_FORMATS = ("en", "fr", "de", "es", "it"), ("md", "html", "docx")


@dataclass
class WhosawConfig:
    """What ``hanse whosaw`` takes."""

    run: str = MISSING
    what: str = MISSING
    shards: str | None = None
    output: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *([] if self.what.strip() else ["what: must say which document"])]


@dataclass
class VerifyConfig:
    """What ``hanse verify`` takes."""

    run: str = MISSING
    shards: str | None = None
    batches: int = 16

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        few = [] if self.batches >= 0 else [f"batches={self.batches}: must be 0 or more"]
        return [*run_problems(self.run), *few]


@dataclass
class ReproduceConfig:
    """What ``hanse reproduce`` takes."""

    run: str = MISSING
    from_step: int = 0
    to_step: int = MISSING
    output: str = MISSING
    ranks: int | None = None
    zero_stage: int | None = None
    tolerance: float = 1e-3
    lock: bool = True
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = run_problems(self.run)
        if not 0 <= self.from_step < self.to_step:
            found.append(f"to_step={self.to_step}: must be after from_step={self.from_step}, which must be 0 or more")
        if self.ranks is not None and self.ranks < 1:
            found.append(f"ranks={self.ranks}: must be 1 or more")
        if self.zero_stage not in (None, *ZERO_STAGES):
            found.append(f"zero_stage={self.zero_stage}: one of {', '.join(map(str, ZERO_STAGES))}")
        if not self.tolerance >= 0:
            found.append(f"tolerance={self.tolerance}: must be 0 or more")
        return found


@dataclass
class KeyConfig:
    """What ``hanse key`` takes."""

    new: str | None = None
    show: str | None = None
    passphrase: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        if (self.new is None) == (self.show is None):
            return ["new, show: give one of them: new=NAME.key makes a key, show=NAME.pub shows one"]
        return ["passphrase=true: belongs to new=NAME.key"] if self.passphrase and self.new is None else []


@dataclass
class SealConfig:
    """What ``hanse seal`` takes."""

    folder: str = MISSING
    key: str | None = None
    kind: str | None = None
    facts: str | None = None
    output: str | None = None
    check: str | None = None
    trust: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [] if Path(self.folder).is_dir() else [f"folder={self.folder}: no folder here"]
        if self.kind not in (None, *SEAL_KINDS):
            found.append(f"kind={self.kind}: one of {', '.join(SEAL_KINDS)}")
        if (self.key is None) == (self.check is None):
            found.append("key, check: give one of them: key=NAME.key seals, check=FILE.sig checks a seal")
        elif self.check is not None and not self.trust:
            found.append("trust: name the public keys you believe, e.g. trust=[alice.pub]")
        if self.check is not None and (self.facts or self.output):
            found.append("facts, output: belong to key=NAME.key")
        if self.check is None and self.facts and self.kind in (None, "files"):
            found.append(f"facts={self.facts}: a seal of kind=files holds none; choose another kind")
        return found


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
        if self.registry and not Path(self.registry).is_dir():
            found.append(f"registry={self.registry}: no such folder")
        for key, allowed in (("languages", DOSSIER_LANGUAGES), ("formats", DOSSIER_FORMATS)):
            given = getattr(self, key)
            if not set(given) <= set(allowed) or len(set(given)) != len(given):
                found.append(f"{key}={given}: each of {', '.join(allowed)} once at most")
        if not self.languages:
            found.append(f"languages: name one at least, of {', '.join(DOSSIER_LANGUAGES)}")
        if self.date is not None and not _is_day(self.date):
            found.append(f"date={self.date}: no day; write YYYY-MM-DD")
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
    return found + ([f"date={date}: no day; write YYYY-MM-DD"] if date is not None and not _is_day(date) else [])


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
