"""Which rank is slow: what each spends by itself, told to all in the sum that is made every step anyway.

A step takes equally long on every rank, because all wait for the slowest. So two parts of it are measured in which
ranks wait for nobody: the forward passes (at ZeRO 3 they gather parameters, which hides a slow rank in part), and the
wait for data. On a GPU the forward passes are timed by events in its own queue, read when the host waits for the step's
loss anyway. With them goes the most memory that each rank has held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch

from train.ranks import Place
from train.stopwatch import Stopwatch, memory_bytes

PARTS = ("forward", "data wait")
COLUMNS = len(PARTS) + 1  # and the peak of memory
LEAST_EXCESS = 0.05  # of a step; less is nobody's business


class Times:
    """What this rank's stopwatch has counted since the last report."""

    def __init__(self, place: Place, every_steps: int, watch: Stopwatch):
        self.place, self.every_steps, self.watch = place, every_steps, watch
        self._steps, self._before = 0, watch.seconds()

    def report(self, step: int) -> torch.Tensor:
        """This rank's part of the report after ``step`` steps.

        Returns:
            float64 of shape (3 x ranks,): mean seconds a step and bytes at the places of this rank, 0 elsewhere, so
            that the sum over the ranks holds all of them; of shape (0,) when no report is due.
        """
        self._steps += 1
        if not self.every_steps or step % self.every_steps:
            return torch.zeros(0, dtype=torch.float64)
        now, told = self.watch.seconds(), torch.zeros(self.place.ranks, COLUMNS, dtype=torch.float64)
        means = [(now[part] - self._before[part]) / self._steps for part in PARTS]
        told[self.place.rank] = torch.tensor([*means, max(memory_bytes().values())])
        self._steps, self._before = 0, now
        return told.view(-1)


@dataclass(frozen=True)
class Slow:
    """A rank that takes longer for a part of the step than the others; seconds a step."""

    rank: int
    node: str
    part: str
    seconds: float
    median: float

    def __str__(self) -> str:
        return (f"rank {self.rank} on {self.node}: {self.part} {self.seconds:.3g} s a step, "
                f"the median rank {self.median:.3g} s")  # fmt: skip


def slow_ranks(told: torch.Tensor, nodes: Sequence[str], *, ratio: float, step_seconds: float) -> list[Slow]:
    """Ranks above ``ratio`` times the median in any part, if it is more than 5 % of a step; the slowest first.

    Args:
        told: the sum of all ranks' :meth:`Times.report`.
    """
    found = []
    for column, part in enumerate(PARTS):
        seconds = told.view(-1, COLUMNS)[:, column].tolist()
        usual = median_low(seconds)  # of two ranks the faster one
        found += [Slow(rank, nodes[rank], part, value, usual) for rank, value in enumerate(seconds)
                  if value > ratio * usual and value - usual > LEAST_EXCESS * step_seconds]  # fmt: skip
    return sorted(found, key=lambda one: one.median - one.seconds)


def summary_of(told: torch.Tensor, nodes: Sequence[str], slow: Sequence[Slow]) -> dict[str, Any]:
    """The report as ``metrics.jsonl`` has it: the median and the largest of each column, and who is slow."""
    *parts, memory = (_spread(column, nodes) for column in told.view(-1, COLUMNS).T.tolist())
    return {"parts": dict(zip(PARTS, parts, strict=True)), "slow": [vars(one) for one in slow[:8]],
            "peak_memory_bytes": memory}  # fmt: skip


def _spread(values: Sequence[float], nodes: Sequence[str]) -> dict[str, Any]:
    rank = max(range(len(values)), key=values.__getitem__)
    return {"median": median_low(values), "largest": values[rank], "rank": rank, "node": nodes[rank]}
