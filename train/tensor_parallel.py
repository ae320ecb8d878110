"""Tensor parallelism (DeepSpeed AutoTP; Megatron-LM: Shoeybi et al., arXiv 1909.08053): ranks share each matrix.

Ranks that lie side by side are a tensor group: they read the same samples, and each keeps a part of every matrix inside
the layers. Of those that make queries, keys, values and the inside of the MLP a part is some rows (dimension 0); of
those that go back from there it is some columns (dimension 1), and what the ranks get by them is summed. Embeddings,
head and vectors are whole on each. ZeRO shares out the states among the ranks that hold the same parts. On the way back
the gradient of what goes into attention, and of what goes into the MLP, is summed: AutoTP would do so for each matrix
that takes it, so its sums there are left out, and the block's input has one.

Only a rank's module and ZeRO know of parts. Whatever leaves the engine, checkpoints and hashes, is of whole tensors:
:meth:`TensorGroup.told` exchanges columns for whole rows within the group, so that a few ranges make up what a rank
tells of a tensor, each element told by one rank; :meth:`TensorGroup.filled` takes whole rows and keeps its columns.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.module_inject import set_autotp_mode
from deepspeed.module_inject.auto_tp import AutoTP
from deepspeed.module_inject.autotp_config import AutoTPConfig, PartitionType, TPLayerSpec
from deepspeed.module_inject.layers import ColumnParallel, LinearLayer
from deepspeed.utils import groups
from torch import Tensor, nn
from transformers import PretrainedConfig

from common.errors import ConfigError
from train.config import TrainConfig
from train.guards.replicas import differing
from train.model import PackedLanguageModel
from train.shares import Fragment
from train.tensor_config import SUMMED, model_problems

ROWS = r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj)\.weight$"
COLUMNS = r".*\.(o_proj|down_proj)\.weight$"
INPUT = "hidden_states"  # what transformers calls that of a block of which ROWS are the beginning
READ_ELEMENTS = 1 << 24  # of a tensor that are in memory at once beside its part, where columns are read


@dataclass(frozen=True)
class Cut:
    """A tensor of ``shape``, cut into ``size`` equal parts along dimension ``dim``, of which a rank has one."""

    shape: tuple[int, ...]
    dim: int
    size: int
    index: int

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor, copied."""
        return whole.chunk(self.size, self.dim)[self.index].clone(memory_format=torch.contiguous_format)

    @property
    def elements(self) -> int:
        """Of a part."""
        return math.prod(self.shape) // self.size

    @property
    def width(self) -> int:
        """Columns of a part."""
        return self.shape[1] // self.size


@dataclass
class TensorGroup:
    """The ranks that share matrices with this one; of one rank: nobody does.

    Attributes:
        index: this rank's place in it, and which part of everything it keeps.
        group: None where it has one rank; ``holders``: the ranks that hold the same parts.
        cuts: {parameter: how it is cut} of those that are; ``by_id``: the same by the id of the parameter.
    """

    size: int = 1
    index: int = 0
    group: Any = None
    holders: Any = None
    cuts: dict[str, Cut] = field(default_factory=dict)
    by_id: dict[int, Cut] = field(default_factory=dict)
    _auto: AutoTP | None = None

    @classmethod
    def join(cls, size: int) -> TensorGroup:
        """The group of this rank among ranks that all ask for this size, which divides their number. Collective."""
        if size == 1:
            return cls()
        set_autotp_mode(training=True)
        groups._init_tp_mesh_device(tensor_model_parallel_size=size)
        group = groups.get_tensor_model_parallel_group()
        assert dist.get_world_size(group) == size, "DeepSpeed keeps the first groups of a process"
        return cls(size, dist.get_rank(group), group, groups.get_data_parallel_group())

    def cut(self, module: PackedLanguageModel) -> None:
        """Leave of a model this rank's parts; parameters stay the objects they are, with memory or without."""
        if self.size == 1:
            return
        shapes = {name: tuple(one.shape) for name, one in module.model.named_parameters()}
        self._auto = AutoTP(
            module=module.model, all_reduce_linears=(), prefix="", state_dict=None,
            linear_layer_setting=(nn.Linear, nn.Embedding), orig_layer_impl=None, keep_module_on_host=False,
            partition_config=AutoTPConfig(self.size, [
                TPLayerSpec([ROWS], PartitionType.COLUMN),  # named after the columns of the transposed matrix
                TPLayerSpec([COLUMNS], PartitionType.ROW),
                TPLayerSpec([SUMMED], PartitionType.SKIP, grad_allreduce=True),
            ]),
            model_config=module.model.config, training_mode=True,
        )  # fmt: skip
        self._auto.set_tensor_parallel_config(self.size, self.group)
        self._auto.update_linear_policies()
        self._auto._replace_module(module.model)
        for block in module.model.modules():
            if begins := [one for one in block.children() if isinstance(one, LinearLayer)]:
                for one in begins:
                    one.mp_group = None  # which it sums its input's gradient over
                block.register_forward_pre_hook(self._sums_gradient, with_kwargs=True)
        vars(module)["ds_autotp_parsed"] = True  # or DeepSpeed would cut later, when every rank holds the whole model
        for name, one in module.model.named_parameters():
            if tuple(one.shape) != shapes[name]:
                dim = next(dim for dim, length in enumerate(one.shape) if length != shapes[name][dim])
                self.cuts[name] = self.by_id[id(one)] = Cut(shapes[name], dim, self.size, self.index)
                assert one.numel() == self.cuts[name].elements, f"{name} is cut into unequal parts"
        assert self.cuts, "no matrix of this architecture has a name that is known"

    def _sums_gradient(
        self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments; the gradient of its input, which comes from this rank's parts, becomes that of all."""
        if given:
            return (ColumnParallel.apply(self.group, given[0]), *given[1:]), named
        return given, {**named, INPUT: ColumnParallel.apply(self.group, named[INPUT])}

    def landed(self, module: PackedLanguageModel) -> None:
        """To be called when the parameters have their memory."""
        if self._auto:
            with redirect_stdout(io.StringIO()):  # it says that it does
                self._auto.register_replicated_grad_hooks(module.model)

    def shape_of(self, parameter: Tensor) -> torch.Size:
        """The shape of the whole of a parameter."""
        cut = self.by_id.get(id(parameter))
        return torch.Size(cut.shape) if cut else parameter.shape

    def received(self, parameter: Tensor, values: Tensor) -> Tensor:
        """This rank's part of the first rank's whole values of a parameter. Collective.

        (DeepSpeed sends values to the ranks that hold the same parts only.)
        """
        if self.size == 1:
            return values
        dist.broadcast(values, 0)
        cut = self.by_id.get(id(parameter))
        return cut.part(values) if cut else values

    def total(self, part: Tensor) -> Tensor:
        """The sum of what the ranks of the group have, on each of them. Collective."""
        total = part.clone()
        if self.size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def counts(self, name: str) -> bool:
        """Whether a sum over all ranks is to count what this rank has of a parameter: of what is whole, only once."""
        return self.index == 0 or name in self.cuts

    def differing(self, weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """:func:`train.guards.replicas.differing` of what should be the same: parts on their holders. Collective."""
        if self.size == 1:
            return differing(weights)
        found = differing({name: one for name, one in weights.items() if name not in self.cuts})
        parts = differing({name: one for name, one in weights.items() if name in self.cuts}, self.holders)
        return found | {name: [self.size * rank + self.index for rank in ranks] for name, ranks in parts.items()}

    def told(self, parts: Iterable[Fragment]) -> Iterator[Fragment]:
        """From fragments of parts, fragments of whole tensors: of all ranks together each element once. Collective.

        All members of the group hold the same ranges of their parts.
        """
        if self.size == 1:
            yield from parts
            return
        for part in parts:
            cut = self.cuts.get(part.name)
            if cut is None:
                first, end = (part.start + (part.stop - part.start) * turn // self.size
                              for turn in (self.index, self.index + 1))  # fmt: skip
                yield from _piece(part, first, end, first)
            elif cut.dim == 0:
                yield from _piece(part, part.start, part.stop, part.start + self.index * cut.elements)
            else:
                yield from self._rows(part, cut)

    def _rows(self, part: Fragment, cut: Cut) -> Iterator[Fragment]:
        """Whole rows that the members of the group hold together are dealt out; a row's end or beginning stays."""
        width, length, mine = cut.width, cut.shape[1], self.index * cut.width
        first, end = -(-part.start // width), part.stop // width  # rows that are whole
        if first > end:  # inside one row
            yield from _piece(part, part.start, part.stop, end * length + mine + part.start - end * width)
            return
        head = first - 1
        yield from _piece(part, part.start, first * width, head * length + mine + part.start - head * width)
        dealt = [first + (end - first) * turn // self.size for turn in range(self.size + 1)]
        if first < end:
            sizes = [(after - before) * width for before, after in itertools.pairwise(dealt)]

            def exchanged(values: Tensor) -> Tensor:
                sent = values[first * width - part.start : end * width - part.start]
                got = values.new_empty(self.size * sizes[self.index])
                dist.all_to_all_single(got, sent, [sizes[self.index]] * self.size, sizes, group=self.group)
                return got.view(self.size, -1, width).transpose(0, 1).reshape(-1)

            rows = _mapped(part, dealt[self.index] * length, dealt[self.index + 1] * length, exchanged)
            if rows.start < rows.stop:
                yield rows
        yield from _piece(part, end * width, part.stop, end * length + mine)

    def filled(self, parts: Iterable[Fragment]) -> Iterator[Fragment]:
        """From fragments of parts, fragments of whole tensors to be written into; what concerns the parts is kept.

        Ranks of a group are given the same elements; each takes its own from them.
        """
        for part in parts:
            cut = self.cuts.get(part.name)
            if cut is None:
                yield part
            elif cut.dim == 0:
                yield from _piece(part, part.start, part.stop, part.start + self.index * cut.elements)
            else:
                yield from self._columns(part, cut)

    def _columns(self, part: Fragment, cut: Cut) -> Iterator[Fragment]:
        """Whole rows, some at a time."""
        width, length = cut.width, cut.shape[1]
        step = max(READ_ELEMENTS // length, 1)
        for first in range(part.start // width, -(-part.stop // width), step):
            end = min(first + step, -(-part.stop // width))
            begin, stop = max(part.start, first * width), min(part.stop, end * width)

            def columns(rows: Tensor, first: int = first, begin: int = begin, stop: int = stop) -> Tensor:
                """A part's elements begin..stop among whole rows from the first on."""
                mine = rows.view(-1, self.size, width)[:, self.index].reshape(-1)
                return mine[begin - first * width : stop - first * width]

            def opened(values: Tensor, first: int = first, end: int = end, begin: int = begin, stop: int = stop
                       ) -> Tensor:  # fmt: skip
                mine = values.new_zeros((end - first) * width)
                mine[begin - first * width : stop - first * width] = values[begin - part.start : stop - part.start]
                rows = values.new_zeros((end - first) * length)
                rows.view(-1, self.size, width)[:, self.index] = mine.view(-1, width)
                return rows

            rows = _mapped(part, first * length, end * length, opened)
            yield rows
            for (_, _, values), (_, _, found) in zip(part.tensors(), rows.tensors(), strict=True):
                values[begin - part.start : stop - part.start] = columns(found)


def check_model(config: TrainConfig, model: PretrainedConfig, precision: str) -> None:
    """Refuse to share the matrices of a model where that is wrong, by all of its settings and by what it computes in.

    Raises:
        ConfigError: everything that speaks against it.
    """
    size = config.engine.tensor_parallel
    wrong = model_problems(size, model.model_type, model.to_dict()) if size > 1 else []
    if size > 1 and precision == "fp16":
        wrong.append(f"engine.tensor_parallel={size}: not in fp16, which engine.precision=auto has chosen here; set "
                     "engine.precision=bf16 or fp32")  # fmt: skip
    if wrong:
        raise ConfigError(wrong)


def _piece(part: Fragment, first: int, end: int, start: int) -> Iterator[Fragment]:
    """Elements first..end of a fragment, which are those from ``start`` on of the whole tensor; nothing if empty."""
    if first < end:
        yield _mapped(part, start, start + end - first, lambda values: values[first - part.start : end - part.start])


def _mapped(part: Fragment, start: int, stop: int, values_of: Callable[[Tensor], Tensor]) -> Fragment:
    average = None if part.average is None else values_of(part.average)
    moments = {key: values_of(values) for key, values in part.moments.items()}
    return Fragment(part.name, start, stop, part.group, part.offset, values_of(part.master), moments, average)
