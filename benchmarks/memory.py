"""What `hanse plan` says of memory, beside what lies in the memory of real ranks: bytes a parameter.

python -m benchmarks.memory [--model llama-20m] [--ranks 2]

All tensors are counted by their storage after each backward pass; the bucket that ZeRO-3 keeps is left out of them, as
`hanse plan` counts it apart. Needs as many cores as ranks, and a minute.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_ranks import start, tell
from train.engine import Engine
from train.memory import VALUE_BYTES, Layout, states
from train.model import build_model, model_config
from train.ranks import find_place
from train.zero_config import bucket_elements

CASES = [(stage, precision) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
LENGTH, SEQUENCES, VOCABULARY = 32, 4, 8192  # short: bf16 is slow where the processor has no instructions for it


def storages() -> dict[int, torch.UntypedStorage]:
    """{address: the memory} behind all tensors there are. Whoever holds one keeps its address from being used again."""
    gc.collect()
    found = (thing.untyped_storage() for thing in gc.get_objects()
             if isinstance(thing, torch.Tensor) and thing.device.type != "meta")  # fmt: skip
    return {one.data_ptr(): one for one in found}


def measure(model: str, stage: int, precision: str) -> dict[str, Any]:
    """One step of a model on this rank: bytes planned and found."""
    from hydra import compose, initialize_config_module

    from common.configuration import instantiate

    place = find_place(os.environ)
    assert place is not None
    settings = ["name=memory", "tokens=100000", f"model={model}", f"data.sequence_length={LENGTH}",
                f"batch.global_batch_size={SEQUENCES}", "batch.micro_batch_size=1", f"engine.zero_stage={stage}",
                f"engine.precision={precision}"]  # fmt: skip
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    before, found = storages(), 0
    shape = model_config(config.model, VOCABULARY, LENGTH)
    engine = Engine(config, build_model(shape, 0), place.ranks, precision)
    ids, positions = torch.randint(0, VOCABULARY, (1, LENGTH)), torch.arange(LENGTH)[None]
    turns = SEQUENCES // place.ranks
    for turn in range(1, turns + 1):
        total, _losses = engine.engine(ids, positions, ids, None)
        engine.backward(total, SEQUENCES * LENGTH)
        del total
        found = max(found, sum(one.nbytes() for address, one in storages().items() if address not in before))
        if turn < turns:
            engine.end_micro_batch()
    engine.update(1e-3)
    parameters = sum(map(torch.Size.numel, map(torch.Size, engine.shapes.values())))
    summed, travelling = config.engine.sums(precision, config.determinism)
    planned = sum(states(parameters, Layout(place.ranks, stage, precision, accumulated=summed)))
    held = {3: VALUE_BYTES[travelling], 1: VALUE_BYTES[summed] if summed != precision else 0}.get(stage, 0)
    bucket = held * min(bucket_elements(parameters), parameters)  # what is kept of it from one micro-batch to the next
    engine.engine.destroy()
    return {"parameters": parameters, "states_planned": planned, "bucket": bucket, "found": found}


def on_ranks(ranks: int, model: str, cases: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """What rank 0 of ``ranks`` finds for each (stage, precision)."""
    found: list[dict[str, Any]] = start("memory", ranks, "--model", model, "--cases", json.dumps(cases))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-20m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    parser.add_argument("--cases", default=json.dumps(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.output:
        cases = json.loads(options.cases)
        tell(options.output, lambda: [measure(options.model, stage, precision) for stage, precision in cases])
        return
    print(f"{options.model}, {options.ranks} ranks; bytes a parameter: planned, found")
    for (stage, precision), one in zip(CASES, on_ranks(options.ranks, options.model, CASES), strict=True):
        count, planned, found = one["parameters"], one["states_planned"], one["found"] - one["bucket"]
        print(f"ZeRO-{stage} {precision}: {planned / count:5.2f} {found / count:5.2f} (x {found / planned:.3f})")


if __name__ == "__main__":
    main()
