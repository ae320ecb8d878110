"""Which rank is slow: what each spends by itself, told to all in the sum that is made every step anyway.

A step takes equally long on every rank, because all wait for the slowest. So two parts of it are measured in which
ranks wait for nobody: the forward passes (at ZeRO 3 they gather parameters, which hides a slow rank in part), and the
wait for data. On a GPU the forward passes are timed by events in its own queue, read when the host waits for the step's
loss anyway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch

from train.ranks import Place

PARTS = ("forward", "data wait")
LEAST_EXCESS = 0.05  # of a step; less is nobody's business


class Times:
    """Seconds of this rank since the last report."""

    def __init__(self, place: Place, every_steps: int):
        self.place, self.every_steps = place, every_steps
        self._steps, self._seconds = 0, dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass."""
        if not self.every_steps:
            yield
        elif torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds["forward"] += time.perf_counter() - begun

    def report(self, step: int, waited: float) -> torch.Tensor:
        """This rank's part of the report after ``step`` steps, the last of which waited so many seconds for data.

        Returns:
            float64 of shape (2 x ranks,): mean seconds a step at the places of this rank, 0 elsewhere, so that the sum
            over the ranks holds all of them; of shape (0,) when no report is due.
        """
        self._steps += 1
        self._seconds["data wait"] += waited
        if not self.every_steps or step % self.every_steps:
            return torch.zeros(0, dtype=torch.float64)
        for begin, end in self._events:
            end.synchronize()
            self._seconds["forward"] += begin.elapsed_time(end) / 1000
        told = torch.zeros(self.place.ranks, len(PARTS), dtype=torch.float64)
        told[self.place.rank] = torch.tensor([self._seconds[part] / self._steps for part in PARTS])
        self._steps, self._seconds, self._events = 0, dict.fromkeys(PARTS, 0.0), []
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
        seconds = told.view(-1, len(PARTS))[:, column].tolist()
        usual = median_low(seconds)  # of two ranks the faster one
        found += [Slow(rank, nodes[rank], part, value, usual) for rank, value in enumerate(seconds)
                  if value > ratio * usual and value - usual > LEAST_EXCESS * step_seconds]  # fmt: skip
    return sorted(found, key=lambda one: one.median - one.seconds)


def summary_of(told: torch.Tensor, nodes: Sequence[str], slow: Sequence[Slow]) -> dict[str, Any]:
    """The report as ``metrics.jsonl`` has it: the median and the largest of each part, and who is slow."""
    columns = zip(PARTS, told.view(-1, len(PARTS)).T.tolist(), strict=True)
    parts = {}
    for part, seconds in columns:
        rank = max(range(len(seconds)), key=seconds.__getitem__)
        parts[part] = {"median": median_low(seconds), "largest": seconds[rank], "rank": rank, "node": nodes[rank]}
    return {"parts": parts, "slow": [vars(one) for one in slow[:8]]}
