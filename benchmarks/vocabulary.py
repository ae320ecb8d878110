"""Another tokenizer for a trained model: embeddings made of their old pieces beside fresh ones.

    python -m benchmarks.vocabulary WEIGHTS OLD_TOKENIZER SHARDS TOKENIZER [--steps 100] [--language de]

WEIGHTS is a checkpoint or a Hugging Face folder, OLD_TOKENIZER its tokenizer; SHARDS were written with TOKENIZER from
texts of the language to adapt to. One process, fp32, AdamW. Told are validation bits a byte, which compare models with
different vocabularies, before the first step and after some.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from common.terminal import table
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths
from train.config import ModelConfig
from train.evaluate import Evaluation
from train.initial import check
from train.model import PackedLanguageModel, build_model, model_config, model_inputs
from train.stream import open_sources, pack
from train.tally import Score
from train.vocabulary import adapted
from train.weights import open_weights

LENGTH, BATCH = 256, 4
KEPT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "tie_word_embeddings", "initializer_range", "rope_parameters")  # fmt: skip


def bits_per_byte(module: PackedLanguageModel, evaluation: Evaluation, number: int) -> float:
    nll, labels, size = 0.0, 0, 0
    with torch.no_grad():
        for index, (language, batch) in enumerate(evaluation.batches):
            if language == number:
                counted = evaluation.labels(index)
                sums = module(**model_inputs(batch, torch.device("cpu")))[1]
                nll += float(sums[: evaluation.counted[index]].double().sum())
                labels += len(counted)
                size += int(evaluation.token_bytes[counted].sum())
    return Score(nll, labels, 0, size).bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("weights", "old_tokenizer", "shards", "tokenizer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--language", default="de")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    shards, weights = ShardsManifest.read(asked.shards), open_weights(asked.weights)
    end = shards.end_of_document_id
    settings = {key: weights.settings[key] for key in KEPT}
    config = model_config(ModelConfig(weights.settings["model_type"], settings), shards.vocabulary_size, LENGTH,
                          bos_token_id=end, eos_token_id=end)  # fmt: skip
    training = open_sources(shards, "train", LENGTH, 0, hashes=False)[asked.language]
    validation = open_sources(shards, "validation", LENGTH, 0, hashes=False)
    evaluation = Evaluation(validation, 16_384, BATCH, token_byte_lengths(asked.tokenizer))
    number = evaluation.languages.index(asked.language)
    rows = []
    for rule in ("pieces", "random", "all fresh"):
        model = build_model(config, 0)
        if rule != "all fresh":
            made, _ = adapted(weights, str(asked.old_tokenizer), asked.tokenizer / "tokenizer.json", config, rule)
            check(made, config, None)
            made.load(model)
            print(rule, made.told() if hasattr(made, "told") else "", flush=True)
        module = PackedLanguageModel(model)
        optimizer = torch.optim.AdamW(module.parameters(), lr=asked.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        found = [bits_per_byte(module, evaluation, number)]
        for step in range(asked.steps):
            for group in optimizer.param_groups:
                group["lr"] = asked.learning_rate * min(1.0, (step + 1) / 10)
            windows = [training.window((step * BATCH + one) % training.windows) for one in range(BATCH)]
            batch = pack(windows, [0] * BATCH)
            total, _ = module(**model_inputs(batch, torch.device("cpu")))
            optimizer.zero_grad()
            (total / int((batch.labels >= 0).sum())).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % asked.every == 0:
                found.append(bits_per_byte(module, evaluation, number))
        rows.append([rule, *(f"{value:.3f}" for value in found)])
        print(rows[-1], flush=True)
    steps = range(0, asked.steps + 1, asked.every)
    table(f"validation bits a byte, {asked.language}, {BATCH * LENGTH} tokens a step",
          ["embeddings", *(f"step {step}" for step in steps)], rows)  # fmt: skip


if __name__ == "__main__":
    main()
