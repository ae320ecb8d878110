"""How fast this node computes and its processors talk to each other: ``python -m launch.speed``, one process a GPU
(two on a node of CPUs), with torchrun's variables. Rank 0 prints one line of JSON.

Only node checks start this, in processes of their own: nothing else in this package needs torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS = 1.0  # of measuring, after the first call


def measure() -> dict[str, Any]:
    """FLOP/s of a matrix product on each processor, and bytes/s of an all-reduce between them."""
    import torch
    import torch.distributed as dist

    rank, cuda = int(os.environ["RANK"]), torch.cuda.is_available()
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    size = 8192 if cuda else 512
    a = torch.randn(size, size, dtype=torch.bfloat16 if cuda else torch.float32, device=device)
    numbers = torch.ones((256 if cuda else 4) * 1024 * 256, device=device)  # 4 bytes each

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    flops = _rate(lambda: a @ a, wait) * 2 * size**3
    ranks = dist.get_world_size()
    # Fixed turns: a loop on a clock would end differently on different ranks. Bus bandwidth as nccl-tests counts.
    bandwidth = _rate(lambda: dist.all_reduce(numbers), wait, turns=10) * numbers.nbytes * 2 * (ranks - 1) / ranks
    gathered: list[Any] = [None] * ranks
    dist.all_gather_object(gathered, flops)
    dist.destroy_process_group()
    return {"flops_per_second": gathered, "all_reduce_bytes_per_second": bandwidth if ranks > 1 else None}


def _rate(work: Callable[[], Any], wait: Callable[[], None], turns: int = 0) -> float:
    """Calls a second."""
    work()
    wait()
    start, done = time.perf_counter(), 0
    while done < turns if turns else time.perf_counter() - start < SECONDS:
        work()
        wait()
        done += 1
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    found = measure()
    if os.environ["RANK"] == "0":
        print(json.dumps(found))
    sys.exit(0)
