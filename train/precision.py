"""How fast this device multiplies matrices, and which precision that speaks for."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.distributed as dist

from train.hardware import data_sheet_peak
from train.ranks import Place, gathered

SIZES = {"cpu": (256, 1024), "cuda": (2048, 8192)}  # of square matrices: a quick look, then large enough for the peak
LOOKS = 4  # products at least: the first pays for loading the kernels, and on a busy machine one alone says nothing
BETTER, SETTLED = 1.01, 0.2  # a best that was not beaten by so much for this share of the time is the peak
WORTH_IT = 1.15  # half precision is taken when it is at least this much faster: it rounds, so a draw goes to fp32


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Measured peak of one rank: best rate of square matrix products during ``seconds``, in FLOP/s.

    It ends earlier where the best has not become better for a while, as on a machine that does nothing else. A
    processor without bf16 instructions is some hundred times slower in it: the quick look is then all there is.
    """
    best, end = 0.0, time.perf_counter() + seconds
    for size in SIZES[device.type]:
        if best and 2 * size**3 / best > seconds:
            return best
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        until = end if size == SIZES[device.type][-1] else time.perf_counter() + seconds / 10
        done, known, settled = 0, best, time.perf_counter()
        while (now := time.perf_counter()) < min(until, settled + SETTLED * seconds) or done < LOOKS:
            done += 1
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            rate = 2 * size**3 / (time.perf_counter() - now)
            best = max(best, rate)
            if best > BETTER * known:
                known, settled = best, time.perf_counter()
    return best


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)  # compute capability of the first GPUs with bf16


def half_of(asked: str, device: torch.device) -> str:
    """The half precision that comes into question: what is asked for; else bf16, and fp16 on GPUs without it."""
    if asked in ("bf16", "fp16"):
        return asked
    lacks = device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE
    return "fp16" if lacks else "bf16"


@cache  # a device does not change, and many short trainings may share a process
def measured_peaks(device: torch.device, half: str = "bf16") -> dict[str, float]:
    """FLOP/s of one rank in fp32 and a half precision; two seconds."""
    return {name: matmul_flops_per_second(TYPES[name], device) for name in ("fp32", half)}


def choose(asked: str, peaks: dict[str, float]) -> str:
    """As asked, or for ``auto`` the one of two measured precisions that pays."""
    if asked != "auto":
        return asked
    half = next(name for name in peaks if name != "fp32")
    return half if peaks[half] >= WORTH_IT * peaks["fp32"] else "fp32"


def agree(asked: str, device: torch.device) -> tuple[str, dict[str, float]]:
    """One precision for all ranks, as rank 0 is asked or measures; and this rank's peaks, in FLOP/s. Collective."""
    told = [half_of(asked, device)]
    dist.broadcast_object_list(told)
    peaks = measured_peaks(device, told[0])
    chosen = [choose(asked, peaks)]
    dist.broadcast_object_list(chosen)
    return chosen[0], peaks


def peaks_of_all(place: Place, peak: float, device: torch.device) -> tuple[float, float | None]:
    """FLOP/s of all ranks: as measured, and in bf16 by their GPUs' data sheets, None if unknown. Collective."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    every = gathered(place, (peak, name))
    return sum(one for one, _ in every), data_sheet_peak([name for _, name in every])
