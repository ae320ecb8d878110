"""Runs inside every rank of a multi-rank test: many trainings in one process group, because a start costs seconds.

    python rank_program.py CASES.json RESULTS.json

A case is ``{"name": ..., "config": {...}}`` and what goes wrong in it:

    "poison": n         the n-th step's loss is not finite, on rank 1 in each second sequence; "heals": only once
    "steep": [a, b]     the gradient is a thousand times too large in steps that begin with one of these samples
    "slow": seconds     a forward pass takes so much longer on rank 1
    "stop": n           rank 1 is told to stop before the n-th batch that it evaluates
    "flip": n           before the n-th step's forward pass a bit of rank 1's copy of a weight becomes another

Or nothing does, and it is only looked at:

    "sent": n           what torch is given to send in the n-th step is written to sent.json in the run's folder (Sent)

Its result is the exit code, or the message of the HanseError. Whatever goes wrong, weights and moments are held to be
as they were after an update that was not made.
"""

import itertools
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

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


class Sent(TorchDispatchMode):
    """Counts whatever goes to a process group: {"ranks of the group": {operation of torch: {bytes: how often}}}."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.namespace == "c10d" and (held := [one for one in arguments if isinstance(one, torch.ScriptObject)]):
            group = ",".join(map(str, dist.get_process_group_ranks(dist.ProcessGroup.unbox(held[0]))))
            first = arguments[0]
            while isinstance(first, list):
                first = first[0]
            counts = self.found.setdefault(group, {}).setdefault(function._schema.name.removeprefix("c10d::"), {})
            counts[first.nbytes] = counts.get(first.nbytes, 0) + 1
        return function(*arguments, **(named or {}))


def broken(case, place):
    """``accumulate``, ``update`` and ``scores`` with the faults of a case."""
    calls, evaluated, sent = itertools.count(1), itertools.count(1), Sent()

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
        with sent if number == case.get("sent") else nullcontext():
            sums = ACCUMULATE(engine, batch, *rest)
        if poisoned and case.get("heals"):
            handle.remove()
        engine.forward = forward
        return sums

    def update(engine, *arguments, **named):
        before = held(engine)
        with sent if engine.updates + 1 == case.get("sent") else nullcontext():
            made = UPDATE(engine, *arguments, **named)
        if engine.updates == case.get("sent") and place.first:
            Path(case["config"]["run"], "sent.json").write_text(json.dumps(sent.found))
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
