"""A run as a list of stages by tokens: which step, sample and token belongs to which, and what is done there.

What a stage sets holds from there on, until a later stage sets it otherwise. A run without stages is one stage. Steps
and samples are numbered through the whole run, the first is 0; ``step`` as a time means "after so many steps".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from train.config_rules import at_least, one_of, value_of
from train.stage_config import StageConfig, StageSchedule

if TYPE_CHECKING:
    import numpy as np

    from train.config import BatchConfig, DataConfig, TrainConfig

SIZES = ("tokens", "data.sequence_length", "batch.global_batch_size", "batch.micro_batch_size")  # steps are counted by
Ranges = Sequence[tuple[int, int]]  # of samples that a run went past (train/guards/rewind.py), ascending


@dataclass(frozen=True)
class Stage:
    """A stage, with all that holds in it.

    Attributes:
        name: "" in a run without stages; ``number``: its place in the list.
        first_step, first_sample, first_token: done before it, samples that were gone past not counted.
        schedule: of the learning rate from here on; None: the one before goes on; ``learning_rate``: its new peak.
        rope_theta: base of the rotary embedding; None: the model's own.
    """

    name: str
    number: int
    data: DataConfig
    batch: BatchConfig
    steps: int
    first_step: int
    first_sample: int
    first_token: int
    schedule: StageSchedule | None
    learning_rate: float | None
    rope_theta: float | None

    @property
    def where(self) -> str:
        """What an error about it begins with."""
        return f"stages.{self.number} ({self.name}): " if self.name else ""

    @property
    def told(self) -> str:
        """What it is, in words."""
        return f"stage {self.name}: {self.steps:,} steps of {self.size:,} sequences of {self.length:,} tokens"

    @property
    def size(self) -> int:
        """Sequences of a step."""
        return self.batch.global_batch_size

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.data.sequence_length

    @property
    def tokens_per_step(self) -> int:
        return self.size * self.length

    @property
    def stop_step(self) -> int:
        return self.first_step + self.steps

    @property
    def samples(self) -> int:
        return self.steps * self.size

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step


class Timeline:
    """The stages of a run, one after another."""

    def __init__(self, stages: Sequence[Stage], given: int):
        self.stages, self.given = tuple(stages), given  # tokens; some may be left over
        self._firsts = [stage.first_step for stage in self.stages]
        last = self.stages[-1]
        self.steps = last.stop_step
        self.samples = last.first_sample + last.samples

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def at(self, step: int) -> Stage:
        """The stage that the step after ``step`` steps belongs to; after the last one, the last stage."""
        return self.stages[bisect_right(self._firsts, step) - 1]

    def name(self, step: int) -> dict[str, str]:
        """{"stage": name} of step number ``step``, counted from 1, for its records; {} in a run without stages."""
        name = self.at(max(min(step, self.steps) - 1, 0)).name
        return {"stage": name} if name else {}

    def tokens(self, step: int) -> int:
        """Tokens that the first ``step`` steps take."""
        stage = self.at(step)
        return stage.first_token + (step - stage.first_step) * stage.tokens_per_step

    def taken(self, step: int) -> list[tuple[Stage, int]]:
        """(stage, tokens that its steps take) of the first ``step`` steps."""
        return [(one, max(min(step, one.stop_step) - one.first_step, 0) * one.tokens_per_step) for one in self.stages]

    def tokens_of(self, samples: int) -> int:
        """Tokens of the first ``samples`` samples that are learnt from."""
        ends = [*(stage.first_sample for stage in self.stages[1:]), max(samples, self.samples)]
        return sum(max(min(samples, end) - stage.first_sample, 0) * stage.length
                   for stage, end in zip(self.stages, ends, strict=True))  # fmt: skip

    def sample(self, step: int) -> int:
        """Samples that the first ``step`` steps learn from: the number of the next, in a run that went past none."""
        stage = self.at(step)
        return stage.first_sample + (step - stage.first_step) * stage.size

    def first_sample(self, step: int, skipped: Ranges = ()) -> int:
        """The sample with which a step begins, ``step`` steps having been done before it.

        Args:
            skipped: each range begins where a step did, and lies in one piece of the order (:meth:`pieces`).
        """
        sample = self.sample(step)
        for start, stop in skipped:
            sample += stop - start if sample >= start else 0
        return sample

    def span(self, step: int, skipped: Ranges = ()) -> range:
        """The samples of the step after ``step`` steps."""
        first = self.first_sample(step, skipped)
        return range(first, first + self.at(step).size)

    def end(self, steps: int, skipped: Ranges = ()) -> int:
        """The first sample that the first ``steps`` steps have not come to."""
        return self.span(steps - 1, skipped).stop if steps else 0

    def steps_of(self, samples: np.ndarray, skipped: Ranges = ()) -> np.ndarray:
        """The steps, counted from 1, that took these samples; 0 of those in a skipped range: the inverse."""
        import numpy as np  # not at the top: 'hanse train --help' must answer at once

        before = np.zeros_like(samples)
        inside = np.zeros(samples.shape, dtype=bool)
        for start, stop in skipped:
            before += np.where(samples >= stop, stop - start, 0)
            inside |= (samples >= start) & (samples < stop)
        learnt = samples - before
        which = np.searchsorted([stage.first_sample for stage in self.stages], learnt, side="right") - 1
        first, begun, size = np.array([(one.first_sample, one.first_step, one.size) for one in self.stages])[which].T
        return np.where(inside, 0, begun + (learnt - first) // size + 1)

    def pieces(self) -> list[tuple[Stage, ...]]:
        """Neighbours with the same windows in the same mixture: the order of data begins anew between the pieces."""
        pieces: list[tuple[Stage, ...]] = []
        for stage in self.stages:
            if pieces and pieces[-1][0].data == stage.data:
                pieces[-1] += (stage,)
            else:
                pieces.append((stage,))
        return pieces

    def problems(self, ranks: int, sharing: int = 1) -> list[str]:
        """What is wrong with how the stages divide tokens, sequences and ranks, one line each.

        Of sequences nothing where the ranks themselves do not divide, which others say.
        """
        from train.config import batch_problems  # which reads this module when it is asked for a run's stages

        found, groups = [], ranks // sharing if sharing > 0 and ranks % sharing == 0 else 0
        for stage in self.stages:
            wrong = batch_problems(stage.batch, ranks, sharing) if groups > 0 else []
            if stage.steps < 1:
                what = "what is left of its tokens" if stage.name else f"tokens={self.given}"
                wrong.append(f"{what}: less than one step, which takes batch.global_batch_size x data.sequence_length "
                             f"= {stage.tokens_per_step} tokens")  # fmt: skip
            found += [stage.where + one for one in wrong]
        return found

    def begin(self, piece: Sequence[Stage], skipped: Ranges = ()) -> int:
        """The first sample of a piece of the order."""
        sample = piece[0].first_sample
        for start, stop in skipped:
            sample += stop - start if start < sample else 0
        return sample


def timeline_of(config: TrainConfig) -> Timeline:
    """The stages of a run: whole steps each, what is left of its tokens goes to the next.

    The last stage ends with the budget, ``tokens``.
    """
    data, batch, rope_theta = config.data, config.batch, None
    found: list[Stage] = []
    step = sample = token = end = 0
    given = config.stages or [StageConfig(name="")]
    for number, one in enumerate(given):
        data, batch, rope_theta = data_of(data, one), _with(batch, one.batch), one.rope_theta or rope_theta
        end = config.tokens if number == len(given) - 1 else end + (one.tokens or 0)
        steps = max((end - token) // (batch.global_batch_size * data.sequence_length), 0)
        found.append(Stage(one.name, number, data, batch, steps, step, sample, token, one.schedule, one.learning_rate,
                           rope_theta))  # fmt: skip
        step, sample, token = step + steps, sample + found[-1].samples, token + found[-1].tokens
    return Timeline(found, config.tokens)


def stage_problems(config: TrainConfig) -> list[str]:
    """What is wrong with a run's stages and the arithmetic of its steps, one line each.

    What can be told beside other faults is: steps are counted where the values that they are counted by make sense.
    """
    from train.schedule import schedule_problems

    found = [f"stages.{number}.{line}" for number, _ in enumerate(config.stages)
             for line in _own_problems(config, number)]  # fmt: skip
    if not countable(config):
        return found
    known = config.data.problems()  # which every stage has that does not set it otherwise
    for stage in config.timeline:
        found += [stage.where + line for line in stage.data.problems() if stage.name and line not in known]
    found += config.timeline.problems(config.ranks_of_start, config.engine.sharing)
    schedules = [config.schedule, *(one.schedule for one in config.stages if one.schedule)]
    rates = [config.optimizer.learning_rate, *(one.learning_rate for one in config.stages)]
    if all(rate is None or rate > 0 for rate in rates) and not any(one.problems() for one in schedules):
        found += schedule_problems(config)
    return found


def _own_problems(config: TrainConfig, number: int) -> list[str]:
    """What is wrong with the values of one stage."""
    from train.config import MIXTURE_RULES

    one, found = config.stages[number], list[str]()
    for key in SIZES:
        found += at_least(one, 1, key) if value_of(one, key) is not None else []
    for key in ("learning_rate", "rope_theta"):
        if value_of(one, key) is not None and not 0 < value_of(one, key) < float("inf"):
            found.append(f"{key}={value_of(one, key)}: must be above 0, and finite")
    found += one_of(one, "data.mixture_rule", (None, *MIXTURE_RULES))
    found += [f"schedule.{line}" for line in one.schedule.problems()] if one.schedule else []
    if not one.name or one.name in [other.name for other in config.stages[:number]]:
        found.append(f"name={one.name}: each stage needs a name of its own")
    last = number == len(config.stages) - 1
    if last == (one.tokens is not None):
        found.append("tokens: must be null: the last stage takes what is left of the run's tokens" if last else
                     "tokens: must be set (only the last stage takes what is left of the run's)")  # fmt: skip
    return found


def countable(config: TrainConfig) -> bool:
    """Whether the values that steps are counted by make sense, each by itself."""
    last = len(config.stages) - 1
    return not at_least(config, 1, *SIZES) and all(
        (one.tokens is None) == (number == last)
        and all((size := value_of(one, key)) is None or size >= 1 for key in SIZES)
        for number, one in enumerate(config.stages)
    )


def data_of(before: DataConfig, stage: StageConfig) -> DataConfig:
    """``data`` as a stage has it: a mixture of its own replaces a rule, and a rule a mixture."""
    data = _with(before, stage.data)
    if stage.data.mixture and stage.data.mixture_rule is None:
        return replace(data, mixture_rule="proportional")
    if stage.data.mixture_rule and stage.data.mixture is None:
        return replace(data, mixture={})
    return data


def _with(before: Any, own: Any) -> Any:
    """A configuration with those values of ``own`` that are not None."""
    return replace(before, **{key: value for key, value in vars(own).items() if value is not None})
