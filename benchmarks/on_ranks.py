"""Benchmarks whose measurement is made by ranks that the benchmark itself starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.local import run_ranks


def start(module: str, ranks: int, *arguments: object) -> Any:
    """What the first of ``ranks`` told: each is ``python -m benchmarks.MODULE --output FILE ARGUMENTS``."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", "--output", str(output), *map(str, arguments)]
        code = run_ranks(command, ranks, 1, Path(folder) / "logs")
        assert code == 0, f"the ranks failed with exit code {code}"
        return json.loads(output.read_text())


def tell(output: Path, measure: Callable[[], Any]) -> None:
    """Be one of them: join the others, measure, and write what the first found."""
    from hydra.core.config_store import ConfigStore

    from train.config import TrainConfig
    from train.engine import initialise_ranks
    from train.ranks import find_place

    place = find_place(os.environ)
    assert place is not None
    initialise_ranks(place)
    ConfigStore.instance().store("train_schema", TrainConfig)
    found = measure()
    if place.first:
        output.write_text(json.dumps(found))
