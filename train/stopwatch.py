"""Where a rank's time goes: each moment of the loop belongs to exactly one part, so that the parts add up to the clock.

On a CPU the parts are read off the host's clock. A GPU works on its own while the host goes on, so the passes through
the model are timed by events in its queue; they are looked at when they have happened already (nobody waits for them,
so those of a step may count in the next one), and what the host then waits in is what is left: ``loop``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import psutil
import torch

PARTS = (
    "forward",
    "backward",
    "update",
    "communication",
    "data wait",
    "evaluation",
    "checkpoint",
    "state hash",
    "loop",
)
ON_DEVICE = ("forward", "backward", "update")
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter",
               "reduce_scatter_tensor", "all_gather_coalesced", "all_reduce_coalesced", "barrier")  # fmt: skip


class Stopwatch:
    """Seconds of this rank by part. ``loop`` is what is no other part: the loop's own overhead."""

    def __init__(self, *, device_events: bool = False):
        self.device_events = device_events
        self.tracing = False  # also name the parts to torch.profiler (train/profile.py)
        self._seconds = dict.fromkeys(PARTS, 0.0)  # up to the last change of part
        self._lapped = dict(self._seconds)
        self._stack, self._since = ["loop"], time.perf_counter()
        self._events: list[tuple[str, Any, Any]] = []

    @classmethod
    def of_training(cls) -> Stopwatch:
        """One that also knows the engine's communication, where that can be told."""
        watch = cls(device_events=torch.cuda.is_available())
        watch.time_collectives()
        return watch

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside belongs to ``name``, and not to the part around it."""
        if self.device_events and name in ON_DEVICE:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((name, begin, end))
            return
        self._turn()
        self._stack.append(name)
        try:
            with self._named(name):
                yield
        finally:
            self._turn()
            self._stack.pop()

    def _named(self, name: str) -> AbstractContextManager[Any]:
        return torch.profiler.record_function(f"hanse: {name}") if self.tracing else nullcontext()

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Of each part since the beginning."""
        self._turn()
        while self._events and self._events[0][2].query():
            name, begin, end = self._events.pop(0)
            passed = begin.elapsed_time(end) / 1000
            self._seconds[name] += passed
            self._seconds["loop"] -= passed  # the host's clock had put it there
        return self._seconds.copy()

    def lap(self) -> dict[str, float]:
        """Of each part since the last lap; they add up to the time between the two."""
        now = self.seconds()
        passed = {part: now[part] - before for part, before in self._lapped.items()}
        self._lapped = now
        return passed

    def time_collectives(self) -> None:
        """Count what DeepSpeed's collectives take as communication, waiting for slower ranks included.

        Only where they return when they are done, as over gloo. On a GPU they run beside the computation, and what
        they cost a step is read off a trace (``profile=true``).
        """
        import deepspeed.comm.comm  # not before train/engine.py has chosen its accelerator

        backend = deepspeed.comm.comm.cdb
        if backend is not None and not self.device_events:
            for name in COLLECTIVES:
                setattr(backend, name, self._timed(getattr(type(backend), name).__get__(backend)))

    def _timed(self, collective: Any) -> Any:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part("communication"):
                handle = collective(*arguments, **named)
            return _Handle(handle, self) if hasattr(handle, "wait") else handle

        return timed


class _Handle:
    """A collective under way, whose wait is communication."""

    def __init__(self, handle: Any, watch: Stopwatch):
        self._handle, self._watch = handle, watch

    def wait(self, *arguments: Any) -> Any:
        with self._watch.part("communication"):
            return self._handle.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def memory_bytes() -> dict[str, int]:
    """What this rank holds now and held at most since it started: of the host, and of its GPU where it has one."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host": psutil.Process().memory_info().rss,
             "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}  # fmt: skip
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.memory_allocated(), "gpu_peak": torch.cuda.max_memory_allocated()}
    return found
