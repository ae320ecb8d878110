"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate used by optimizer step ``step`` (the first is 0): warmup, stable, decay.

    Linear warmup from ``peak / warmup_steps``; then the peak; then, over the last ``decay_steps`` steps, down to
    ``final_fraction`` of it: linear, or ``1 - sqrt`` (Haegele et al., arXiv 2405.18392), which falls faster at first.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    into_decay = step - (config.steps - config.decay_steps)
    if into_decay < 0:
        return peak
    progress = min((into_decay + 1) / config.decay_steps, 1.0) if config.decay_steps else 1.0
    shape = 1 - (progress if schedule.decay == "linear" else math.sqrt(progress))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)
