"""A segment computed again on another layout: the same bits at D2, told apart at D0, and nothing of the run touched."""

import json
import re
import signal

import pytest

from common.errors import HanseError
from common.files import sha256_file
from consortium.attestation import badges
from consortium.keys import fingerprint, load_public
from consortium.reproduce import LEAST, MARGIN, compare, compare_states, noise_band
from consortium.seal import check
from tests.train.command import Command
from train.ledger import Ledger
from train.run_folder import RunFolder, folder_of
from train.state_hash import append_state, state_of


def hashes(folder):
    return {path: sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_at_d2_another_layout_gives_every_bit_again(hanse, tiny_settings, tmp_path, capfd):
    run = tmp_path / "run"
    assert hanse("train", f"run={run}", *tiny_settings, "determinism=D2", "engine.zero_stage=2") == 0
    before = hashes(run)
    assert hanse("key", f"new={tmp_path / 'bob.key'}") == 0
    again = [f"run={run}", "to_step=12", "ranks=1", "zero_stage=3", f"key={tmp_path / 'bob.key'}"]
    assert "hanse export" in capfd.readouterr().out
    assert hanse("reproduce", *again, "from_step=6", f"output={tmp_path / 'again'}") == 0
    said = capfd.readouterr().out
    assert "steps 7 to 12: the same to the last bit" in said
    assert "hanse export" not in said  # of the replay
    told = json.loads((tmp_path / "again/reproduction.json").read_text())
    assert told["bitwise"]
    assert told["compared_state"]
    assert hashes(run) == before
    public = load_public(tmp_path / "bob.pub")
    seal = tmp_path / "again/step-00000012.reproduction.sig"
    signed = check(folder_of(run / "checkpoints", 12), seal, {fingerprint(public): public}, kind="reproduction")
    assert signed.facts == told
    assert (told["outcome"], told["layouts"]["replay"]["ranks"], told["layouts"]["run"]["ranks"]) == ("bitwise", 1, 2)
    assert "to the last bit, with the authors' artifacts" in told["acm"]["Results Reproduced"]
    assert str(tmp_path) not in json.dumps(told)
    assert told["states"] == {"compared": [12], "differing": 0}


@pytest.mark.slow
def test_at_d0_the_first_step_and_tensor_that_differ_are_named(hanse, tiny_run, tmp_path, capfd):
    before = hashes(tiny_run)
    again = [f"run={tiny_run}", "from_scratch=true", "ranks=1"]
    assert hanse("reproduce", *again, "measure_noise=true", f"output={tmp_path / 'near'}") == 0
    told = json.loads((tmp_path / "near/reproduction.json").read_text())
    assert not told["bitwise"]
    assert told["differing_tensors"][0]["tensor"] == "model.embed_tokens.weight"
    assert 0 < told["largest_relative_difference"] < 1e-3
    said = capfd.readouterr().out
    assert "first tensor that differs: model.embed_tokens.weight" in said
    assert "promises no bits here; within the noise that two replays measured" in said
    assert told["outcome"] == "within the noise band"
    assert (told["states"]["first_differing"], told["states"]["last_equal"]) == (6, 0)
    assert told["states"]["tensors"][0] == "model.embed_tokens.weight"
    assert "states: equal after step 0, other after step 6; first in model.embed_tokens.weight" in said
    assert 0 < told["band"]["at_the_last_step"]["loss"] < 1e-3
    assert hashes(tiny_run) == before
    assert hanse("reproduce", *again, f"output={tmp_path / 'near'}") == 2
    assert "holds something already" in capfd.readouterr().err
    assert hanse("reproduce", f"run={tiny_run}", "from_step=5", "to_step=9", f"output={tmp_path / 'none'}") == 2
    assert "possible: 0, 6, 12" in capfd.readouterr().err
    assert hanse("reproduce", f"run={tiny_run}", f"output={tmp_path / 'none'}") == 2
    assert "from_scratch=true, which goes to the end" in capfd.readouterr().err
    assert hanse("key", f"new={tmp_path / 'bob.key'}") == 0
    signing = [f"run={tiny_run}", "to_step=9", f"key={tmp_path / 'bob.key'}", f"output={tmp_path / 'none'}"]
    assert hanse("reproduce", *signing) == 2
    assert "kept none of step 9; it has 6, 12" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_of_a_replay_that_was_stopped_nothing_is_compared(tiny_run, tmp_path):
    again = RunFolder(tmp_path / "again")
    replay = Command(tiny_run, ["from_scratch=true", f"output={again.path}"], tmp_path / "said", "reproduce")
    try:
        replay.wait_until(again.ledger.exists)
        replay.process.send_signal(signal.SIGTERM)
        assert replay.end() == 2
    finally:
        replay.kill()
    said = (tmp_path / "said").read_text()
    assert re.search(rf"{again.path}: the replay was stopped after step \d+ of 12: nothing is compared", said)
    assert "Traceback" not in said
    assert not (again.path / "reproduction.json").exists()


def line(loss, norm=1.0):
    return {"batch": "a", "loss": float(loss).hex(), "gradient_norm": float(norm).hex(), "learning_rate": "0x1p0"}


def test_the_noise_band_grows_with_what_two_replays_differ_by():
    one = {1: line(4), 2: line(4), 3: line(4)}
    other = {1: line(4), 2: line(4.004), 3: line(4.001)}
    band = noise_band(one, other, 0, 3)
    assert band[1]["loss"] == MARGIN * LEAST
    assert band[2]["loss"] == pytest.approx(MARGIN * 0.004 / 4.004)
    assert band[3] == band[2]
    assert band[3]["gradient_norm"] == MARGIN * LEAST
    near = compare({**one, 3: line(4.03)}, one, 0, 3, band)
    assert near["within_band"]
    assert near["first_differing_step"] == 3
    assert not compare({**one, 3: line(4.05)}, one, 0, 3, band)["within_band"]
    assert not compare({**one, 1: line(4.001)}, one, 0, 3, band)["within_band"]  # before the replays part
    assert not compare({**one, 3: line(4, 1.001)}, one, 0, 3, band)["within_band"]


def folder_with_states(path, states, *, kept=True):
    path.mkdir()
    folder, book = RunFolder(path), Ledger(path / "ledger.jsonl")
    for step, tensors in states.items():
        state = state_of(tensors)
        book.write("state", {"step": step, "root": state.root})
        if kept:
            append_state(folder.states, step, state)
    return folder


def test_between_checkpoints_the_first_state_that_differs_and_its_tensors_are_named(tmp_path):
    same, other = {"a": b"1", "b": b"2", "c": b"3"}, {"a": b"1", "b": b"0", "c": b"0"}
    one = folder_with_states(tmp_path / "one", {2: same, 4: same, 6: same, 8: same})
    two = folder_with_states(tmp_path / "two", {2: other, 4: same, 6: other, 7: other, 8: other})
    assert compare_states(one, two, 2, 8) == {
        "compared": [4, 6, 8], "differing": 2, "first_differing": 6, "last_equal": 4, "tensors": ["b", "c"],
        "differing_tensors": 2,
    }  # fmt: skip
    assert compare_states(one, two, 2, 5) == {"compared": [4], "differing": 0}
    bare = folder_with_states(tmp_path / "bare", {6: other}, kept=False)
    assert compare_states(one, bare, 2, 8)["tensors"] is None


def test_no_badge_is_claimed_that_a_replay_cannot_show():
    assert badges("differs")["Results Reproduced"].startswith("not shown")
    for outcome in ("bitwise", "within the noise band"):
        said = badges(outcome)
        assert said["Results Reproduced"].startswith("shown for these steps")
        assert said["Artifacts Available"].startswith("not shown")
        assert said["Results Replicated"].startswith("not shown")


def test_another_batch_is_not_a_difference_but_other_data():
    line = {"batch": "a", "loss": "0x1p0", "gradient_norm": "0x1p0", "learning_rate": "0x1p0"}
    assert compare({1: line}, {1: line}, 0, 1)["differing_steps"] == 0
    worse = compare({1: line}, {1: {**line, "loss": "0x1.8p0"}}, 0, 1)
    assert worse["first_differing_step"] == 1
    assert worse["largest_relative_difference"] == pytest.approx(1 / 3)
    idle = compare({1: line}, {1: {**line, "skipped": "loss"}}, 0, 1)
    assert (idle["first_differing_step"], idle["differences"][0]["value"]) == (1, "skipped")
    overflow = {**line, "gradient_norm": "inf", "skipped": "overflow"}  # of fp16
    assert compare({1: overflow}, {1: overflow}, 0, 1)["differing_steps"] == 0
    found = compare({1: line}, {1: overflow}, 0, 1)
    assert (found["largest_relative_difference"], found["differences"][1]["ours"]) == (1.0, None)
    with pytest.raises(HanseError, match="another batch"):
        compare({1: line}, {1: {**line, "batch": "b"}}, 0, 1)
