"""How far a share of right answers can be trusted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.accuracy import BEYOND, interval, right_answers, wilson


@given(st.integers(1, 10_000).flatmap(lambda items: st.tuples(st.integers(0, items), st.just(items))))
def test_the_bounds_are_the_shares_that_are_as_many_of_their_own_standard_errors_away(counts):
    right, items = counts
    share = right / items
    low, high = wilson(share, items)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert high - low > 0
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:  # at 0 and 1 rounding decides, and they are no solution
            assert abs(share - bound) == pytest.approx(BEYOND * math.sqrt(bound * (1 - bound) / items), abs=1e-9)


def test_of_few_questions_none_right_is_told_as_little_known():
    none = {"accuracy": 0.0, "items": 8}
    assert wilson(0, 8) == (0, pytest.approx(BEYOND**2 / (8 + BEYOND**2)))  # where the equation can be solved by hand
    assert interval(none) == "0% to 32%"
    assert right_answers(none) == "0.0% (0% to 32%)"
    assert right_answers({"accuracy": 1.0, "items": 8}) == "100.0% (68% to 100%)"
    assert right_answers(None, "not asked") == "not asked"
