"""What lies in the memory of one rank while it trains, computed from shapes: nothing of the model's size is allocated.

The states are arithmetic (Rajbhandari et al., arXiv 1910.02054); what DeepSpeed 0.19 keeps beside them was read off a
running one (``benchmarks/memory.py`` compares). Activations are counted, not estimated: the model runs on the meta
device, where tensors have shapes and no values, and what autograd keeps for the backward pass is added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig

from common import zero
from train.loss import rows_at_once
from train.model import PackedLanguageModel, recompute_activations, shape_of_model
from train.muon import ROUND
from train.zero_config import bucket_elements

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTED = "hanse-counted"
SUM_BYTES = 8  # of an exact sum
# What an optimizer's step makes and drops again, a parameter of the own share: operations of ours stand alone
# (train/optimizers.py); torch's fused AdamW makes nothing. At D2 sums need more than any of them.
STEP_BYTES = {"adamw": 0, "muon": 8, "ademamix": 12}
# Of what Muon brings together at once (train/muon.py): matrices, what they become; messages, where others have a part.
ROUND_BYTES, MESSAGE_BYTES = 8, 8


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the worst moment of a step.

    Attributes:
        weights, gradients, optimizer: the states, as the ZeRO stage shares them out.
        buffers: buckets of communication, gathered weights (stage 3), gradients in fp32 while the optimizer steps.
        activations: kept for the backward pass of one micro-batch.
        head: logits of the rows that go through the output embedding at once.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    head: float

    @property
    def states(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.buffers + self.activations + self.head


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps: ``fixed + micro_batch * a_sequence``; ``targets``: a sequence's on one rank."""

    fixed: float
    a_sequence: float
    targets: int
    vocabulary: int
    fused: bool


@dataclass(frozen=True)
class Layout:
    """How the states are shared out, and where; ``overlap``: communication beside computation, as on GPUs.

    Attributes:
        accumulated: type of gradients that are summed; ``exact``: as integers instead (D2: train/invariant.py).
        optimizer_bytes: a parameter.
        offloaded: what lies in host memory or on a disk instead (``optimizer``, ``weights``).
        largest: elements of the model's largest parameter.
        kind: of the optimizer.
        again_in: ranks that hold the weights once more between them at stage 3 (hpZ); 0: none do.
    """

    ranks: int
    stage: int
    precision: str
    overlap: bool = True
    device: str = "cuda"
    accumulated: str = ""
    optimizer_bytes: float = zero.ADAM_BYTES
    offloaded: tuple[str, ...] = ()
    exact: bool = False
    largest: int = 0
    kind: str = "adamw"
    again_in: int = 0

    @property
    def sharers(self) -> int:
        """Ranks that the optimizer's states are shared out among."""
        return self.ranks if self.stage > 0 else 1

    @property
    def apart(self) -> bool:
        """Whether gradients are summed in another type than that of the weights."""
        return self.accumulated not in ("", self.precision)


def states(parameters: int, layout: Layout) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer of one rank, wherever they lie."""
    value, summed = VALUE_BYTES[layout.precision], VALUE_BYTES[layout.accumulated or layout.precision]
    weights, gradients, optimizer = zero.states(parameters, layout.ranks, layout.stage, value, gradient_bytes=summed,
                                                optimizer_bytes=layout.optimizer_bytes)  # fmt: skip
    if layout.again_in and layout.stage == 3:  # from the first pass of a step until its update
        weights += value * parameters / layout.again_in
    if layout.exact:  # each gradient is added as soon as it is there: sums of the rank, and of its share over all ranks
        gradients = SUM_BYTES * parameters * ((1 if layout.stage <= 1 else 0) + 1 / layout.sharers)
        if layout.stage == 3:  # DeepSpeed's own place for the share, which stays empty
            gradients += value * parameters / layout.sharers
    return weights, gradients, optimizer


def on_host(parameters: int, layout: Layout) -> float:
    """Bytes of one rank that lie in host memory or on a disk, with the gradient that the optimizer there needs."""
    weights, gradients, optimizer = states(parameters, layout)
    own = gradients / (layout.sharers if layout.stage <= 1 else 1)
    return ("weights" in layout.offloaded) * weights + ("optimizer" in layout.offloaded) * (optimizer + own)


def buffers(parameters: int, layout: Layout) -> float:
    """Bytes of what DeepSpeed needs beside the states, at the worse of two moments: reducing, and stepping."""
    value, summed = VALUE_BYTES[layout.precision], VALUE_BYTES[layout.accumulated or layout.precision]
    elements = min(bucket_elements(parameters), parameters)
    if layout.exact:
        return _exact_buffers(parameters, elements, layout)
    reducing = summed * elements * (2 if layout.overlap else 1)  # one is filled while another is sent
    copied, here = layout.precision != "fp32" and not layout.apart, "optimizer" not in layout.offloaded
    stepping = _stepping(parameters, layout, copied=copied) if here else 0.0
    own = min(layout.largest, parameters / layout.sharers) if layout.stage < 3 else layout.largest / layout.sharers
    norm = 8 * own  # which is taken of one gradient after another, in double precision
    if layout.stage == 3:
        kept = summed * elements  # one for gradients stays, which travel as they are summed
        return kept + value * elements + max(reducing - kept, stepping, norm)  # gathered weights fill another
    if layout.apart and layout.stage <= 1:  # sums travel in fp32, and the own share is put together beside them
        return reducing + 4 * parameters / layout.sharers + max(stepping, norm)
    return max(reducing, norm, stepping + (0 if layout.apart else value * parameters / layout.sharers))


def _stepping(parameters: int, layout: Layout, *, copied: bool) -> float:
    """What the optimizer's step makes and drops again; ``copied``: the gradient in fp32, too."""
    made = ((4 if copied else 0) + STEP_BYTES[layout.kind]) * parameters
    if layout.kind == "muon":
        made += (ROUND_BYTES + (MESSAGE_BYTES if layout.sharers > 1 else 0)) * min(parameters, ROUND)
    return made / layout.sharers


def _exact_buffers(parameters: int, elements: int, layout: Layout) -> float:
    """The same at D2: while a gradient is made an integer, or while the norm of the sums is taken.

    The one holds the gradient in double precision and as integers, and where sums are shared out a bucket of them; the
    other three copies of the own share, in which up to stage 1 the rank's own sums are gone.
    """
    value = VALUE_BYTES[layout.precision]
    adding = 2 * SUM_BYTES * layout.largest + (SUM_BYTES * elements if layout.stage > 1 else 0)
    gone = SUM_BYTES * parameters if layout.stage <= 1 else 0
    norm = 3 * SUM_BYTES * parameters / layout.sharers - gone
    return max(adding, norm) + (2 if layout.stage == 3 else 1) * value * elements  # DeepSpeed's, filled or not


def memory(parameters: int, kept: Activations, layout: Layout, micro_batch: int) -> Memory:
    """Everything on one rank of a model with so many ``parameters``."""
    rows = micro_batch * kept.targets
    if kept.fused:
        rows = rows_at_once(layout.device, kept.vocabulary, rows)
    weights, gradients, optimizer = states(parameters, layout)
    return Memory(
        0 if "weights" in layout.offloaded else weights,
        gradients,
        0 if "optimizer" in layout.offloaded else optimizer,
        buffers=buffers(parameters, layout),
        activations=kept.fixed + micro_batch * kept.a_sequence,
        head=rows * kept.vocabulary * head_bytes(layout, fused=kept.fused),
    )


def head_bytes(layout: Layout, *, fused: bool) -> int:
    """Bytes of a logit: as stored, in fp32, and its gradient; what is of one type takes one place (train/loss.py)."""
    stored = VALUE_BYTES[layout.precision]
    if not fused:
        return 12
    return stored if layout.device == "cuda" or layout.precision == "fp32" else 2 * stored + 4


def activations(
    config: PretrainedConfig,
    length: int,
    precision: str,
    recompute_every: int = 0,
    slices: int = 1,
    *,
    masked: bool = True,
) -> Activations:
    """Count them on the meta device, for packed sequences of ``length`` tokens.

    Where layers are recomputed, the worst moment has the inputs of all of these and everything of one. Where sequences
    are shared by ranks, it is of one of so many ``slices``, and the mask of all of the sequence. Not ``masked``: by a
    kernel that is told where documents end, and shares keys among grouped queries (flex, FlashAttention).
    """
    AttentionInterface.register(COUNTED, partial(_attention, exchanged=slices > 1))
    model = shape_of_model(config)
    torch.nn.Module.to(model, DTYPES[precision])
    module = PackedLanguageModel(model)
    module.attention = "sdpa"
    model.set_attn_implementation(COUNTED)
    fixed, a_sequence = _count(module, length, slices, masked)
    if recompute_every:
        recompute_activations(model, recompute_every)
        _, kept = _count(module, length, slices, masked)
        a_sequence = kept + (a_sequence - kept) / -(-config.num_hidden_layers // recompute_every)
    return Activations(fixed, a_sequence, length // slices, config.vocab_size, module.fused)


def _count(module: PackedLanguageModel, length: int, slices: int, masked: bool) -> tuple[float, float]:
    one, two = (saved_bytes(module, batch, length, "meta", slices, masked=masked) for batch in (1, 2))
    return 2 * one - two, two - one


def saved_bytes(
    module: PackedLanguageModel, batch: int, length: int, device: str, slices: int = 1, *, masked: bool = True
) -> int:
    """Bytes of all tensors that one forward pass of a slice keeps for its backward pass, parameters left out."""
    own = {id(parameter) for parameter in module.parameters()}
    own_storage = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if id(tensor) not in own and storage not in own_storage:
            kept[storage] = tensor  # held, so that no later tensor takes its place
        return tensor

    documents = torch.zeros(batch, length, dtype=torch.int64, device=device)
    ids = documents[:, : length // slices]
    positions = torch.arange(length // slices, device=device).expand_as(ids)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(ids, positions, ids, documents if masked else None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Attention(torch.autograd.Function):
    """Keeps what a memory-efficient kernel keeps: inputs, output, a logarithm a row; never the square of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, bias, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, exchanged: bool, **_: Any
) -> tuple[Tensor, None]:
    """In place of ``sdpa``, which has no kernel for tensors without values. Shapes (B, heads, L, head size).

    As in ``sdpa``, where there is a mask, all layers keep the same one, and keys and values are repeated for grouped
    queries. Where results are ``exchanged``, attention keeps them as computed, and what comes next as they arrived.
    """
    groups = module.num_key_value_groups
    if groups > 1 and mask is not None:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    out = _Attention.apply(query, key, value, mask)
    out = out.transpose(1, 2)
    return out.clone() if exchanged else out.contiguous(), None
