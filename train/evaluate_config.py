"""What is measured on a run's way, and which tasks there are to ask. Defaults stand in ``configs/train.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

TASKS = ("next_sentence", "description", "last_word")  # train/tasks.py


@dataclass
class EvaluateConfig:
    """Validation loss of each language and source, and tasks."""

    every_steps: int = MISSING
    tokens_per_language: int = MISSING
    tasks: list[str] = field(default_factory=list)
    items_per_language: int = 50

    def problems(self) -> list[str]:
        """Everything wrong with the tasks, one line each."""
        return task_problems("evaluate.tasks", self.tasks)


def task_problems(key: str, names: Sequence[str]) -> list[str]:
    """A line for each of the tasks under ``key`` that does not exist, or is named twice."""
    found = [f"{key}: no task '{name}'; there is {', '.join(TASKS)}" for name in names if name not in TASKS]
    twice = [name for name in dict.fromkeys(names) if name in TASKS and names.count(name) > 1]
    return found + [f"{key}: '{name}' is named twice" for name in twice]
