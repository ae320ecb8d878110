"""What `hanse plan` says of memory, beside what lies in the memory of real ranks: bytes a parameter.

python -m benchmarks.memory [--model llama-20m] [--ranks 2]

All tensors are counted by their storage after each backward pass; the bucket that ZeRO-3 keeps is left out of them, as
`hanse plan` counts it apart. Needs as many cores as ranks, and a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_ranks import start, tell
from train.engine import Engine
from train.memory import VALUE_BYTES, Layout, activations, memory
from train.model import build_model, model_config, parameter_counts, shape_of_model
from train.optimizers import bytes_per_parameter
from train.ranks import find_place
from train.zero_config import bucket_elements

CASES = [*((stage, precision, determinism, "adamw")
           for determinism in ("D0", "D2") for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3)),
         *((stage, "fp32", "D0", kind) for kind in ("muon", "ademamix") for stage in (0, 1, 2, 3))]  # fmt: skip
LENGTH, SEQUENCES, VOCABULARY = 32, 4, 8192  # short: bf16 is slow where the processor has no instructions for it


def storages() -> dict[int, torch.UntypedStorage]:
    """{address: the memory} behind all tensors there are. Whoever holds one keeps its address from being used again."""
    gc.collect()
    found = (thing.untyped_storage() for thing in gc.get_objects()
             if isinstance(thing, torch.Tensor) and thing.device.type != "meta")  # fmt: skip
    return {one.data_ptr(): one for one in found}


@contextmanager
def rise() -> Iterator[list[int]]:
    """[bytes by which what torch's allocator of CPU memory has given out rose at most inside], known at the end."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield found
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [one for one in recorded.profiler.kineto_results.events() if one.name() == "[memory]"]
    events.sort(key=lambda one: one.start_ns())
    found.append(max(accumulate((one.nbytes() for one in events), initial=0)))


def measure(model: str, stage: int, precision: str, determinism: str, kind: str) -> dict[str, Any]:
    """One step of a model on this rank: bytes planned and found."""
    from hydra import compose, initialize_config_module

    from common.configuration import instantiate

    place = find_place(os.environ)
    assert place is not None
    settings = ["name=memory", "tokens=100000", f"model={model}", f"data.sequence_length={LENGTH}",
                f"batch.global_batch_size={SEQUENCES}", "batch.micro_batch_size=1", f"engine.zero_stage={stage}",
                f"engine.precision={precision}", f"determinism={determinism}", "threads_per_rank=1",
                f"optimizer.kind={kind}"]  # fmt: skip
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    before = storages()

    def held() -> int:
        return sum(one.nbytes() for address, one in storages().items() if address not in before)

    shape = model_config(config.model, VOCABULARY, LENGTH)
    engine = Engine(config, build_model(shape, 0), place.ranks, precision)
    ids, positions = torch.randint(0, VOCABULARY, (1, LENGTH)), torch.arange(LENGTH)[None]
    turns, kept, peak = SEQUENCES // place.ranks, 0, 0
    for turn in range(1, turns + 1):
        start = held()
        with rise() as rose:
            total, _losses = engine.engine(ids, positions, ids, None)
            engine.backward(total, SEQUENCES * LENGTH)
            del total
        kept, peak = max(kept, held()), max(peak, start + rose[0])
        if turn < turns:
            engine.end_micro_batch()
    start = held()
    with rise() as rose:
        engine.update(1e-3)
    engine.engine.destroy()
    whole = shape_of_model(shape)
    parameters = parameter_counts(whole)[0]
    summed, travelling = config.engine.sums(precision, determinism)
    layout = Layout(place.ranks, stage, precision, overlap=False, device="cpu", accumulated=summed,
                    exact=determinism == "D2", largest=max(map(math.prod, engine.shapes.values())), kind=kind,
                    optimizer_bytes=bytes_per_parameter(whole, config))  # fmt: skip
    planned = memory(parameters, activations(shape, LENGTH, precision), layout, 1)
    apart = VALUE_BYTES[summed] if summed != precision else 0
    bucket = {3: VALUE_BYTES[travelling], 1: apart, 0: apart}.get(stage, 0)
    bucket *= min(bucket_elements(parameters), parameters)  # what is kept of it from one micro-batch to the next
    return {"parameters": parameters, "planned": dataclasses.asdict(planned), "states_planned": planned.states,
            "bucket": bucket, "found": kept, "passes": peak, "update": start + rose[0]}  # fmt: skip


def on_ranks(ranks: int, model: str, cases: list[tuple[int, str, str, str]]) -> list[dict[str, Any]]:
    """What rank 0 of ``ranks`` finds for each (stage, precision, determinism, optimizer)."""
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
        tell(options.output, lambda: [measure(options.model, *case) for case in cases])
        return
    print(f"{options.model}, {options.ranks} ranks; bytes a parameter: states planned, found; all planned, most in the "
          "passes, most in the update")  # fmt: skip
    for case, one in zip(CASES, on_ranks(options.ranks, options.model, CASES), strict=True):
        count, planned, found = one["parameters"], one["states_planned"], one["found"] - one["bucket"]
        print(
            f"ZeRO-{' '.join(map(str, case))}: {planned / count:5.2f} {found / count:5.2f} (x {found / planned:.3f})  "
            f"{sum(one['planned'].values()) / count:5.2f} {one['passes'] / count:5.2f} {one['update'] / count:5.2f}"
        )


if __name__ == "__main__":
    main()
