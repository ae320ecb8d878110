"""Starts :mod:`rank_program` on real ranks over gloo, one thread each, and reads what came out."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from common.configuration import instantiate
from launch.local import run_ranks
from train.config import TrainConfig
from train.run_folder import read_metrics

PROGRAM = Path(__file__).with_name("rank_program.py")


def train_cases(
    folder: Path, ranks: int, cases: Mapping[str, Sequence[str]], faults: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, int | str]:
    """Run trainings one after the other on ``ranks`` ranks; {name: exit code or error message}.

    ``faults``: by name, what goes wrong in it (rank_program.py).
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [{"name": name, "config": configuration([*overrides, f"ranks={ranks}"]), **(faults or {}).get(name, {})}
              for name, overrides in cases.items()]  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(wanted))
    command = [sys.executable, str(PROGRAM), str(folder / "cases.json"), str(folder / "results.json")]
    code = run_ranks(command, ranks, 1, folder / "logs")
    assert code == 0, f"ranks failed with {code}, see {folder}/logs"
    return json.loads((folder / "results.json").read_text())


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``hanse train OVERRIDES`` is configured with; composed here, which takes each rank 0.2 seconds."""
    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        config = instantiate(compose("train", overrides=list(overrides)))
    return OmegaConf.to_container(OmegaConf.structured(config))


def losses(run: Path) -> dict[int, float]:
    """{step: training loss} of a run folder."""
    return {record["step"]: record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record}


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """{step: {language: bits per byte}} of a run folder."""
    return {
        record["step"]: {name: values["bits_per_byte"] for name, values in record["evaluation"].items()}
        for record in read_metrics(run / "metrics.jsonl")
        if "evaluation" in record
    }
