"""The precision that pays is measured, and one slow moment does not decide."""

import itertools

import pytest
import torch

from train import precision
from train.precision import choose, matmul_flops_per_second


def test_one_slow_product_says_nothing(monkeypatch):
    """Every look at the clock is 1 ms after the one before; but ten seconds pass within the first product."""
    steps = itertools.chain([1e-3, 1e-3, 1e-3, 1e-3, 10.0], itertools.repeat(1e-3))
    monkeypatch.setattr(precision.time, "perf_counter", itertools.accumulate(steps).__next__)
    assert matmul_flops_per_second(torch.float32, torch.device("cpu")) > 0.9 * 2 * 256**3 / 1e-3


@pytest.mark.parametrize(
    ("asked", "peaks", "taken"),
    [
        ("auto", {"fp32": 100.0, "bf16": 114.0}, "fp32"),  # a draw goes to the one that does not round
        ("auto", {"fp32": 100.0, "bf16": 116.0}, "bf16"),
        ("bf16", {"fp32": 100.0, "bf16": 1.0}, "bf16"),
    ],
)
def test_auto_takes_bf16_where_it_pays(asked, peaks, taken):
    assert choose(asked, peaks) == taken
