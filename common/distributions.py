"""How values are spread, as geometry: a row each, all rows on one axis. See :mod:`common.charts`.

Ridges show a histogram a row, strips a point for each value of a row. Both take any number of rows, which lines that
lie on each other do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.charts import Bar, Bars, Scale, Tick
from common.terminal import count

BINS = 64
TICKS = 5
SLIVER = 1.0  # per cent: what is not zero is seen


@dataclass(frozen=True)
class Ridge:
    """A histogram: ``path`` is SVG path data of its outline, ``middle`` the place of the median in per cent."""

    name: str
    path: str
    middle: float
    label: str
    colour: int


@dataclass(frozen=True)
class Ridges:
    """Histograms on one axis."""

    title: str
    unit: str
    rows: list[Ridge]
    ticks: list[Tick]


@dataclass(frozen=True)
class Dot:
    """A point of a strip: ``label`` says what it is, ``colour`` as in :class:`common.charts.Series`."""

    place: float
    label: str
    colour: int


@dataclass(frozen=True)
class Strip:
    """A row of points, and what they come to; ``marked`` sets it off from the others."""

    name: str
    dots: list[Dot]
    label: str
    marked: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Places of the outermost points."""
        return min(dot.place for dot in self.dots), max(dot.place for dot in self.dots)


@dataclass(frozen=True)
class Strips:
    """Rows of points on one axis."""

    title: str
    unit: str
    rows: list[Strip]
    ticks: list[Tick]


def ridges(
    title: str, unit: str, values: Mapping[str, NDArray[np.floating]], colours: Mapping[str, int], scale: Scale
) -> Ridges:  # fmt: skip
    """Histograms of values on ``scale``; what lies beyond its ends is counted in the outermost bins."""
    rows = []
    for name, found in values.items():
        places = np.clip(_places(found, scale), 0, 99.999)
        counts = np.bincount((places * BINS / 100).astype(np.int64), minlength=BINS)
        heights = 100 * counts / max(int(counts.max(initial=0)), 1)
        heights = np.where((counts > 0) & (heights < SLIVER), SLIVER, heights)
        middle = float(np.median(found))
        rows.append(Ridge(name, _outline(heights), float(np.clip(_places(np.array([middle]), scale), 0, 100)[0]),
                          short(middle), colours.get(name, 1)))  # fmt: skip
    return Ridges(title, unit, rows, ticks_of(scale))


def _places(values: NDArray[np.floating], scale: Scale) -> NDArray[np.float64]:
    held = np.asarray(values, np.float64)
    if scale.logarithmic:
        return 100 * np.log(np.maximum(held, scale.low) / scale.low) / math.log(scale.high / scale.low)
    return 100 * (held - scale.low) / (scale.high - scale.low)


def _outline(heights: NDArray[np.float64]) -> str:
    """Steps from left to right, closed along the ground."""
    width = 100 / len(heights)
    parts = [f"V{100 - height:.1f}H{(number + 1) * width:.2f}" for number, height in enumerate(heights)]
    return f"M0 100{''.join(parts)}V100Z"


def strips(
    title: str, unit: str, values: Mapping[str, Mapping[str, float]], *, colours: Mapping[str, int],
    labels: Mapping[str, str], marked: str | None = None,
) -> Strips:  # fmt: skip
    """``{row: {name: value}}`` as points; ``labels`` are what is written at a row's end."""
    held = [value for row in values.values() for value in row.values()]
    margin = 0.06 * (max(held) - min(held)) or 0.1 * abs(max(held)) or 1.0
    scale = Scale(min(held) - margin, max(held) + margin)
    rows = [Strip(name, [Dot(scale(value), f"{one} {value:.3f}", colours.get(one, 1)) for one, value in row.items()],
                  labels[name], name == marked)
            for name, row in values.items() if row]  # fmt: skip
    return Strips(title, unit, rows, ticks_of(scale))


def ticks_of(scale: Scale) -> list[Tick]:
    """Labels below a field."""
    ticks = scale.ticks(TICKS)
    if scale.logarithmic:  # powers of ten alone: there is little room
        return [Tick(scale(value), count(value)) for value, _ in ticks if round(math.log10(value), 9).is_integer()]
    return [Tick(scale(value), label) for value, label in ticks]


def logarithmic(values: Sequence[NDArray[np.floating]]) -> Scale:
    """A scale of whole powers of ten around all values; those below 1 count as 1."""
    low = min((float(found.min()) for found in values if len(found)), default=1.0)
    high = max((float(found.max()) for found in values if len(found)), default=10.0)
    first, last = math.floor(math.log10(max(low, 1.0))), math.ceil(math.log10(max(high, 10.0)))
    return Scale(10.0**first, 10.0 ** max(last, first + 1), logarithmic=True)


def bars(
    title: str, said: str, values: Mapping[str, float], labels: Mapping[str, str],
    colours: Mapping[str, int] | None = None,
) -> Bars:  # fmt: skip
    """Values side by side, each as long as its share of the largest."""
    highest = max(values.values(), default=0) or 1
    return Bars(title, said, [Bar(name, 100 * value / highest, labels[name], (colours or {}).get(name, 1))
                              for name, value in values.items()])  # fmt: skip


def short(value: float) -> str:
    """A value with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
