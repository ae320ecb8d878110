"""What all papers of a model are made of: the evidence, a person's answers, the languages. Gathered once.

A paper asks for a key; that it did is kept, so that ``papers.json`` can cite where each value stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json
from consortium.dossier import answers, data_facts
from consortium.dossier.answers import Answer
from consortium.dossier.data_facts import Corpora
from consortium.dossier.evidence import Citation, Evidence, gather
from consortium.dossier.lineage import Lineage, trace
from consortium.papers.licences import Licence, stated
from train.fairness import Fairness, fairness_of

EXPORT, EXPORT_FORMAT = "hanse.json", "hanse.export/1"


@dataclass
class Facts:
    """Evidence and answers, with a note of what was used.

    Attributes:
        run: the run's folder; ``lineage``: where the model comes from.
        given: answers of ``dossier.yaml`` by question.
        corpora: shards and corpora of the lineage that were found.
        fairness: of the run at the checkpoint.
        export: ``hanse.json`` of an export of this very checkpoint; None where there is none.
        used: {key: citations} of what the papers took so far.
    """

    run: Path
    evidence: Evidence
    given: dict[str, Answer]
    lineage: Lineage
    corpora: Corpora
    fairness: Fairness
    export: dict[str, Any] | None = None
    used: dict[str, tuple[Citation, ...]] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of an evidence key; ``default`` where it is not known."""
        value = self.evidence.plain(key)
        if value is None:
            return default
        self.used[key] = self.evidence[key].citations
        return value

    def words(self, key: str) -> str:
        """The value of an evidence key as one text; empty where it is not known."""
        value = self.get(key, "")
        return "; ".join(str(one).rstrip(".") for one in value) if isinstance(value, list) else str(value)

    def answer(self, key: str) -> Any:
        """What a person answered; None where nothing was, or it does not apply."""
        found = self.given.get(key)
        return found.value if found else None

    def text(self, key: str) -> str | None:
        """An answer as one text."""
        value = self.answer(key)
        return "; ".join(map(str, value)) if isinstance(value, list) else value

    @cached_property
    def licence(self) -> Licence | None:
        """The model's licence, None where nobody has said it."""
        said = self.text("model_licence")
        return stated(said) if said else None

    @property
    def links(self) -> list[str]:
        """Addresses of the model."""
        said = self.text("model_links") or ""
        return [word.strip(".,;<>()") for word in said.split() if word.startswith(("https://", "http://"))]

    @property
    def parents(self) -> list[tuple[str, str]]:
        """(name, SHA-256 of its manifest) of the checkpoints that the model was made from; the role where the run of
        one was not found."""
        names = {one.manifest.sha256: one.name for one in self.lineage.segments}
        return [(names.get(one["manifest_sha256"], f"{one['role']} checkpoint"), one["manifest_sha256"])
                for one in self.get("lineage.parents", [])]  # fmt: skip

    @property
    def title(self) -> str:
        """The model's name and version."""
        return f"{self.evidence.model} {self.evidence.version}"


def gather_facts(
    run: str | Path, *, answers_file: Path, registry: str | Path | None = None, step: int | None = None,
    parents: Iterable[str | Path] = (), shards: str | Path | None = None, corpus: str | Path | None = None,
    date: str | None = None, export: Path | None = None,
) -> Facts:  # fmt: skip
    """Read everything once; arguments as of :func:`consortium.dossier.evidence.gather`.

    Args:
        run: a run folder.
        answers_file: ``dossier.yaml``; may be missing.
        export: folder of an export of the checkpoint (None: ``RUN/export``, if it is of this checkpoint).

    Raises:
        HanseError: a paper is missing, damaged, or contradicts another; or ``export`` is of another checkpoint.
    """
    given = answers.check(answers_file, answers.read(answers_file))
    parents = list(parents)
    evidence = gather(run, registry, step=step, parents=parents, shards=shards, corpus=corpus, today=date)
    lineage = trace(Path(run), [*map(Path, parents), *([Path(registry)] if registry else [])], step)
    corpora = data_facts.find(lineage, Path(shards) if shards else None, Path(corpus) if corpus else None)
    own = fairness_of(run, shards, lineage.head.step)
    return Facts(Path(run), evidence, given, lineage, corpora, _cumulative(own, evidence),
                 _export(lineage, Path(run), export))  # fmt: skip


def _cumulative(own: Fairness, evidence: Evidence) -> Fairness:
    """The languages of a run with what its whole lineage was trained on, so that no paper contradicts another."""
    tokens, epochs = (evidence.plain(f"training.{key}_by_language") for key in ("tokens", "epochs"))
    languages = [
        replace(one, consumed_tokens=None if tokens is None else tokens.get(one.language, 0),
                epochs=None if epochs is None else epochs.get(one.language, 0.0))
        for one in own.languages
    ]  # fmt: skip
    return replace(own, languages=languages)


def _export(lineage: Lineage, run: Path, export: Path | None) -> dict[str, Any] | None:
    path = (export or run / "export") / EXPORT
    if export is None and not path.is_file():
        return None
    value = read_json(path, "export ('hanse export' makes one)")
    root = lineage.head.checkpoint.manifest["merkle_root"]
    if isinstance(value, dict) and value.get("format") == EXPORT_FORMAT and value.get("checkpoint_merkle_root") == root:
        return value
    if export is None:
        return None
    raise HanseError(f"{path}: not an export of {lineage.head.checkpoint.folder}; make one with 'hanse export'")
