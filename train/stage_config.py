"""What a stage of a run may have of its own. Meanings, units and defaults stand in ``configs/train.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from train.config_rules import at_least, one_of

DECAYS = ("linear", "1-sqrt", "cosine")


@dataclass
class StageSchedule:
    """Warmup, middle, decay, from a stage on; the shapes and their sources stand in :mod:`train.schedule`."""

    warmup_steps: int = 0
    decay_fraction: float = 0.0
    decay: str = "1-sqrt"
    final_fraction: float = 0.0
    fall: float = 0.0

    def problems(self) -> list[str]:
        """Everything wrong with the values by themselves, one line each."""
        found = [*at_least(self, 0, "warmup_steps", "final_fraction", "fall"), *one_of(self, "decay", DECAYS)]
        if not 0 <= self.decay_fraction <= 1:
            found.append(f"decay_fraction={self.decay_fraction}: a share of the tokens, in [0, 1]")
        return found


@dataclass
class StageData:
    """What replaces keys of ``data`` in a stage; None: as the run has it."""

    sequence_length: int | None = None
    mixture: dict[str, float] | None = None
    mixture_rule: str | None = None
    temperature: float | None = None
    max_epochs: float | None = None


@dataclass
class StageBatch:
    """What replaces keys of ``batch`` in a stage; None: as the run has it."""

    global_batch_size: int | None = None
    micro_batch_size: int | None = None


@dataclass
class StageConfig:
    """A part of a run's budget of tokens, and what is its own there (:mod:`train.stages`)."""

    name: str = MISSING
    tokens: int | None = None
    data: StageData = field(default_factory=StageData)
    batch: StageBatch = field(default_factory=StageBatch)
    learning_rate: float | None = None
    schedule: StageSchedule | None = None
    rope_theta: float | None = None
