"""A step at each ZeRO stage: seconds, and bytes a parameter that a rank holds.

python -m benchmarks.zero_stages [--model llama-20m] [--ranks 2] [--rounds 3] [--precision fp32] [--accumulation 1]
                                 [--sharing sequence|tensor]

The engine of `hanse train`, one model, the same batches; the stages take turns in the same ranks. Bytes are those
behind all tensors that are there after a step. Needs as many cores as ranks. With `--sharing` all ranks share each
sequence, or each matrix, and read what otherwise each reads a part of, as one micro-batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module

from benchmarks.memory import storages
from benchmarks.on_ranks import start, tell
from common.configuration import instantiate
from train.engine import Engine
from train.model import build_model, model_config
from train.ranks import find_place
from train.tensor_config import STAGES as OF_PARTS

STAGES = (0, 1, 2, 3)
LENGTH, VOCABULARY, STEPS, WARM_UP = 128, 8192, 6, 2


def measure(options: argparse.Namespace, stage: int) -> dict[str, Any]:
    """Some steps at a stage, on this rank: {parameters, seconds of each, bytes, the last loss}."""
    place = find_place(os.environ)
    assert place is not None
    accumulation, readers, sequences = options.accumulation, place.ranks, 1
    if options.sharing:
        readers, sequences = 1, place.ranks
    settings = ["name=zero", "tokens=1_000_000_000", f"model={options.model}", f"engine.zero_stage={stage}",
                f"engine.precision={options.precision}", f"data.sequence_length={LENGTH}",
                f"batch.micro_batch_size={sequences}", f"batch.global_batch_size={place.ranks * accumulation}",
                f"ranks={place.ranks}"]  # fmt: skip
    if options.sharing:
        settings.append(f"engine.{options.sharing}_parallel={place.ranks}")
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    before = storages()
    engine = Engine(config, build_model(model_config(config.model, VOCABULARY, LENGTH), 0), place.ranks,
                    options.precision)  # fmt: skip
    parameters = sum(torch.Size(shape).numel() for shape in engine.shapes.values())
    generator, seconds = torch.Generator().manual_seed(place.rank % readers), []
    mine = slice(
        engine.group.index * LENGTH // engine.group.size, (engine.group.index + 1) * LENGTH // engine.group.size
    )
    positions = torch.arange(LENGTH)[mine].expand(sequences, -1)
    for _ in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (accumulation, sequences, LENGTH), generator=generator)[:, :, mine]
        dist.barrier()
        begun = time.perf_counter()
        for turn in range(accumulation):
            total, _nll = engine.engine(ids[turn], positions, ids[turn], None)
            engine.backward(total, place.ranks * accumulation * LENGTH)
            if turn < accumulation - 1:
                engine.end_micro_batch()
        engine.update(1e-3)
        seconds.append(time.perf_counter() - begun)
    held = sum(one.nbytes() for address, one in storages().items() if address not in before)
    loss, norm = float(total.detach()) / ids[0].numel(), engine.gradient_norm()
    engine.engine.destroy()
    return {"parameters": parameters, "seconds": seconds[WARM_UP:], "bytes": held, "loss": loss, "norm": norm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-20m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--sharing", choices=("", "sequence", "tensor"), default="")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    options = parser.parse_args()
    stages = OF_PARTS if options.sharing == "tensor" else STAGES
    if options.output:
        tell(options.output, lambda: [(stage, measure(options, stage)) for _ in range(options.rounds)
                                      for stage in stages])  # fmt: skip
        return
    found = start("zero_stages", options.ranks, "--model", options.model, "--rounds", options.rounds,
                  "--precision", options.precision, "--accumulation", options.accumulation,
                  *(["--sharing", options.sharing] if options.sharing else []))  # fmt: skip
    print(
        f"{options.model}, {options.ranks} ranks, {options.precision}, {options.accumulation} micro-batches"
        f"{f', all to a {options.sharing}' if options.sharing else ''}; rank 0"
    )
    for stage in stages:
        mine = [one for at, one in found if at == stage]
        seconds = [value for one in mine for value in one["seconds"]]
        size = statistics.median(one["bytes"] for one in mine) / mine[0]["parameters"]
        print(f"stage {stage}: {statistics.median(seconds):.3f} s a step (least {min(seconds):.3f}), {size:.2f} bytes "
              f"a parameter, loss {mine[-1]['loss']:.6f}, norm {mine[-1]['norm']:.6f}")  # fmt: skip


if __name__ == "__main__":
    main()
