"""How fresh weights are drawn, and how width enters the learning rate; ``configs/train.yaml`` explains the keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.config_rules import one_of

if TYPE_CHECKING:
    from train.config import TrainConfig

STANDARD_DEVIATIONS = ("config", "small", "fan_in")
RESIDUALS = ("plain", "depth")
EMBEDDINGS = ("pieces", "random")
FROM_CHECKPOINT = "from_checkpoint"  # as model.architecture: that of init_from


@dataclass
class InitConfig:
    """The rules and their sources stand in :mod:`train.parametrisation`."""

    std: str = "config"
    residual: str = "plain"
    mup_base_width: int = 0
    mup_base_head_size: int = 0

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = []
        for key, allowed in (("std", STANDARD_DEVIATIONS), ("residual", RESIDUALS)):
            if getattr(self, key) not in allowed:
                found.append(f"model.init.{key}={getattr(self, key)}: one of {', '.join(allowed)}")
        for key in ("mup_base_width", "mup_base_head_size"):
            if getattr(self, key) < 0:
                found.append(f"model.init.{key}={getattr(self, key)}: must be 0 or more")
        if self.mup_base_width and self.std != "config":
            found.append(f"model.init.std={self.std}: muP sets the widths' part of it; it starts from config")
        if self.mup_base_head_size and not self.mup_base_width:
            found.append("model.init.mup_base_head_size: says how attention scales under muP; set "
                         "model.init.mup_base_width too")  # fmt: skip
        return found


def beginning_problems(config: TrainConfig) -> list[str]:
    """Everything wrong with what a run begins with, one line each."""
    found = one_of(config, "init_embeddings", EMBEDDINGS)
    if config.init_from is None:
        if config.init_tokenizer:
            found.append("init_tokenizer: is that of the weights of init_from; set init_from too")
        if config.init_changes:
            found.append("init_changes: is about the weights of init_from; set init_from too")
        if config.model.architecture == FROM_CHECKPOINT:
            found.append("model=from_checkpoint: is the model of the weights of init_from; set init_from too")
    elif (checkpoints := Path(config.init_from) / "checkpoints").is_dir():
        complete = sorted(path.parent for path in checkpoints.glob(f"step-{'[0-9]' * 8}/manifest.json"))
        newest = f", e.g. init_from={complete[-1]}" if complete else "; there is none yet"
        found.append(f"init_from={config.init_from}: is a run; name one of its checkpoints{newest}")
    return [*found, *config.model.init.problems()]
