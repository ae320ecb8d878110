"""A registry of four people, and a contribution that waits in it; each test that changes them takes a copy."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from consortium.keys import fingerprint, load_private, new_key
from tests.consortium.liar import Hands
from tests.consortium.runs import write_run

PEOPLE = {"lead": "maintainer", "alice": "contributor", "bob": "reviewer", "carol": "reviewer", "eve": ""}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on more threads, most of all where other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def train_config(tiny_settings) -> Any:
    """``tiny_settings`` as ``hanse train`` sees them."""
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore

    from common.configuration import instantiate
    from train.config import TrainConfig

    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        return instantiate(compose("train", overrides=[*tiny_settings, "run=run"]))


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> SimpleNamespace:
    """Private key files by name, ``.keys`` loaded, ``.prints`` their fingerprints. Eve is enrolled nowhere."""
    folder = tmp_path_factory.mktemp("keys")
    for name in PEOPLE:
        new_key(folder / f"{name}.key")
    keys = {name: load_private(folder / f"{name}.key") for name in PEOPLE}
    prints = {name: fingerprint(key.public_key()) for name, key in keys.items()}
    return SimpleNamespace(keys=keys, prints=prints, file=lambda name: folder / f"{name}.key",
                           public=lambda name: folder / f"{name}.pub")  # fmt: skip


@pytest.fixture(scope="session")
def begun(hanse, people, tmp_path_factory) -> Path:
    """A registry that takes two reviews, with its four people. Shared: copy it to change it."""
    folder = tmp_path_factory.mktemp("begun") / "registry"
    verb = ["registry", f"registry={folder}", f"key={people.file('lead')}"]
    assert hanse(*verb, "create=hansa", "holder=Lead", "policy.reviews=2") == 0
    for name, role in PEOPLE.items():
        if role not in ("", "maintainer"):
            assert hanse(*verb, f"enrol={people.public(name)}", f"holder={name.title()}", f"roles=[{role}]",
                         "valid_from=2026-01-01") == 0  # fmt: skip
    return folder


@pytest.fixture
def registry(begun, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "registry"))


@pytest.fixture(scope="session")
def run_of(train_config, tmp_path_factory):
    """``run_of(seed=0, parents=[...])``: a run folder, see :func:`tests.consortium.runs.write_run`."""

    def made(**settings: Any) -> Path:
        path = tmp_path_factory.mktemp("run") / "run"
        write_run(path, copy.deepcopy(train_config), **settings)
        return path

    return made


@pytest.fixture(scope="session")
def waiting(hanse, begun, people, run_of) -> Path:
    """Alice's contribution of a checkpoint from scratch. Shared: copy it to change it."""
    run = run_of()
    assert hanse("contribute", f"registry={begun}", "name=tiny", f"run={run}", f"key={people.file('alice')}",
                 "license=Apache-2.0", "tokens_per_language=512", "opt_out_date=2026-06-01",
                 f"output={run.parent / 'contribution'}") == 0  # fmt: skip
    return run.parent / "contribution"


@pytest.fixture
def contribution(waiting, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(waiting, tmp_path / "contribution"))


@pytest.fixture(scope="session")
def hands(begun, waiting, people, tmp_path_factory) -> Hands:
    place = tmp_path_factory.mktemp("tampered")
    (place / "outside").mkdir()
    (place / "outside/secret.json").write_text("{}")
    registry = Path(shutil.copytree(begun, place / "registry"))
    made = Hands(registry, waiting, place, people.keys["alice"])
    made.take()
    assert not [row for row in made.verdict().values() if row[0] == "refused"]
    return made
