"""What a run left is found to be whole, and what was changed in it is named."""

import json
import shutil

import pytest

from train.run_folder import folder_of

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def test_an_untouched_run_passes_every_check(hanse, run, capfd):
    assert hanse("verify", f"run={run}") == 0
    said = capfd.readouterr().out
    assert "8 checks passed, 0 failed, 0 could not be made" in said
    assert "steps 1 to 12, samples 0 to 96" in said


def edit(path, change):
    path.write_text(change(path.read_text()))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def improve(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    next(record for record in records if record.get("step") == 5 and "loss" in record)["loss"] -= 0.1
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


TAMPERED = {
    "a loss in metrics.jsonl": (improve, "the loss of step 5"),
    "a line of the ledger": (lambda run: edit(run / "ledger.jsonl", lambda text: text.replace("[8, 16]", "[8, 17]")),
                             "does not follow"),
    "the lock": (lambda run: edit(run / "run.lock.json", lambda text: text.replace('"seed": 0', '"seed": 1')),
                 "not the file that the ledger names"),
    "the configuration": (lambda run: edit(run / "config.yaml", lambda text: text.replace(": 6144", ": 6145")),
                          "another configuration"),
    "a checkpoint": (lambda run: flip(folder_of(run / "checkpoints", 6) / "model/rank-00001.safetensors"), "damaged"),
    "a checkpoint's state": (lambda run: edit(folder_of(run / "checkpoints", 12) / "state.json",
                                              lambda text: text.replace('"step": 12', '"step": 13')), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_afterwards_is_named(hanse, run, capfd, what):
    change, words = TAMPERED[what]
    change(run)
    assert hanse("verify", f"run={run}") == 2
    said = capfd.readouterr()
    assert words in said.out
    assert "Traceback" not in said.err


def test_what_is_not_there_is_said_not_failed(hanse, run, capfd):
    (run / "run.lock.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert hanse("verify", f"run={run}", "shards=gone") == 0
    said = capfd.readouterr().out
    assert "no shards in gone" in said
    assert "5 could not be made" in said
