"""What may be configured in training and after it. Meanings, units and defaults stand in ``configs/*.yaml``.

Imports nothing heavy: ``hanse train --help`` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from common.configuration import open_dictionary
from launch.site import Site
from train.hardware import GPUS, find_gpu

ZERO_STAGES = (1, 2, 3)
PRECISIONS = ("auto", "bf16", "fp32")
DETERMINISM = ("D0", "D1", "D2")
ATTENTIONS = ("sdpa", "eager")
EXPORT_DTYPES = ("fp32", "bf16")
MIXTURE_RULES = ("proportional", "temperature", "unimax")
DECAYS = ("linear", "1-sqrt", "cosine")
TASKS = ("next_sentence",)
WANDB_MODES = ("offline", "online", "disabled")


@dataclass
class DataConfig:
    """Which shards, in which proportions, cut into which windows."""

    shards: str = MISSING
    tokenizer: str = MISSING
    sequence_length: int = MISSING
    mixture: dict[str, float] = field(default_factory=dict)
    mixture_rule: str = "proportional"
    temperature: float = 3.0
    max_epochs: float = 4.0
    verify_hashes: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the mixture, one line each."""
        found = []
        for key, weight in self.mixture.items():
            if not 0 <= weight < float("inf"):
                found.append(f"data.mixture.{key}={weight}: a weight is a finite number, 0 or more")
        if self.mixture and not any(weight > 0 for weight in self.mixture.values()):
            found.append("data.mixture: at least one language needs a weight above 0")
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
    attention: str = "sdpa"
    vocabulary_size: int = 32_768
    vocabulary_multiple: int = 1


@dataclass
class BatchConfig:
    """Sizes in sequences of ``data.sequence_length`` tokens."""

    global_batch_size: int = MISSING
    micro_batch_size: int = MISSING


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

    learning_rate: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clipping: float = 1.0


@dataclass
class ScheduleConfig:
    """Warmup, middle, decay; the shapes and their sources stand in :mod:`train.schedule`."""

    warmup_steps: int = MISSING
    decay_fraction: float = MISSING
    decay: str = "1-sqrt"
    final_fraction: float = 0.0
    fall: float = 0.0


@dataclass
class EngineConfig:
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv 1910.02054)."""

    zero_stage: int = 1
    precision: str = "auto"
    recompute_every_layers: int = 0


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
class EvaluateConfig:
    """Validation loss a language."""

    every_steps: int = MISSING
    tokens_per_language: int = MISSING


@dataclass
class SpikesConfig:
    """What counts as a spike of the loss or the gradient norm, and what follows (train/spikes.py)."""

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
class TrackConfig:
    """Metrics beside ``metrics.jsonl``, which is always written."""

    wandb: str = "offline"
    wandb_project: str = "hanse"


@dataclass
class FactorConfig:
    """An emission factor of electricity that was given, not looked up."""

    kg_co2e_per_kwh: float | None = None
    year: int | None = None
    source: str | None = None

    def problems(self, key: str) -> list[str]:
        """Everything wrong with the values of ``key``, one line each."""
        if self.kg_co2e_per_kwh is None:
            return []
        found = []
        if not 0 <= self.kg_co2e_per_kwh < float("inf"):
            found.append(f"{key}.kg_co2e_per_kwh={self.kg_co2e_per_kwh}: must be 0 or more")
        if self.year is None or not self.source:
            found.append(f"{key}.kg_co2e_per_kwh={self.kg_co2e_per_kwh}: a factor needs {key}.year=... and "
                         f"{key}.source=..., who says so")  # fmt: skip
        return found


@dataclass
class EnergyConfig:
    """What the energy ledger must be told about the place it runs at. Changes nothing of what is computed."""

    country: str | None = None
    grid: FactorConfig = field(default_factory=FactorConfig)
    market: FactorConfig = field(default_factory=FactorConfig)
    pue: float | None = None
    pue_source: str | None = None
    gpu_watts: float | None = None
    thread_watts: float = 3.5

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        from train.grid import country_factors

        found = [*self.grid.problems("energy.grid"), *self.market.problems("energy.market")]
        if self.country is not None and self.country not in country_factors():
            found.append(f"energy.country={self.country}: one of {', '.join(country_factors())}; for another one give "
                         "energy.grid.kg_co2e_per_kwh, energy.grid.year and energy.grid.source")  # fmt: skip
        if self.pue is not None and not 1 <= self.pue < float("inf"):
            found.append(f"energy.pue={self.pue}: what a site draws for each unit its machines draw, 1 or more")
        if self.gpu_watts is not None and not 0 < self.gpu_watts < float("inf"):
            found.append(f"energy.gpu_watts={self.gpu_watts}: must be above 0")
        if not 0 <= self.thread_watts < float("inf"):
            found.append(f"energy.thread_watts={self.thread_watts}: must be 0 or more")
        return found


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
    until_step: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    experiment: Any = None

    @property
    def tokens_per_step(self) -> int:
        return self.batch.global_batch_size * self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole budget of tokens."""
        return self.tokens // self.tokens_per_step

    @property
    def samples(self) -> int:
        """Sequences that all steps take."""
        return self.steps * self.batch.global_batch_size

    @property
    def decay_steps(self) -> int:
        return round(self.steps * self.schedule.decay_fraction)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches a rank runs in one step."""
        return self.batch.global_batch_size // (self.batch.micro_batch_size * ranks)

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [
            *_at_least(self, 1, "tokens", "ranks", "data.sequence_length", "batch.global_batch_size",
                       "batch.micro_batch_size", "checkpoint.every_steps", "checkpoint.keep_last",
                       "evaluate.every_steps", "evaluate.tokens_per_language",
                       "model.vocabulary_size", "model.vocabulary_multiple"),
            *_at_least(self, 0, "seed", "threads_per_rank", "state_hash_every_steps",
                       "schedule.warmup_steps", "schedule.final_fraction",
                       "engine.recompute_every_layers", "checkpoint.keep_every_steps", "checkpoint.every_minutes",
                       "checkpoint.keep_best", "optimizer.weight_decay", "optimizer.gradient_clipping",
                       "schedule.fall",
                       "guards.watchdog_seconds", "guards.watchdog_slow_seconds", "guards.times_every_steps",
                       "guards.weights_every_steps", "guards.layer_norms_every_steps", "guards.spikes.sigma",
                       "guards.spikes.rewind_after", "guards.spikes.rewind_margin", "guards.spikes.max_rewinds"),
            *_at_least(self, 1, "guards.slow_ratio", "guards.spikes.rewind_within"),
            *_at_least(self, 8, "guards.spikes.window"),
            *_one_of(self, "determinism", DETERMINISM),
            *_one_of(self, "engine.zero_stage", ZERO_STAGES),
            *_one_of(self, "engine.precision", PRECISIONS),
            *_one_of(self, "model.attention", ATTENTIONS),
            *_one_of(self, "schedule.decay", DECAYS),
            *_one_of(self, "data.mixture_rule", MIXTURE_RULES),
            *_one_of(self, "track.wandb", WANDB_MODES),
            *self.data.problems(),
            *self.energy.problems(),
        ]  # fmt: skip
        if not self.optimizer.learning_rate > 0:
            found.append(f"optimizer.learning_rate={self.optimizer.learning_rate}: must be above 0")
        if len(self.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in self.optimizer.betas):
            found.append(f"optimizer.betas={self.optimizer.betas}: two numbers in [0, 1), e.g. [0.9, 0.95]")
        if not 0 <= self.schedule.decay_fraction <= 1:
            found.append(f"schedule.decay_fraction={self.schedule.decay_fraction}: a share of the steps, in [0, 1]")
        if self.until_step is not None and self.until_step < 1:
            found.append(f"until_step={self.until_step}: must be 1 or more; null: to the end")
        if self.determinism == "D2" and self.threads_per_rank == 0:
            found.append("threads_per_rank=0: with determinism=D2 it must be set (threads_per_rank=1), or it would "
                         "change with the number of ranks, and sums inside a rank with it")  # fmt: skip
        if self.determinism != "D0" and self.engine.precision == "auto":
            found.append(f"engine.precision=auto: with determinism={self.determinism} it must be set (bf16 or fp32), "
                         "not measured")  # fmt: skip
        if self.guards.spikes.rewind_after and not self.guards.spikes.sigma:
            found.append("guards.spikes.rewind_after: counts spikes, and guards.spikes.sigma=0 looks for none; set "
                         "e.g. guards.spikes.sigma=6")  # fmt: skip
        if self.guards.spikes.rewind_after > self.guards.spikes.rewind_within:
            found.append(f"guards.spikes.rewind_after={self.guards.spikes.rewind_after}: so many do not fit into "
                         f"guards.spikes.rewind_within={self.guards.spikes.rewind_within} steps")  # fmt: skip
        return found or [*batch_problems(self.batch, self.ranks), *self._budget_problems()]

    def _budget_problems(self) -> list[str]:
        if self.steps < 1:
            return [f"tokens={self.tokens}: less than one step, which takes batch.global_batch_size x "
                    f"data.sequence_length = {self.tokens_per_step} tokens"]  # fmt: skip
        if self.schedule.warmup_steps + self.decay_steps > self.steps:
            return [f"schedule.warmup_steps={self.schedule.warmup_steps}: warmup and decay ({self.decay_steps} steps) "
                    f"do not fit into the {self.steps} steps that tokens={self.tokens} gives"]  # fmt: skip
        return []


def batch_problems(batch: BatchConfig, ranks: int) -> list[str]:
    """The arithmetic of a global batch: micro-batch x ranks x accumulation must give it exactly."""
    unit = batch.micro_batch_size * ranks
    if batch.global_batch_size % unit == 0:
        return []
    below, above = batch.global_batch_size // unit * unit, -(-batch.global_batch_size // unit) * unit
    nearest = f"{below} or {above}" if below else str(above)
    return [f"batch.global_batch_size={batch.global_batch_size}: not a multiple of batch.micro_batch_size x ranks = "
            f"{batch.micro_batch_size} x {ranks} = {unit}; nearest: {nearest}"]  # fmt: skip


@dataclass
class ExportConfig:
    """What ``hanse export`` takes."""

    run: str = MISSING
    step: int | None = None
    output: str = MISSING
    dtype: str = "fp32"
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *_step_problems(self.step), *_one_of(self, "dtype", EXPORT_DTYPES)]


@dataclass
class GenerateConfig:
    """What ``hanse generate`` takes."""

    run: str = MISSING
    step: int | None = None
    prompts: list[str] = field(default_factory=list)
    prompt_words: int = 8
    max_new_tokens: int = 48
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [
            *run_problems(self.run),
            *_step_problems(self.step),
            *_at_least(self, 1, "prompt_words", "max_new_tokens"),
            *_at_least(self, 0, "temperature", "seed"),
        ]
        if not 0 < self.top_p <= 1:
            found.append(f"top_p={self.top_p}: must be above 0, and 1 at most")
        if not all(prompt.strip() for prompt in self.prompts):
            found.append('prompts: one of them is empty; write e.g. \'prompts=["Au commencement","Im Anfang"]\'')
        return found


@dataclass
class EvaluateVerbConfig:
    """What ``hanse evaluate`` takes."""

    run: str = MISSING
    step: int | None = None
    ranks: int = 1
    tokens_per_language: int = 0
    micro_batch_size: int = 4
    tasks: list[str] = field(default_factory=list)
    items_per_language: int = 200
    seed: int = 0
    output: str | None = None
    shards: str | None = None
    tokenizer: str | None = None
    experiment: Any = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [
            *run_problems(self.run),
            *_step_problems(self.step),
            *_at_least(self, 1, "ranks", "micro_batch_size", "items_per_language"),
            *_at_least(self, 0, "tokens_per_language", "seed"),
        ]
        unknown = [name for name in self.tasks if name not in TASKS]
        return found + [f"tasks: no task '{name}'; there is {', '.join(TASKS)}" for name in unknown]


@dataclass
class PlanConfig:
    """What ``hanse plan`` takes."""

    train: Any = field(default_factory=open_dictionary)
    site: Site = field(default_factory=Site)
    gpu: str | None = None
    gpu_memory_gb: float | None = None
    gpus_per_node: int | None = None
    nodes: list[int] = field(default_factory=lambda: [1])
    mfu: float = 0.4
    measured_in: str | None = None
    spare_memory: float = 0.1
    storage_gb_per_second: float | None = None
    pue: float | None = None
    node_watts: float = 0.0
    output: str | None = None
    experiment: Any = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = run_problems(self.measured_in, "measured_in") if self.measured_in else []
        if self.gpu is not None and find_gpu(self.gpu) is None:
            found.append(f"gpu={self.gpu}: one of {', '.join(GPUS)}")
        if not self.nodes or min(self.nodes) < 1:
            found.append(f"nodes={self.nodes}: numbers of 1 or more, e.g. [1,2,4]")
        if not 0 < self.mfu <= 1:
            found.append(f"mfu={self.mfu}: a share of the GPU's peak, above 0 and 1 at most")
        if not 0 <= self.spare_memory < 1:
            found.append(f"spare_memory={self.spare_memory}: a share of the GPU's memory, in [0, 1)")
        if self.pue is not None and not self.pue >= 1:
            found.append(f"pue={self.pue}: 1 or more (all the site uses / what its machines use); null: unknown")
        for key in ("gpu_memory_gb", "gpus_per_node", "storage_gb_per_second"):
            if (value := getattr(self, key)) is not None and not value > 0:
                found.append(f"{key}={value}: must be above 0; null: the site's, or unknown")
        return found + ([] if self.node_watts >= 0 else [f"node_watts={self.node_watts}: must be 0 or more"])


@dataclass
class ReportConfig:
    """What ``hanse report`` takes."""

    run: str = MISSING
    output: str = MISSING
    shards: str | None = None
    corpus: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return run_problems(self.run)


def _step_problems(step: int | None) -> list[str]:
    return [] if step is None or step >= 1 else [f"step={step}: a checkpoint has a step of 1 or more; null: the latest"]


def run_problems(run: str, key: str = "run") -> list[str]:
    """What is wrong with the folder of a run, named by ``key``."""
    if not (Path(run) / "config.yaml").is_file():
        return [f"{key}={run}: no run folder of 'hanse train' (no config.yaml in it)"]
    return []


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _at_least(config: Any, least: int, *keys: str) -> list[str]:
    return [f"{key}={_value(config, key)}: must be {least} or more" for key in keys if not _value(config, key) >= least]


def _one_of(config: Any, key: str, allowed: tuple[Any, ...]) -> list[str]:
    value = _value(config, key)
    return [] if value in allowed else [f"{key}={value}: one of {', '.join(map(str, allowed))}"]
