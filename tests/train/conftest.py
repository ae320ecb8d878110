"""A finished run, tiny and real: made once a session by the verbs themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Hanse = Callable[..., int]


@pytest.fixture(scope="session")
def tiny_settings(tiny_data: Path) -> list[str]:
    """What ``hanse train`` needs for 12 steps of a 0.1M-parameter Llama on ``tiny_data``; add ``run=FOLDER``.

    Two ranks, fp32, two micro-batches a rank and step; evaluates and saves after every sixth step.
    """
    return [
        "name=tiny", "ranks=2", "threads_per_rank=1", f"tokens={12 * 8 * 64}", "engine.precision=fp32",
        f"data.shards={tiny_data / 'shards'}", f"data.tokenizer={tiny_data / 'tokenizer'}", "data.sequence_length=64",
        "batch.global_batch_size=8", "batch.micro_batch_size=2", "schedule.warmup_steps=2",
        "optimizer.learning_rate=0.01", "checkpoint.every_steps=6", "evaluate.every_steps=6",
        "evaluate.tokens_per_language=512", "track.wandb=disabled",
        "model.settings.hidden_size=48", "model.settings.intermediate_size=96", "model.settings.num_hidden_layers=2",
        "model.settings.num_attention_heads=4", "model.settings.num_key_value_heads=2",
    ]  # fmt: skip


@pytest.fixture
def tiny_config(tiny_settings: list[str], tmp_path: Path) -> Any:
    """``tiny_settings`` as ``hanse train`` sees them, with ``run`` in ``tmp_path``."""
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore

    from common.configuration import instantiate
    from train.config import TrainConfig

    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        return instantiate(compose("train", overrides=[*tiny_settings, f"run={tmp_path / 'run'}"]))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: list[str], hanse: Hanse) -> Path:
    """The folder of a finished run with ``tiny_settings``. Shared: copy it (``shutil.copytree``) to change it."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert hanse("train", f"run={run}", *tiny_settings) == 0
    return run


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """``start(run, settings)``: ``hanse train`` as a process of its own; those still there at the end are killed."""
    from tests.train.command import Command

    commands = []

    def begin(*arguments: Any) -> Command:
        commands.append(Command(*arguments))
        return commands[-1]

    yield begin
    for command in commands:
        command.kill()
