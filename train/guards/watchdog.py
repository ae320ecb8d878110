"""A thread that watches whether steps come to an end, and when none does says where every rank stands.

A collective waits for ever for a rank that does not come, so of a thousand ranks that hang one is to blame, and a stack
trace of any single one says little. Each rank marks how far it has come in its step (:meth:`Watchdog.at`, an
assignment). When no step has ended for too long, every rank writes its marks and the Python stacks of all its threads
to ``logs/stack-rank-NNNNN.txt``, waits until the others have done so, and leaves with exit code 69; the marks name the
ranks that are behind all others, or wrote nothing at all. ``logs/fault.json`` says it for the launcher.

A rank that sits in a collective, in C, has given the interpreter's lock away, so the thread runs. For code that holds
the lock :func:`faulthandler.dump_traceback_later` writes the stacks, from a thread of its own that needs none.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import EXIT_HUNG
from common.files import write_json
from train.ranks import Place

LOOK_SECONDS = 1.0  # between two looks; less where the limit is short
GRACE_SECONDS = 15.0  # for the other ranks' stacks, before this one leaves


class Watchdog:
    """Watches this rank from ``with`` to its end.

    Args:
        logs: folder of the run's logs, which all ranks share.
        nodes: of all ranks, by rank.
        step_seconds: longest that a step may take; 0: nobody watches.
        slow_seconds: longest until the first step has ended, and for what is done :meth:`slowly`.
    """

    def __init__(self, logs: Path, place: Place, nodes: Sequence[str], step_seconds: float, slow_seconds: float):
        self.logs, self.place, self.nodes = logs, place, nodes
        self.step_seconds, self.slow_seconds = step_seconds, max(slow_seconds, step_seconds)
        self._limit = self.slow_seconds
        self._step, self._marks, self._at = 0, 0, "setting up"
        self._beats = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._path = stack_file(logs, place.rank)

    def __enter__(self) -> Watchdog:
        if self.step_seconds:
            self.logs.mkdir(parents=True, exist_ok=True)
            if self.place.first:
                clear(self.logs, self.place.ranks)
            keep_earlier(self._path)
            self._file = self._path.open("w", encoding="utf-8")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()

    def at(self, what: str) -> None:
        """This rank has come as far as ``what`` in its step; costs two assignments."""
        self._marks += 1
        self._at = what

    def step(self, step: int) -> None:
        """``step`` has ended."""
        self._step, self._marks, self._at, self._limit = step, 0, "drawing data", self.step_seconds
        self._beats += 1

    @contextmanager
    def slowly(self, what: str) -> Iterator[None]:
        """Something that is no step and may take ``slow_seconds``; its end counts as progress."""
        before = self._limit
        self.at(what)
        self._limit = self.slow_seconds
        self._beats += 1
        yield
        self._limit = before
        self._beats += 1

    def _watch(self) -> None:
        beats, waited, last = -1, 0.0, time.monotonic()
        look = min(LOOK_SECONDS, self.step_seconds / 10)
        while not self._over.wait(look):
            now = time.monotonic()
            waited += min(now - last, 2 * look)  # a process that was held still (Ctrl-Z) has not waited meanwhile
            last = now
            if beats != self._beats:
                beats, waited = self._beats, 0.0
                faulthandler.dump_traceback_later(self._limit + 5 * look, file=self._file)
            if waited > self._limit:
                self._bark(waited)
        faulthandler.cancel_dump_traceback_later()

    def _bark(self, waited: float) -> None:
        """Write, wait for the others, say who is behind, leave."""
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):  # a full disk must not keep us here
            head = {"rank": self.place.rank, "node": self.nodes[self.place.rank], "step": self._step,
                    "marks": self._marks, "at": self._at, "seconds": round(waited, 1)}  # fmt: skip
            self._file.truncate(0)  # of what was written while the process was held still
            self._file.seek(0)
            self._file.write(json.dumps(head) + "\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
            self._file.flush()
        deadline, found = time.monotonic() + GRACE_SECONDS, read_heads(self.logs, self.place.ranks)
        while None in found and time.monotonic() < deadline:
            time.sleep(0.2)
            found = read_heads(self.logs, self.place.ranks)
        behind, why = who_is_behind(found)
        nodes = sorted({self.nodes[rank] for rank in behind})
        where = f" ({', '.join(f'rank {rank} on {self.nodes[rank]}' for rank in behind[:4])})" if behind else ""
        said = f"no step has ended for {waited:.0f} s after step {self._step}: {why}{where}"
        with suppress(OSError):
            leave_word(self.logs, EXIT_HUNG, nodes, said)
        print(f"hanse train: HUNG: {said}; stacks of all ranks: {self._path.with_name('stack-rank-*.txt')}",
              file=sys.stderr, flush=True)  # fmt: skip
        os._exit(EXIT_HUNG)  # nothing that could hang again may run


def stack_file(logs: Path, rank: int) -> Path:
    """Where a rank writes its stacks."""
    return logs / f"stack-rank-{rank:05d}.txt"


def keep_earlier(path: Path) -> None:
    """Stacks of an earlier start get another name, or the start that follows a hang would delete its evidence."""
    if path.is_file() and path.stat().st_size:
        path.replace(path.with_suffix(".before.txt"))


def clear(logs: Path, ranks: int) -> None:
    """Forget what an earlier start left: its word for the launcher, and stacks of ranks that are none now."""
    (logs / "fault.json").unlink(missing_ok=True)
    for path in logs.glob("stack-rank-" + "[0-9]" * 5 + ".txt"):
        if int(path.stem[-5:]) >= ranks:
            keep_earlier(path)
            path.unlink(missing_ok=True)


def leave_word(logs: Path, code: int, nodes: Sequence[str], why: str) -> None:
    """Write ``fault.json``: how this start ended, for the launcher, which may see another rank's exit code first."""
    write_json(logs / "fault.json", {"exit_code": code, "nodes": list(nodes), "why": why})


def read_heads(logs: Path, ranks: int) -> list[Mapping[str, Any] | None]:
    """What each rank said of itself; None of one that has not (yet)."""
    return [_head(stack_file(logs, rank)) for rank in range(ranks)]


def _head(path: Path) -> Mapping[str, Any] | None:
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return head if isinstance(head, dict) and "marks" in head else None


def who_is_behind(heads: Sequence[Mapping[str, Any] | None]) -> tuple[list[int], str]:
    """(ranks to blame, why in words), from what each rank said of itself; no ranks where nothing tells them apart."""
    silent = [rank for rank, head in enumerate(heads) if head is None]
    if silent and len(silent) < len(heads):
        return silent, f"{len(silent)} of {len(heads)} ranks did not even answer"
    reached = {rank: (head["step"], head["marks"]) for rank, head in enumerate(heads) if head is not None}
    last = min(reached.values(), default=(0, 0))
    behind = [rank for rank, mark in reached.items() if mark == last]
    places = sorted({str(head["at"]) for head in heads if head is not None})
    if len(behind) == len(reached):
        return [], f"all ranks stand at the same place ({', '.join(places)})"
    head = heads[behind[0]]
    assert head is not None
    others = ", ".join(place for place in places if place != head["at"]) or "further on"
    return behind, f"{len(behind)} of {len(heads)} ranks got no further than '{head['at']}', the others '{others}'"
