"""Whether a learning rate found on a narrow model is right for a wide one, with muP and without.

    python -m benchmarks.mup SHARDS [--widths 32 64 128 256] [--steps 120] [--seeds 1 2]

Two-layer Llamas with heads of 16, one process, fp32, Adam, warmup of a tenth and a linear decay; all see the same
windows, and a seed draws the weights. Told is the mean training loss of the last tenth of the steps, in nats a token,
for each width and rate, mean over the seeds; the best rate of each seed, marked where it is at an end of the grid; and
what the rate that is best at the least width costs at each: its loss above the least.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import torch

from common.terminal import table
from data_pipelines.shards import ShardsManifest
from train.config import ModelConfig
from train.init_config import InitConfig
from train.model import PackedLanguageModel, build_model, model_config, model_inputs
from train.parametrisation import rate_factors, scale_fresh, split_by_rate
from train.stream import MicroBatch, open_sources, pack

LENGTH, BATCH = 128, 4
KINDS = ("muP", "standard")
RATES = [2.0**power for power in range(-10, 0)]


def batches(shards: ShardsManifest, steps: int) -> list[MicroBatch]:
    sources = list(open_sources(shards, "train", LENGTH, 0).values())
    out = []
    for step in range(steps):
        source = sources[step % len(sources)]
        first = step // len(sources) * BATCH
        out.append(pack([source.window((first + one) % source.windows) for one in range(BATCH)], [0] * BATCH))
    return out


def loss_of(vocabulary: int, width: int, rate: float, init: InitConfig, data: list[MicroBatch], seed: int) -> float:
    settings = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 2, "head_dim": 16,
                "num_attention_heads": width // 16, "num_key_value_heads": width // 32, "tie_word_embeddings": True,
                "initializer_range": 0.1}  # fmt: skip
    model = build_model(model_config(ModelConfig("llama", settings), vocabulary, LENGTH), seed)
    scale_fresh(model, init)
    groups = split_by_rate([{"params": list(model.parameters()), "weight_decay": 0.0}], rate_factors(init, model))
    optimizer, module = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True), PackedLanguageModel(model)
    found, warmup = [], max(1, len(data) // 10)
    for step, batch in enumerate(data):
        shape = min((step + 1) / warmup, (len(data) - step) / (len(data) - warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * shape * group.get("lr_factor", 1.0)
        loss = module(**model_inputs(batch, torch.device("cpu")))[0] / int((batch.labels >= 0).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    mean = statistics.fmean(found[-warmup:])
    return mean if math.isfinite(mean) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    shards = ShardsManifest.read(asked.shards)
    data = batches(shards, asked.steps)
    for kind in asked.kinds:
        rows, narrow = [], 0
        for width in asked.widths:
            init = InitConfig(mup_base_width=asked.widths[0] if kind == "muP" else 0)
            losses = [[loss_of(shards.vocabulary_size, width, rate, init, data, seed) for rate in asked.rates]
                      for seed in asked.seeds]  # fmt: skip
            means = [statistics.fmean(column) for column in zip(*losses, strict=True)]
            narrow = narrow if rows else means.index(min(means))
            best = ", ".join(told(asked.rates, row.index(min(row))) for row in losses)
            rows.append([str(width), *(f"{loss:.3f}" for loss in means), best, f"{means[narrow] - min(means):.3f}"])
            print(kind, rows[-1], flush=True)
        columns = ["width", *(f"{rate:.4g}" for rate in asked.rates), "best rate of each seed", "transferred, above"]
        table(f"{kind}: training loss", columns, rows)


def told(rates: list[float], best: int) -> str:
    return f"{rates[best]:.4g}" + (" (end of the grid)" if best in (0, len(rates) - 1) else "")


if __name__ == "__main__":
    main()
