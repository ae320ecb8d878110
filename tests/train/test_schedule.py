"""Warmup, stable, decay: a pure function of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import BatchConfig, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from train.schedule import learning_rate


def config(steps: int, warmup: int, fraction: float, decay: str, final: float = 0.0) -> TrainConfig:
    return TrainConfig(
        tokens=steps * 8, data=DataConfig(sequence_length=4), batch=BatchConfig(2, 1),
        optimizer=OptimizerConfig(learning_rate=0.5), schedule=ScheduleConfig(warmup, fraction, decay, final),
    )  # fmt: skip


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 300))
    fraction = draw(st.floats(0, 1))
    warmup = draw(st.integers(0, steps - round(steps * fraction)))
    return config(steps, warmup, fraction, draw(st.sampled_from(["linear", "1-sqrt"])), draw(st.floats(0, 0.5)))


@given(schedules())
def test_rises_stays_falls_and_ends_where_it_should(settings):
    rates = [learning_rate(step, settings) for step in range(settings.steps)]
    peak, warmup, decay = 0.5, settings.schedule.warmup_steps, settings.decay_steps
    assert all(0 <= rate <= peak for rate in rates)
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    assert set(rates[warmup : settings.steps - decay]) <= {peak}
    falling = rates[settings.steps - decay :]
    assert falling == sorted(falling, reverse=True)
    if decay:
        assert rates[-1] == pytest.approx(peak * settings.schedule.final_fraction)


def test_shapes_in_the_middle_of_the_decay():
    assert learning_rate(74, config(100, 0, 0.5, "linear")) == pytest.approx(0.25)
    assert learning_rate(74, config(100, 0, 0.5, "1-sqrt")) == pytest.approx(0.5 * (1 - math.sqrt(0.5)))
