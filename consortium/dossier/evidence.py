"""What is known of a model from the files of its runs and corpora: a flat mapping, each value with where it stands.

``gather(run)["training.consumed_tokens"]`` is a :class:`Value`; its citations name files, their SHA-256, and the line
or key. What cannot be known here has no value but a reason, in :attr:`Evidence.unknown`. Keys: docs/guide/dossier.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, sha256_file


@dataclass(frozen=True)
class Citation:
    """Where a value stands: a file by name and SHA-256, and the line or key in it."""

    file: str
    sha256: str
    at: str


@dataclass(frozen=True)
class Value:
    """A value and its citations. ``not_applicable``: why there is none and need be none; empty for others."""

    value: Any
    citations: tuple[Citation, ...] = ()
    not_applicable: str = ""


@dataclass(frozen=True)
class Paper:
    """A file that is cited: read once, hashed once."""

    path: Path
    sha256: str
    content: Any = None

    @classmethod
    def read(cls, path: Path, what: str) -> Paper:
        """A JSON file of ours."""
        return cls(path, sha256_file(path) if path.is_file() else "", read_json(path, what))

    @classmethod
    def of(cls, path: Path) -> Paper:
        """Any file, to be cited."""
        if not path.is_file():
            raise HanseError(f"{path}: missing, and a dossier would cite it")
        return cls(path, sha256_file(path))

    def at(self, place: str) -> Citation:
        """A citation of a line or a key in it."""
        return Citation(shown(self.path), self.sha256, place)


def shown(path: Path) -> str:
    """A path as papers name it: as from here, or its last three parts. How a machine is laid out stays untold."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return "/".join(path.absolute().parts[-3:])


@dataclass
class Evidence(Mapping[str, Value]):
    """{key: value}; ``unknown`` says of keys without one why.

    Attributes:
        model: the name of the run; ``version``: the step of the checkpoint and the first digits of its Merkle root.
    """

    model: str
    version: str
    known: dict[str, Value] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Value:
        return self.known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def know(self, key: str, value: Any, *citations: Citation) -> None:
        """Set a value with its citations, each once."""
        self.known[key] = Value(value, tuple(dict.fromkeys(citations)))

    def rule_out(self, key: str, reason: str, *citations: Citation) -> None:
        """Say that there is nothing to tell, and why."""
        self.known[key] = Value(None, tuple(dict.fromkeys(citations)), reason)

    def miss(self, keys: Iterable[str] | str, reason: str) -> None:
        """Say why keys have no value."""
        for key in [keys] if isinstance(keys, str) else keys:
            if key not in self.known:
                self.unknown[key] = reason

    def plain(self, key: str, default: Any = None) -> Any:
        """The bare value of a key; ``default`` where it is unknown or not applicable."""
        found = self.known.get(key)
        return default if found is None or found.not_applicable else found.value


def gather(
    run: str | Path, registry: str | Path | None = None, *, step: int | None = None,
    parents: Iterable[str | Path] = (), shards: str | Path | None = None, corpus: str | Path | None = None,
    today: str | None = None,
) -> Evidence:  # fmt: skip
    """All that the papers of a run tell of the model that it made.

    Args:
        run: a run folder, or the folder of a checkpoint alone (an averaged one).
        registry: a folder in which the checkpoints are looked for that the model was made from.
        step: of the checkpoint that is described; None: the latest.
        parents: run or checkpoint folders in which those checkpoints are looked for, too.
        shards, corpus: where the run's data are now, if they were moved.
        today: the date of the dossier, ISO 8601; None: that of the clock (UTC).

    Raises:
        HanseError: a paper is missing, damaged, or contradicts another.
    """
    from consortium.dossier import data_facts, run_facts, source_facts  # they bring torch
    from consortium.dossier.lineage import trace

    lineage = trace(Path(run), [*map(Path, parents), *([Path(registry)] if registry else [])], step)
    evidence = Evidence(lineage.name, lineage.version)
    evidence.know("dossier.date", today or datetime.now(UTC).date().isoformat())
    run_facts.tell(evidence, lineage)
    corpora = data_facts.find(lineage, Path(shards) if shards else None, Path(corpus) if corpus else None)
    data_facts.tell(evidence, lineage, corpora)
    source_facts.tell(evidence, corpora)
    return evidence
