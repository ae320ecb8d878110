"""torch's compiler makes a function anew for each shape it meets: let it, and say when it did."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from train.metrics import Metrics

VARIANTS = 64  # of a function: for each stage's sequences, with gradient and without, of one document or several


def many_variants() -> None:
    """Let a function be compiled for every shape of a run.

    torch stops at 8, and from there on runs the function as it is: with two variants of a layer's parts a shape, in
    training and in evaluation, a third stage would not be compiled at all.
    """
    import torch._dynamo  # which takes seconds, where nothing is compiled for nothing

    torch._dynamo.config.recompile_limit = VARIANTS


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function, compiled by one of torch's back ends for each shape when it first meets it."""
    many_variants()
    return torch.compile(function, dynamic=False, backend=backend)


class Compilations:
    """Tells after which steps something was compiled: those take long, and no node is to blame."""

    def __init__(self, metrics: Metrics):
        self.metrics, self._graphs = metrics, self._so_far()

    @staticmethod
    def _so_far() -> int:
        known = sys.modules.get("torch._dynamo.utils")
        return int(known.counters["stats"]["unique_graphs"]) if known else 0

    def step(self, step: int) -> None:
        """To be called after every step and its evaluation."""
        graphs = self._so_far()
        if graphs > self._graphs:
            self.metrics.event(step, "compiled", graphs=graphs - self._graphs)
            self.metrics.say(f"step {step}: compiled, for shapes that are new (graphs: {graphs - self._graphs})")
        self._graphs = graphs
