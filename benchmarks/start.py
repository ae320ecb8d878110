"""What it takes to begin with a large model: peak host memory of a rank, and seconds until its first step is done.

python -m benchmarks.start [--model llama-410m] [--ranks 2] [--precision fp32] [--stages 1 3]

``whole``: every rank builds the model in fp32 and DeepSpeed takes it from there. ``piecewise``: as runs begin
(train/materialise.py). Memory is the kernel's own mark of the largest resident set (VmHWM), less what the imports took,
in bytes a parameter; beside it what ZeRO keeps of weights, gradients, masters and moments (`hanse plan`). On CPUs the
device's memory is the host's, so it holds both. Needs some 20 bytes a parameter and rank, and a minute a line.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.on_ranks import start, tell
from train.engine import Engine
from train.init_config import InitConfig
from train.materialise import Landing, begin
from train.memory import Layout, states
from train.model import build_model, model_config
from train.ranks import find_place

LENGTH, VOCABULARY = 16, 32_768
WAYS = ("whole", "piecewise")


def peak_bytes() -> int:
    """The largest resident set that this process ever had, which Linux keeps."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1024


def measure(way: str, model: str, stage: int, precision: str) -> dict[str, Any]:
    """One start on this rank, and one step; the largest of all ranks' numbers."""
    from hydra import compose, initialize_config_module

    from common.configuration import instantiate

    place = find_place(os.environ)
    assert place is not None
    settings = ["name=start", "tokens=100000", f"model={model}", f"data.sequence_length={LENGTH}",
                f"batch.global_batch_size={place.ranks}", "batch.micro_batch_size=1", f"engine.zero_stage={stage}",
                f"engine.precision={precision}"]  # fmt: skip
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    shape = model_config(config.model, VOCABULARY, LENGTH)
    imports, began, landed = peak_bytes(), time.perf_counter(), list[int]()
    if way == "whole":
        whole = build_model(shape, 0)
        landed.append(peak_bytes() - imports)
        engine = Engine(config, whole, place.ranks, precision)
    else:
        beginning = begin(shape, 0, "sdpa", InitConfig())

        def land(landing: Landing) -> None:
            beginning.land(landing)
            landed.append(peak_bytes() - imports)

        engine = Engine(config, beginning.model, place.ranks, precision, land)
    ready, ready_peak = time.perf_counter() - began, peak_bytes() - imports
    ids, positions = torch.randint(0, VOCABULARY, (1, LENGTH)), torch.arange(LENGTH)[None]
    total, _losses = engine.engine(ids, positions, ids, None)
    engine.backward(total, place.ranks * LENGTH)
    engine.update(1e-3)
    found = torch.tensor([ready, time.perf_counter() - began, *landed, ready_peak, peak_bytes() - imports],
                         dtype=torch.float64)  # fmt: skip
    last = found.clone()
    dist.all_reduce(found, dist.ReduceOp.MAX)
    dist.broadcast(last, place.ranks - 1)
    parameters = sum(torch.Size(one).numel() for one in engine.shapes.values())
    summed, _ = config.engine.sums(precision, config.determinism)
    kept = sum(states(parameters, Layout(place.ranks, stage, precision, accumulated=summed)))
    return {"parameters": parameters, "kept": kept, "found": found.tolist(), "last": last.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-410m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.output:
        tell(options.output, partial(measure, options.way, options.model, options.stages[0], options.precision))
        return
    print(f"{options.model}, {options.ranks} ranks, {options.precision}; a rank's memory in bytes a parameter")
    for stage in options.stages:
        for way in WAYS:
            one = start("start", options.ranks, "--model", options.model, "--precision", options.precision, "--stages",
                        stage, "--way", way)  # fmt: skip
            count, (ready, stepped, *peaks) = one["parameters"], one["found"]
            landed, stands, done = (f"{peak / count:.2f}" for peak in peaks)
            print(f"ZeRO-{stage} {way:9s} {count:,} parameters: kept {one['kept'] / count:.2f}; peak until the weights "
                  f"lie there {landed} (the last rank {one['last'][2] / count:.2f}), until the engine stands {stands} "
                  f"({ready:.1f} s), until the first step is done {done} ({stepped:.1f} s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
