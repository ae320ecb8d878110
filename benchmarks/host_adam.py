"""The update in host memory (engine.offload_optimizer=cpu): torch's fused AdamW beside DeepSpeed's CPUAdam.

    python -m benchmarks.host_adam [--parameters 50000000] [--threads 1 2] [--rounds 7]

One flat fp32 tensor, as ZeRO hands it over. Both take the same steps in turns; medians, and how far the weights are
apart in the end. CPUAdam is compiled at the first start, for some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch


def measure(parameters: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each, with the threads that this process was started with."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    generator = torch.Generator().manual_seed(0)
    first, gradient = (torch.randn(parameters, generator=generator) for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    weights = {name: torch.nn.Parameter(first.clone()) for name in ("torch", "deepspeed")}
    optimizers = {"torch": torch.optim.AdamW([weights["torch"]], **settings, fused=True),
                  "deepspeed": DeepSpeedCPUAdam([weights["deepspeed"]], **settings)}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for one in weights.values():
        one.grad = gradient.clone()
    for _ in range(rounds + 1):  # the first allocates the moments
        for name, optimizer in optimizers.items():
            begun = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - begun)
    ours, theirs = (one.detach() for one in weights.values())
    apart = (ours - theirs).abs().max() / ours.abs().max()
    return {**{name: statistics.median(each[1:]) for name, each in seconds.items()}, "apart": float(apart)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=50_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in a process with its threads
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.parameters, options.rounds)))
        return
    for threads in options.threads:
        command = [sys.executable, "-m", "benchmarks.host_adam", "--here", "--parameters", str(options.parameters),
                   "--rounds", str(options.rounds)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(said.splitlines()[-1])
        print(f"{threads} thread{'s' * (threads > 1)}: torch's fused AdamW {1e3 * found['torch']:.0f} ms a step, "
              f"CPUAdam {1e3 * found['deepspeed']:.0f} ms ({found['deepspeed'] / found['torch']:.2f} times as long); "
              f"weights {found['apart']:.1e} apart", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
