"""What a run is asked for while it trains: to save, or to save and stop."""

from __future__ import annotations

import math
import os
import signal
import time
from types import FrameType

import torch

from train.ranks import Place
from train.run_folder import RunFolder


class Requests:
    """What people, Slurm, other programs and the clock ask of a run: after the step, save; or save and stop.

    SIGINT or SIGTERM to any rank stops it; a second one ends that process at once. So does a file ``stop`` in the run
    folder, which stays there and keeps later starts from training; a file ``save`` is removed when its checkpoint is
    complete. Only rank 0 looks for files and at the clock.
    """

    def __init__(self, folder: RunFolder, every_minutes: float) -> None:
        self.folder, self.every_seconds = folder, 60 * every_minutes or math.inf
        self._signalled = self._granted = False
        self._begun = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signalled = True

    def stop(self, place: Place) -> bool:
        """Whether this rank knows of a wish to stop; others may not yet."""
        return self._signalled or (place.first and self.folder.stop_file.exists())

    def pending(self, place: Place) -> torch.Tensor:
        """(stop, save) as 0 or 1, float64."""
        asked = not self._granted and self.folder.save_file.exists()
        save = place.first and (asked or time.monotonic() - self._begun > self.every_seconds)
        return torch.tensor([self.stop(place), save], dtype=torch.float64)

    def granted(self) -> None:
        """A checkpoint was begun."""
        self._begun, self._granted = time.monotonic(), self.folder.save_file.exists()

    def saved(self, place: Place) -> None:
        """It is complete: the file that asked for one has done its work."""
        if place.first and self._granted:
            self.folder.save_file.unlink(missing_ok=True)
        self._granted = False
