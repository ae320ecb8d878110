"""Runs inside every rank: models whose sequences the ranks share, beside the same models with whole sequences.

    python sequence_program.py RESULTS.json

Of each case the largest relative errors of a sequence's loss, of a tensor's gradient and of a score; the bytes kept for
the backward pass; and of some, those that a plan counts.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common.verbs import QUIET_ENVIRONMENT
from tests.train.test_attention import LENGTH, PACKED, SETTINGS, VOCABULARY, WHOLE, batch, np, without_gpus
from train.config import ModelConfig
from train.engine import initialise_ranks
from train.memory import activations, saved_bytes
from train.model import PackedLanguageModel, build_model, model_config, model_inputs
from train.ranks import find_place
from train.sequence_config import SHAREABLE
from train.sequence_parallel import SequenceGroup, share_sequences

CPU = torch.device("cpu")
CASES = {
    **{architecture: (architecture, "sdpa", PACKED, {}) for architecture in SHAREABLE},
    "whole": ("llama", "sdpa", WHOLE, {}),
    "one-key": ("llama", "sdpa", PACKED, {"num_key_value_heads": 1}),
    "own-keys": ("llama", "sdpa", PACKED, {"num_key_value_heads": 4}),
    "flex": ("llama", "flex", PACKED, {}),
    "flex-whole": ("llama", "flex", WHOLE, {}),
    "varlen": ("llama", "varlen", PACKED, {}),
    "varlen-whole": ("llama", "varlen", WHOLE, {}),
    "flash": ("llama", "flash_attention_2", PACKED, {}),
    "flash-whole": ("llama", "flash_attention_2", WHOLE, {}),
}


def compared(architecture, kind, cuts, settings, group):
    config = model_config(ModelConfig(architecture, SETTINGS | settings), VOCABULARY, LENGTH, pad_token_id=0)
    whole, shared = (PackedLanguageModel(build_model(config, 0, kind)) for _ in range(2))
    share_sequences(shared, group)
    all_of_it = batch(np.random.default_rng(0), cuts)
    mine = all_of_it.slice(group.index, group.size)
    losses = []
    for module, part in ((whole, all_of_it), (shared, mine)):
        total, nll = module(**model_inputs(part, CPU))
        total.backward()
        losses.append(nll.detach())
    dist.all_reduce(losses[1])
    errors = [float((losses[1] / losses[0] - 1).abs().max()), 0.0, 0.0]
    for one, other in zip(whole.parameters(), shared.parameters(), strict=True):
        dist.all_reduce(other.grad)
        errors[1] = max(errors[1], float((one.grad - other.grad).norm() / one.grad.norm()))
    with torch.no_grad():
        expected, found = (module(**model_inputs(part, CPU), scored=True)[0] for module, part in
                           ((whole, all_of_it), (shared, mine)))  # fmt: skip
    errors[2] = float((group.whole(found) - expected).abs().max() / expected.abs().max())
    return {"errors": errors, "kept": saved_bytes(shared, 2, LENGTH, "cpu", group.size)}


def planned(architecture, _, __, settings):
    config = model_config(ModelConfig(architecture, SETTINGS | settings), VOCABULARY, LENGTH, pad_token_id=0)
    counted = activations(config, LENGTH, "fp32", 0, 2)
    return counted.fixed + 2 * counted.a_sequence


def main(results: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    initialise_ranks(place)
    group = SequenceGroup.join(2)
    with pytest.MonkeyPatch.context() as patch:
        without_gpus(patch)
        found = {name: compared(*case, group) for name, case in CASES.items()}
    dist.barrier()
    dist.destroy_process_group()
    if place.first:
        for name in ("llama", "own-keys"):
            found[name]["planned"] = planned(*CASES[name])
        Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
