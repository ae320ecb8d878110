"""What a rank owns under ZeRO: for each parameter, a range of its master weights and of all that goes along.

ZeRO keeps flat fp32 tensors, one a group of parameters (stages 0 to 2) or of a part of a group (stage 3); of each, a
rank has a partition. Here they get their names back, as views: reading and writing a share are copies. At stage 0 every
rank holds all of each, and owns a partition all the same: what all would say is said by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """One rank's share of one parameter: flat views into ZeRO's own tensors.

    Attributes:
        name: the parameter's name in the ``transformers`` model.
        start, stop: the range of its elements, flattened, that this rank owns.
        group, offset: where that range lies: in which flat tensor of ZeRO's, from which element on.
        master: fp32 weights; ``moments``: what the optimizer keeps (AdamW: ``exp_avg`` and ``exp_avg_sq``);
            ``average``: of the weights, where one is kept. Each of shape (stop - start,).
    """

    name: str
    start: int
    stop: int
    group: int
    offset: int
    master: Tensor
    moments: dict[str, Tensor]
    average: Tensor | None = None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(part of a checkpoint, ending of the name there, values) of everything in this share."""
        yield "model", "", self.master
        for key, values in self.moments.items():
            yield "optimizer", f".{key}", values
        if self.average is not None:
            yield "ema", ".ema", self.average


class Shares:
    """This rank's shares of a model under ZeRO.

    Args:
        zero: DeepSpeed's optimizer.
        parameters: {name: parameter} of the model, in its order, as ZeRO has it now.
        averaged: whether an average of the weights is kept.
    """

    def __init__(self, zero: Any, stage: int, parameters: Mapping[str, Any], *, averaged: bool):
        self.zero, self.stage, self.parameters = zero, stage, parameters
        self._prepare()
        self.averages = [torch.zeros_like(flat.data) for flat in self.flats] if averaged else None
        self._copied = stage == 0 and dist.get_world_size() > 1

    @property
    def flats(self) -> list[Tensor]:
        """This rank's flat fp32 tensors."""
        if self.stage == 3:
            return list(self.zero.fp32_partitioned_groups_flat)
        return list(self.zero.single_partition_of_fp32_groups)

    def group_of(self, flat: int) -> dict[str, Any]:
        """The optimizer's group that a flat tensor belongs to."""
        number = self.zero.sub_group_to_group_id[flat] if self.stage == 3 else flat
        group: dict[str, Any] = self.zero.optimizer.param_groups[number]
        return group

    def state_of(self, flat: Tensor) -> dict[str, Tensor]:
        """The optimizer's state of a flat tensor."""
        state: dict[str, Tensor] = self.zero.optimizer.state[flat]
        return state

    def each(self, *, changed: bool = False) -> Iterator[Fragment]:
        """The share of every parameter, in the model's order; a rank may own nothing of some.

        Where moments lie on a disk it is that of one flat tensor after the other, and of a fragment nothing is there
        any more when the next one is asked for.

        Args:
            changed: what is written into the fragments is to be kept there, and so into all that this rank holds.
        """
        if not self.swapped:
            yield from self.held() if changed else itertools.starmap(self._fragment, self._owned())
            return
        for group, held in itertools.groupby(self._held(), lambda one: one[3]):
            with self.at_hand(group, changed=changed):
                yield from itertools.starmap(self._fragment, held)

    __iter__ = each

    def held(self) -> Iterator[Fragment]:
        """The same of all that this rank holds in memory, whether or not another holds it, too."""
        return itertools.starmap(self._fragment, self._held())

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """(name, start, stop) of the fragments in the order of :meth:`each`, wherever they lie."""
        return ((name, start, stop) for name, start, stop, _, _ in self._held())

    def _held(self) -> list[tuple[str, int, int, int, int]]:
        held = [(name, *found) for name, parameter in self.parameters.items() if (found := self._place(parameter))]
        return sorted(held, key=lambda one: one[3]) if self.swapped else held

    def _owned(self) -> Iterator[tuple[str, int, int, int, int]]:
        """What is held, once over all ranks: of what all of them hold, each owns as much."""
        if not self._copied:
            yield from self._held()
            return
        rank, ranks = dist.get_rank(), dist.get_world_size()
        bounds = [(len(flat) * rank // ranks, len(flat) * (rank + 1) // ranks) for flat in self.flats]
        for name, start, stop, group, offset in self._held():
            first, end = (min(max(bound - offset, 0), stop - start) for bound in bounds[group])
            if first < end:
                yield name, start + first, start + end, group, offset + first

    def _fragment(self, name: str, start: int, stop: int, group: int, offset: int) -> Fragment:
        flat, size = self.flats[group], stop - start
        moments = {key: values.narrow(0, offset, size) for key, values in self.state_of(flat).items()
                   if key != "step"}  # fmt: skip
        average = self.averages[group].narrow(0, offset, size) if self.averages else None
        return Fragment(name, start, stop, group, offset, flat.data.narrow(0, offset, size), moments, average)

    @property
    def swapped(self) -> bool:
        """Whether masters and moments lie on a disk between two steps."""
        return bool(getattr(self.zero, "swap_optimizer", False))

    @contextmanager
    def at_hand(self, group: int, *, changed: bool = False) -> Iterator[None]:
        """Hold a flat tensor and its moments in memory, wherever they lie otherwise."""
        if not (self.swapped and self.zero._swappable_optimizer_subgroup(group)):  # small ones stay in memory
            yield
            return
        self.zero._optimizer_states_and_gradient_swap_in(group)
        yield
        if changed:
            self.zero._optimizer_states_and_gradient_swap_out(group)
        else:
            self.zero._release_swap_buffers(group)

    def _place(self, parameter: Any) -> tuple[int, int, int, int] | None:
        """(first element, end, flat tensor, offset there) of this rank's share of a parameter."""
        return self._sharded(parameter) if self.stage == 3 else self._partitioned(parameter)

    def _partitioned(self, parameter: Any) -> tuple[int, int, int, int] | None:
        """Up to stage 2: all parameters of a group lie in one flat tensor, cut evenly between the ranks that share."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        here, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
        return start, start + here.numel, mapping.param_group_index, here.start

    def _sharded(self, parameter: Any) -> tuple[int, int, int, int] | None:
        """Stage 3: every parameter is cut into ceil(numel / ranks) elements a rank; the last share is padded."""
        group, offset, share = self.zero.grad_position[self.zero.get_param_id(parameter)]
        start = min(dist.get_rank() * share, parameter.ds_numel)
        stop = min(start + share, parameter.ds_numel)
        return (start, stop, group, offset) if start < stop else None

    def _prepare(self) -> None:
        """Create the optimizer's state now, as its first step would: so that there is something to restore into.

        The public way is a first step with a learning rate of zero, which costs a step and leaves gradients behind.
        """
        for number, flat in enumerate(self.flats):
            with self.at_hand(number, changed=True):
                self.zero.optimizer.state[flat] = {
                    "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                    **{key: torch.zeros_like(flat.data) for key in self.group_of(number)["moments"]},
                }

    def set_step(self, updates: int) -> None:
        """Tell the optimizer how many updates were made: corrections of means depend on it."""
        for flat in self.flats:
            self.state_of(flat)["step"].fill_(updates)

    def average(self, decay: float) -> None:
        """Move the average of the weights towards the weights: ``decay`` of it stays."""
        for flat, average in zip(self.flats, self.averages or (), strict=True):
            average.mul_(decay).add_(flat.data * (1 - decay))
