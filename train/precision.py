"""How fast this device multiplies matrices, and which precision that speaks for."""

from __future__ import annotations

import time

import torch

SIZE = 1024  # of the square matrices on a CPU; large enough for the peak, small enough for a warm cache
WORTH_IT = 1.15  # bf16 is taken when it is at least this much faster: it rounds, so a draw goes to fp32


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Measured peak of one rank: best rate of square matrix products during ``seconds``, in FLOP/s."""
    size = SIZE if device.type == "cpu" else 8 * SIZE
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


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
