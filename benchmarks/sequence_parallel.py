"""What sharing sequences saves: memory of two real ranks for one sequence each, and for one that they share.

python -m benchmarks.sequence_parallel [--lengths 2048 4096 8192]

Of each length: bytes that `hanse plan` counts for the backward pass of one sequence; how far the resident memory of a
rank rises from before the forward pass to its highest until the end of the backward pass (VmHWM of Linux, begun anew;
the mean of the ranks). Whole documents, fp32, ZeRO-1, after a pass that is not measured. Every tensor is mapped by
itself (MALLOC_MMAP_THRESHOLD_), so that what is freed is given back and what is resident is in use.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from benchmarks.on_ranks import start, tell
from train.engine import Engine
from train.memory import activations
from train.model import build_model, model_config
from train.stream import pack

VOCABULARY, RANKS = 4096, 2
SETTINGS = ["model.settings={hidden_size: 256, intermediate_size: 704, num_hidden_layers: 6, num_attention_heads: 8, "
            "num_key_value_heads: 4}"]  # fmt: skip


def resident(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure(length: int, shared: int) -> dict[str, Any]:
    """Bytes of this rank, planned and found."""
    from hydra import compose, initialize_config_module

    from common.configuration import instantiate

    batch = RANKS // shared
    settings = ["name=memory", f"tokens={100 * batch * length}", f"data.sequence_length={length}", f"ranks={RANKS}",
                f"batch.global_batch_size={batch}", "batch.micro_batch_size=1", "engine.precision=fp32",
                f"engine.sequence_parallel={shared}", *SETTINGS]  # fmt: skip
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    shape = model_config(config.model, VOCABULARY, length)
    planned = activations(shape, length, "fp32", 0, shared)
    engine = Engine(config, build_model(shape, 0), RANKS, "fp32")
    group = engine.group
    generator = np.random.default_rng(dist.get_rank() // shared)
    ids, one = generator.integers(0, VOCABULARY, length + 1), np.zeros(length + 1, dtype=np.int64)
    mine = pack([(ids, one)], [0]).slice(group.index, group.size)
    for turn in range(2):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))
        before = resident("VmRSS")
        total, _ = engine.forward(mine)
        engine.backward(total, batch * length)
        risen = resident("VmHWM") - before
        del total
        if turn == 0:
            engine.update(1e-4)
    engine.engine.destroy()
    mask = 4 * length * length  # counted by the plan, for packed documents
    return {"planned": planned.fixed + planned.a_sequence - mask, "risen": risen}


def measured_by_all(lengths: list[int]) -> list[Any]:
    """What each rank found of each case. Collective."""
    found = [measure(length, shared) for length in lengths for shared in (1, RANKS)]
    gathered: list[Any] = [None] * RANKS
    dist.all_gather_object(gathered, found)
    return gathered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    options = parser.parse_args()
    if options.output:
        tell(options.output, lambda: measured_by_all(options.lengths))
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    ranks = start("sequence_parallel", RANKS, "--lengths", *options.lengths)
    print("tokens  ranks to a sequence  planned MB  found MB")
    cases = [(length, shared) for length in options.lengths for shared in (1, RANKS)]
    for number, (length, shared) in enumerate(cases):
        risen = sum(rank[number]["risen"] for rank in ranks) / RANKS
        print(f"{length:6} {shared:20} {ranks[0][number]['planned'] / 1e6:11.0f} {risen / 1e6:9.0f}")


if __name__ == "__main__":
    main()
