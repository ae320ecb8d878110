"""What may be configured in the verbs that read what runs leave behind. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING


@dataclass
class WhosawConfig:
    """What ``hanse whosaw`` takes."""

    run: str = MISSING
    what: str = MISSING
    shards: str | None = None
    output: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *([] if self.what.strip() else ["what: must say which document"])]


@dataclass
class VerifyConfig:
    """What ``hanse verify`` takes."""

    run: str = MISSING
    shards: str | None = None
    batches: int = 16

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        few = [] if self.batches >= 0 else [f"batches={self.batches}: must be 0 or more"]
        return [*run_problems(self.run), *few]


def run_problems(run: str) -> list[str]:
    """What is wrong with the folder of a run."""
    if not (Path(run) / "config.yaml").is_file():
        return [f"run={run}: no run folder of 'hanse train' (no config.yaml in it)"]
    return []
