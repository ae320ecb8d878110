"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.config import TrainConfig
from train.stage_config import StageSchedule
from train.stages import Stage

SHAPES = {
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True)
class Course:
    """The learning rate over some stages with one schedule.

    Attributes:
        begins: the rate before the first step; ``peak``: that at the end of the warmup.
        decay_begins: the step with which the decay begins; ``stop_step``: the first after the last stage.
    """

    schedule: StageSchedule
    stages: tuple[Stage, ...]
    begins: float
    peak: float
    decay_begins: int

    @property
    def first_step(self) -> int:
        return self.stages[0].first_step

    @property
    def stop_step(self) -> int:
        return self.stages[-1].stop_step

    @property
    def decay_steps(self) -> int:
        return self.stop_step - self.decay_begins

    def rate(self, step: int) -> float:
        """Rate used by a step (:func:`learning_rate`)."""
        schedule, done = self.schedule, step - self.first_step
        if done < schedule.warmup_steps:
            return self.begins + (self.peak - self.begins) * (done + 1) / schedule.warmup_steps
        done = min(step, self.decay_begins) - self.first_step + 1
        middle = self.peak * (max(1.0, done / max(schedule.warmup_steps, 1)) ** -schedule.fall)
        if step < self.decay_begins:
            return middle
        last = min(self.peak * schedule.final_fraction, middle)
        return last + (middle - last) * SHAPES[schedule.decay](self._decayed(step))

    def _decayed(self, step: int) -> float:
        """The share of the decay's tokens that are taken when a step ends."""
        begin, whole = _tokens(self.stages, self.decay_begins), _tokens(self.stages, self.stop_step)
        return min((_tokens(self.stages, step + 1) - begin) / (whole - begin), 1.0) if whole > begin else 1.0


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate used by optimizer step ``step`` (the first is 0): warmup, a level or slowly falling middle, decay.

    Linear warmup from ``peak / warmup_steps``. Then the peak times ``(steps / warmup_steps) ** -fall``: 0 stays (WSD:
    Hu et al., arXiv 2404.06395), 0.5 is the inverse square root (Vaswani et al., arXiv 1706.03762), 0.51 the power
    scheduler (Shen et al., arXiv 2408.13359). Over the last ``decay_fraction`` of the tokens from there down to
    ``final_fraction`` of the peak: linear, ``1-sqrt`` (Haegele et al., arXiv 2405.18392), which falls faster at first,
    or ``cosine`` (Loshchilov and Hutter, arXiv 1608.03983). A ``decay_fraction`` of 1 is all that the warmup leaves.

    A stage with a schedule or a learning rate of its own begins a new course, in the same way, which warms up from the
    rate that the last step before it used; without a learning rate of its own, that is its peak.
    """
    courses = config.courses
    return next((one for one in courses if step < one.stop_step), courses[-1]).rate(step)


def courses_of(config: TrainConfig) -> list[Course]:
    """The courses of the learning rate in a run, one after another."""
    parts: list[tuple[Stage, ...]] = []
    for stage in config.timeline:
        if not parts or stage.schedule or stage.learning_rate is not None:
            parts.append(())
        parts[-1] += (stage,)
    found: list[Course] = []
    for stages in parts:
        before = found[-1].rate(found[-1].stop_step - 1) if found else 0.0
        schedule = stages[0].schedule or (StageSchedule() if found else config.schedule)
        peak = stages[0].learning_rate
        if peak is None:
            peak = before if found else config.optimizer.learning_rate
        found.append(Course(schedule, stages, before, peak, _decay_begins(stages, schedule)))
    return found


def _tokens(stages: Sequence[Stage], step: int) -> int:
    """Tokens that these stages take until ``step`` steps of the run are done."""
    return sum(max(min(step, stage.stop_step) - stage.first_step, 0) * stage.tokens_per_step for stage in stages)


def _decay_begins(stages: Sequence[Stage], schedule: StageSchedule) -> int:
    """The step from which on ``decay_fraction`` of the tokens are left, to the nearest step; 1: all but the warmup."""
    fraction = schedule.decay_fraction
    if fraction == 1:
        return min(stages[0].first_step + schedule.warmup_steps, stages[-1].stop_step)
    tokens, after = sum(stage.tokens for stage in stages), 0
    for stage in reversed(stages):
        steps = tokens / stage.tokens_per_step * fraction - after / stage.tokens_per_step  # of this stage
        if steps <= stage.steps or stage is stages[0]:
            return stage.stop_step - min(max(round(steps), 0), stage.steps)
        after += stage.tokens
    raise AssertionError("stages of a course are never none")


def schedule_problems(config: TrainConfig) -> list[str]:
    """What is wrong with the courses of the learning rate, one line each."""
    found = []
    for course in config.courses:
        name, steps = course.stages[0].name, course.stop_step - course.first_step
        where = f"stages.{course.stages[0].number} ({name}).schedule" if name else "schedule"
        if course.schedule.warmup_steps + course.decay_steps > steps:
            among = "they hold" if name else f"tokens={config.tokens} gives"
            found.append(f"{where}.warmup_steps={course.schedule.warmup_steps}: warmup and decay ({course.decay_steps} "
                         f"steps) do not fit into the {steps} steps that {among}")  # fmt: skip
        if not course.peak > 0:
            found.append(f"{where}: the rate before it has fallen to {course.peak:g}; set its learning_rate, or let "
                         "the schedule before it end higher (decay_fraction: 0)")  # fmt: skip
    return found
