"""How fresh weights are drawn, and how width enters the learning rate; ``configs/train.yaml`` explains the keys."""

from __future__ import annotations

from dataclasses import dataclass

STANDARD_DEVIATIONS = ("config", "small", "fan_in")
RESIDUALS = ("plain", "depth")
EMBEDDINGS = ("pieces", "random")


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
