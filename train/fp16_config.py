"""How losses are scaled in fp16: what may be configured. Meanings and units stand in ``configs/train.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train.config_rules import at_least

if TYPE_CHECKING:
    from train.config import TrainConfig

LARGEST_POWER = 32


@dataclass
class Fp16Config:
    """Dynamic loss scaling (:mod:`train.fp16`); the keys of DeepSpeed's ``fp16`` have its names."""

    initial_scale_power: int = 16
    loss_scale_window: int = 1000
    min_loss_scale: int = 1
    max_overflows: int = 16

    def deepspeed(self) -> dict[str, Any]:
        """What DeepSpeed is told. ``hysteresis``: each overflow halves."""
        return {"enabled": True, "loss_scale": 0, "initial_scale_power": self.initial_scale_power,
                "loss_scale_window": self.loss_scale_window, "hysteresis": 1,
                "min_loss_scale": self.min_loss_scale}  # fmt: skip

    def problems(self, config: TrainConfig) -> list[str]:
        """Everything wrong with the values, alone and beside the rest of the configuration, one line each."""
        lines = (*at_least(self, 1, "loss_scale_window", "min_loss_scale"), *at_least(self, 0, "max_overflows"))
        found = [f"engine.fp16.{line}" for line in lines]
        if not 0 <= self.initial_scale_power <= LARGEST_POWER:
            found.append(f"engine.fp16.initial_scale_power={self.initial_scale_power}: must be 0 to {LARGEST_POWER}; "
                         "the scale begins as 2 to this")  # fmt: skip
        elif self.min_loss_scale > 2**self.initial_scale_power:
            found.append(f"engine.fp16.min_loss_scale={self.min_loss_scale}: above 2^initial_scale_power="
                         f"{2**self.initial_scale_power}, with which the scale begins")  # fmt: skip
        if config.engine.precision == "fp16" and config.determinism == "D2":
            found.append("engine.precision=fp16: not with determinism=D2, whose sums of integers have one scale of "
                         "their own; take bf16 or fp32")  # fmt: skip
        return found
