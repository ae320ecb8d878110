"""What a training tells beside ``metrics.jsonl``. Meanings, units and defaults stand in ``configs/train.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

WANDB_MODES = ("offline", "online", "disabled")


@dataclass
class TrackConfig:
    """Metrics beside ``metrics.jsonl``, which is always written."""

    wandb: str = "offline"
    wandb_project: str = "hanse"
    tensorboard: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = []
        if self.wandb not in WANDB_MODES:
            found.append(f"track.wandb={self.wandb}: one of {', '.join(WANDB_MODES)}")
        if self.tensorboard and find_spec("tensorboard") is None:
            found.append("track.tensorboard=true: the package tensorboard is not installed; pip install "
                         "'hanse[tensorboard]'")  # fmt: skip
        return found


@dataclass
class ProfilingConfig:
    """Which steps ``profile=true`` traces, and on which ranks (train/profile.py)."""

    after_steps: int = 5
    steps: int = 3
    ranks: list[int] = field(default_factory=lambda: [0])

    def problems(self, ranks: int) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = []
        if self.after_steps < 1:
            found.append(f"profiling.after_steps={self.after_steps}: must be 1 or more; the first step allocates "
                         "and compiles, and starting the tracer takes part of one")  # fmt: skip
        if self.steps < 1:
            found.append(f"profiling.steps={self.steps}: must be 1 or more")
        if not self.ranks or min(self.ranks) < 0 or max(self.ranks) >= ranks:
            found.append(f"profiling.ranks={self.ranks}: some of the ranks 0 to {ranks - 1}, e.g. [0]")
        return found
