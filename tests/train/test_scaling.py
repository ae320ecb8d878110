"""What communication costs on many nodes: its arithmetic, and how far it is from what others measured."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.scaling import errors, fit, published
from train.scaling import (
    BANDWIDTH_SHARE,
    TURN_SECONDS,
    Network,
    Work,
    compute_seconds,
    efficiency,
    network,
    step_seconds,
)

NET = Network(4, 50e9, 300e9, 0.0, 1.0)
WORK = Work(1e9, 32, 3, 1, 0.3)


def test_a_ring_moves_all_but_one_share_over_the_slowest_link_in_as_many_turns():
    assert NET.ring(2e9, 1, 1) == 0
    assert NET.ring(2e9, 4, 1) == pytest.approx(2e9 * 3 / 4 / 300e9)
    assert NET.ring(2e9, 8, 1) == pytest.approx(2e9 * 7 / 8 / 50e9)
    assert replace(NET, turn=1e-5, share=0.5).ring(2e9, 8, 3) == pytest.approx(2e9 * 7 / 8 / 25e9 + 3 * 7e-5)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, 2 * 0.3),  # summed beside the last backward pass
        (1, 2 * 0.3 + 0.035),  # summed beside the last backward pass; weights are gathered with nothing beside it
        (2, 2 * 0.3 + 0.035),
        (3, 2 * 0.3),  # all beside the passes
    ],
)
def test_what_is_hidden_and_what_is_not(stage, expected):
    assert step_seconds(replace(WORK, stage=stage, accumulation=2), 8, NET) == pytest.approx(expected)


def test_what_does_not_fit_beside_the_computation_is_waited_for():
    gather = NET.ring(2e9, 8, 1)  # 35 ms
    quick = replace(WORK, compute=0.03, accumulation=2)
    assert step_seconds(quick, 8, NET) == pytest.approx(2 * 3 * gather)
    assert step_seconds(replace(quick, stage=2), 8, NET) == pytest.approx(2 * (0.01 + 2 * gather) + gather)
    assert step_seconds(replace(quick, stage=1), 8, NET) == pytest.approx(0.03 + 0.01 + 3 * gather)
    assert step_seconds(replace(quick, stage=0), 8, NET) == pytest.approx(0.01 + 0.02 + 0.01 + 2 * gather)
    assert step_seconds(replace(WORK, recompute=True, compute=0.12), 8, NET) == pytest.approx(gather + 0.09)
    assert efficiency(quick, 1, NET) == 1


@given(some.floats(1e7, 1e11), some.integers(1, 100), some.sampled_from((0, 1, 2, 3)), some.integers(1, 8),
       some.floats(1e-3, 10), some.integers(0, 12))  # fmt: skip
def test_more_ranks_never_make_a_step_shorter_and_a_measured_step_tells_the_computation(
    parameters, layers, stage, accumulation, compute, doublings
):
    work, net = Work(parameters, layers, stage, accumulation, compute), network("H100", 4, 800, 3e-5)
    ranks = 2**doublings
    seconds = step_seconds(work, ranks, net)
    assert accumulation * compute <= seconds * (1 + 1e-9)
    assert seconds <= step_seconds(work, 2 * ranks, net) * (1 + 1e-9)
    assert 0 < efficiency(work, ranks, net) <= 1 + 1e-9
    found = compute_seconds(seconds, work, ranks, net)
    assert step_seconds(replace(work, compute=found), ranks, net) == pytest.approx(seconds, rel=1e-6)


def test_published_measurements_are_met_as_the_page_says():
    """Fitted to the smallest model on each machine, and held against the larger ones."""
    rows = published()
    for system, most in (("Leonardo", 0.15), ("MareNostrum 5", 0.2)):
        here = [one for one in rows if one.system == system]
        small = [one for one in here if one.parameters == 2.7e9]
        share, found = fit(small)
        assert BANDWIDTH_SHARE <= share <= 1.001
        assert min(TURN_SECONDS) / 1.3 <= found <= max(TURN_SECONDS) * 1.3
        held_out = errors([one for one in here if one.parameters > 2.7e9], share, found)
        assert len(held_out) > 10
        ratios = sorted(abs(math.log(predicted / measured)) for _, measured, predicted in held_out)
        assert ratios[len(ratios) // 2] < 0.08
        assert ratios[int(0.9 * len(ratios))] < most
