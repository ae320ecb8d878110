"""What starts does not load what it does not need, and what is spared is there where it is called after all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.shards import SIDECAR, beside
from train.imports import SPARED, standing_in
from train.tally import Origins

ROOT = Path(__file__).parents[2]


def sidecar(prefix, sources):
    pq.write_table(pa.table({"source": pa.array(sources, pa.string())}), beside(prefix, SIDECAR))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports")
    sidecar(folder / "one", ["web", "law"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, ROOT / "tests/train/imports_program.py", folder], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("wandb/offline-run-*-x-0001/*.wandb"))
    return json.loads(done.stdout.splitlines()[-1])


def test_a_start_loads_no_library_that_it_does_not_need(told):
    rank = ["torch", "transformers", "deepspeed"]
    assert told["found"] == {
        "parent": [],
        "checkpoint": ["torch"],
        "rank": rank,
        "sources": rank,
        "wandb": [*rank, "wandb"],
    }


def test_what_transformers_knows_of_its_models_is_what_it_would_have_found(told):
    assert told["same"]


def test_sources_are_numbered_in_alphabetical_order(tmp_path):
    shards = [SimpleNamespace(prefix=tmp_path / name) for name in ("one", "two", "three")]
    for shard, sources in zip(shards, (["web", "law"], ["wiki", None, "law"], []), strict=True):
        sidecar(shard.prefix, sources)
    read = Origins.read(SimpleNamespace(shards=shards))
    assert read.names == ["", "law", "web", "wiki"]
    assert [numbers.tolist() for numbers in read.numbers] == [[2, 1], [3, 0, 1], []]


def test_a_stand_in_does_the_real_thing_where_it_is_called(monkeypatch):
    monkeypatch.delitem(sys.modules, "scipy.optimize", raising=False)
    with SPARED["transformers.loss.loss_utils"](sys):
        from scipy.optimize import linear_sum_assignment
    assert "scipy.optimize" not in sys.modules
    rows, columns = linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
    assert (rows.tolist(), columns.tolist()) == ([0, 1, 2], [1, 0, 2])


def test_a_stand_in_asked_for_another_name_gives_way_to_the_module(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with standing_in("colorsys", hsv_to_rgb=None):
        from colorsys import hsv_to_rgb, rgb_to_hsv
    assert hsv_to_rgb is None
    assert rgb_to_hsv(0.0, 0.0, 0.0) == (0.0, 0.0, 0.0)
    assert sys.modules["colorsys"].hsv_to_rgb is not None


def test_a_module_that_is_there_is_left_alone():
    with standing_in("json", dumps=None):
        from json import dumps
    assert dumps(1) == "1"
