"""Killed at random moments and started again, alone or with others: the corpus is that of an undisturbed run, byte by
byte.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from common.files import sha256_file
from data_pipelines.manifest import CorpusManifest
from tests import warm
from tests.warm import Warm

KILLS = 20
PROGRAM = """
import json, sys
from data_pipelines import corpus
from data_pipelines.config import AnnotateConfig, BoilerplateConfig, CorpusConfig, SourceConfig

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    settings["annotate"] = AnnotateConfig(boilerplate=BoilerplateConfig(20, "source"))
    sources = {name: SourceConfig(**source) for name, source in settings.pop("sources").items()}
    corpus.run(CorpusConfig(sources=sources, **settings))
"""


def start(folder: Path, sources: dict[str, dict[str, str]], **settings: object) -> Warm:
    """``hanse corpus`` in a folder, in a process group of its own; started warm, or half of the kills meet imports."""
    places = {place: place for place in ("annotated", "downloads")}
    values = {"name": "test", "output": "corpus", "sources": sources, "validation_fraction": 0.1, "part_megabytes": 1}
    values |= places | settings
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    with (folder.parent / "said").open("ab") as said:
        return warm.start([sys.executable, str(program), json.dumps(values)], environment, said, str(folder))


def finish(process: Warm, folder: Path) -> None:
    assert process.wait(900) == 0, (folder.parent / "said").read_text()[-2000:]


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def sources(tmp_path, prose):
    """Twelve files of 0.2 MB, real sentences in any order, with all that can poison a file among them."""
    rng = random.Random(7)
    folder = tmp_path / "in"
    folder.mkdir()
    described = {}
    for language in ("fr", "de"):
        passages = prose(language)
        for number in range(6):
            lines = [{"text": f"Menu {n % 9}\n{' '.join(rng.sample(passages, 4))}"} for n in range(100)]
            poison = [b'{"text": "caf\xe9"}', b'{"text": 3}', b"{}", b"\0\0\0", b'{"text": "\\u0000\\ud800"}',
                      b'{"text": "' + b"x" * 1_100_000 + b'"}']  # fmt: skip
            packed = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            packed += b"\n".join(poison) if number == 2 else b""
            (folder / f"{language}-{number}.jsonl").write_bytes(packed)
        described[language] = {"reader": "jsonl", "language": language, "license": "CC0-1.0",
                               "path": f"{folder}/{language}-*.jsonl"}  # fmt: skip
    return described


@pytest.mark.slow
def test_killed_at_random_moments_the_result_is_that_of_an_undisturbed_run(tmp_path, sources):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    process = start(undisturbed, sources, processes=1)
    began = time.monotonic()  # once it runs: what it is forked from may have had to start first
    finish(process, undisturbed)
    seconds = time.monotonic() - began
    expected = contents(undisturbed)
    manifest = CorpusManifest.read(undisturbed / "corpus")
    assert manifest.sources["fr"].removed["malformed"] == 5
    assert manifest.files["boilerplate/fr.parquet"].rows == 9

    rng, killed = random.Random(os.environ.get("HANSE_TEST_SEED", "0")), 0
    while killed < KILLS:
        workers = rng.choice([1, 1, 2])  # alone, with the finishing step, or as two of any number of workers
        shares = [None] if workers == 1 else [f"{number}/{rng.choice([2, 3])}" for number in range(2)]
        running = [start(disturbed, sources, worker=share, processes=rng.choice([1, 2])) for share in shares]
        time.sleep(rng.uniform(0.1, 0.9) * seconds)
        for process in running:
            if process.poll() is None:
                process.kill_group()
                killed += 1
            else:  # too late: the machine is faster than it was
                seconds *= 0.9
            process.wait(60)
        if (disturbed / "corpus").exists():  # it got to the end: once more, from the start or from what is annotated
            assert contents(disturbed / "corpus") == contents(undisturbed / "corpus")
            for name in rng.choice([["corpus"], ["corpus", "annotated"]]):
                shutil.rmtree(disturbed / name)
    for share in ("0/3", "1/3", "2/3"):
        finish(start(disturbed, sources, worker=share, processes=1), disturbed)
    finish(start(disturbed, sources), disturbed)
    assert contents(disturbed) == expected
