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

from launch.local import free_port, start_rank

POLL_SECONDS = 0.05


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
        with self._said(0).open("wb") as said:
            self.processes.append(start_rank(command, {**os.environ}, said))

    def start_ranks(self, command: Sequence[str], ranks: int, threads: int) -> None:
        """Run a command once a rank, with torchrun's variables."""
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks),
                  "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": str(threads), "NUM_NODES": "1"}  # fmt: skip
        for rank in range(ranks):
            with self._said(rank).open("wb") as said:
                of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                self.processes.append(start_rank(command, {**os.environ, **shared, **of_rank}, said))

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
