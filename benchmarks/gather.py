"""How long ranks on CPUs take to gather and to sum a model's weights: gloo's collectives beside train/gloo.py.

    python -m benchmarks.gather [--ranks 2] [--megabytes 45] [--rounds 9]

Milliseconds on rank 0, least and median; the kinds take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launch.local import run_ranks
from train.gloo import gather


def be_a_rank(megabytes: int, rounds: int) -> None:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    part = torch.randn(megabytes * 1_000_000 // 4 // ranks)
    whole, sums = torch.empty(ranks * len(part)), torch.randn(ranks * len(part))
    kinds = {
        "gloo's all-gather": lambda: dist.all_gather_single(whole, part),
        "messages": lambda: gather(whole, part),
        "gloo's all-reduce": lambda: dist.all_reduce(sums),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, collective in kinds.items():
            dist.barrier()
            before = time.perf_counter()
            collective()
            found[name].append(1000 * (time.perf_counter() - before))
    if dist.get_rank() == 0:
        for name, times in found.items():
            print(f"{name:20} {min(times[1:]):8.1f} {statistics.median(times[1:]):8.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        be_a_rank(options.megabytes, options.rounds)
        return 0
    command = [sys.executable, "-m", "benchmarks.gather", "--rank", "--megabytes", str(options.megabytes), "--rounds",
               str(options.rounds)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(command, options.ranks, 1, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
