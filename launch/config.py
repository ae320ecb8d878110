"""What may be configured in launching and watching. Meanings, units and defaults stand in ``configs/*.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from common.configuration import open_dictionary
from launch.site import Site, detect, host_names

LAUNCHERS = ("srun", "torchrun")
TASKS = ("train", "corpus")


@dataclass
class SoftwareConfig:
    """Where ``hanse`` and its libraries come from on the compute nodes."""

    container: str | None = None
    binds: list[str] = field(default_factory=list)
    venv: str | None = None
    archive: str | None = None
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class LifeConfig:
    """When a job starts again and when it gives up."""

    signal_seconds: int = MISSING
    max_starts: int = MISSING
    max_failures: int = MISSING
    backoff_seconds: int = MISSING
    exclude_after: int = MISSING
    start_minutes: float = MISSING
    hang_minutes: float = MISSING
    node_checks: bool = True
    slow_node: float = MISSING


@dataclass
class LaunchConfig:
    """Everything ``hanse launch`` takes."""

    site: Site = field(default_factory=Site)
    task: str = "train"
    train: Any = field(default_factory=open_dictionary)
    corpus: Any = field(default_factory=open_dictionary)
    nodes: int = 1
    spare_nodes: int = 0
    ranks_per_node: int | None = None
    threads_per_rank: int | None = None
    launcher: str = "srun"
    queue: str | None = None
    hours: float | None = None
    account: str | None = None
    reservation: str | None = None
    exclude: list[str] = field(default_factory=list)
    sbatch: list[str] = field(default_factory=list)
    at_once: int | None = None
    ray_nodes: int | None = None
    software: SoftwareConfig = field(default_factory=SoftwareConfig)
    life: LifeConfig = field(default_factory=LifeConfig)
    dry_run: bool = False
    experiment: Any = None

    @staticmethod
    def tell_choices(group: str) -> str:
        """What ``site=?`` says beside the list: which of them this machine is."""
        found = detect() if group == "site" else []
        names = host_names()[-1]
        return f"this machine ({names}) is {' or '.join(found) or 'none of those with known host names'}"

    def problems(self) -> list[str]:
        """What is wrong whatever the site is, one line each; what the site says comes later, in ``launch/job.py``."""
        least = {"nodes": 1, "spare_nodes": 0, "life.signal_seconds": 1, "life.max_starts": 1, "life.max_failures": 1,
                 "life.backoff_seconds": 0, "life.exclude_after": 1}  # fmt: skip
        found = []
        for key, minimum in least.items():
            holder: Any = self.life if key.startswith("life.") else self
            value = getattr(holder, key.removeprefix("life."))
            if value < minimum:
                found.append(f"{key}={value}: must be {minimum} or more")
        for key in ("ranks_per_node", "threads_per_rank", "at_once", "ray_nodes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                found.append(f"{key}={value}: must be 1 or more")
        if self.hours is not None and self.hours <= 0:
            found.append(f"hours={self.hours}: must be above 0")
        if min(self.life.start_minutes, self.life.hang_minutes) <= 0:
            found.append("life.start_minutes, life.hang_minutes: must be above 0")
        if self.task not in TASKS:
            found.append(f"task={self.task}: one of {', '.join(TASKS)}")
        if self.launcher not in LAUNCHERS:
            found.append(f"launcher={self.launcher}: one of {', '.join(LAUNCHERS)}")
        return [*found, *self._words()]

    def look(self) -> None:
        """What ``--check`` looks for beside: what a launch at the site would find, the other verb's part included.

        Raises:
            HanseError: everything that speaks against the job.
        """
        from launch.submit import check  # which imports this

        check(self)

    def _words(self) -> Iterator[str]:
        """What would not be one word in a ``#SBATCH`` line: Slurm drops the rest of such a line, or means another."""
        named = {"account": self.account, "reservation": self.reservation}
        words = [*named.items(), *(("exclude", node) for node in self.exclude)]
        for key, value in words:
            if value is not None and not re.fullmatch(r"[^\s'\"#]+", value):
                yield f"{key}={value!r}: one word, without spaces or quotes"
        for option in self.sbatch:
            if not re.fullmatch(r"-.+", option):  # one line
                yield f"sbatch={option!r}: an option of sbatch begins with a hyphen, e.g. --constraint=thp_never"


@dataclass
class StatusConfig:
    """What ``hanse status`` takes."""

    runs: str = MISSING
    run: str | None = None
    watch: bool = False
    every_seconds: float = MISSING
    hang_minutes: float = MISSING
    requeue_hung: bool = False
    experiment: Any = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [f"{key}={getattr(self, key)}: must be above 0" for key in ("every_seconds", "hang_minutes")
                if not getattr(self, key) > 0]  # fmt: skip


@dataclass
class SyncConfig:
    """What ``hanse sync`` takes."""

    runs: str = MISSING
    run: str | None = None
    project: str | None = None
    entity: str | None = None
    checkpoints: str | None = None
    tool: str = "rsync"
    dry_run: bool = False
    experiment: Any = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [] if self.tool in ("rsync", "rclone") else [f"tool={self.tool}: one of rsync, rclone"]
