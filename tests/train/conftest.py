"""A configuration of a tiny run, and starts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


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
