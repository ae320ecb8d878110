"""How fast this device multiplies matrices, and which precision that speaks for."""

from __future__ import annotations

import time
from functools import cache

import torch

SIZES = {"cpu": (256, 1024), "cuda": (2048, 8192)}  # of square matrices: a quick look, then large enough for the peak
LOOKS = 4  # products at least: the first pays for loading the kernels, and on a busy machine one alone says nothing
WORTH_IT = 1.15  # bf16 is taken when it is at least this much faster: it rounds, so a draw goes to fp32


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Measured peak of one rank: best rate of square matrix products during ``seconds``, in FLOP/s.

    A processor without bf16 instructions is some hundred times slower in it: the quick look is then all there is.
    """
    best, end = 0.0, time.perf_counter() + seconds
    for size in SIZES[device.type]:
        if best and 2 * size**3 / best > seconds:
            return best
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        until = end if size == SIZES[device.type][-1] else time.perf_counter() + seconds / 10
        done = 0
        while time.perf_counter() < until or done < LOOKS:
            done += 1
            start = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


@cache  # a device does not change, and many short trainings may share a process
def measured_peaks(device: torch.device) -> dict[str, float]:
    """FLOP/s of one rank in fp32 and bf16; two seconds."""
    return {
        "fp32": matmul_flops_per_second(torch.float32, device),
        "bf16": matmul_flops_per_second(torch.bfloat16, device),
    }


def choose(asked: str, peaks: dict[str, float]) -> str:
    """``bf16`` or ``fp32``: as asked, or for ``auto`` the one that pays."""
    if asked != "auto":
        return asked
    return "bf16" if peaks["bf16"] >= WORTH_IT * peaks["fp32"] else "fp32"
