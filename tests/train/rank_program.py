"""Runs inside every rank of a multi-rank test: many trainings in one process group, because a start costs seconds.

    python rank_program.py CASES.json RESULTS.json

A case is ``{"name": ..., "config": {...}}`` and what goes wrong in it:

    "poison": n         the n-th step's loss is not finite, on rank 1 in each second sequence; "heals": only once
    "steep": [a, b]     the gradient is a thousand times too large in steps that begin with one of these samples
    "slow": seconds     a forward pass takes so much longer on rank 1
    "stop": n           rank 1 is told to stop before the n-th batch that it evaluates
    "flip": n           before the n-th step's forward pass a bit of rank 1's copy of a weight becomes another

Its result is the exit code, or the message of the HanseError. Whatever goes wrong, weights and moments are held to be
as they were after an update that was not made.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from common.errors import HanseError
from common.verbs import QUIET_ENVIRONMENT
from train import loop
from train.config import TrainConfig
from train.engine import Engine, initialise_ranks
from train.loop import train_as_rank
from train.ranks import find_place

ACCUMULATE, UPDATE, SCORES = loop.accumulate, Engine.update, Engine.scores
FLIPPED = "model.layers.1.mlp.up_proj.weight"


def nan(module, inputs, output):
    output = output.clone()
    output[1] = float("nan")
    return output


def steepened(total, nll):
    return 1000 * total, nll


def broken(case, place):
    """``accumulate``, ``update`` and ``scores`` with the faults of a case."""
    calls, evaluated = itertools.count(1), itertools.count(1)

    def accumulate(engine, batch, *rest):
        number = next(calls)
        poisoned = number == case.get("poison") and place.rank == 1
        if poisoned:
            handle = engine.engine.module.model.model.layers[1].mlp.register_forward_hook(nan)
        steep = range(*case.get("steep", (0, 0)))
        forward = engine.forward
        if batch.samples[0] in steep:
            engine.forward = lambda part: [
                factor * value for factor, value in zip((1000, 1), forward(part), strict=True)
            ]
        if case.get("slow") and place.rank == 1:
            engine.forward = lambda part: (time.sleep(case["slow"]), forward(part))[1]
        if number == case.get("flip") and place.rank == 1:
            weights = next(one for one in engine.engine.module.parameters() if engine.names[id(one)] == FLIPPED)
            weights.data.view(torch.int32).view(-1)[7] ^= 1
        sums = ACCUMULATE(engine, batch, *rest)
        if poisoned and case.get("heals"):
            handle.remove()
        engine.forward = forward
        return sums

    def update(engine, *arguments, **named):
        before = held(engine)
        made = UPDATE(engine, *arguments, **named)
        assert made != all(map(torch.equal, before, held(engine)))
        return made

    def scores(engine, batch):
        if next(evaluated) == case.get("stop") and place.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return SCORES(engine, batch)

    return accumulate, update, scores


def held(engine):
    """A copy of all that an update may change: masters, moments, and the weights where they are held whole."""
    parts = [values.clone() for part in engine.fragments() for _, _, values in part.tensors()]
    return parts + [weights.clone() for weights in engine.replicated().values()]


def main(cases: str, results: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    device = initialise_ranks(place)
    outcomes = {}
    for case in json.loads(Path(cases).read_text()):
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), case["config"]))
        loop.accumulate, Engine.update, Engine.scores = broken(case, place)
        try:
            outcomes[case["name"]] = train_as_rank(config, place, device)
        except HanseError as error:
            outcomes[case["name"]] = str(error)
    dist.barrier()
    dist.destroy_process_group()
    if place.first:
        Path(results).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
