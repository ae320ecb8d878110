"""A segment computed again on another layout: the same bits at D2, told apart at D0, and nothing of the run touched."""

import json

import pytest

from common.errors import HanseError
from common.files import sha256_file
from consortium.reproduce import compare

pytestmark = pytest.mark.slow


def hashes(folder):
    return {path: sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_at_d2_another_layout_gives_every_bit_again(hanse, tiny_settings, tmp_path, capfd):
    run = tmp_path / "run"
    assert hanse("train", f"run={run}", *tiny_settings, "determinism=D2", "engine.zero_stage=2") == 0
    before = hashes(run)
    again = [f"run={run}", "to_step=12", "ranks=1", "zero_stage=3"]
    assert hanse("reproduce", *again, "from_step=6", f"output={tmp_path / 'again'}") == 0
    assert "steps 7 to 12: the same to the last bit" in capfd.readouterr().out
    told = json.loads((tmp_path / "again/reproduction.json").read_text())
    assert told["bitwise"]
    assert told["compared_state"]
    assert hashes(run) == before


def test_at_d0_the_first_step_and_tensor_that_differ_are_named(hanse, tiny_run, tmp_path, capfd):
    before = hashes(tiny_run)
    again = [f"run={tiny_run}", "from_step=0", "to_step=12", "ranks=1"]
    assert hanse("reproduce", *again, f"output={tmp_path / 'near'}") == 0
    told = json.loads((tmp_path / "near/reproduction.json").read_text())
    assert not told["bitwise"]
    assert told["differing_tensors"][0]["tensor"] == "model.embed_tokens.weight"
    assert 0 < told["largest_relative_difference"] < 1e-3
    said = capfd.readouterr().out
    assert "first tensor that differs: model.embed_tokens.weight" in said
    assert "promises no bits; within tolerance" in said
    assert hashes(tiny_run) == before
    assert hanse("reproduce", *again, f"output={tmp_path / 'near'}") == 2
    assert "holds something already" in capfd.readouterr().err
    assert hanse("reproduce", f"run={tiny_run}", "from_step=5", "to_step=9", f"output={tmp_path / 'none'}") == 2
    assert "possible: 0, 6, 12" in capfd.readouterr().err


def test_another_batch_is_not_a_difference_but_other_data():
    line = {"batch": "a", "loss": "0x1p0", "gradient_norm": "0x1p0", "learning_rate": "0x1p0"}
    assert compare({1: line}, {1: line}, 0, 1)["differing_steps"] == 0
    worse = compare({1: line}, {1: {**line, "loss": "0x1.8p0"}}, 0, 1)
    assert worse["first_differing_step"] == 1
    assert worse["largest_relative_difference"] == pytest.approx(1 / 3)
    idle = compare({1: line}, {1: {**line, "skipped": "loss"}}, 0, 1)
    assert (idle["first_differing_step"], idle["differences"][0]["value"]) == (1, "skipped")
    with pytest.raises(HanseError, match="another batch"):
        compare({1: line}, {1: {**line, "batch": "b"}}, 0, 1)
