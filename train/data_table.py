"""Tables with a row a language: what the training data was, and what was learned from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import HanseError
from common.terminal import table
from data_pipelines.manifest import CorpusManifest, Tally
from data_pipelines.shards import ShardEntry, ShardsManifest
from train.accuracy import right_answers


@dataclass(frozen=True)
class LanguageData:
    """Counts of one language. ``corpus`` is None where the corpus of the shards was not found."""

    language: str
    training_documents: int
    training_bytes: int
    training_tokens: int
    validation_documents: int
    validation_bytes: int
    validation_tokens: int
    corpus: Tally | None

    @property
    def documents(self) -> int:
        """Documents in the shards."""
        return self.training_documents + self.validation_documents

    @property
    def license(self) -> str | None:
        return self.corpus.license if self.corpus else None

    @property
    def removed(self) -> int | None:
        """Documents of the sources that are not in the corpus."""
        return sum(self.corpus.removed.values()) if self.corpus else None


def data_table(shards: ShardsManifest, corpus: CorpusManifest | None) -> list[LanguageData]:
    """One row a language, in alphabetical order."""
    tallies = corpus.languages if corpus else {}
    rows = []
    for language in sorted({entry.language for entry in shards.shards}):
        sums = [_sums(entry for entry in shards.of(split) if entry.language == language)
                for split in ("train", "validation")]  # fmt: skip
        rows.append(LanguageData(language, *sums[0], *sums[1], tallies.get(language)))
    return rows


def _sums(entries: Iterable[ShardEntry]) -> tuple[int, int, int]:
    counts = [(entry.documents, entry.bytes, entry.tokens) for entry in entries]
    documents, size, tokens = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
    return documents, size, tokens


def corpus_of(shards: ShardsManifest, folder: Path | None = None) -> CorpusManifest | None:
    """The corpus that shards were made of, in ``folder`` or beside them; None where there is none, or another one."""
    try:
        corpus = CorpusManifest.read(folder or shards.folder.parent / "corpus")
    except HanseError:
        return None
    return corpus if corpus.merkle_root == shards.corpus_merkle_root else None


def say_losses(losses: Mapping[str, tuple[float | None, float | None]], step: int | None = None) -> None:
    """Print validation bits per byte: {language: (the model's, the unigram model's)}; those that have both.

    ``step``: after which they were measured, where that goes without saying no more.
    """
    rows = [[name, f"{ours:.3f}", f"{base:.3f}", f"{100 * (ours / base - 1):+.1f} %"]
            for name, (ours, base) in losses.items() if ours is not None and base is not None]  # fmt: skip
    if rows:
        when = f", after step {step:,}" if step else ""
        table(f"validation bits per byte{when}", ["language", "model", "unigram", "difference"], rows)


def say_tasks(tasks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print the share of right answers: {task: {language: accuracy, items, chance ...}}."""
    languages = sorted({language for rows in tasks.values() for language in rows})
    rows = [[name, *(right_answers(rows.get(name)) for rows in tasks.values())] for name in languages]
    if rows:
        guessing = [f"{next(iter(one.values()))['chance']:.0%}" if one else "" for one in tasks.values()]
        head = [name.replace("_", " ") for name in tasks]
        table("right answers, with 95 % intervals", ["language", *head], [*rows, ["guessing", *guessing]])
