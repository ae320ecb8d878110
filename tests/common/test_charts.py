import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.charts import Scale, Series, draw, fitted, round_step, thinned, written

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.floats(1e-9, 1e9))
def test_a_round_step_is_one_two_or_five_of_a_power_of_ten_and_the_smallest_that_will_do(least: float):
    step = round_step(least)
    assert f"{step:.0e}"[0] in "125"
    assert step == pytest.approx(float(f"{step:.0e}"))
    assert least <= step * (1 + 1e-6) <= 2.6 * least * (1 + 1e-6)


@given(st.lists(finite, min_size=1, max_size=50), st.booleans())
def test_every_value_lies_on_the_field_and_a_few_ticks_label_it(values: list[float], zero: bool):
    scale = fitted(values, zero=zero)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    places = [scale(value) for value, _ in scale.ticks(7)]
    assert all(-1e-3 <= place <= 100.1 for place in places)
    assert places == sorted(places)
    assert scale.logarithmic or 2 <= len(places) <= 8


def test_ticks_are_written_as_people_write_numbers():
    assert [written(value, 0.05) for value in (0, 0.05, 1)] == ["0", "0.05", "1.00"]
    assert written(1500, 500) == "1,500"
    assert written(20_000, 10_000) == "20 k"
    assert written(3e-5, 1e-5) == "3e-5"


def test_values_far_apart_go_on_a_logarithmic_scale():
    scale = fitted([1.0] * 50 + [1000.0])
    assert scale.logarithmic
    assert [label for _, label in scale.ticks(7)] == ["1", "10", "100", "1000"]
    assert not fitted([1.0, 2.0, 9.0]).logarithmic


@given(st.lists(st.none() | finite, max_size=60), st.integers(1, 6))
def test_thinning_keeps_order_extremes_and_gaps(values: list[float | None], bins: int):
    steps = list(range(len(values)))
    kept = list(thinned(steps, values, bins))
    numbers = [value for value in values if value is not None]
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    assert all(values[step] == value for step, value in kept)
    assert len(kept) <= 3 * bins
    if numbers:
        shown = [value for _, value in kept if value is not None]
        assert (min(shown), max(shown)) == (min(numbers), max(numbers))
    assert (None in values) == any(value is None for _, value in kept)


def test_a_gap_lifts_the_pen_and_a_lonely_point_is_a_dot():
    series = Series("loss", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 3.0, None])
    (line,) = draw("Loss", "nats", [series], last_step=4).lines
    assert re.sub(r"[\d. ]+", "", line.path) == "MLMh"
    assert line.points["values"] == [1.0, 2.0, None, 3.0, None]


def test_no_values_are_an_empty_field_and_one_value_is_a_dot_inside():
    assert draw("Loss", "nats", [Series("loss", [], [])], last_step=0).description == "Loss, nats. No values yet."
    (line,) = draw("Loss", "nats", [Series("loss", [1], [0.0])], last_step=1).lines
    assert line.path == line.dots == "M100.000 50.000h0"


def test_places_grow_to_the_right_and_upwards():
    chart = draw("Loss", "nats", [Series("loss", [0, 10], [0.0, 1.0])], last_step=10, scale=Scale(0, 1))
    assert chart.lines[0].path == "M0.000 100.000L100.000 0.000"
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert chart.y_ticks[-1].place == pytest.approx(0)
