"""``ledger.jsonl``: what a run did, one line a step, each line bound to all before it by the hash of the one before.

    {"previous": SHA256, "kind": "start", "lock": SHA256, "ranks": 2, "zero_stage": 1, ...}
    {"previous": SHA256, "kind": "step", "step": 1, "samples": [0, 8], "batch": SHA256, "loss": "0x1.3cp+3", ...}
    {"previous": SHA256, "kind": "state", "step": 100, "root": SHA256}
    {"previous": SHA256, "kind": "checkpoint", "step": 100, "merkle_root": SHA256}
    {"previous": SHA256, "kind": "rewind", "step": 100, "samples": [800, 880], "spikes": [108, 109]}
    {"previous": SHA256, "kind": "stages", "step": 100, "before": SHA256, "config_sha256": SHA256, "changes": {...}}

Numbers are hexadecimal floats: exact, and the same text wherever they are written. Nothing is ever removed: a run that
goes on from an earlier step says so, and its later lines replace those of the same steps before. Only a last line that
a crash cut short is dropped. A step with a ``skipped`` took its samples and changed nothing: its "loss" or
"gradient_norm" was a spike, or its gradient, whose norm then is no finite number, an "overflow" of fp16; a rewind names
the samples that the run went past. A change of stages (train/change.py) names the configurations before and after it,
and what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import room_for

GENESIS = "0" * 64
STEPPED = ("start", "step", "state", "checkpoint", "stages")  # kinds of lines that name a step


class Ledger:
    """The ledger of a run, open for appending; only rank 0 has one.

    Raises:
        HanseError: what is there is not a chain.
    """

    def __init__(self, path: Path):
        self.path, self._previous, end = path, GENESIS, 0
        for line, _ in lines(path):
            end += len(line) + 1
            self._previous = hashlib.sha256(line).hexdigest()
        if path.is_file() and path.stat().st_size > end:
            with path.open("rb+") as file:
                file.truncate(end)

    def write(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Append one line."""
        told = {key: value.hex() if isinstance(value, float) else value for key, value in facts.items()}
        line = json.dumps({"previous": self._previous, "kind": kind, **told}).encode()
        with room_for(self.path), self.path.open("ab") as file:
            file.write(line + b"\n")
        self._previous = hashlib.sha256(line).hexdigest()

    def sync(self) -> None:
        """Make all lines so far survive a power cut."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line without its end, record) of a ledger, the chain checked; a cut last line is left out.

    Raises:
        HanseError: naming the first line that does not follow from the one before.
    """
    if not path.is_file():
        return
    previous = GENESIS
    *whole, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            record = json.loads(line)
            follows = record["previous"] == previous and isinstance(record["kind"], str)
            follows &= record["kind"] not in STEPPED or isinstance(record["step"], int)
        except (ValueError, RecursionError, TypeError, KeyError):
            follows = False
        if not follows:
            raise HanseError(f"{path}: line {number} does not follow from the lines before it: the ledger was edited "
                             "or damaged; restore it, or go on in another run=...")  # fmt: skip
        previous = hashlib.sha256(line).hexdigest()
        yield line, record


def steps(records: Iterable[dict[str, Any]], kind: str = "step") -> dict[int, dict[str, Any]]:
    """{step: its line of a kind} as it stands at the end: later lines of a step replace earlier ones."""
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        if record["kind"] in ("start", "rewind"):  # what came after the step it starts from was done again
            found = {step: line for step, line in found.items() if step <= record["step"]}
        elif record["kind"] == kind:
            found[record["step"]] = record
    return found


def skipped(records: Iterator[dict[str, Any]]) -> list[tuple[int, int]]:
    """The ranges of samples that the run, as it stands at the end, went past without learning from them; ascending."""
    found: list[tuple[int, int]] = []
    for record in records:
        if record["kind"] == "start":
            found = [(start, stop) for start, stop in record.get("skipped_samples", [])]
        elif record["kind"] == "rewind":
            ranges = [(start, stop) for start, stop in [record["samples"], *record.get("further_samples", [])]]
            found = [*(one for one in found if one[0] < ranges[0][0]), *ranges]
    return found
