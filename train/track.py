"""The same numbers as in ``metrics.jsonl`` for wandb and TensorBoard, where they are asked for.

What both show of steps that are done again, because a start was lost or the run went back (train/guards/rewind.py):

    wandb        keeps the first value that a run tells of a step, and drops others. So a run that goes back goes on as
                 another run of wandb, in the group of the first, that begins after the step it went back to; what an
                 earlier start told after its last checkpoint is another offline run with the id of the first
    TensorBoard  hides what was told before, from the step on that is done again
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.imports import standing_in

FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")  # of one start, as wandb names it: when, and the run's id
BACK = re.compile(r"-back-(\d+)$")  # ending of an id: how often the run went back


class Trackers:
    """What a run is shown in; only rank 0 has any."""

    def __init__(self, path: Path, config: TrainConfig, first_step: int):
        self.path, self.config = path, config
        self._wandb = _start_wandb(path, config, wandb_id(path) or fresh_id(path.name))
        self._tensorboard = _start_tensorboard(path, config, first_step)

    def log(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record that belongs to ``record["step"]``."""
        if self._wandb is None and self._tensorboard is None:
            return
        numbers = {k: v for k, v in _flatten(record).items() if isinstance(v, int | float) and k != "step"}
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, record["step"])

    def back(self, step: int) -> None:
        """The steps after ``step`` are told once more, and are others now."""
        self.close()
        if self._wandb is not None:
            self._wandb = _start_wandb(self.path, self.config, id_after_going_back(self._wandb.id))
        self._tensorboard = _start_tensorboard(self.path, self.config, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()


def wandb_id(path: Path) -> str | None:
    """The id that the last start in a run folder had at wandb; None of the first start."""
    found = [match.groups() for folder in (path / "wandb").glob("*run-*") if (match := FOLDER.fullmatch(folder.name))]
    return max(found, key=lambda one: (one[0], _times_back(one[1])))[1] if found else None


def fresh_id(name: str) -> str:
    """An id that no other run has: runs of a sweep share configuration, name and seed, or were here before."""
    return f"{re.sub(r'[^A-Za-z0-9_.=-]', '-', name)[:80]}-{secrets.token_hex(4)}"


def id_after_going_back(before: str) -> str:
    """The id of the run that follows another at wandb."""
    return f"{BACK.sub('', before)}-back-{_times_back(before) + 1}"


def _times_back(name: str) -> int:
    found = BACK.search(name)
    return int(found[1]) if found else 0


def _start_wandb(path: Path, config: TrainConfig, name: str) -> Any:
    if config.track.wandb == "disabled":
        return None
    import wandb
    from omegaconf import OmegaConf

    settings = wandb.Settings(silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    mode: Any = config.track.wandb
    shown = f"{path.name}, back {times}" if (times := _times_back(name)) else path.name
    with standing_in("wandb.sdk.launch.inputs.internal", StagedLaunchInputs=_NoInputs):
        return wandb.init(mode=mode, project=config.track.wandb_project, name=shown, group=config.name, dir=str(path),
                          resume="allow", id=name, settings=settings,
                          config=OmegaConf.to_container(OmegaConf.structured(config)))  # type: ignore[arg-type]  # fmt: skip


class _NoInputs:
    """What a job of wandb's own launcher was given: nothing, for nothing of ours gives it any."""

    def apply(self, run: Any) -> None:
        """Nothing to be done."""


def _start_tensorboard(path: Path, config: TrainConfig, first_step: int) -> Any:
    if not config.track.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # What an earlier start wrote after the step that this one goes on from is hidden, as it is cut from metrics.jsonl.
    return SummaryWriter(str(path / "tensorboard"), purge_step=first_step + 1 if first_step else None)


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            out |= _flatten(value, f"{prefix}{key}/")
        else:
            out[f"{prefix}{key}"] = value
    return out
