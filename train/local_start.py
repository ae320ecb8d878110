"""Ranks that a verb starts on this machine: the side that starts them, and the side of one that was started.

They read the composed configuration from a file, not the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from common.errors import HanseError
from common.files import write_text
from launch.local import run_ranks

T = TypeVar("T")
REPLAY = "HANSE_REPLAY"  # set for ranks of which 'hanse reproduce' tells itself what came out


def start_ranks(module: str, config: Any, path: Path, log_folder: Path, *, threads: int = 0) -> int:
    """Run ``python -m MODULE PATH`` on ``config.ranks`` ranks; the exit code of the whole.

    Args:
        module: whose main calls :func:`rank_of_local_start`.
        config: written to ``path`` for the ranks.
        log_folder: of what the ranks after the first say.
        threads: that a rank computes with; 0: the cores of this machine shared between the ranks.
    """
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))
    threads = threads or max(1, len(os.sched_getaffinity(0)) // config.ranks)
    return run_ranks([sys.executable, "-m", module, str(path)], config.ranks, threads, log_folder)


def rank_of_local_start(verb: str, schema: type[T], path: str, work: Callable[[T], int]) -> int:
    """Be a rank that :func:`start_ranks` started; its exit code."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))
    assert isinstance(config, schema)
    try:
        return work(config)
    except HanseError as error:
        print(f"hanse {verb}: {error}", file=sys.stderr)
        return error.exit_code
