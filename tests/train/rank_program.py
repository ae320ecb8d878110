"""Runs inside every rank of a multi-rank test: many trainings in one process group, because a start costs seconds.

    python rank_program.py CASES.json RESULTS.json

A case is ``{"name": ..., "overrides": [...], "poison": None or a step}``;
its result is the exit code, or the message of the HanseError.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from common.configuration import instantiate
from common.errors import HanseError
from common.verbs import QUIET_ENVIRONMENT
from train import loop
from train.config import TrainConfig
from train.engine import initialise_ranks
from train.loop import train_as_rank
from train.ranks import find_place

TRAIN_STEP = loop.train_step


def poisoned(call: int, place):
    """``train_step`` that from its n-th call on makes a module's output NaN, on rank 1, in each second sequence.

    Raises:
        AssertionError: the weights are others after such a step.
    """
    calls = itertools.count(1)

    def nan(module, inputs, output):
        output = output.clone()
        output[1] = float("nan")
        return output

    def step(engine, *arguments):
        bad = next(calls) == call
        if bad and place.rank == 1:
            engine.engine.module.model.model.layers[1].mlp.register_forward_hook(nan)
        before = [part.master.clone() for part in engine.fragments()]
        sums = TRAIN_STEP(engine, *arguments)
        after = [part.master for part in engine.fragments()]
        assert bad == all(map(torch.equal, before, after))
        return sums

    return step


def main(cases: str, results: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    device = initialise_ranks(place)
    ConfigStore.instance().store("train_schema", TrainConfig)
    outcomes = {}
    for case in json.loads(Path(cases).read_text()):
        with initialize_config_module("configs", version_base="1.3"):
            config = instantiate(compose("train", overrides=[*case["overrides"], f"ranks={place.ranks}"]))
        loop.train_step = poisoned(case["poison"], place) if case.get("poison") else TRAIN_STEP
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
