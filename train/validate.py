"""What a run measures of itself where it is due: validation text, and the tasks that it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from train.evaluate import LanguageScore
from train.guards.finite import due

if TYPE_CHECKING:
    from train.setup import Run

KEPT = ("bits_per_byte", "task_accuracy")  # keys of a checkpoint's state.json


@dataclass(frozen=True)
class Measured:
    """One evaluation; empty where none was due.

    Attributes:
        step: after which it was made; 0: none was due.
        losses: of every language.
        tasks: {task: {language: accuracy, standard error ...}} (:func:`train.tasks.summary`).
    """

    step: int = 0
    losses: dict[str, LanguageScore] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """What is kept in the state of a checkpoint; bits per byte tell the best one."""
        bits = {name: loss.bits_per_byte for name, loss in self.losses.items()}
        right = {task: {language: row["accuracy"] for language, row in rows.items()}
                 for task, rows in self.tasks.items()}  # fmt: skip
        return {key: value for key, value in zip(KEPT, (bits, right), strict=True) if value}


def evaluated(run: Run, step: int, *, last: bool) -> Measured:
    """Where it is due, measure every language, and tell of it. Collective."""
    if not (last or due(step, run.config.evaluate.every_steps)):
        return Measured()
    with run.watchdog.slowly("evaluating"), run.watch.part("evaluation"):
        losses = run.evaluation.run(run.engine, run.place)
        tasks = run.tasks.run(run.engine, run.place) if run.tasks else {}
    run.metrics.evaluation(step, losses, tasks)
    return Measured(step, losses, tasks)
