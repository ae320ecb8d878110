"""Runs inside every rank: models whose matrices the ranks share, beside the same models with whole ones.

    python tensor_program.py SIZE CASES.json RESULTS.json

On SIZE ranks of one group: of each architecture the largest relative errors of a sequence's loss, of a gradient, of the
gradient's norm and of a score, and the bytes kept for the backward pass, found and planned; and that ranges of parts,
told and filled, are those of the whole, however ZeRO cuts. On any ranks: of each case's checkpoint the root of its
state, and of the state of an engine that was restored from it.
"""

import itertools
import json
import math
import os
import random
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from common.verbs import QUIET_ENVIRONMENT
from tests.train.test_attention import LENGTH, PACKED, SETTINGS, VOCABULARY, batch, np
from train.checkpoint import Checkpoint
from train.config import ModelConfig, TrainConfig
from train.engine import Engine, initialise_ranks
from train.init_config import InitConfig
from train.materialise import begin
from train.memory import activations, saved_bytes
from train.model import (
    PackedLanguageModel,
    build_model,
    model_config,
    model_inputs,
    parameter_counts,
    shape_of_model,
)
from train.parametrisation import scale_fresh
from train.plan_subject import of_rank
from train.ranks import find_place
from train.shares import Fragment
from train.state_hash import StateHasher, state_of_checkpoint
from train.tensor_config import CUTTABLE
from train.tensor_parallel import Cut, TensorGroup

CPU = torch.device("cpu")
CASES = {**{kind: (kind, {}) for kind in CUTTABLE}, "tied": ("qwen3", {"tie_word_embeddings": True}),
         "own-keys": ("llama", {"num_key_value_heads": 4}),
         "biased": ("llama", {"attention_bias": True, "mlp_bias": True})}  # fmt: skip


def compared(kind, settings, size):
    least = {"num_key_value_heads": max(size, SETTINGS["num_key_value_heads"])}
    config = model_config(ModelConfig(kind, SETTINGS | least | settings), VOCABULARY, LENGTH, pad_token_id=0)
    whole, shared = (PackedLanguageModel(build_model(config, 0)) for _ in range(2))
    group = TensorGroup.join(size)
    group.cut(shared)
    group.landed(shared)
    part, losses = batch(np.random.default_rng(0), PACKED), []
    for module in (whole, shared):
        total, nll = module(**model_inputs(part, CPU))
        total.backward()
        losses.append(nll.detach())
    errors = {"loss": float((losses[1] / losses[0] - 1).abs().max()), "gradient": 0.0}
    squares, held = torch.zeros(1, dtype=torch.float64), 0
    named = dict(shared.model.named_parameters())
    for name, one in whole.model.named_parameters():
        cut = group.cuts.get(name)
        right = cut.part(one.grad) if cut else one.grad
        errors["gradient"] = max(errors["gradient"], float((named[name].grad - right).norm() / right.norm()))
        squares += float(named[name].grad.double().norm()) ** 2 * group.counts(name)
        held += named[name].numel()
        assert getattr(named[name], "tensor_model_parallel", False) == (cut is not None), name
    dist.all_reduce(squares)
    right = math.sqrt(sum(float(one.grad.double().norm()) ** 2 for one in whole.parameters()))
    errors["norm"] = abs(math.sqrt(squares) / right - 1)
    with torch.no_grad():
        expected, found = (module(**model_inputs(part, CPU), scored=True)[0] for module in (whole, shared))
    errors["score"] = float((found - expected).abs().max() / expected.abs().max())
    layers = sum(one.numel() for name, one in whole.model.named_parameters() if name in group.cuts)
    assert held == sum(one.numel() for one in whole.parameters()) - layers + layers // size
    counted = activations(of_rank(config, size), LENGTH, "fp32", 0)
    assert held == parameter_counts(shape_of_model(of_rank(config, size)))[0]
    planned = counted.fixed + 2 * counted.a_sequence
    return {"errors": errors, "kept": saved_bytes(shared, 2, LENGTH, "cpu"), "planned": planned}


def ranges_of_parts_are_those_of_the_whole(size):
    """As many times as ZeRO may cut: in rows, at their borders, parts of one element and of nothing but one row."""
    chance, group = random.Random(0), TensorGroup.join(size)
    for turn in range(60):
        rows, columns = chance.randint(1, 6), size * chance.randint(1, 5)
        whole = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
        dim = chance.choice([0, 1, None]) if rows % size == 0 else chance.choice([1, None])
        cut = None if dim is None else Cut((rows, columns), dim, size, group.index)
        group.cuts = {"w": cut} if cut else {}
        mine = (cut.part(whole) if cut else whole).flatten()
        edges = [0, *sorted(chance.randint(0, len(mine)) for _ in range(3)), len(mine)]
        told = torch.full((rows * columns,), 0.0)
        for start, stop in itertools.pairwise(edges):  # those of so many holders, one after the other
            values = mine[start:stop].clone()
            average = values + 0.25 if turn % 2 else None
            held = [Fragment("w", start, stop, 0, 0, values, {"m": values + 0.5}, average)] if start < stop else []
            for one in group.told(held):
                right = torch.arange(one.start, one.stop, dtype=torch.float32)
                assert torch.equal(one.master, right), (dim, one)
                assert torch.equal(one.moments["m"], right + 0.5)
                assert (one.average is None) == (average is None) or torch.equal(one.average, right + 0.25)
                told[one.start : one.stop] += 1
            for one in group.filled(held):
                one.master.copy_(1000 + torch.arange(one.start, one.stop))  # the moments are left alone
            assert torch.equal(values, 1000 + mine[start:stop])
            assert not held or torch.equal(held[0].moments["m"], mine[start:stop] + 0.5)
        dist.all_reduce(told)
        assert bool((told == 1).all()), (rows, columns, dim, edges, told)


def fresh(config, shape, place):
    """Weights begin as those of a model that was built whole, scaled by what its whole shapes say."""
    init = InitConfig(std="fan_in", residual="depth")
    beginning, plain = begin(shape, 3, "sdpa", init), build_model(shape, 3)
    scale_fresh(plain, init)
    engine = Engine(config, beginning.model, place.ranks, config.engine.precision, beginning.land)
    right = {name: one.detach().flatten() for name, one in plain.named_parameters()}
    for part in engine.fragments():
        assert torch.equal(part.master, right[part.name][part.start : part.stop]), part.name
    engine.engine.destroy()


def restored(case, place):
    """(root of a checkpoint's state, root of an engine's that was restored from it)."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), case["config"]))
    checkpoint = Checkpoint(Path(case["checkpoint"]))
    shape = model_config(config.model, checkpoint.state["model"]["vocab_size"], config.data.sequence_length)
    fresh(config, shape, place)
    beginning = begin(shape, 1, "sdpa", InitConfig(), checkpoint.reader(), fresh=False)

    def land(landing):  # before DeepSpeed is given the model
        beginning.land(landing)
        cut = landing.tensor.by_id
        assert bool(cut) == (config.engine.tensor_parallel > 1)
        assert all(one.numel() == cut[id(one)].elements for one in beginning.model.parameters() if id(one) in cut)

    engine = Engine(config, beginning.model, place.ranks, config.engine.precision, land)
    checkpoint.restore(engine)
    state = StateHasher(engine, place).take()
    before = {name: one.clone() for name, one in engine.replicated().items()}
    engine.spread_masters()  # the weights that landed are those of the masters
    assert all(torch.equal(one, before[name]) for name, one in engine.replicated().items())
    return [state_of_checkpoint(checkpoint).root, state.root] if place.first else None


def main(size: str, cases: str, results: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    initialise_ranks(place)
    found = {"restored": {name: restored(case, place) for name, case in json.loads(Path(cases).read_text()).items()}}
    if place.ranks == int(size) > 1:
        found |= {name: compared(*case, int(size)) for name, case in CASES.items()}
        ranges_of_parts_are_those_of_the_whole(int(size))
    dist.barrier()
    dist.destroy_process_group()
    if place.first:
        Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
