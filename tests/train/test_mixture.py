"""A rule gives the weights it promises, and the sequences drawn follow them to the last one."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import HanseError
from train.config import DataConfig
from train.mixture import repeated, shares, unimax, weights_of
from train.stream import Mixture

LANGUAGES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**6), min_size=1)


@given(LANGUAGES, st.integers(1, 10**7), st.floats(0.1, 20))
def test_unimax_is_even_but_for_languages_at_their_cap(windows, samples, max_epochs):
    assume(samples <= max_epochs * sum(windows.values()))
    found = unimax(windows, samples, max_epochs)
    assert sum(found.values()) == pytest.approx(samples)
    most = max(found.values())
    for name, count in windows.items():
        assert found[name] <= max_epochs * count * (1 + 1e-9)
        capped = found[name] == pytest.approx(max_epochs * count)
        assert capped or found[name] == pytest.approx(most)


def test_unimax_of_the_papers_example():
    """Uniform over 3, but the first has only 10 sequences for 2 epochs: the others share what it leaves."""
    assert unimax({"a": 10, "b": 1000, "c": 5000}, 900, 2) == {"a": 20, "b": 440, "c": 440}


def test_unimax_refuses_more_than_there_is():
    with pytest.raises(HanseError, match="so many epochs of all languages are 220 sequences, but the run draws 221"):
        unimax({"a": 10, "b": 100}, 221, 2)


@given(LANGUAGES, st.floats(1, 50))
def test_temperature_lies_between_proportional_and_even(windows, temperature):
    found = weights_of(DataConfig(mixture_rule="temperature", temperature=temperature), windows, 1)
    for one in windows:
        for other in windows:
            if windows[one] > windows[other]:
                assert 1 <= found[one] / found[other] <= windows[one] / windows[other] * (1 + 1e-9)
    assert weights_of(DataConfig(mixture_rule="temperature", temperature=1.0), windows, 1) == pytest.approx(
        weights_of(DataConfig(), windows, 1)
    )


def test_given_weights_come_first_and_languages_without_are_left_out():
    assert weights_of(DataConfig(mixture={"b": 2, "c": 0}), {"a": 5, "b": 5, "c": 5}, 9) == {"b": 2.0}
    assert weights_of(DataConfig(), {"a": 5, "b": 0}, 9) == {"a": 5.0}
    assert weights_of(DataConfig(mixture_rule="temperature"), {"a": 5, "b": 0}, 9) == {"a": pytest.approx(5 ** (1 / 3))}


@given(LANGUAGES, st.integers(1, 10**5), st.sampled_from(["proportional", "temperature", "unimax"]))
def test_what_is_obtained_is_what_was_asked_within_the_order_of_data(windows, samples, rule):
    assume(rule != "unimax" or samples <= 4 * sum(windows.values()))
    weights = weights_of(DataConfig(mixture_rule=rule), windows, samples)
    drawn = dict(zip(weights, Mixture(list(weights.values())).drawn(samples), strict=True))
    assert sum(drawn.values()) == samples
    for name, one in shares(weights, drawn, windows).items():
        assert one.samples == pytest.approx(one.asked * samples, abs=1 + 1e-4 * samples)  # weights are integers
        assert one.epochs == one.samples / windows[name]
    warned = repeated(shares(weights, drawn, windows))
    assert len(warned) == sum(drawn[name] > 4 * windows[name] for name in weights)
