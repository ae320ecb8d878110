"""A lock says what decided a run; another start is refused, or told what differs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.configuration import differences
from common.errors import HanseError
from common.files import write_json
from data_pipelines.shards import ShardsManifest
from train.lock import config_sha256, describe, hold_to
from train.ranks import Place


@pytest.fixture
def lock(tiny_config):
    def made(ranks=2, **changes):
        config = replace(tiny_config, **changes)
        manifest = ShardsManifest.read(Path(config.data.shards))
        return describe(config, manifest, Place(0, ranks), "fp32")

    return made


def test_two_descriptions_of_one_start_are_equal_and_hold_no_secrets(lock, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    first = lock()
    assert differences(first, json.loads(json.dumps(lock()))) == {}
    assert "secret-of-mine" not in json.dumps(first)
    assert first["distributions"]["torch"].startswith("2.")


def test_another_layout_is_reported_another_seed_refused(lock, tmp_path):
    path = tmp_path / "run.lock.json"
    write_json(path, lock())
    assert hold_to(path, lock()) == []
    assert hold_to(path, lock(ranks=4)) == ["layout.ranks: was 2, is 4"]
    with pytest.raises(HanseError, match=r"would not repeat that run.*seed was 0, is 7"):
        hold_to(path, lock(seed=7))


def test_what_is_no_lock_is_refused(tmp_path, lock):
    for text in ("{", "[]", '{"format": "other"}'):
        (tmp_path / "lock.json").write_text(text)
        with pytest.raises(HanseError, match="lock"):
            hold_to(tmp_path / "lock.json", lock())


def test_only_what_decides_the_result_enters_the_hash_of_the_configuration(tiny_config):
    assert config_sha256(replace(tiny_config, run="elsewhere", ranks=9)) == config_sha256(tiny_config)
    assert config_sha256(replace(tiny_config, tokens=1)) != config_sha256(tiny_config)
