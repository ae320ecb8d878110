"""``hanse report run=SWEEP``: all runs of a sweep in one table and one page, the last validation of each language over
what was swept. Runs that are not at the end of their budget are named, and left out of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.charts import PALETTE, Chart, Series, Table, Tick, draw, fitted
from common.files import write_text
from common.page import render
from common.terminal import count, say, table
from launch.progress import Progress, look
from launch.sweep_record import Sweep


@dataclass(frozen=True)
class Result:
    """One run of a sweep: its values, and what its files say."""

    values: dict[str, str]
    progress: Progress

    @property
    def mean(self) -> float:
        """Bits per byte, the mean over languages; infinite where nothing was validated."""
        found = self.progress.bits_per_byte.values()
        return sum(found) / len(found) if found else math.inf

    @property
    def counts(self) -> bool:
        """Whether it can be compared with the others: trained to the end of its budget, and validated there."""
        return self.progress.done and math.isfinite(self.mean)


Lines = dict[str, dict[str, Result]]  # {values of the other keys, in words: {value across: run}}


def write(folder: str, output_file: str | None) -> None:
    """Write the page and print the table."""
    sweep = Sweep.read(Path(folder))
    output = Path(output_file) if output_file else sweep.folder / "sweep.html"
    results = collect(sweep)
    shown = results_table(sweep, results)
    write_text(output, page(sweep, results))
    table("", shown.head, shown.rows)
    told = f"{count(output.stat().st_size, 'B')}, {sum(one.counts for one in results)} of {len(results)} runs done"
    say(f"wrote {output} ({told}): open it in a browser")


def collect(sweep: Sweep) -> list[Result]:
    """All runs: those that can be compared first, the best of them at the top; then the others in their order."""
    found = [Result(values, look(sweep.folder / name)) for name, values in sweep.runs.items()]
    return sorted(found, key=lambda one: (not one.counts, one.mean if one.counts else 0.0))


def languages_of(results: Sequence[Result]) -> list[str]:
    """Languages that some run was validated on, in alphabetical order."""
    return sorted({name for one in results for name in one.progress.bits_per_byte})


def results_table(sweep: Sweep, results: Sequence[Result]) -> Table:
    """A row a run: its values, how far it came, bits per byte of each language."""
    languages = languages_of(results)
    rows = []
    for one in results:
        bits = one.progress.bits_per_byte
        cells = [f"{bits[name]:.3f}" if name in bits else "" for name in languages]
        mean = f"{one.mean:.3f}" if bits else ""
        rows.append([one.progress.run.name, *(one.values.get(key, "") for key in sweep.keys), one.progress.told,
                     *cells, mean])  # fmt: skip
    return Table(["run", *sweep.keys, "state", *languages, "mean"], rows)


def page(sweep: Sweep, results: Sequence[Result]) -> str:
    """The page as HTML, which needs nothing else; everything that comes out of files is escaped by the template."""
    counting = [one for one in results if one.counts]
    return render(
        "train",
        "sweep.html.j2",
        title=sweep.folder.name,
        folder=sweep.folder,
        status=f"{len(counting)} of {len(results)} runs done",
        finished=len(counting) == len(results),
        best=counting[0] if counting else None,
        open=[one for one in results if not one.counts],
        across=across_of(sweep, counting),
        panels=panels(sweep, counting),
        results=results_table(sweep, results),
    )


def across_of(sweep: Sweep, results: Sequence[Result]) -> str:
    """The swept key with the most values, the first of them; empty where nothing was swept."""
    return max(sweep.keys, key=lambda key: len({one.values.get(key) for one in results}), default="")


def panels(sweep: Sweep, results: Sequence[Result]) -> list[tuple[str, Chart]]:
    """(name, chart) of the mean and of each language: bits per byte over the key with the most values, a line for each
    combination of the others.
    """
    across = across_of(sweep, results)
    if not results or not across:
        return []
    stops = ordered({one.values.get(across, "") for one in results})
    lines: Lines = {}
    for one in results:
        rest = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in one.values.items() if key != across)
        lines.setdefault(rest or "all", {})[one.values.get(across, "")] = one
    wanted: list[tuple[str, Callable[[Result], float | None]]] = [("mean", lambda one: one.mean)]
    wanted += [(name, lambda one, name=name: one.progress.bits_per_byte.get(name)) for name in languages_of(results)]  # type: ignore[misc]
    return [(name, _chart(name, across, stops, lines, value)) for name, value in wanted]


def _chart(name: str, across: str, stops: list[str], lines: Lines, value: Callable[[Result], float | None]) -> Chart:
    places = range(len(stops))
    series = [
        Series(label, places, [value(runs[stop]) if stop in runs else None for stop in stops],
               colour=number % PALETTE + 1, style="line" if number < PALETTE else "dashed")
        for number, (label, runs) in enumerate(sorted(lines.items()))
    ]  # fmt: skip
    scale = fitted([found for one in series for found in one.finite])
    drawn = draw(f"{name} over {across}", "bits per byte", series, last_step=len(stops) - 1, scale=scale)
    ticks = [Tick(100 * place / max(len(stops) - 1, 1), stop) for place, stop in enumerate(stops)]
    return replace(drawn, x_ticks=ticks, axis="")  # the page names it once for all


def ordered(values: set[str]) -> list[str]:
    """Numbers by size, anything else by the alphabet, numbers first."""

    def key(text: str) -> tuple[bool, float, str]:
        try:
            return (False, float(text), text)
        except ValueError:
            return (True, 0.0, text)

    return sorted(values, key=key)
