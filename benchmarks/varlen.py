"""What a pass over packed sequences takes on a CPU, with one document after the other and with a mask.

    python -m benchmarks.varlen [--rounds 5] [--threads 1]

Milliseconds, forward and backward, the least of the rounds, which take turns: a Llama of 4 layers, width 256, 8 heads,
4 key heads, vocabulary 16,384, fp32. Lengths of documents are Poisson's around a mean.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from train.config import ModelConfig
from train.model import PackedLanguageModel, build_model, model_config, model_inputs
from train.stream import pack

SETTINGS = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
            "num_key_value_heads": 4}  # fmt: skip
VOCABULARY = 16_384
KINDS = ("varlen", "sdpa")
CASES = ((2, 512, 150), (2, 512, 20), (2, 512, 5), (1, 1024, 150), (1, 2048, 300))  # rows, tokens, tokens a document


def measure(rows: int, length: int, mean: int, rounds: int) -> None:
    generator = np.random.default_rng(0)
    windows = []
    for _ in range(rows):
        documents = np.repeat(np.arange(length + 1), generator.poisson(mean, length + 1) + 1)[: length + 1]
        windows.append((generator.integers(0, VOCABULARY, length + 1), documents))
    inputs = model_inputs(pack(windows, [0] * rows), torch.device("cpu"))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    models = {}
    for kind in KINDS:  # a configuration each: a model writes its attention into it
        config = model_config(ModelConfig("llama", SETTINGS), VOCABULARY, length, pad_token_id=0)
        models[kind] = PackedLanguageModel(build_model(config, 0, kind))
    for _ in range(rounds):
        for kind, model in models.items():
            before = time.perf_counter()
            model(**inputs)[0].backward()
            found[kind].append(1000 * (time.perf_counter() - before))
            model.zero_grad()
    least = {kind: min(times) for kind, times in found.items()}
    print(f"{rows} x {length:5,}, documents of {mean:3}: " + ", ".join(f"{k} {v:6,.0f} ms" for k, v in least.items())
          + f", {least['varlen'] / least['sdpa']:.2f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in CASES:
        measure(*case, options.rounds)


if __name__ == "__main__":
    main()
