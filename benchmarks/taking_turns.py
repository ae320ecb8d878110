"""Trainings that run side by side on one machine and take turns: one computes while all others are stopped (SIGSTOP).

A machine that others use as well changes its speed within a minute. Trainings that follow one another differ by that
as much as by what they are; turns of seconds share it out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

from launch.local import environments, start_rank

POLL_SECONDS = 0.25  # each look costs the training whose turn it is: hanse's metrics are read as a whole


class PeerError(Exception):
    """A training ended before its time."""


@dataclass
class Training:
    """One that was started.

    Attributes:
        name: of the program; ``folder``: where its processes write, and what they say.
        ended: the wall-clock times at which its steps ended so far.
    """

    name: str
    folder: Path
    ended: Callable[[], list[float]]
    processes: list[Popen[Any]] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> None:
        """Run a command that starts its own ranks."""
        self._start(command, dict(os.environ))

    def start_ranks(self, command: Sequence[str], ranks: int, threads: int) -> None:
        """Run a command once a rank, with torchrun's variables."""
        for environment in environments(ranks, threads):
            self._start(command, environment)

    def _start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        with self._said(len(self.processes)).open("wb") as said:
            self.processes.append(start_rank(command, environment, said))

    def turn(self, steps: int) -> tuple[float, float]:
        """Go on for so many steps beside the one that is under way, and stop; when the first began and the last ended.

        Raises:
            PeerError: one of its processes has ended.
        """
        before = len(self.ended())
        self._each(psutil.Process.resume)
        while len(ended := self.ended()) < before + steps + 1:
            if over := [rank for rank, process in enumerate(self.processes) if process.poll() is not None]:
                raise PeerError(f"{self.name} ended:\n{self._said(over[0]).read_text(errors='replace')[-3000:]}")
            time.sleep(POLL_SECONDS)
        self._each(psutil.Process.suspend)
        return ended[before], ended[before + steps]

    def end(self) -> None:
        """Kill all of its processes."""
        self._each(psutil.Process.kill)
        for process in self.processes:
            process.wait()

    def _each(self, do: Callable[[psutil.Process], None]) -> None:
        for process in self.processes:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                for one in (parent, *parent.children(recursive=True)):
                    try:
                        do(one)
                    except psutil.NoSuchProcess:
                        continue

    def _said(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.txt"


def times_in(path: Path) -> list[float]:
    """The numbers of a file that is being written, one a line."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [float(line) for line in lines if line.endswith("\n")]
