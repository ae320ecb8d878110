"""A launched run as the tests of a cluster look at it: its files, and its processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Run:
    """A run folder; ``start`` counts the starts of its newest job from 0."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def job(self) -> Path:
        """The newest job folder."""
        return sorted((self.folder / "jobs").glob("[0-9]*"))[-1]

    @property
    def number(self) -> str:
        """Slurm's number of the newest job."""
        return str(json.loads((self.job / "job.json").read_text())["job_id"])

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.job.glob("slurm-*.log")))

    def starts(self) -> list[dict[str, Any]]:
        """The last line of each start of the newest job."""
        path = self.job / "starts.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return list(
            {line["life"]: line for line in map(json.loads, (one for one in lines if one[-1] == "\n"))}.values()
        )

    def kinds(self) -> list[str]:
        """How each start ended; empty for one that runs."""
        return [start["kind"] for start in self.starts()]

    def nodes(self, start: int) -> list[str]:
        """Names of the nodes of a start, of at most nine."""
        prefix, _, rest = self.starts()[start]["nodes"].partition("[")
        if not rest:
            return [prefix]
        spans = [part.split("-") for part in rest.rstrip("]").split(",")]
        return [f"{prefix}{number}" for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss), in the order they were written."""
        return [(record["step"], record["loss"]) for record in self.records() if "loss" in record]

    def steps_made(self, start: int) -> int:
        """Steps that a start of the newest job has made so far."""
        begun = self.starts()[start]["begun"]
        events = [number for number, record in enumerate(self.records())
                  if record.get("event") in ("start", "resume") and record["time"] >= begun]  # fmt: skip
        return sum("loss" in record for record in self.records()[events[0] :]) if events else 0

    def ranks(self) -> dict[int, str]:
        """{process: node} of the training ranks that live now."""
        words = ["-m", "launch.rank", str(self.job / "train.yaml")]
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_text().rstrip("\0").split("\0")[1:] == words:
                    variables = dict(pair.partition("=")[::2] for pair in (folder / "environ").read_text().split("\0"))
                    found[int(folder.name)] = variables["SLURMD_NODENAME"]
            except (OSError, UnicodeDecodeError, KeyError):
                continue  # it ended while we looked, or is not ours
        return found
