"""What the verbs before and after training take. Meanings, units and defaults stand in ``configs/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from common.configuration import open_dictionary
from launch.site import Site
from train.config import at_least, one_of, run_problems
from train.hardware import GPUS, find_gpu

EXPORT_DTYPES = ("fp32", "bf16")
TASKS = ("next_sentence",)


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
        return [*run_problems(self.run), *_step_problems(self.step), *one_of(self, "dtype", EXPORT_DTYPES)]


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
            *at_least(self, 1, "prompt_words", "max_new_tokens"),
            *at_least(self, 0, "temperature", "seed"),
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
            *at_least(self, 1, "ranks", "micro_batch_size", "items_per_language"),
            *at_least(self, 0, "tokens_per_language", "seed"),
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
