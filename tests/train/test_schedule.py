"""Warmup, stable, decay: a pure function of the step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup

from train.config import BatchConfig, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from train.schedule import learning_rate, schedule_problems


def config(steps: int, warmup: int, fraction: float, decay: str, final: float = 0.0, fall: float = 0.0) -> TrainConfig:
    return TrainConfig(
        tokens=steps * 8, data=DataConfig(sequence_length=4), batch=BatchConfig(2, 1),
        optimizer=OptimizerConfig(learning_rate=0.5), schedule=ScheduleConfig(warmup, fraction, decay, final, fall),
    )  # fmt: skip


SHAPES = st.sampled_from(["linear", "1-sqrt", "cosine"])


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 300))
    fraction = draw(st.floats(0, 1))
    warmup = draw(st.integers(0, steps - round(steps * fraction)))
    return config(steps, warmup, fraction, draw(SHAPES), draw(st.floats(0, 0.5)))


@given(schedules())
def test_rises_stays_falls_and_ends_where_it_should(settings):
    rates = [learning_rate(step, settings) for step in range(settings.steps)]
    peak, warmup, decay = 0.5, settings.schedule.warmup_steps, settings.courses[0].decay_steps
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
    assert learning_rate(49, config(100, 0, 1.0, "cosine")) == pytest.approx(0.25)
    assert learning_rate(24, config(100, 0, 1.0, "cosine")) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)) / 2)


@given(st.integers(1, 50), st.floats(0, 2), st.sampled_from(["linear", "1-sqrt", "cosine"]))
def test_a_falling_middle_has_no_jump_and_goes_on_into_the_decay(warmup, fall, decay):
    settings = config(200, warmup, 0.25, decay, fall=fall)
    rates = [learning_rate(step, settings) for step in range(200)]
    assert rates[warmup - 1] == 0.5
    assert rates[warmup - 1 :] == sorted(rates[warmup - 1 :], reverse=True)
    assert rates[149] == pytest.approx(0.5 * (150 / warmup) ** -fall)
    assert all(after / before > 0.2 for before, after in zip(rates[warmup - 1 : 150], rates[warmup:150], strict=False))


def test_the_inverse_square_root_is_a_fall_of_one_half():
    """Vaswani et al.: rate ~ min(step ** -0.5, step * warmup ** -1.5), steps counted from 1."""
    settings = config(1000, 100, 0.0, "linear", fall=0.5)
    expected = [min(step**-0.5, step * 100**-1.5) * 0.5 * 100**0.5 for step in range(1, 1001)]
    assert [learning_rate(step, settings) for step in range(1000)] == pytest.approx(expected)


@given(st.integers(0, 50), SHAPES, st.floats(0, 0.5))
def test_a_decay_over_everything_begins_where_the_warmup_ends(warmup, decay, final):
    settings = config(200, warmup, 1.0, decay, final)
    assert schedule_problems(settings) == []
    rates = [learning_rate(step, settings) for step in range(200)]
    assert rates[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(warmup)])
    assert all(
        after < before for before, after in zip(rates[max(warmup - 1, 0) :], rates[max(warmup, 1) :], strict=False)
    )
    assert rates[-1] == pytest.approx(0.5 * final, abs=1e-12)


def test_the_usual_cosine_is_that_of_transformers():
    settings = config(200, 20, 1.0, "cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_cosine_schedule_with_warmup(optimizer, 20, 200)
    for step in range(199):
        optimizer.step()
        theirs.step()  # whose first rate is 0, where ours is that of the first step of the warmup
        assert learning_rate(step, settings) == pytest.approx(theirs.get_last_lr()[0])


def test_a_warmup_that_is_longer_than_the_run_is_still_refused():
    (line,) = schedule_problems(config(10, 11, 1.0, "cosine"))
    assert "warmup_steps=11" in line
