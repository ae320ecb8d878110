"""What torch's compiler makes anew: for every shape of a run, told of once."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from train.compiling import Compilations, compiled


def test_every_shape_is_compiled_and_the_steps_after_which_one_was_are_told():
    events, said = [], []
    told = Compilations(SimpleNamespace(event=lambda step, kind, **facts: events.append((step, kind, facts)),
                                        say=said.append))  # fmt: skip
    torch._dynamo.reset()
    double = compiled(lambda x: x * 2, backend="eager")  # which makes no machine code
    shapes = range(2, 14)  # torch would stop at eight
    for step, rows in enumerate([*shapes, *shapes], 1):
        assert double(torch.ones(rows)).tolist() == [2.0] * rows
        told.step(step)
    assert events == [(step, "compiled", {"graphs": 1}) for step in range(1, len(shapes) + 1)]
    assert len(said) == len(events)
    assert said[0] == "step 1: compiled, for shapes that are new (graphs: 1)"
