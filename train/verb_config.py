"""What the verbs before and after training take. Meanings, units and defaults stand in ``configs/*.yaml``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from common.configuration import open_dictionary
from launch.site import Site
from launch.sweep_record import is_sweep
from train.config import at_least, one_of, run_problems
from train.evaluate_config import task_problems
from train.hardware import GPUS, find_gpu

EXPORT_DTYPES = ("fp32", "bf16")
WEIGHTS = ("master", "ema")
ALL = "all"  # steps that 'hanse evaluate' is asked for


@dataclass
class ExportConfig:
    """What ``hanse export`` takes."""

    run: str = MISSING
    step: int | None = None
    weights: str = "master"
    output: str = MISSING
    dtype: str = "fp32"
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *_step_problems(self.step), *one_of(self, "weights", WEIGHTS),
                *one_of(self, "dtype", EXPORT_DTYPES)]  # fmt: skip


@dataclass
class GenerateConfig:
    """What ``hanse generate`` takes."""

    run: str = MISSING
    step: int | None = None
    weights: str = "master"
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
            *one_of(self, "weights", WEIGHTS),
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
    step: int | str | None = None
    weights: str = "master"
    ranks: int = 1
    tokens_per_language: int = 0
    micro_batch_size: int = 4
    tasks: list[str] = field(default_factory=list)
    items_per_language: int = 200
    lm_eval: list[str] = field(default_factory=list)
    lm_eval_folder: str | None = None
    samples: int = 1
    sample_tokens: int = 48
    seed: int = 0
    output: str | None = None
    shards: str | None = None
    tokenizer: str | None = None
    corpus: str | None = None
    experiment: Any = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [
            *run_problems(self.run),
            *_evaluated_step_problems(self),
            *one_of(self, "weights", WEIGHTS),
            *at_least(self, 1, "ranks", "micro_batch_size", "items_per_language", "sample_tokens"),
            *at_least(self, 0, "tokens_per_language", "samples", "seed"),
        ]
        if self.lm_eval_folder is not None and not Path(self.lm_eval_folder).is_dir():
            found.append(f"lm_eval_folder={self.lm_eval_folder}: no such folder; null: lm-eval's own tasks alone")
        if self.lm_eval and importlib.util.find_spec("lm_eval") is None:
            found.append("lm_eval: lm-eval is not installed (pip install 'hanse[eval]'); [] leaves it out")
        return found + task_problems("tasks", self.tasks)


@dataclass
class PlanConfig:
    """What ``hanse plan`` takes."""

    train: Any = field(default_factory=open_dictionary)
    site: Site = field(default_factory=Site)
    gpu: str | None = None
    gpu_memory_gb: float | None = None
    gpus_per_node: int | None = None
    network_gbit: float | None = None
    nodes: Any = field(default_factory=lambda: [1])  # one number or several
    mfu: float = 0.4
    measured_in: str | None = None
    spare_memory: float = 0.1
    storage_gb_per_second: float | None = None
    pue: float | None = None
    node_watts: float = 0.0
    output: str | None = None
    experiment: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.nodes, list):  # nodes=4, as to 'hanse launch'
            self.nodes = [self.nodes]

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = run_problems(self.measured_in, "measured_in") if self.measured_in else []
        if self.gpu is not None and find_gpu(self.gpu) is None:
            found.append(f"gpu={self.gpu}: one of {', '.join(GPUS)}")
        if not self.nodes or not all(isinstance(one, int) and one >= 1 for one in self.nodes):
            found.append(f"nodes={self.nodes}: whole numbers of 1 or more, e.g. [1,2,4]")
        if not 0 < self.mfu <= 1:
            found.append(f"mfu={self.mfu}: a share of the GPU's peak, above 0 and 1 at most")
        if not 0 <= self.spare_memory < 1:
            found.append(f"spare_memory={self.spare_memory}: a share of the GPU's memory, in [0, 1)")
        if self.pue is not None and not self.pue >= 1:
            found.append(f"pue={self.pue}: 1 or more (all the site uses / what its machines use); null: unknown")
        for key in ("gpu_memory_gb", "gpus_per_node", "network_gbit", "storage_gb_per_second"):
            if (value := getattr(self, key)) is not None and not value > 0:
                found.append(f"{key}={value}: must be above 0; null: the site's, or unknown")
        return found + ([] if self.node_watts >= 0 else [f"node_watts={self.node_watts}: must be 0 or more"])


@dataclass
class ReportConfig:
    """What ``hanse report`` takes; ``run`` may be the folder of a sweep."""

    run: str | None = None
    output: str | None = None
    shards: str | None = None
    corpus: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        if self.run is None and self.corpus is None:
            return ["run: must be set (run=runs/NAME), or corpus=data/NAME for the page of a corpus"]
        found = run_problems(self.run) if self.run is not None and not is_sweep(Path(self.run)) else []
        if self.run is not None and self.tokenizer is not None:
            found.append("tokenizer: only the page of a corpus asks for one; leave out run=... or tokenizer=...")
        return found


def _step_problems(step: int | None) -> list[str]:
    return [] if step is None or step >= 1 else [f"step={step}: a checkpoint has a step of 1 or more; null: the latest"]


def _evaluated_step_problems(config: EvaluateVerbConfig) -> list[str]:
    if config.step == ALL:
        return (
            []
            if config.output is None
            else ["output: names one file, and step=all writes one a checkpoint; leave it out"]
        )
    if isinstance(config.step, str):
        return [f"step={config.step}: a number of steps, null (the latest) or all"]
    return _step_problems(config.step)
