"""What may be configured in training. Meanings, units and defaults stand in ``configs/*.yaml``.

Imports nothing heavy: ``hanse train --help`` must answer at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from train.attention_config import attention_problems
from train.config_rules import at_least, one_of
from train.energy.config import EnergyConfig
from train.engine_config import AverageConfig, EngineConfig, LossConfig, OptimizerConfig
from train.evaluate_config import EvaluateConfig
from train.init_config import InitConfig, beginning_problems
from train.pools import mixture_problems
from train.ranks import find_place
from train.sequence_config import sequence_problems
from train.stage_config import StageConfig, StageSchedule
from train.stages import Timeline, stage_problems, timeline_of
from train.tensor_config import tensor_problems
from train.track_config import ProfilingConfig, TrackConfig

if TYPE_CHECKING:
    from train.schedule import Course

DETERMINISM = ("D0", "D1", "D2")
MIXTURE_RULES = ("proportional", "temperature", "unimax")
PACKINGS = ("concatenate", "best_fit")


@dataclass
class DataConfig:
    """Which shards, in which proportions, cut into which windows."""

    shards: str = MISSING
    tokenizer: str = MISSING
    sequence_length: int = MISSING
    packing: str = "concatenate"
    mixture: dict[str, float] = field(default_factory=dict)
    mixture_rule: str = "proportional"
    temperature: float = 3.0
    max_epochs: float = 4.0
    verify_hashes: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the mixture, one line each."""
        found = mixture_problems(self.mixture)
        if self.mixture and self.mixture_rule != "proportional":
            found.append(f"data.mixture_rule={self.mixture_rule}: data.mixture gives the weights; empty it "
                         "('data.mixture={}') or leave the rule out")  # fmt: skip
        for key in ("temperature", "max_epochs"):
            if not 0 < getattr(self, key) < float("inf"):
                found.append(f"data.{key}={getattr(self, key)}: must be above 0, and finite")
        return found


@dataclass
class ModelConfig:
    """A ``transformers`` architecture and the settings of its configuration class.

    ``vocabulary_size`` is for plans: a run takes that of its shards. Both are rounded up to ``vocabulary_multiple``.
    """

    architecture: str = MISSING
    settings: dict[str, Any] = field(default_factory=dict)
    attention: str = "auto"
    vocabulary_size: int = 32_768
    vocabulary_multiple: int = 1
    init: InitConfig = field(default_factory=InitConfig)


@dataclass
class BatchConfig:
    """Sizes in sequences of ``data.sequence_length`` tokens."""

    global_batch_size: int = MISSING
    micro_batch_size: int = MISSING


@dataclass
class ScheduleConfig(StageSchedule):
    """The same of a whole run, or of its stages up to the first that has a schedule of its own."""

    warmup_steps: int = MISSING
    decay_fraction: float = MISSING


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = MISSING
    every_minutes: float = 0.0
    keep_last: int = 2
    keep_every_steps: int = 0
    keep_best: int = 0
    asynchronous: bool = True


@dataclass
class SpikesConfig:
    """What counts as a spike of the loss or the gradient norm, and what follows (train/guards/spikes.py)."""

    sigma: float = 0.0
    window: int = 128
    rewind_after: int = 0
    rewind_within: int = 50
    rewind_margin: int = 0
    max_rewinds: int = 3


@dataclass
class GuardsConfig:
    """What a run watches itself with."""

    watchdog_seconds: float = 600.0
    watchdog_slow_seconds: float = 1500.0
    times_every_steps: int = 100
    slow_ratio: float = 1.5
    weights_every_steps: int = 100
    layer_norms_every_steps: int = 0
    spikes: SpikesConfig = field(default_factory=SpikesConfig)


@dataclass
class TrainConfig:
    """Everything ``hanse train`` takes."""

    name: str = MISSING
    run: str = MISSING
    seed: int = 0
    tokens: int = MISSING
    ranks: int = 2
    threads_per_rank: int = 0
    determinism: str = "D0"
    state_hash_every_steps: int = 0
    lock: str | None = None
    init_from: str | None = None
    init_tokenizer: str | None = None
    init_embeddings: str = "pieces"
    init_changes: list[str] = field(default_factory=list)
    until_step: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: AverageConfig = field(default_factory=AverageConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    profile: bool = False
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    stages: list[StageConfig] = field(default_factory=list)
    change_stages: bool = False
    experiment: Any = None

    @cached_property
    def timeline(self) -> Timeline:
        """Which step, sample and token belongs to which stage; what every count of them is taken from."""
        return timeline_of(self)

    @cached_property
    def courses(self) -> list[Course]:
        """The learning rate (:mod:`train.schedule`)."""
        from train.schedule import courses_of

        return courses_of(self)

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole budget of tokens."""
        return self.timeline.steps

    @property
    def ranks_of_start(self) -> int:
        """Ranks that srun or torchrun started, where this process is one of them; else ``ranks``."""
        place = find_place(os.environ)
        return place.ranks if place else self.ranks

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [
            *at_least(self, 1, "tokens", "ranks", "data.sequence_length", "batch.global_batch_size",
                       "batch.micro_batch_size", "checkpoint.every_steps", "checkpoint.keep_last",
                       "evaluate.every_steps", "evaluate.tokens_per_language", "evaluate.items_per_language",
                       "model.vocabulary_size", "model.vocabulary_multiple"),
            *at_least(self, 0, "seed", "threads_per_rank", "state_hash_every_steps",
                       "checkpoint.keep_every_steps", "checkpoint.every_minutes", "checkpoint.keep_best",
                       "guards.watchdog_seconds", "guards.watchdog_slow_seconds", "guards.times_every_steps",
                       "guards.weights_every_steps", "guards.layer_norms_every_steps", "guards.spikes.sigma",
                       "guards.spikes.rewind_after", "guards.spikes.rewind_margin", "guards.spikes.max_rewinds"),
            *at_least(self, 1, "guards.slow_ratio", "guards.spikes.rewind_within"),
            *at_least(self, 8, "guards.spikes.window"),
            *one_of(self, "determinism", DETERMINISM),
            *attention_problems(self),
            *sequence_problems(self),
            *tensor_problems(self),
            *(f"schedule.{line}" for line in self.schedule.problems()),
            *one_of(self, "data.mixture_rule", MIXTURE_RULES),
            *one_of(self, "data.packing", PACKINGS),
            *self.data.problems(),
            *self.track.problems(),
            *self.evaluate.problems(),
            *self.energy.problems(),
            *beginning_problems(self),
            *self.optimizer.problems(),
            *self.loss.problems(),
            *self.ema.problems(),
            *self.engine.problems(self),
        ]  # fmt: skip
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            found.append(f"name={self.name}: folders are named by it; leave out '..' and a leading '/'")
        if self.until_step is not None and self.until_step < 1:
            found.append(f"until_step={self.until_step}: must be 1 or more; null: to the end")
        if self.determinism == "D2" and self.threads_per_rank == 0:
            found.append("threads_per_rank=0: with determinism=D2 it must be set (threads_per_rank=1), or it would "
                         "change with the number of ranks, and sums inside a rank with it")  # fmt: skip
        if self.guards.spikes.rewind_after and not self.guards.spikes.sigma:
            found.append("guards.spikes.rewind_after: counts spikes, and guards.spikes.sigma=0 looks for none; set "
                         "e.g. guards.spikes.sigma=6")  # fmt: skip
        if self.guards.spikes.rewind_after > self.guards.spikes.rewind_within:
            found.append(f"guards.spikes.rewind_after={self.guards.spikes.rewind_after}: so many do not fit into "
                         f"guards.spikes.rewind_within={self.guards.spikes.rewind_within} steps")  # fmt: skip
        profiling = self.profiling.problems(max(self.ranks_of_start, 1)) if self.profile else []
        return [*found, *stage_problems(self), *profiling]

    def without_effect(self) -> list[str]:
        """What somebody who starts a new run has set in vain, one line each."""
        from train.effect_config import without_effect

        return [] if (Path(self.run) / "config.yaml").is_file() else without_effect(self)

    def look(self) -> None:
        """What ``--check`` looks for beside, where the shards are here: that they have what the mixtures name.

        Raises:
            HanseError: naming what is not there, and what there is.
        """
        if (Path(self.data.shards) / "manifest.json").is_file() and find_spec("numpy"):  # a login node may lack it
            from data_pipelines.shards import ShardsManifest
            from train.pools import check_mixtures

            check_mixtures(self, ShardsManifest.read(Path(self.data.shards)))


def batch_problems(batch: BatchConfig, ranks: int, sharing: int = 1) -> list[str]:
    """The arithmetic of a global batch: micro-batch x ranks x accumulation must give it exactly.

    Ranks that share sequences or matrices are one, and ``sharing``, their number, divides ``ranks``.
    """
    unit = batch.micro_batch_size * ranks // sharing
    if batch.global_batch_size % unit == 0:
        return []
    below, above = batch.global_batch_size // unit * unit, -(-batch.global_batch_size // unit) * unit
    nearest = f"{below} or {above}" if below else str(above)
    fewer, more = ([other for other in counts if other % sharing == 0
                    and batch.global_batch_size % (batch.micro_batch_size * other // sharing) == 0][:1]
                   for counts in (range(ranks - 1, 0, -1), range(ranks + 1, 2 * ranks + 1)))  # fmt: skip
    of_ranks = f"; or {' or '.join(map(str, [*fewer, *more]))} ranks" if fewer or more else ""
    shared, by = (" / (engine.sequence_parallel or tensor_parallel)", f" / {sharing}") if sharing > 1 else ("", "")
    return [f"batch.global_batch_size={batch.global_batch_size}: not a multiple of batch.micro_batch_size x ranks"
            f"{shared} = {batch.micro_batch_size} x {ranks}{by} = {unit}; nearest: {nearest}{of_ranks}"]  # fmt: skip


def run_problems(run: str, key: str = "run") -> list[str]:
    """What is wrong with the folder of a run, named by ``key``."""
    if not (Path(run) / "config.yaml").is_file():
        return [f"{key}={run}: no run folder of 'hanse train' (no config.yaml in it)"]
    return []
