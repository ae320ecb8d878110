"""Determinism D2: bit for bit the same weights on any number of data-parallel ranks and at every ZeRO stage.

Floating-point sums depend on their order, and the order on the layout. So gradients are summed as integers: each
micro-batch's gradient, which no layout changes, is rounded once to a multiple of ``2**-exponent`` and added in int64,
on the rank and between the ranks; integer sums know no order. From the sum on, everything is done element by element
with operations that round once, so that it does not matter which rank owns an element.

DeepSpeed reduces nothing itself: inside ``engine.coalesce_grad_reduction`` it leaves the gradients alone, and finds
none when it comes to collect them. The sums are handed to ZeRO's own step, which owns masters, moments and weights.

Memory: at ZeRO 0 and 1 eight bytes a parameter, instead of two or four; at ZeRO 2 and 3 eight bytes a parameter that
this rank owns, and one bucket.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import HanseError

FIRST_EXPONENT = 40  # before any gradient was seen: sums below 8 million, in steps of 1e-12
HEADROOM_BITS = 20  # a step's largest gradient may be a million times that of the step before
SQUARE_BITS = 28  # of each of two integers that hold a squared element; up to 2**34 elements can be summed


@dataclass(frozen=True)
class Owned:
    """A rank's share of a parameter: its elements ``start..stop``, at ``offset`` of flat tensor number ``group``."""

    group: int
    offset: int
    start: int
    stop: int


@dataclass
class Bucket:
    """Neighbouring parameters whose integer sums travel together."""

    places: dict[int, tuple[int, int]]  # id of a parameter -> (offset, elements) in the buffer
    elements: int
    sums: Tensor | None = None
    missing: set[int] = field(default_factory=set)


class ExactSum:
    """The gradient of a step, summed without rounding over micro-batches and ranks.

    Args:
        engine: DeepSpeed's, with an optimizer of ZeRO.
        parameters: of the model, in an order that all ranks share; ``sizes``: their elements.
        owned: by id of the parameter, what this rank owns of it; nothing of some.
        flats: this rank's flat fp32 tensors, which the gradient is handed over for.
        sharded: send each bucket as soon as a micro-batch has filled it (ZeRO 2 and 3), and keep only the own share.
        micro_batches: in a step, over all ranks.
        clip: largest global L2 norm; 0: any.
    """

    def __init__(
        self, engine: Any, parameters: Sequence[Any], sizes: Sequence[int], owned: dict[int, Owned],
        flats: Sequence[Tensor], *, sharded: bool, micro_batches: int, bucket_elements: int, clip: float,
    ):  # fmt: skip
        self.engine, self.owned, self.flats = engine, owned, flats
        self.sharded, self.micro_batches, self.clip = sharded, micro_batches, clip
        self.exponent, self.norm, self.factor = FIRST_EXPONENT, 0.0, 1.0
        self._buckets = _buckets(list(reversed(list(zip(parameters, sizes, strict=True)))), bucket_elements)
        self._bucket_of = {key: bucket for bucket in self._buckets for key in bucket.places}
        self._next = 0  # buckets are sent in one order on all ranks, whichever is full first
        self._mine: list[Tensor] = []
        self._largest = torch.zeros((), dtype=torch.float64, device=flats[0].device)
        self._open: ExitStack | None = None
        self._last = False
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)

    def begin(self, *, last: bool) -> None:
        """To be called before each micro-batch; ``last``: it is this rank's last of the step."""
        if self._open is None:
            self._open = ExitStack()
            self._open.enter_context(self.engine.coalesce_grad_reduction())
            self._mine = [torch.zeros(flat.numel(), dtype=torch.int64, device=flat.device) for flat in self.flats]
            self._largest.zero_()
        self._last, self._next = last, 0
        for bucket in self._buckets:
            bucket.missing = set(bucket.places)

    def _take(self, parameter: Any) -> None:
        """A gradient is complete: add it, and leave none behind for ZeRO."""
        gradient, parameter.grad = parameter.grad, None
        bucket = self._bucket_of[id(parameter)]
        if bucket.sums is None:
            bucket.sums = torch.zeros(bucket.elements, dtype=torch.int64, device=gradient.device)
        gradient = gradient.detach().double().flatten()
        self._largest = torch.maximum(self._largest, gradient.abs().amax())
        offset, elements = bucket.places[id(parameter)]
        bucket.sums[offset : offset + elements] += gradient.mul_(2.0**self.exponent).round_().to(torch.int64)
        bucket.missing.discard(id(parameter))
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._full(self._buckets[self._next])

    def end(self) -> bool:
        """To be called after each micro-batch; after a step's last one, whether the gradient was handed to ZeRO."""
        while self._next < len(self._buckets):  # a parameter without a gradient adds nothing
            self._full(self._buckets[self._next])
        if not self._last:
            return False
        assert self._open is not None
        self._open.close()
        self._open = None
        self._hand_over()
        return True

    def _full(self, bucket: Bucket) -> None:
        self._next += 1
        if not (self.sharded or self._last):
            return
        if bucket.sums is None:
            bucket.sums = torch.zeros(bucket.elements, dtype=torch.int64, device=self.flats[0].device)
        dist.all_reduce(bucket.sums)
        for key, (offset, _) in bucket.places.items():
            mine = self.owned.get(key)
            if mine is not None:
                here = self._mine[mine.group][mine.offset : mine.offset + mine.stop - mine.start]
                here += bucket.sums[offset + mine.start : offset + mine.stop]
        bucket.sums = None

    def _hand_over(self) -> None:
        largest = torch.nan_to_num(self._largest, nan=math.inf)  # a maximum may lose a NaN on its way
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        bound = float(largest) * self.micro_batches  # no element of the sum is larger
        if not math.isfinite(bound):  # no update: DeepSpeed leaves out a step whose gradient is not finite
            self._give([torch.full_like(flat, math.nan) for flat in self.flats], math.nan)
            return
        if bound * 2.0**self.exponent >= 2.0**62:
            raise HanseError(
                f"determinism=D2: a gradient of {float(largest):.2e} is more than {2**HEADROOM_BITS:,} times the "
                "largest one of the step before, beyond what its exact sum can hold; nothing was updated: go on from "
                "the last checkpoint with a lower learning rate, or in another run folder with determinism=D1"
            )
        norm = self._global_norm(bound) if bound else 0.0
        self.factor = min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0
        self._give([sums.double().mul_(2.0**-self.exponent).mul_(self.factor).float() for sums in self._mine], norm)
        if bound:
            self.exponent = 62 - HEADROOM_BITS - math.ceil(math.log2(bound))

    def _give(self, gradients: Sequence[Tensor], norm: float) -> None:
        self.norm, self._mine = norm, []
        for group, gradient in enumerate(gradients):
            self.engine.optimizer.averaged_gradients[group] = [gradient]

    def _global_norm(self, bound: float) -> float:
        """L2 norm of the sum. Squares are rounded to multiples of ``2**-56`` of the largest possible one, held in two
        integers each, and summed exactly."""
        unit = 2.0 ** math.ceil(math.log2(bound))
        halves = torch.zeros(2, dtype=torch.int64, device=self.flats[0].device)
        for sums in self._mine:
            squares = sums.double().mul_(2.0**-self.exponent / unit).square_().mul_(2.0**SQUARE_BITS)
            whole = squares.floor()
            rest = squares.sub_(whole).mul_(2.0**SQUARE_BITS).floor_()
            halves += torch.stack((whole.to(torch.int64).sum(), rest.to(torch.int64).sum()))
        dist.all_reduce(halves, group=self.engine.optimizer.dp_process_group)  # those who share the flat tensors
        whole_sum, rest_sum = halves.tolist()
        return unit * math.sqrt((whole_sum + rest_sum * 2.0**-SQUARE_BITS) * 2.0**-SQUARE_BITS)


def _buckets(parameters: Iterable[tuple[Any, int]], elements: int) -> list[Bucket]:
    """Cut the parameters, in the order in which their gradients come, into buckets of at most so many elements."""
    buckets: list[Bucket] = []
    for parameter, size in parameters:
        if not buckets or buckets[-1].elements + size > elements:
            buckets.append(Bucket({}, 0))
        bucket = buckets[-1]
        bucket.places[id(parameter)] = (bucket.elements, size)
        bucket.elements += size
    return buckets


class _Through(torch.autograd.Function):
    """The same tensor, as a node of its own in the graph."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def isolate(module: nn.Module) -> None:
    """Let each submodule sum the gradients of its own uses of an input before those of others are added.

    ZeRO-3's hooks put nodes between modules, which decides the order of these sums: where a norm uses its input twice
    and a residual connection once, (a + b) + c became a + (b + c). With these nodes it is the same at all stages.
    """

    def separated(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        def through(value: Any) -> Any:
            return _Through.apply(value) if isinstance(value, Tensor) and value.requires_grad else value

        return tuple(map(through, arguments)), {key: through(value) for key, value in named.items()}

    for submodule in module.modules():
        submodule.register_forward_pre_hook(separated, with_kwargs=True)
