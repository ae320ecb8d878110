"""What a run folder holds, for those who check it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import HanseError
from consortium.bundle import Trusted
from train.config import TrainConfig
from train.run_folder import RunFolder, read_metrics

if TYPE_CHECKING:
    from train.checkpoint import Checkpoint  # brings torch


class Unknown(Exception):  # noqa: N818
    """Something that cannot be checked here, and why."""


@dataclass(frozen=True)
class Evidence:
    """What a run folder holds, read once.

    Attributes:
        records: all lines of the ledger; ``steps``: the line of each step, as it stands at the end.
        batches: steps to draw again; ``parents``: folders to look for parents in; ``trusted``: keys of seals.
    """

    folder: RunFolder
    config: TrainConfig
    shards: Path
    records: list[dict[str, Any]]
    steps: dict[int, dict[str, Any]]
    batches: int
    parents: list[Path]
    trusted: Trusted

    @cached_property
    def opened(self) -> list[tuple[int, Checkpoint | HanseError]]:
        """(step, checkpoint, or what is wrong with it at the first look) of all complete ones, ascending."""
        from train.checkpoint import Checkpoint

        found: list[tuple[int, Checkpoint | HanseError]] = []
        for step, folder in self.folder.find_checkpoints().items():
            try:
                found.append((step, Checkpoint(folder)))
            except HanseError as error:
                found.append((step, error))
        return found

    @property
    def checkpoints(self) -> list[tuple[int, Checkpoint]]:
        """Those of which nothing is wrong at the first look."""
        return [(step, one) for step, one in self.opened if not isinstance(one, HanseError)]

    @property
    def written(self) -> set[tuple[int, str]]:
        """(step, Merkle root) of every checkpoint that the ledger knows."""
        return {(one["step"], one["merkle_root"]) for one in self.records if one["kind"] == "checkpoint"}

    @property
    def told(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_metrics(self.folder.metrics)
