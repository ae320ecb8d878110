"""Heads that are compared by their speed compute the same."""

import torch

from benchmarks.kernels import CPU, errors_of, heads, in_turns, passes
from train.stream import IGNORED


def test_all_heads_on_a_cpu_give_the_same_loss_and_gradients(capsys):
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(24, 16), torch.randn(200, 16) / 4, torch.randint(0, 200, (24,))
    labels[::5] = IGNORED
    both = [one.double().requires_grad_() for one in (hidden, weight)]
    total = torch.nn.functional.cross_entropy(both[0] @ both[1].t(), labels, ignore_index=IGNORED, reduction="sum")
    total.backward()
    exact = [total.detach(), *(one.grad for one in both)]
    ways = {name: passes(way, [hidden, weight], (labels,)) for name, way in heads(CPU)}
    assert list(ways)[:2] == ["cross_entropy of all logits", "hanse"]
    for once in ways.values():
        for found, right in zip(once(), exact, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
        assert errors_of(once, exact).startswith("repeats yes")
    in_turns(ways, exact, 2)
    said = capsys.readouterr().out
    assert all(name in said for name in ways)
