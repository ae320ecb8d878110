"""How weights are put together, formula by formula; each on any range of a tensor's elements, in fp32.

A formula is a function ``(name, start, stop) -> values``, of shape (stop - start,): the caller walks over a model in
pieces, and nothing here holds more than a few pieces at once, whatever the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import HanseError
from common.terminal import Progress
from train.checkpoint_writer import write_stream
from train.weights import Weights

PIECE = 1 << 20  # elements
LARGEST_FILE = 4 << 30  # bytes; a larger model is written as several files
Formula = Callable[[str, int, int], Tensor]


def pieces(elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces of a tensor."""
    yield from ((start, min(start + PIECE, elements)) for start in range(0, elements, PIECE))


def read(model: Weights, name: str, start: int, stop: int) -> Tensor:
    """A range of a tensor, in fp32."""
    out = torch.empty(stop - start)
    model.read(name, start, stop, out)
    return out


def average(models: Sequence[Weights], weights: Sequence[float]) -> Formula:
    """``sum of w_i * model_i``, the weights as they are.

    With equal weights over the last checkpoints of a run: LAWA (Kaddour, arXiv 2209.14981). With those of
    :func:`decay_weights`: WSM.
    """

    def formula(name: str, start: int, stop: int) -> Tensor:
        total = torch.zeros(stop - start)
        for model, weight in zip(models, weights, strict=True):
            total.add_(read(model, name, start, stop), alpha=weight)
        return total

    return formula


def decay_weights(count: int, decay: str) -> list[float]:
    """Weights of checkpoints, old to new, whose average stands for a decay of the learning rate between them.

    WSM (Tian et al., arXiv 2507.17634): of the changes d_i from one checkpoint to the next, ``sum of c_j * model_j`` =
    ``model_0 + sum of w_i * d_i`` with ``w_i = sum of c_j, j >= i``. So a rate that has fallen to w_i in the i-th of k
    intervals is had by ``c_0 = 1 - w_1``, ``c_j = w_j - w_(j+1)``, ``c_k = w_k``. Here w_i is the decay at i / (k + 1),
    so that the last interval still counts; ``linear`` then gives equal weights.
    """
    shape = {"linear": lambda x: 1 - x, "1-sqrt": lambda x: 1 - math.sqrt(x),
             "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}[decay]  # fmt: skip
    rates = [1.0, *(shape(number / count) for number in range(1, count)), 0.0]
    return [before - after for before, after in pairwise(rates)]


def linear(one: Weights, other: Weights, fraction: float) -> Formula:
    """The point on the straight line from one model to the other."""
    return average((one, other), (1 - fraction, fraction))


def slerp(one: Weights, other: Weights, fraction: float) -> Formula:
    """The point on the arc from one tensor to the other: each tensor one vector (Shoemake, SIGGRAPH 1985).

    Where they point (nearly) the same or the opposite way, or one is zero, there is no arc: the straight line.
    """
    known: dict[str, tuple[float, float]] = {}

    def factors(name: str) -> tuple[float, float]:
        products = torch.zeros(3, dtype=torch.float64)
        for start, stop in pieces(math.prod(one.shapes[name])):
            a, b = (read(model, name, start, stop).double() for model in (one, other))
            products += torch.stack((a @ a, b @ b, a @ b))
        lengths = math.sqrt(products[0] * products[1])
        cosine = float(products[2]) / lengths if lengths else 1.0
        if abs(cosine) > 1 - 1e-7:
            return 1 - fraction, fraction
        angle = math.acos(cosine)
        return math.sin((1 - fraction) * angle) / math.sin(angle), math.sin(fraction * angle) / math.sin(angle)

    def formula(name: str, start: int, stop: int) -> Tensor:
        if name not in known:
            known[name] = factors(name)
        first, second = known[name]
        return read(one, name, start, stop).mul_(first).add_(read(other, name, start, stop), alpha=second)

    return formula


def ties(models: Sequence[Weights], base: Weights, weights: Sequence[float], density: float, scale: float) -> Formula:
    """TIES (Yadav et al., arXiv 2306.01708): trim each model's change, elect a sign, average those that agree.

    Trimmed: of all changes of a model (over all tensors, as in the paper) the largest ``density`` stay, the others
    become 0. Elected, an element: the sign of the weighted sum. Merged: the weighted mean of the changes of that sign.
    Result: ``base + scale * merged``.
    """
    least = [kth_largest_change(model, base, density) for model in models]

    def formula(name: str, start: int, stop: int) -> Tensor:
        ground = read(base, name, start, stop)
        changes = []
        for model, threshold in zip(models, least, strict=True):
            change = read(model, name, start, stop).sub_(ground)
            changes.append(change.masked_fill_(change.abs() < threshold, 0))
        total = torch.zeros_like(ground)
        for change, weight in zip(changes, weights, strict=True):
            total.add_(change, alpha=weight)
        sign, merged, agreeing = total.sign(), torch.zeros_like(ground), torch.zeros_like(ground)
        for change, weight in zip(changes, weights, strict=True):
            agrees = change.sign().eq_(sign).logical_and_(change != 0)
            merged.add_(change * agrees, alpha=weight)
            agreeing.add_(agrees, alpha=weight)
        return ground.add_(torch.where(agreeing > 0, merged / agreeing, 0), alpha=scale)

    return formula


def kth_largest_change(model: Weights, base: Weights, density: float) -> float:
    """The magnitude that the largest ``density`` of all changes have or exceed, exactly, in two passes.

    Magnitudes of floats are in the order of their bits: the first pass counts by the upper 16 of 31, the second, among
    those that share the upper bits of the one that is looked for, by the lower 15.
    """
    sizes = {name: math.prod(shape) for name, shape in base.shapes.items()}
    keep = int(density * sum(sizes.values()))
    if keep == 0:
        return math.inf

    def bits() -> Iterator[Tensor]:
        for name, size in sizes.items():
            for start, stop in pieces(size):
                change = read(model, name, start, stop).sub_(read(base, name, start, stop))
                yield change.view(torch.int32) & 0x7FFFFFFF

    upper = sum((torch.bincount(part >> 15, minlength=1 << 16) for part in bits()), torch.zeros(1 << 16))
    high, left = _from_the_top(upper, keep)
    lower = sum((torch.bincount(part[part >> 15 == high] & 0x7FFF, minlength=1 << 15) for part in bits()),
                torch.zeros(1 << 15))  # fmt: skip
    low, _ = _from_the_top(lower, left)
    return float(torch.tensor(high << 15 | low, dtype=torch.int32).view(torch.float32))


def _from_the_top(counts: Any, number: int) -> tuple[int, int]:
    """(index of the bin that holds the ``number``-th largest, its place among those of this bin)."""
    above = counts.long().flip(0).cumsum(0)
    place = int(torch.searchsorted(above, number))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, number - before


def write_model(
    partial: Path, part: str, shapes: Mapping[str, tuple[int, ...]], formula: Formula
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Write what a formula gives of every tensor, as one part of a checkpoint; {path: {bytes, sha256}}.

    Raises:
        HanseError: an element is not finite.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    groups: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if groups[-1] and 4 * (sum(groups[-1].values()) + size) > LARGEST_FILE:
            groups.append({})
        groups[-1][name] = size
    progress = Progress(part, 4 * sum(sizes.values()), "B")
    (partial / part).mkdir()

    def values(group: Mapping[str, int]) -> Iterator[Tensor]:
        for name, size in group.items():
            for start, stop in pieces(size):
                made = formula(name, start, stop)
                if not torch.isfinite(made).all():
                    raise HanseError(f"{name}: the result is not finite; look for NaN or infinity in the inputs")
                yield made
                progress.advance(4 * (stop - start))

    files = {}
    for number, group in enumerate(groups):
        file = f"{part}/rank-{number:05d}.safetensors"
        keys = {f"{name}[0:{size}]": size for name, size in group.items()}
        files[file] = write_stream(partial / file, keys, values(group))
    return files
