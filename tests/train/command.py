"""``hanse train``, or another verb of a run, as a process of its own, as a person or Slurm starts it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.train.multirank import losses


class Command:
    """A start of a run; what it says lies beside the run folder."""

    def __init__(self, run: Path, settings: list[str], output: Path | None = None, verb: str = "train"):
        self.run, self.output = run, output or run.with_suffix(".out")
        run.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hanse", verb, f"run={run}", *settings]
        with self.output.open("wb") as output:
            self.process = warm.start(command, os.environ, output, str(Path(__file__).parents[2]))

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Return when this has come to be; fail if the process ends before."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if done():
                return
            if ended:
                break
            time.sleep(0.02)
        pytest.fail(f"never came: {self.output.read_text()[-2000:]}")

    def wait_for_step(self, step: int) -> None:
        """Return when metrics.jsonl holds this step."""
        metrics = self.run / "metrics.jsonl"
        self.wait_until(lambda: metrics.is_file() and step in losses(self.run))

    def ranks(self) -> list[psutil.Process]:
        """The ranks, in order."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda rank: rank.pid)

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(300)

    def kill(self) -> None:
        """Leave nothing behind, whatever a test that failed left running or held still."""
        if self.process.poll() is None:
            for process in [*self.ranks(), self.process]:
                process.send_signal(signal.SIGKILL)
            self.process.wait(60)
