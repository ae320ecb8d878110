"""Spikes: a loss or gradient norm far above those of the steps before it.

    limit = median + sigma x max(1.4826 MAD, median / 100)        of the last ``window`` steps

MAD is the median absolute deviation from the median; times 1.4826 it estimates a normal distribution's standard
deviation, and up to half of the values may be anything (Rousseeuw and Croux, JASA 88, 1993). The floor keeps values
that hardly differ from making a spike of every one. Values of spikes enter the window as well: where the level has
moved for good, it is the new level after half a window. Nothing is judged before the window is full; a stage begins
with an empty one.

The limits follow from losses and norms that all ranks share, so all decide alike; and, at determinism D2, alike on any
layout. The window is part of a checkpoint: a run that goes on judges as if it had not been stopped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from train.config import SpikesConfig

MAD_TO_DEVIATION = 1.4826
LEAST_DEVIATION = 0.01  # of the median
WATCHED = ("loss", "gradient_norm")


def limit_of(values: Iterable[float], sigma: float) -> float:
    """The largest value that is no spike after these."""
    held = list(values)
    middle = median(held)
    deviation = MAD_TO_DEVIATION * median(abs(value - middle) for value in held)
    return middle + sigma * max(deviation, LEAST_DEVIATION * abs(middle))


class Spikes:
    """Judges every step; the same on every rank.

    Attributes:
        recent: steps of the last spikes, ascending, as far as they count towards a rewind.
        rewinds: how often the run went back because of them.
    """

    def __init__(self, settings: SpikesConfig, state: Mapping[str, Any] | None = None):
        self.settings = settings
        self.load(state or {})

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as :meth:`state` says."""
        held = {key: state.get(key, []) for key in WATCHED}
        self.values = {key: deque(map(float, held[key]), self.settings.window) for key in WATCHED}
        self._limits: dict[str, float] = {}  # after these values
        self.recent = [int(step) for step in state.get("recent", [])]
        self.rewinds = int(state.get("rewinds", 0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        if not self.settings.sigma:
            return {}
        kept = {key: list(values) for key, values in self.values.items()}
        return {"spikes": {**kept, "recent": self.recent, "rewinds": self.rewinds}}

    def begin_stage(self) -> None:
        """Judge nothing until the window is full again: other data, lengths or batches have another level."""
        self._limits.clear()
        for values in self.values.values():
            values.clear()

    def limit(self, what: str) -> float:
        """Above this a ``loss`` or ``gradient_norm`` is a spike."""
        values = self.values[what]
        if not self.settings.sigma or len(values) < self.settings.window:
            return math.inf
        if what not in self._limits:
            self._limits[what] = limit_of(values, self.settings.sigma)
        return self._limits[what]

    def largest_norm(self, loss: float) -> float:
        """The largest gradient norm whose update is made in a step of this loss; none is where the loss is a spike."""
        return -math.inf if loss > self.limit("loss") else self.limit("gradient_norm")

    def note(self, step: int, loss: float, norm: float) -> tuple[str, float] | None:
        """Take a step's values in; what of them was a spike, and its limit. Both are finite."""
        found = None
        if self.settings.sigma:
            for what, value in (("gradient_norm", norm), ("loss", loss)):
                if value > self.limit(what):
                    found = what, self.limit(what)
            self._limits.clear()
            self.values["loss"].append(loss)
            self.values["gradient_norm"].append(norm)
        if found:
            self.recent = [one for one in self.recent if one > step - self.settings.rewind_within] + [step]
        return found

    @property
    def rewind_due(self) -> bool:
        """Whether so many spikes came so close together that leaving out their steps does not help."""
        return bool(self.settings.rewind_after) and len(self.recent) >= self.settings.rewind_after
