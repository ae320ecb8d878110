"""What the accelerators of EuroHPC can do on paper: for plans, and for an MFU that compares with published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU as Slurm counts them.

    Attributes:
        bf16_flops: dense matrix products in bf16, FLOP/s, at the boost clock: no program reaches it.
        watts: rated power of the part, by its makers.
        memory_gb: sizes that are sold, decimal GB as the makers write them; a site says which it has.
    """

    bf16_flops: float
    watts: float
    memory_gb: tuple[float, ...]
    source: str


GPUS = {
    "A100": Gpu(312e12, 400, (40, 64, 80), "NVIDIA A100 data sheet, 2021 (SXM4; 64 GB: Leonardo's own)"),
    "H100": Gpu(989.4e12, 700, (64, 80, 94), "NVIDIA H100 data sheet, 2023 (SXM5; half of the rate with sparsity)"),
    "H200": Gpu(989.4e12, 700, (141,), "NVIDIA H200 data sheet, 2024 (SXM5)"),
    "GH200": Gpu(989.4e12, 1000, (96,), "NVIDIA GH200 data sheet, 2023 (watts: with its Grace CPU and memory)"),
    "MI250X GCD": Gpu(191.5e12, 280, (64,), "AMD MI250X data sheet, 2022 (half a module: a GCD)"),
    "MI300A": Gpu(980.6e12, 760, (128,), "AMD MI300A data sheet, 2023 (watts: with its CPU cores and memory)"),
}


OTHER_PARTS = {"PCIE", "NVL"}  # H100 and H200 are sold as these too, and are slower then
PARTS_OF_ONE = {"MIG", "GRID"}  # a share of a GPU, as its driver names it


def find_gpu(name: str | None) -> tuple[str, Gpu] | None:
    """The GPU of which a site's or driver's name speaks: ``GH200 96GB``, ``NVIDIA A100-SXM-64GB``."""
    wanted = (name or "").upper().replace("-", " ").split()
    if PARTS_OF_ONE.intersection(wanted) or ({"H100", "H200"} & set(wanted) and OTHER_PARTS.intersection(wanted)):
        return None
    for known, gpu in GPUS.items():
        if known.split()[0].upper() in wanted:
            return known, gpu
    return None


def data_sheet_peak(devices: Sequence[str | None]) -> float | None:
    """FLOP/s in bf16 of all these GPUs by their makers' data sheets; None: some are no GPU, or are not known here.

    Args:
        devices: name of each rank's, as its driver gives it; None: it has none.
    """
    found = [find_gpu(name) for name in devices]
    return sum(one[1].bf16_flops for one in found if one) if all(found) else None
