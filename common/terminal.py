"""What a person sees: tables, progress with rate and ETA, and the next step."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Names are shown as they are: rich would make a flag of ":it:", and a colour of "[red]".
console = Console(highlight=False, soft_wrap=True, emoji=False, markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, total: bool = False) -> None:
    """Print a table: the first column to the left, the others to the right; ``total`` sets off the last row."""
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for index, row in enumerate(rows):
        if total and index == len(rows) - 1:
            shown.add_section()
        shown.add_row(*map(str, row), style="bold" if total and index == len(rows) - 1 else None)
    # A table wider than the terminal stays as wide as it is: numbers cut in two are worse than lines that wrap.
    shown.width = console.measure(shown, options=console.options.update(max_width=10_000)).maximum
    console.print(shown, crop=False)


def say(text: str) -> None:
    """Print one line of plain text."""
    console.print(text)


def next_step(*commands: str) -> None:
    """Print what to run next."""
    for index, command in enumerate(commands):
        say(f"{'next:' if index == 0 else '     '} {command}")


def short_path(path: Path, base: Path) -> str:
    """A path as somebody in ``base`` would type it."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def duration(seconds: float) -> str:
    """A duration as people say it: ``42s``, ``3m05s``, ``2h07m``, ``4d03h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def count(number: float, unit: str = "") -> str:
    """A number with a decimal prefix: ``1.23 M``, ``456``, ``7.8 GB``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:  # which three digits round up to it
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def many(number: int, what: str, plural: str | None = None) -> str:
    """A number of things: ``1 node``, ``1,024 nodes``."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


class Progress:
    """Progress of long work: one line rewritten on a terminal, a line every ten seconds in a log file."""

    def __init__(self, what: str, total: float, unit: str, *, done: float = 0.0, enabled: bool = True):
        self.what, self.total, self.unit, self.enabled = what, total, unit, enabled
        self.start_done = self.done = done
        self.start = self.shown = time.monotonic()
        self.every_seconds = 0.2 if sys.stdout.isatty() else 10.0

    def update(self, done: float, extra: str = "", *, rate: str = "") -> None:
        """Tell how much is done so far (same unit as ``total``); printed only now and then."""
        self.done = done
        now = time.monotonic()
        if self.enabled and (now - self.shown >= self.every_seconds or done >= self.total):
            self.shown = now
            self._print(extra, rate)

    def advance(self, amount: float, extra: str = "") -> None:
        """Tell how much more is done."""
        self.update(self.done + amount, extra)

    def _print(self, extra: str, rate: str) -> None:
        elapsed = max(time.monotonic() - self.start, 1e-9)
        speed = (self.done - self.start_done) / elapsed
        left = duration((self.total - self.done) / speed) if speed > 0 else "?"
        percent = 100 * self.done / self.total if self.total else 100.0
        line = f"{self.what} {percent:3.0f}%  {rate or count(speed, self.unit) + '/s'}  ETA {left}  {extra}".rstrip()
        if sys.stdout.isatty():
            width = console.width
            sys.stdout.write("\r" + line[: width - 1].ljust(width - 1) + ("\n" if self.done >= self.total else ""))
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def interrupt(self) -> None:
        """End the rewritten line, so that other output starts on a line of its own."""
        if self.enabled and sys.stdout.isatty() and self.shown > self.start and self.done < self.total:
            sys.stdout.write("\n")
