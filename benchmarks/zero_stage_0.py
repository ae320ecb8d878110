"""DeepSpeed's stage 0 beside its stage 1: seconds a step and bytes a parameter of a rank.

python -m benchmarks.zero_stage_0 [--model llama-20m] [--ranks 2] [--rounds 3]

Plain DeepSpeed, with torch's fused AdamW, one model, the same batches and one loop; the stages take turns in the same
ranks, in fp32. Bytes are those behind all tensors that are there after a step. Needs as many cores as ranks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module

from benchmarks.memory import storages
from benchmarks.on_ranks import start, tell
from common.configuration import instantiate
from train.model import build_model, model_config
from train.zero_config import bucket_elements

STAGES = (0, 1)
LENGTH, VOCABULARY, STEPS, WARM_UP = 128, 8192, 6, 2


def measure(model: str, stage: int) -> dict[str, Any]:
    """Some steps at a stage, on this rank: {parameters, seconds of each, bytes, the last loss}."""
    import deepspeed

    settings = ["name=zero", "tokens=1_000_000_000", f"model={model}"]  # of which only the model is looked at
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    before = storages()
    module = build_model(model_config(config.model, VOCABULARY, LENGTH), 0)
    parameters = module.num_parameters()
    bucket = bucket_elements(parameters)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True),
        config={"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
                "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
                "zero_optimization": {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}},
    )  # fmt: skip
    generator, seconds = torch.Generator().manual_seed(torch.distributed.get_rank()), []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (1, LENGTH), generator=generator)
        torch.distributed.barrier()
        begun = time.perf_counter()
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        seconds.append(time.perf_counter() - begun)
    held = sum(one.nbytes() for address, one in storages().items() if address not in before)
    last = float(loss.detach())
    engine.destroy()
    return {"parameters": parameters, "seconds": seconds[WARM_UP:], "bytes": held, "loss": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-20m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    options = parser.parse_args()
    if options.output:
        tell(options.output, lambda: [(stage, measure(options.model, stage)) for _ in range(options.rounds)
                                      for stage in STAGES])  # fmt: skip
        return
    found = start("zero_stage_0", options.ranks, "--model", options.model, "--rounds", options.rounds)
    print(f"{options.model}, {options.ranks} ranks, fp32; rank 0")
    for stage in STAGES:
        mine = [one for at, one in found if at == stage]
        seconds = [value for one in mine for value in one["seconds"]]
        size = statistics.median(one["bytes"] for one in mine) / mine[0]["parameters"]
        print(f"stage {stage}: {statistics.median(seconds):.3f} s a step (least {min(seconds):.3f}), "
              f"{size:.2f} bytes a parameter, loss {mine[-1]['loss']:.6f}")  # fmt: skip


if __name__ == "__main__":
    main()
