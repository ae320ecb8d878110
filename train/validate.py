"""What a run measures of itself where it is due: validation text, and the tasks that it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from train.evaluate import LanguageScore, all_reduce_sum
from train.ranks import Place, gathered, together
from train.requests import Requests
from train.run_folder import RunFolder, evaluations_in

if TYPE_CHECKING:
    from train.setup import Run

KEPT = ("bits_per_byte", "task_accuracy")  # keys of a checkpoint's state.json
OWED = "evaluation_owed"  # also one: its evaluation was left for a stop, and the start that goes on is to make it


class Left(Exception):  # noqa: N818
    """A rank was asked to stop while all evaluate; raised on all of them at the same micro-batch."""


@dataclass(frozen=True)
class Measured:
    """One evaluation; empty where none was due.

    Attributes:
        left: none was made, because a stop was asked for meanwhile.
        losses: of every language.
        tasks: {task: {language: accuracy, standard error ...}} (:func:`train.tasks.summary`).
    """

    left: bool = False
    losses: dict[str, LanguageScore] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """What is kept in the state of a checkpoint; bits per byte tell the best one."""
        if self.left:
            return {OWED: True}
        bits = {name: loss.bits_per_byte for name, loss in self.losses.items()}
        right = {task: {language: row["accuracy"] for language, row in rows.items()}
                 for task, rows in self.tasks.items()}  # fmt: skip
        return {key: value for key, value in zip(KEPT, (bits, right), strict=True) if value}


def evaluated(run: Run, requests: Requests, step: int) -> Measured:
    """Measure every language, and tell of it; leave it when asked to stop, but for the run's last one. Collective."""

    def pause() -> None:
        run.watchdog.at("agreeing to go on evaluating")
        asked = torch.tensor([requests.stop(run.place)], dtype=torch.float64)
        if step < run.config.steps and all_reduce_sum(asked, run.engine).any():
            raise Left

    with run.watchdog.slowly("evaluating"), run.watch.part("evaluation"):
        try:
            losses = run.evaluation.run(run.engine, run.place, pause)
            tasks = run.tasks.run(run.engine, run.place, pause) if run.tasks else {}
        except Left:
            run.metrics.say(f"step {step}: asked to stop: its evaluation is left, the next start makes it")
            return Measured(left=True)
    run.metrics.evaluation(step, losses, tasks)
    return Measured(losses=losses, tasks=tasks)


def owes_evaluation(folder: RunFolder, state: Mapping[str, Any], place: Place) -> bool:
    """Whether the start that saved ``state`` left its evaluation, and none has made it since. Collective."""
    if not state.get(OWED):
        return False
    with together(place):
        owed = place.first and state["step"] not in evaluations_in(folder.metrics)
    return bool(gathered(place, owed)[0])


def make_up(run: Run, requests: Requests) -> Measured:
    """The evaluation that the start before left, if it did, with the rotary embedding of its own step. Collective."""
    if not run.owes_evaluation:
        return Measured()
    run.engine.set_rope(run.data.models[run.config.timeline.at(run.first_step - 1).rope_theta])
    return evaluated(run, requests, run.first_step)
