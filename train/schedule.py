"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from train.config import TrainConfig

SHAPES = {
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate used by optimizer step ``step`` (the first is 0): warmup, a level or slowly falling middle, decay.

    Linear warmup from ``peak / warmup_steps``. Then the peak times ``(steps / warmup_steps) ** -fall``: 0 stays (WSD:
    Hu et al., arXiv 2404.06395), 0.5 is the inverse square root (Vaswani et al., arXiv 1706.03762), 0.51 the power
    scheduler (Shen et al., arXiv 2408.13359). Over the last ``decay_steps`` steps from there down to ``final_fraction``
    of the peak: linear, ``1-sqrt`` (Haegele et al., arXiv 2405.18392), which falls faster at first, or ``cosine``
    (Loshchilov and Hutter, arXiv 1608.03983), usually over all steps.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    decay_begins = config.steps - config.decay_steps
    middle = peak * (max(1.0, (min(step, decay_begins) + 1) / max(schedule.warmup_steps, 1)) ** -schedule.fall)
    if step < decay_begins:
        return middle
    progress = min((step - decay_begins + 1) / config.decay_steps, 1.0) if config.decay_steps else 1.0
    last = min(peak * schedule.final_fraction, middle)
    return last + (middle - last) * SHAPES[schedule.decay](progress)
