"""What the tests of launching start from: a training configuration, and jobs at any site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from common.configuration import CONFIGS
from launch.config import LaunchConfig
from launch.job import Job, work_out
from launch.site import load_site

ACCOUNTS = {"lumi": "project_462000001", "jean_zay": "abc@h100", "meluxina": "p200001", "deucalion": "f202500001g"}
WORK = Path("/scratch/voyage")


@pytest.fixture
def train() -> dict[str, Any]:
    """A resolved configuration of ``hanse train``: 1.2 B parameters, 1,024 sequences of 4,096 tokens a step."""
    settings = {"hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 5632, "num_attention_heads": 16,
                "num_key_value_heads": 8}  # fmt: skip
    return {
        "name": "voyage", "run": "runs/voyage", "tokens": 10**12,
        "data": {"shards": "data/shards", "sequence_length": 4096},
        "batch": {"global_batch_size": 1024, "micro_batch_size": 2}, "model": {"settings": settings},
        "engine": {"zero_stage": 1, "sequence_parallel": 1, "tensor_parallel": 1},
        "guards": {"watchdog_seconds": 600, "watchdog_slow_seconds": 1500},
    }  # fmt: skip


def launch_config(site: str, **keys: Any) -> LaunchConfig:
    """The shipped defaults of ``hanse launch`` at a site, with dotted keys set."""
    shipped = OmegaConf.load(CONFIGS / "launch.yaml")
    del shipped["defaults"], shipped["account"]
    config = OmegaConf.merge(OmegaConf.structured(LaunchConfig), shipped, {"site": load_site(site)})
    for key, value in {"account": ACCOUNTS.get(site, "abc123"), **keys}.items():
        OmegaConf.update(config, key, value)
    made = OmegaConf.to_object(config)
    assert isinstance(made, LaunchConfig)
    return made


@pytest.fixture
def job(train: dict[str, Any]) -> Callable[..., Job]:
    """``job("lumi", nodes=4, here=True)``: the job that a request comes to."""

    def make(site: str, *, here: bool = False, folder: Path = WORK, wrong: list[str] | None = None, **keys: Any) -> Job:
        config = launch_config(site, **{key.replace("__", "."): value for key, value in keys.items()})
        assert config.problems() == []
        return work_out(config, config.site, train, wrong or [], folder, here=here)

    return make
