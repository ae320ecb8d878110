"""What a session makes once, however many workers (pytest-xdist) it has; and configurations composed sooner."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import omegaconf
import pytest
import yaml
from hydra._internal.hydra import Hydra

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS


def root(factory: pytest.TempPathFactory) -> Path:
    """The session's folder, that of all its workers."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One worker at a time; the kernel lets go of the lock when its holder dies."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` that ``make`` has filled; by the worker that asked first, the others wait for it."""
    folder = root(factory) / name
    made = folder.with_name(f"{name}.made")
    with alone(folder.with_name(f"{name}.lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def compose_sooner(put: Callable[[object, str, object], None]) -> None:
    """The same configurations in less than half of the time, of which the suite composes many hundred.

    Hydra composes once to look for ``hydra.mode``, which none of ours sets, and then once more: here not. OmegaConf
    reads files with PyYAML's own parser, here with that of libyaml. ``put``: as ``setattr``.
    """
    usual, yaml.SafeLoader = yaml.SafeLoader, yaml.CSafeLoader  # which the loader is derived from
    loader = omegaconf._utils.get_yaml_loader()
    yaml.SafeLoader = usual
    put(Hydra, "get_mode", lambda *_, **__: None)
    put(omegaconf._utils, "get_yaml_loader", lambda: loader)
