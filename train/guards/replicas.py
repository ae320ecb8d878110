"""Whether ranks that should hold the same weights do: a checksum of every parameter, compared over the ranks.

Up to ZeRO 2 every rank holds all weights of the model, gathered from their owners after each update. A bit that flips
in one rank's copy, or on the way to it, changes that rank's gradients without a word, and the next update mends the
copy (not at stage 0, where each rank makes it of masters of its own): so they are compared when the gradient is there
and the update is not. That speaks of the steps that are looked at: a machine that errs once in a while is found out by
and by, one that errs once may pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BITS = {2: torch.int16, 4: torch.int32}  # by bytes of an element


def checksums(weights: Mapping[str, Tensor]) -> Tensor:
    """int64 of shape (tensors,): the sum of each tensor's bit patterns; one flipped bit changes it, order does not."""
    sums = [one.detach().view(BITS[one.element_size()]).sum(dtype=torch.int64) for one in weights.values()]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def differing(weights: Mapping[str, Tensor], group: Any = None) -> dict[str, list[int]]:
    """{name of a tensor that is not the same on all ranks of a group: which of them to suspect}. Collective.

    Those to suspect hold something else than most; none where there is no majority.
    """
    mine = checksums(weights)
    bounds = torch.cat((mine, -mine))
    dist.all_reduce(bounds, dist.ReduceOp.MAX, group=group)
    largest, smallest = bounds[: len(mine)], -bounds[len(mine) :]
    places = torch.nonzero(largest != smallest).flatten().tolist()
    if not places:
        return {}
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    names = list(weights)
    return {names[place]: outvoted([int(one[place]) for one in all_of_them]) for place in places}


def outvoted(values: Sequence[int]) -> list[int]:
    """Ranks whose value is not that of more than half of them; none where no value is."""
    most = max(set(values), key=values.count)
    return [rank for rank, value in enumerate(values) if value != most] if 2 * values.count(most) > len(values) else []
