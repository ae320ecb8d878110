"""What ``hanse checkpoint`` takes. Meanings and defaults stand in ``configs/checkpoint.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from train.config import one_of

CHECKPOINT_ACTIONS = ("inspect", "check", "convert")
LAYOUTS = ("universal", "megatron")


@dataclass
class CheckpointVerbConfig:
    """What ``hanse checkpoint`` takes."""

    folder: str = MISSING
    action: str = "inspect"
    output: str | None = None
    layout: str | None = None
    model_folder: str | None = None
    shards: str | None = None
    sequence_length: int | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = one_of(self, "action", CHECKPOINT_ACTIONS)
        if not Path(self.folder).is_dir():
            found.append(f"folder={self.folder}: no such folder")
        if self.action == "convert" and self.output is None:
            found.append("output: must be set to convert (output=...)")
        if self.action != "convert":
            keys = ("output", "layout", "model_folder", "shards", "sequence_length")
            found += [f"{key}={getattr(self, key)}: is for action=convert" for key in keys if getattr(self, key)]
        if self.layout is not None:
            found += one_of(self, "layout", LAYOUTS)
        if self.sequence_length is not None and self.sequence_length < 1:
            found.append(f"sequence_length={self.sequence_length}: must be 1 or more")
        return found
