"""``hanse train``: be a rank where a launcher started us as one, else start the ranks here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.errors import ConfigError
from data_pipelines.shards import ShardsManifest
from train.config import TrainConfig
from train.config_rules import divides_ranks
from train.determinism import set_variables
from train.init_config import FROM_CHECKPOINT
from train.local_start import rank_of_local_start, start_ranks
from train.pools import check_mixtures
from train.ranks import ToldElsewhere, find_place, torchrun_variables
from train.run_folder import RunFolder


def run(config: TrainConfig) -> int:
    """Train; the exit code (0 done, 75 stopped when asked and saved)."""
    return _start_ranks(config) if find_place(os.environ) is None else _be_a_rank(config)


def _start_ranks(config: TrainConfig) -> int:
    """Start the ranks on this machine."""
    RunFolder(config.run).check_free()  # before anything is written into a folder that another run may be using
    check_mixtures(config, ShardsManifest.read(Path(config.data.shards)))  # ranks would say it ten seconds later
    logs = Path(config.run) / "logs"
    return start_ranks("train.start", config, logs / "start.yaml", logs, threads=config.threads_per_rank)


def _be_a_rank(config: TrainConfig) -> int:
    place = find_place(os.environ)
    assert place is not None
    if config.model.architecture == FROM_CHECKPOINT:
        from train.agreement import with_model_of_weights

        config = with_model_of_weights(config)
    engine = config.engine
    problems = [line for key in ("sequence_parallel", "tensor_parallel", "hpz_partition_size")
                for line in divides_ranks(f"engine.{key}", getattr(engine, key), place.ranks)]  # fmt: skip
    problems += config.timeline.problems(place.ranks, engine.sharing)
    problems += config.profiling.problems(place.ranks) if config.profile else []
    if problems:
        raise ConfigError(problems)
    torchrun_variables(place, os.environ)
    set_variables(config.determinism, os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads_per_rank or 1))
    from train.loop import train

    try:
        return train(config, place)
    except ToldElsewhere as told:
        return told.exit_code


if __name__ == "__main__":
    sys.exit(rank_of_local_start("train", TrainConfig, sys.argv[1], _be_a_rank))
