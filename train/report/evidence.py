"""Everything that a run folder says, and what its shards and corpus say where they are still there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.charts import PALETTE
from common.errors import HanseError
from common.files import read_json
from common.terminal import many
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import ShardsManifest
from train.config import TrainConfig
from train.data_table import corpus_of
from train.energy.slurm import ask
from train.energy.totals import EnergyTotals, energy_totals
from train.evaluations import Saved, read_evaluations
from train.pools import language_of
from train.run_folder import RunFolder, read_metrics
from train.verb_config import ReportConfig

Record = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Everything that a run folder says, and what its shards and corpus say where they are still there."""

    folder: RunFolder
    config: TrainConfig
    records: list[Record]
    summary: dict[str, Any]
    shards: ShardsManifest | None
    corpus: CorpusManifest | None
    energy: EnergyTotals
    saved: list[Saved]  # what `hanse evaluate` wrote, by step
    wrong: list[str]  # of evaluations that are not of this run's checkpoints

    @cached_property
    def steps(self) -> list[Record]:
        return [record for record in self.records if "loss" in record]

    @cached_property
    def evaluations(self) -> list[Record]:
        return [record for record in self.records if "evaluation" in record]

    @cached_property
    def events(self) -> list[Record]:
        return [record for record in self.records if "event" in record]

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def status(self) -> str:
        """How far it came."""
        if self.last_step >= self.config.steps:
            return f"finished, {many(self.last_step, 'step')}"
        return f"step {self.last_step:,} of {self.config.steps:,}"

    @property
    def start(self) -> Record:
        """The latest start or resume: how and where the newest steps were made."""
        return next((event for event in reversed(self.events) if event["event"] in ("start", "resume")), {})

    @property
    def totals(self) -> Record:
        """``summary.json``, as long as it speaks of the last step."""
        return self.summary if self.summary.get("steps") == self.last_step else {}

    @cached_property
    def languages(self) -> list[str]:
        """Languages that were trained on or validated, in alphabetical order."""
        found = {name for record in self.steps for name in record.get("loss_by_language", {})}
        return sorted(found | {name for record in self.evaluations for name in record["evaluation"]})

    def colour(self, language: str) -> int:
        """The same colour for a language in every chart; one for all where the palette is too small."""
        return 1 + self.languages.index(language) if len(self.languages) <= PALETTE else 1

    @property
    def colours_differ(self) -> bool:
        return 1 < len(self.languages) <= PALETTE

    @cached_property
    def unigram(self) -> dict[str, float]:
        """Bits per byte of the unigram baseline, {} where it cannot be told.

        A run that was never stopped in good order has no summary: its baseline is counted from the shards.
        """
        said = {name: row.get("unigram_bits_per_byte") for name, row in self.summary.get("languages", {}).items()}
        known = {name: value for name, value in said.items() if value is not None}
        if known or not self.evaluations or self.shards is None:
            return known
        try:
            return count_unigram(self.config, self.shards)
        except HanseError:  # shards or tokenizer are not intact: the report does without
            return {}


def read_evidence(config: ReportConfig) -> Evidence:
    """Read a run folder.

    Raises:
        HanseError: its configuration, metrics, summary or a ledger is missing or not readable.
    """
    assert config.run is not None
    folder = RunFolder(config.run)
    settings, summary = folder.read_config(), folder.path / "summary.json"
    shards = _there(Path(config.shards or settings.data.shards))
    corpus = corpus_of(shards, Path(config.corpus) if config.corpus else None) if shards else None
    ask(folder)
    saved, wrong = read_evaluations(folder)
    return Evidence(
        folder=folder,
        config=settings,
        records=read_metrics(folder.metrics),
        summary=read_json(summary, "summary") if summary.is_file() else {},
        shards=shards,
        corpus=corpus,
        energy=energy_totals(folder.path),
        saved=saved,
        wrong=wrong,
    )


def _there(folder: Path) -> ShardsManifest | None:
    """The shards' manifest; None where they are no longer there (a run folder that was copied elsewhere)."""
    try:
        return ShardsManifest.read(folder)
    except HanseError:
        return None


def count_unigram(config: TrainConfig, shards: ShardsManifest) -> dict[str, float]:
    """What ``hanse train`` says of the unigram baseline at its end, {language: bits per byte}."""
    from data_pipelines.tokenizer import token_byte_lengths
    from train.evaluate import Evaluation
    from train.stream import open_sources

    length, mixtures = config.data.sequence_length, [stage.data.mixture for stage in config.timeline]
    validation, training = (open_sources(shards, split, length, config.seed) for split in ("validation", "train"))
    named = {language_of(key) for mixture in mixtures for key, weight in mixture.items() if weight > 0}
    used = {name: source for name, source in training.items() if name in named or not all(mixtures)}
    evaluation = Evaluation(validation, config.evaluate.tokens_per_language, config.batch.micro_batch_size,
                            token_byte_lengths(config.data.tokenizer))  # fmt: skip
    return {name: loss.bits_per_byte for name, loss in evaluation.unigram(used, shards.vocabulary_size).items()}
