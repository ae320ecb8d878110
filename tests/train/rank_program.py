"""Runs inside every rank of a multi-rank test: many trainings in one process group, because a start costs seconds.

    python rank_program.py CASES.json RESULTS.json

A case is ``{"name": ..., "overrides": [...]}``; its result is the exit code, or the message of the HanseError.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from common.configuration import instantiate
from common.errors import HanseError
from common.verbs import QUIET_ENVIRONMENT
from train.config import TrainConfig
from train.engine import initialise_ranks
from train.loop import train_as_rank
from train.ranks import find_place


def main(cases: str, results: str) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    device = initialise_ranks(place)
    ConfigStore.instance().store("train_schema", TrainConfig)
    outcomes = {}
    for case in json.loads(Path(cases).read_text()):
        with initialize_config_module("configs", version_base="1.3"):
            config = instantiate(compose("train", overrides=[*case["overrides"], f"ranks={place.ranks}"]))
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
