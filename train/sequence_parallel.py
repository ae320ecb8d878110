"""Sequence parallelism (DeepSpeed Ulysses: Jacobs et al., arXiv 2309.14509): ranks share each sequence.

Ranks that lie side by side are a sequence group: they read the same sequences, and each keeps a slice of the positions.
Everything in a transformer but attention treats positions alone. Around attention there are two all-to-alls: slices of
positions become whole sequences for a share of the heads, and back. So every back end computes what it would compute
for a model with fewer heads, told of documents as ever, and memory for activations falls with the size of the group.

The exchange, with its gradient, is DeepSpeed's. Its layer around it for ``transformers`` (``UlyssesSPAttentionHF``)
drops the mask with ``sdpa`` and puts a causal one in the place of flex's: documents that are packed together would see
each other. Hence ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from common.errors import ConfigError
from train.config import TrainConfig
from train.model import PackedLanguageModel
from train.sequence_config import model_problems

NAME = "hanse-shared"  # of this attention, to transformers


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share sequences with this one; of one rank: nobody does.

    Attributes:
        index: this rank's place in it, and the slice of the positions that it keeps.
        group: None where it has one rank.
    """

    size: int = 1
    index: int = 0
    group: Any = None

    @classmethod
    def join(cls, size: int) -> SequenceGroup:
        """The group of this rank among ranks that all ask for this size, which divides their number. Collective."""
        if size == 1:
            return cls()
        from deepspeed.sequence.layer import register_all_to_all_group  # once train/engine.py has named the device

        group, _ = dist.new_subgroups(size)
        register_all_to_all_group(group)
        return cls(size, dist.get_rank(group), group)

    def whole(self, part: Tensor) -> Tensor:
        """(..., L / size) of each rank -> (..., L), on each of them. Collective."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, -1)

    def total(self, part: Tensor) -> Tensor:
        """The sum of what the ranks of the group have, on each of them. Collective."""
        if self.size == 1:
            return part
        total = part.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(B, heads, L / size, head size) of this rank's positions -> (B, heads / size, L, head size) of its heads.

        Where there are fewer keys and values than ranks, some ranks get the same ones.
        """
        copies = self.size // key.shape[1]
        if copies > 1:
            key, value = (one.repeat_interleave(copies, dim=1) for one in (key, value))
        cut = [one.unflatten(1, (self.size, -1)).transpose(0, 1) for one in (query, key, value)]
        received = self._exchange(torch.cat(cut, dim=2)).split([one.shape[2] for one in cut], dim=2)
        return tuple(one.permute(1, 2, 0, 3, 4).flatten(2, 3) for one in received)

    def to_positions(self, context: Tensor) -> Tensor:
        """(B, L, heads / size, head size) of this rank's heads -> (B, L / size, heads, head size) of its positions."""
        received = self._exchange(context.unflatten(1, (self.size, -1)).transpose(0, 1))
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _exchange(self, parts: Tensor) -> Tensor:
        """The n-th of the parts goes to the n-th rank, and what comes from there takes its place."""
        received: Tensor = torch.ops.deepspeed.dim_zero_all_to_all(parts.contiguous(), self.group.group_name)
        return received


def check_model(config: TrainConfig, model: PretrainedConfig) -> None:
    """Refuse to share the sequences of a model where that is wrong, by all of its settings.

    Raises:
        ConfigError: everything that speaks against it.
    """
    size, longest = config.engine.sequence_parallel, max(stage.length for stage in config.timeline)
    if size > 1 and (wrong := model_problems(size, model.model_type, model.to_dict(), longest)):
        raise ConfigError(wrong)


def share_sequences(module: PackedLanguageModel, group: SequenceGroup) -> None:
    """Let a model take a slice of the positions, and exchange with the ranks that have the others in each attention."""
    if group.size == 1:
        return
    module.slices, alone = group.size, module.model.config
    groups = alone.num_attention_heads // max(alone.num_key_value_heads, group.size)
    shared = _Shared(group, ALL_ATTENTION_FUNCTIONS[module.attention], alone, groups)
    named = copy.copy(alone)  # others may have been built from the same
    named._attn_implementation = NAME
    for one in module.model.modules():
        here: Any = one
        if hasattr(here, "config"):
            here.config = named
        if hasattr(here, "num_key_value_groups"):
            here.shared = shared


@dataclass(frozen=True)
class _Shared:
    """What an attention module needs to share sequences.

    Attributes:
        compute: the back end, and ``alone``: the configuration that names it, where it looks for that.
        groups: queries to a key, among the heads of a rank.
    """

    group: SequenceGroup
    compute: Any
    alone: PretrainedConfig
    groups: int


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **told: Any
) -> tuple[Tensor, None]:
    """An attention function of ``transformers``, whose mask, or borders of documents, are of whole sequences."""
    held: Any = module
    shared: _Shared = held.shared
    del told["position_ids"]  # of the slice; the rotary embedding has seen them
    seen = SimpleNamespace(
        config=shared.alone, num_key_value_groups=shared.groups, is_causal=True, layer_idx=held.layer_idx,
        training=module.training, modules=module.modules,
    )  # fmt: skip
    whole = shared.group.to_heads(query, key, value)
    context, _ = shared.compute(seen, *whole, attention_mask, **told)
    return shared.group.to_positions(context), None


AttentionInterface.register(NAME, _attention)
