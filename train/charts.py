"""Charts as geometry: shapes on a field of 100 by 100 and labels in per cent of it, drawn by ``report.html.j2``.

The page stretches the field to whatever room there is and writes the labels in its own type: a chart is as readable on
a phone as on a desk, needs no script to be seen, and takes its colours from the reader's light or dark theme.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

PALETTE = 6  # colours that everybody can tell apart, the colour-blind too: --c1 ... --c6 of report.css
BINS = 400  # a longer series keeps the lowest and the highest point of each of so many stretches
DOTS = 24  # a series with no more points than this shows each of them
X_TICKS, Y_TICKS = 5, 7  # at most, and one more


@dataclass(frozen=True)
class Series:
    """One line. A value that is None or not finite makes a gap.

    ``colour`` is 0 for that of the text, or 1 to PALETTE; ``style`` is ``line``, ``thin`` or ``dashed``.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]
    colour: int = 0
    style: str = "line"

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if _is_finite(value)]


@dataclass(frozen=True)
class Tick:
    """A label beside an axis: its place in per cent of the field, from the left or from the top."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: ``path`` and ``dots`` are SVG path data, ``points`` what a reader can point at."""

    name: str
    colour: int
    style: str
    path: str
    dots: str
    points: dict[str, list[float | None]]


@dataclass(frozen=True)
class Chart:
    """A line chart: everything a template needs. ``events`` are places on the step axis with what happened there."""

    title: str
    unit: str
    description: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    events: dict[str, list[float]] = field(default_factory=dict)
    last_step: int = 0  # where the axis ends
    across: str = "step"  # what it counts

    @property
    def legend(self) -> list[Line]:
        """The line on top first, the others as they came."""
        return [*self.lines[-1:], *self.lines[:-1]]

    @property
    def points(self) -> list[dict[str, Any]]:
        """What a script needs to say the values of a step, for JSON."""
        return [{"name": line.name, "colour": line.colour, **line.points} for line in self.legend]


@dataclass(frozen=True)
class Bar:
    """One bar: its length in per cent of the longest, and its value as it is written."""

    name: str
    length: float
    label: str
    colour: int


@dataclass(frozen=True)
class Bars:
    """Values side by side; ``said`` is what they come to, in words."""

    title: str
    said: str
    bars: list[Bar]


@dataclass(frozen=True)
class Table:
    """Rows as they are shown; the first column is text, the others are numbers unless ``text`` is set."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""
    text: bool = False


@dataclass(frozen=True)
class Scale:
    """Values of an axis -> per cent."""

    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round numbers within the scale, and how they are written; ``most`` distances between them."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if self.high / self.low < 1e3 else (1,)
            found = [factor * 10.0**power for power in powers for factor in factors]
            return [(value, f"{value:g}") for value in found if self.low <= value <= self.high]
        step = round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(number * step, written(number * step, step)) for number in range(first, last + 1)]


def draw(
    title: str, unit: str, series: Sequence[Series], *, last_step: int, scale: Scale | None = None, zero: bool = False,
    events: dict[str, list[int]] | None = None,
) -> Chart:  # fmt: skip
    """Draw series over steps 0 to ``last_step``; ``zero`` makes the vertical axis start there, ``scale`` sets it."""
    across = Scale(0, max(last_step, 1))
    upward = scale or fitted([value for one in series for value in one.finite], zero=zero)
    return Chart(
        title=title,
        unit=unit,
        description=_description(title, unit, series),
        lines=[_line(one, across, upward) for one in series],
        x_ticks=[Tick(across(step), written(step, 1)) for step, _ in across.ticks(X_TICKS) if step == int(step)],
        y_ticks=[Tick(100 - upward(value), label) for value, label in upward.ticks(Y_TICKS)],
        events={kind: [across(step) for step in steps] for kind, steps in (events or {}).items() if steps},
        last_step=last_step,
    )


def fitted(values: Sequence[float], *, zero: bool = False) -> Scale:
    """A scale on which all values can be told apart: logarithmic where a few are far above the others."""
    if not values:
        return Scale(0, 1)
    low, high = min(values), max(values)
    if low > 1e-12 * high and high > 20 * statistics.median(values):
        return Scale(low / 1.2, high * 1.2, logarithmic=True)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(min(low, 0.0), high + margin) if zero else Scale(low - margin, high + margin)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def written(value: float, step: float) -> str:
    """A tick's number with as many decimals as the distance between ticks asks for."""
    if value == 0:
        return "0"
    if step < 1e-4:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    if abs(value) >= 10_000:
        factor, prefix = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / factor:g} {prefix}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def thinned(
    steps: Sequence[int], values: Sequence[float | None], bins: int = BINS
) -> Iterable[tuple[int, float | None]]:
    """Points of a long series: the lowest, the highest and one gap of each of ``bins`` stretches, in order."""
    if len(steps) <= 2 * bins:
        return zip(steps, values, strict=True)
    kept: list[int] = []
    for number in range(bins):
        stretch = range(number * len(steps) // bins, (number + 1) * len(steps) // bins)
        there = sorted((value, index) for index in stretch if _is_finite(value := values[index]))
        gap = set(stretch) - {index for _, index in there}
        kept += sorted({index for _, index in (there[:1] + there[-1:])} | set(sorted(gap)[:1]))
    return [(steps[index], values[index]) for index in kept]


def _line(series: Series, across: Scale, upward: Scale) -> Line:
    points = [(step, value if _is_finite(value) else None) for step, value in thinned(series.steps, series.values)]
    path, dots, pen_down = [], [], False
    for number, (step, value) in enumerate(points):
        if value is not None:
            place = f"{across(step):.3f} {100 - upward(value):.3f}"
            alone = not pen_down and (number + 1 == len(points) or points[number + 1][1] is None)
            path.append(f"{'L' if pen_down else 'M'}{place}" + ("h0" if alone else ""))
            dots.append(f"M{place}h0")
        pen_down = value is not None
    return Line(
        name=series.name,
        colour=series.colour,
        style=series.style,
        path="".join(path),
        dots="".join(dots) if len(dots) <= DOTS and series.style == "line" else "",
        points={"steps": [step for step, _ in points],
                "values": [None if value is None else float(f"{value:.5g}") for _, value in points]},
    )  # fmt: skip


def _description(title: str, unit: str, series: Sequence[Series]) -> str:
    """The chart in words, for those who do not see it."""
    told = [
        f"{one.name}: first {one.finite[0]:.4g}, last {one.finite[-1]:.4g}, lowest {min(one.finite):.4g}, "
        f"highest {max(one.finite):.4g}"
        for one in series
        if one.finite
    ]
    return f"{title}, {unit}. " + ("; ".join(told) + "." if told else "No values yet.")


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
