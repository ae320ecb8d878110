"""What the type costs that gradients are summed in under bf16: relative error of a step of 16 micro-batches.

python -m benchmarks.gradient_sums [--ranks 2]

The gradient that ZeRO 1 is about to apply, against the sum in double precision of the gradients of the same
micro-batches, each in bf16. A small model on random tokens, which asks for no data; half a minute on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module

from benchmarks.on_ranks import start, tell
from common.configuration import instantiate
from train.engine import Engine
from train.model import PackedLanguageModel, build_model, model_config
from train.ranks import find_place

CASES = (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"))  # over micro-batches, over ranks
MICRO_BATCHES, LENGTH, VOCABULARY = 16, 32, 1024
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def measure(accumulated: str, travelling: str) -> float:
    """The relative error, over all parameters, of one step on these ranks."""
    place = find_place(os.environ)
    assert place is not None
    settings = ["name=sums", "tokens=100000", f"data.sequence_length={LENGTH}", "engine.precision=bf16",
                f"batch.global_batch_size={MICRO_BATCHES}", "batch.micro_batch_size=1",
                f"engine.gradient_accumulation={accumulated}", f"engine.communication={travelling}",
                *(f"model.settings.{key}={value}" for key, value in MODEL.items())]  # fmt: skip
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=settings))
    shape = model_config(config.model, VOCABULARY, LENGTH)
    plain = PackedLanguageModel(build_model(shape, 0))
    for parameter in plain.parameters():  # and no buffer: DeepSpeed leaves those of the rotary embedding in fp32
        parameter.data = parameter.data.bfloat16()
    engine = Engine(config, build_model(shape, 0), place.ranks, "bf16")
    exact = {name: torch.zeros(one.numel(), dtype=torch.float64) for name, one in plain.model.named_parameters()}
    generator, found = torch.Generator().manual_seed(place.rank), dict[str, Any]()
    turns, labels, positions = MICRO_BATCHES // place.ranks, MICRO_BATCHES * LENGTH, torch.arange(LENGTH)[None]
    for turn in range(1, turns + 1):
        ids = torch.randint(0, VOCABULARY, (1, LENGTH), generator=generator)
        plain.zero_grad()
        (plain(ids, positions, ids, None)[0] * (place.ranks / labels)).backward()
        for name, one in plain.model.named_parameters():
            exact[name] += one.grad.flatten().double() / place.ranks
        engine.backward(engine.engine(ids, positions, ids, None)[0], labels)
        if turn < turns:
            engine.end_micro_batch()
    for one in exact.values():
        dist.all_reduce(one)
    engine._norms_by_layer = lambda: found.update(_errors(engine, exact)) or {}  # type: ignore[method-assign]
    engine.update(0.0, layers=True)  # asks for them when the gradient is reduced, and not yet applied
    engine.engine.destroy()
    return float((found["wrong"] / found["size"]).sqrt())


def _errors(engine: Engine, exact: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Squares of the differences, and of what is right, over all ranks."""
    squares = torch.zeros(2, dtype=torch.float64)
    flat = {group: torch.cat([part.flatten() for part in parts])
            for group, parts in engine.zero.averaged_gradients.items() if parts}  # fmt: skip
    for part in engine.fragments():
        mine = flat[part.group].narrow(0, part.offset, part.stop - part.start).double()
        right = exact[part.name][part.start : part.stop]
        squares += torch.stack(((mine - right).square().sum(), right.square().sum()))
    dist.all_reduce(squares)
    return {"wrong": squares[0], "size": squares[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # for the ranks, which this program starts
    options = parser.parse_args()
    if options.output:
        tell(options.output, lambda: [measure(*case) for case in CASES])
        return
    found = start("gradient_sums", options.ranks)
    print(f"{MICRO_BATCHES} micro-batches in bf16 on {options.ranks} ranks; relative error of their summed gradient")
    for (accumulated, travelling), error in zip(CASES, found, strict=True):
        print(f"summed in {accumulated}, between ranks in {travelling}: {error:.1e}")


if __name__ == "__main__":
    main()
