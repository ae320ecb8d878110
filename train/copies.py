"""ZeRO 0: every rank holds all states, and gradients are summed over all ranks (plain data parallel).

DeepSpeed's own stage 0 has no place where a step can be refused, and refuses bf16 with sums in fp32. So to DeepSpeed
each rank is a world of its own at stage 1, which has both; the sum over the ranks is taken where that stage would have
taken it: a bucket at a time, beside what is left of the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups
from torch import Tensor, nn


class Alone:
    """What DeepSpeed asks about the ranks (its ``mpu``): this one shares its states with nobody."""

    def __init__(self) -> None:
        self.group = dist.new_group([dist.get_rank()], use_local_synchronization=True)

    def get_data_parallel_group(self) -> Any:
        """Of this rank alone."""
        return self.group

    get_model_parallel_group = get_data_parallel_group

    def get_data_parallel_world_size(self) -> int:
        """One."""
        return 1

    get_model_parallel_world_size = get_data_parallel_world_size

    def get_data_parallel_rank(self) -> int:
        """The first of one."""
        return 0

    get_model_parallel_rank = get_data_parallel_rank


def alone(stage: int, module: nn.Module) -> Alone | None:
    """What to tell DeepSpeed of the ranks; None: it shares out states over all of them, as it does by itself.

    At stage 0 it would not give the ranks the weights of the first either, so that is done here.
    """
    groups.mpu = None  # which outlives the engine that it was for
    if stage > 0:
        return None
    module.to(get_accelerator().current_device_name())
    for parameter in module.parameters():
        dist.broadcast(parameter.data, 0)
    return Alone()


def sum_over_ranks(zero: Any, stage: int) -> None:
    """At stage 0, let DeepSpeed's optimizer average gradients over all ranks, in the type in which they travel."""
    if stage > 0:
        return
    ranks = dist.get_world_size()

    def average(gradients: Tensor, travelling: torch.dtype) -> Tensor:
        sent = gradients.to(travelling).div_(ranks)
        dist.all_reduce(sent)
        if sent is not gradients:
            gradients.copy_(sent)
        return gradients

    zero.gradient_reduction_w_predivide = average
