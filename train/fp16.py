"""Dynamic loss scaling: what keeps gradients within fp16, and what tells an overflow of it from a fault.

    backward of scale x loss;   gradient / scale;   scale / 2 after an overflow, x 2 after so many good steps in a row

fp16 ends at 65,504 and knows nothing between 0 and 6e-8 (Micikevicius et al., arXiv 1710.03740, section 3.2). A scale
that is too large makes a gradient that is not finite: the step is left out and the scale halved, as it is meant to be.
Such a step is a fault instead, which ends the run as in any other precision (:mod:`train.guards.finite`):

- if its loss is not finite, which no scale of the gradient explains;
- if the scale is at its least already;
- if it is the one after ``max_overflows`` of them in a row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from train.fp16_config import Fp16Config


class LossScale:
    """The scale of a run's losses; in the place of DeepSpeed's own scaler, and the same on every rank.

    Not DeepSpeed's (0.19): that one changes the scale after a gradient's norm and before its division by the scale,
    halves it where a guard left out a step, and ends the run with an exception of its own.

    Attributes:
        scale: of the next backward pass.
        good_steps: since the last change of the scale; ``in_a_row``: overflows up to now without a good step between.
        overflows: of the whole run.
    """

    dynamic = True  # DeepSpeed asks

    def __init__(self, settings: Fp16Config):
        self.settings, self.scale = settings, float(2**settings.initial_scale_power)
        self.good_steps = self.in_a_row = self.overflows = 0

    @property
    def loss_scale(self) -> float:
        """DeepSpeed's name for it."""
        return self.scale

    cur_scale = loss_scale

    def scale_loss(self, loss: Any) -> Any:
        """What the backward pass begins with."""
        return loss * self.scale

    def update_scale(self, overflow: bool) -> None:
        """Nothing: DeepSpeed asks too early, and takes what a guard refused for an overflow."""

    def note(self, *, finite: bool) -> bool:
        """Take in whether a step's gradient was finite; whether it was an overflow, and no fault."""
        if finite:
            self.good_steps, self.in_a_row = self.good_steps + 1, 0
            if self.good_steps >= self.settings.loss_scale_window:
                self.scale, self.good_steps = self.scale * 2, 0
            return False
        if self.scale <= self.settings.min_loss_scale or self.in_a_row >= self.settings.max_overflows:
            return False
        self.scale = max(self.scale / 2, float(self.settings.min_loss_scale))
        self.good_steps, self.in_a_row, self.overflows = 0, self.in_a_row + 1, self.overflows + 1
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"scale": self.scale, "good_steps": self.good_steps, "in_a_row": self.in_a_row,
                "overflows": self.overflows}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as :meth:`state` says; as a fresh one where it says nothing."""
        fresh = LossScale(self.settings).state()
        self.scale = float(state.get("scale", fresh["scale"]))
        self.good_steps, self.in_a_row, self.overflows = (
            int(state.get(key, fresh[key])) for key in ("good_steps", "in_a_row", "overflows")
        )


@contextmanager
def allowed_everywhere() -> Iterator[None]:
    """Let DeepSpeed build an engine in fp16 on a CPU without instructions for it, where torch is slow and right."""
    from deepspeed.accelerator import get_accelerator  # train/engine.py says first which one it is to be

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        yield
        return
    accelerator.is_fp16_supported = functools.partial(bool, True)
    try:
        yield
    finally:
        del accelerator.is_fp16_supported
