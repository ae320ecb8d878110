"""What ZeRO does to gradients once a parameter, done at once: a GPU is faster than Python asks it for small things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

INVALID = -1.0  # DeepSpeed's word for a norm that is no finite number


def look_once(zero: Any, stage: int) -> None:
    """Let ZeRO up to stage 2 find a gradient that is not finite by its norm, as stage 3 does, and not by a search.

    The norm is of the same gradient, is judged just after, and is not finite if one number of it is not. A search takes
    a dozen small kernels a parameter: of a model of 459M parameters on an H100 a tenth of a step, with nothing to do
    but to wait for them. Where states lie in host memory ZeRO looks on the way there.
    """
    if stage < 3 and not zero.cpu_offload:
        zero.has_overflow = lambda partition_gradients=True: False


def at_once(zero: Any, stage: int, device: torch.device) -> None:
    """Sum and measure gradients on a GPU with the fewest calls; the numbers are the same, but for a norm's last digits.

    Args:
        zero: DeepSpeed's optimizer, whose gradients lie on ``device``.
        stage: of ZeRO; stage 3 has its own way of both, with a group of its own a parameter.
        device: of this rank; nothing is done for a CPU, where a call costs nothing beside its work.
    """
    if device.type != "cuda" or stage == 3:
        return

    def add(parameter: Any) -> None:
        if parameter.grad is None:
            return
        if parameter.grad_accum is None:
            parameter.grad_accum = parameter.grad.to(zero.gradient_accumulation_dtype)
        else:  # of another type: added as it is read, with no copy between
            parameter.grad_accum.add_(parameter.grad.view(parameter.grad_accum.shape))
        parameter.grad = None

    def norm(gradients: Sequence[Tensor], parameters: Sequence[Tensor], norm_type: float = 2) -> Tensor:
        assert norm_type == 2, "what hanse asks for"
        parts = [part for part in gradients if not getattr(part, "_zero_padding", False)]
        total = sum_of_squares(parts, device)
        dist.all_reduce(total, group=zero.dp_process_group)
        found = total.sqrt()
        return torch.where(found.isfinite(), found, INVALID)

    zero._fill_param_grad_accum_attribute = add
    zero.get_grad_norm_direct = norm


def sum_of_squares(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Of all numbers of some tensors: () fp32, summed in fp64, without a copy of any of them."""
    if not parts:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm(list(parts), 2, dtype=torch.float64)
    return torch.stack(norms).square().sum().float()
