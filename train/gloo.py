"""An all-gather for ranks on CPUs: gloo's own takes three times as long as the messages it is made of.

45 MB between two processes of one machine: 58 ms, where an all-reduce takes 33 and these messages 24; between four 109,
100 and 41 (``benchmarks/gather.py``). Weights are only copied, so no result depends on it.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


class Messages:
    """Messages under way, as one."""

    def __init__(self, works: list[Any]):
        self.works = works

    def wait(self, *_: Any) -> bool:
        """Until all have been sent and received."""
        for work in self.works:
            work.wait()
        return True


def gather(output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False) -> Messages | None:
    """(n,) of each rank -> (ranks * n,) in their order, with a message from each to each. Collective.

    The signature is that of ``torch.distributed.all_gather_into_tensor``; a rank's own part may lie in its place.
    """
    ranks, mine = dist.get_world_size(group), dist.get_rank(group)
    parts = output_tensor.view(-1).chunk(ranks)
    own = parts[mine]
    if own.data_ptr() != input_tensor.data_ptr():
        own.copy_(input_tensor.view(-1))
    works = []
    for turn in range(1, ranks):
        works.append(dist.isend(own, group=group, group_dst=(mine + turn) % ranks))
        works.append(dist.irecv(parts[(mine - turn) % ranks], group=group, group_src=(mine - turn) % ranks))
    messages = Messages(works)
    if async_op:
        return messages
    messages.wait()
    return None


def use_messages() -> None:
    """Let DeepSpeed gather with them, where its ranks talk over gloo."""
    if dist.get_backend() == "gloo":
        import deepspeed.comm.comm  # not before train/engine.py has chosen its accelerator

        deepspeed.comm.comm.cdb.all_gather_function = gather
