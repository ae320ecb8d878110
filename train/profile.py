"""``hanse train profile=true``: a few steps of this start traced by torch.profiler, and where their time went.

Training goes on afterwards: a trace is most wanted from the job that is running anyway, and looking changes nothing
that is computed. (To stop there: ``until_step``.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from common.files import atomic_file, room_for, write_text
from train.setup import Run
from train.stopwatch import PARTS

TOLD, WRITTEN = 12, 40  # operators on the screen, and in the file
CPU = torch.autograd.DeviceType.CPU
COLLECTIVE_KERNELS = ("nccl", "rccl")
Interval = tuple[float, float]


class Tracer:
    """Traces steps of one rank; does nothing on ranks that were not asked."""

    def __init__(self, run: Run):
        self.run, self.watch, self.folder = run, run.watch, run.folder.path / "profile"
        self.after, self.wanted = run.config.profiling.after_steps, run.config.profiling.steps
        self._seen, self._parts = 0, Counter[str]()  # steps of this start; seconds of the traced ones
        asked = run.config.profile and run.place.rank in run.config.profiling.ranks
        self._profiler: Any = self._begin() if asked else None

    def _begin(self) -> torch.profiler.profile:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # The last step before is traced and thrown away: starting the tracer takes a part of it.
        schedule = torch.profiler.schedule(wait=self.after - 1, warmup=1, active=self.wanted, repeat=1)
        profiler = torch.profiler.profile(activities=activities, schedule=schedule, acc_events=True)
        profiler.start()
        return profiler

    def step(self, step: int, parts: Mapping[str, float]) -> None:
        """To be called after each step, with the lap of the stopwatch that ends there."""
        if self._profiler is None:
            return
        self._seen += 1
        if self._seen > self.after:
            self._parts.update(parts)
        self.watch.tracing = self.after <= self._seen < self.after + self.wanted
        if self._seen < self.after + self.wanted:
            self._profiler.step()
            return
        with self.run.watchdog.slowly("writing a trace"):
            self._profiler.stop()
            self._write(step)
        self.watch.lap()  # the tracer's own time is no part of the loop's
        self._profiler = None

    def close(self) -> None:
        """To be called after the last step."""
        if self._profiler is not None:
            self._profiler.stop()
            self.run.metrics.say(
                f"profile=true: nothing was traced, this start had fewer than {self.after + self.wanted} steps "
                "(profiling.after_steps + profiling.steps)"
            )

    def _write(self, step: int) -> None:
        first, rank = step - self.wanted + 1, self.run.place.rank
        name = f"steps-{first:08d}-{step:08d}-rank-{rank:05d}"
        trace, told = self.folder / f"{name}.json.gz", self.folder / f"{name}.txt"
        self.folder.mkdir(exist_ok=True)
        with room_for(trace), atomic_file(trace) as partial:
            packed = partial.with_name(partial.name + ".gz")  # by this ending the profiler knows what to write
            self._profiler.export_chrome_trace(str(packed))
            packed.replace(partial)
        lines = [f"profile of steps {first} to {step}, rank {rank}", *time_table(self._parts, self.wanted),
                 *gpu_line(self._profiler.events(), self.wanted), ""]  # fmt: skip
        averages = self._profiler.key_averages()
        write_text(told, "\n".join([*lines, *operators(averages, self.wanted, WRITTEN, 100), ""]))
        lines += operators(averages, self.wanted, TOLD, 52)
        wrote = f"wrote {trace} (for chrome://tracing or ui.perfetto.dev) and {told}; going on"
        self.run.metrics.say("\n".join([*lines, wrote]))


def time_table(parts: Mapping[str, float], steps: int) -> list[str]:
    """Where the time of so many steps went; ``parts``: seconds."""
    whole = sum(parts.values())
    rows = [(part, parts[part]) for part in PARTS if parts[part]] + [("all", whole)]
    return [
        f"{'':14s}{'ms a step':>11s}{'share':>9s}",
        *(f"{part:14s}{1000 * seconds / steps:11,.2f}{seconds / whole:9.1%}" for part, seconds in rows),
    ]


def operators(averages: Iterable[Any], steps: int, rows: int, width: int) -> list[str]:
    """The operators with most time of their own: on the GPU where there is one, else on the CPU."""
    found = [
        one for one in averages if not one.key.startswith(("hanse: ", "ProfilerStep")) and one.device_type == CPU
    ]  # else kernels, whose time is also that of what started them
    where = "device" if any(one.self_device_time_total for one in found) else "cpu"
    spent = [(getattr(one, f"self_{where}_time_total") / 1000, one) for one in found]  # milliseconds
    whole = sum(milliseconds for milliseconds, _ in spent) or 1.0
    lines = [f"{'operator':{width}s}{'calls a step':>14s}{where.upper() + ' ms a step':>18s}{'share':>9s}"]
    for milliseconds, one in sorted(spent, key=lambda pair: -pair[0])[:rows]:
        lines.append(f"{one.key[: width - 1]:{width}s}{one.count / steps:14,.0f}{milliseconds / steps:18,.2f}"
                     f"{milliseconds / whole:9.1%}")  # fmt: skip
    return lines


def gpu_line(events: Iterable[Any], steps: int) -> list[str]:
    """What the collectives cost on a GPU, where they run beside the computation; nothing without one."""
    kernels = [one for one in events if one.device_type != CPU]
    spans = [(is_collective(one.name), (one.time_range.start, one.time_range.end)) for one in kernels]
    sends, works = [span for send, span in spans if send], [span for send, span in spans if not send]
    if not kernels:
        return []
    return [f"GPU: collectives {length(sends) / 1000 / steps:,.2f} ms a step, of which "
            f"{exposed(sends, works) / 1000 / steps:,.2f} ms with no computation beside them"]  # fmt: skip


def is_collective(kernel: str) -> bool:
    """Whether a GPU kernel's name is that of a collective."""
    return any(word in kernel.lower() for word in COLLECTIVE_KERNELS)


def length(intervals: Iterable[Interval]) -> float:
    """Time that at least one of the intervals covers."""
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered


def exposed(sends: Sequence[Interval], works: Sequence[Interval]) -> float:
    """Time in which something is sent and nothing is worked on."""
    return length([*sends, *works]) - length(works)
