"""What a run left is found to be whole, and what was changed in it is named."""

import json
import shutil

import pytest

from common.files import merkle_root, sha256_file
from train.checkpoint import root_of
from train.ledger import Ledger
from train.run_folder import folder_of
from train.tally import Score

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def test_an_untouched_run_passes_every_check(hanse, run, capfd):
    assert hanse("verify", f"run={run}") == 0
    said = capfd.readouterr().out
    assert "12 checks passed, 0 failed, 2 could not be made" in said
    assert "2 in the ledger; that of step 12 is the checkpoint's" in said
    assert "6,144 in ledger, metrics and 2 checkpoints" in said
    assert "the metrics counted the same in 12 steps" in said
    assert "steps 1 to 12, samples 0 to 96" in said


def edit(path, change):
    path.write_text(change(path.read_text()))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_step_5(key, change):
    def edited(text):
        records = [json.loads(line) for line in text.splitlines()]
        step = next(record for record in records if record.get("step") == 5 and "loss" in record)
        step[key] = change(step[key])
        return "".join(json.dumps(record) + "\n" for record in records)

    return lambda run: edit(run / "metrics.jsonl", edited)


def as_before_the_root_covered_the_manifest(path):
    def edited(text):
        manifest = json.loads(text)
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return json.dumps({**manifest, "merkle_root": merkle_root(files)})

    edit(path / "manifest.json", edited)


TAMPERED = {
    "a loss in metrics.jsonl": (change_step_5("loss", lambda loss: loss - 0.1), "the loss of step 5"),
    "tokens": (change_step_5("consumed_tokens", lambda tokens: tokens + 512), "step 5 counts 3072 tokens"),
    "MFU": (change_step_5("mfu", lambda mfu: mfu * 1.01), "step 5: MFU"),
    "no number": (change_step_5("mfu", str), "a record that no run writes"),
    "a line of the ledger": (lambda run: edit(run / "ledger.jsonl", lambda text: text.replace("[8, 16]", "[8, 17]")),
                             "does not follow"),
    "the lock": (lambda run: edit(run / "run.lock.json", lambda text: text.replace('"seed": 0', '"seed": 1')),
                 "not the file that the ledger names"),
    "the configuration": (lambda run: edit(run / "config.yaml", lambda text: text.replace(": 6144", ": 6145")),
                          "another configuration"),
    "a line without its step": (lambda run: Ledger(run / "ledger.jsonl").write("step", {}), "does not follow"),
    "a state": (lambda run: Ledger(run / "ledger.jsonl").write("state", {"step": 12, "root": "0" * 64}),
                "not the weights and moments that the run had after step 12"),
    "a checkpoint": (lambda run: flip(folder_of(run / "checkpoints", 6) / "model/rank-00001.safetensors"), "damaged"),
    "a root as of before": (
        lambda run: as_before_the_root_covered_the_manifest(folder_of(run / "checkpoints", 6)), "older format"),
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


def test_the_share_of_a_data_sheets_peak_is_checked_as_well(hanse, run, capfd):
    """As a run on a GPU writes it, of a peak that is 3 times the measured one."""

    def on_a_gpu(factor):
        def edited(text):
            records = [json.loads(line) for line in text.splitlines()]
            for record in records:
                if record.get("event") == "start":
                    record["data_sheet_peak_of_all_ranks"] = 3 * record["peak_of_all_ranks"]
                if "loss" in record:
                    record["mfu_data_sheet"] = factor * record["mfu"]
            return "".join(json.dumps(record) + "\n" for record in records)

        edit(run / "metrics.jsonl", edited)

    on_a_gpu(1 / 3)
    assert hanse("verify", f"run={run}") == 0
    on_a_gpu(1 / 2)
    assert hanse("verify", f"run={run}") == 2
    assert "step 1: MFU, seconds and tokens a second do not give" in capfd.readouterr().out


def test_what_is_not_there_is_said_not_failed(hanse, run, capfd):
    (run / "run.lock.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert hanse("verify", f"run={run}", "shards=gone") == 0
    said = capfd.readouterr().out
    assert "no shards in gone" in said
    assert "9 could not be made" in said


def test_what_no_manifest_names_could_not_be_checked(hanse, run, capfd):
    (run / "checkpoints/step-00000012/model/weights.pkl").write_bytes(b"")
    assert hanse("verify", f"run={run}") == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if "checkpoints     " in line)
    assert line.startswith("not checked")
    assert "step-00000012/model/weights.pkl; move that away" in line


def test_a_checkpoint_of_before_is_not_called_edited(hanse, run, capfd):
    (run / "ledger.jsonl").unlink()  # as old as it is, so is the run: there was no ledger yet
    as_before_the_root_covered_the_manifest(folder_of(run / "checkpoints", 6))
    assert hanse("verify", f"run={run}") == 0
    assert "of step 6: older format, cannot be checked; of the others: 1 complete (12)" in capfd.readouterr().out


def test_parents_are_found_by_the_hash_of_their_manifest(hanse, run, tmp_path, capfd):
    def all_name(sha256):
        parents = [{"manifest_sha256": sha256, "role": "init"}]
        for path in run.glob("checkpoints/*/manifest.json"):
            manifest = json.loads(path.read_text())
            root = root_of(manifest["tensors"], manifest["files"], {"parents": parents})
            path.write_text(json.dumps({**manifest, "parents": parents, "merkle_root": root}))
        edit(run / "run.lock.json", lambda text: json.dumps({**json.loads(text), "parents": parents}))

    (run / "ledger.jsonl").unlink()  # which knows the roots of before
    shutil.copytree(folder_of(run / "checkpoints", 6), tmp_path / "registry/models/one")
    all_name(sha256_file(tmp_path / "registry/models/one/manifest.json"))
    assert hanse("verify", f"run={run}") == 0
    assert "2 of 2 not found (init " in capfd.readouterr().out
    assert hanse("verify", f"run={run}", f"parents=[{tmp_path / 'registry'}]") == 0
    assert f"init {tmp_path / 'registry/models/one'}" in capfd.readouterr().out
    edit(tmp_path / "registry/models/one/manifest.json", lambda text: text + " ")
    assert hanse("verify", f"run={run}", f"parents=[{tmp_path / 'registry'}]") == 0
    assert "2 of 2 not found (init " in capfd.readouterr().out
    edit(run / "run.lock.json", lambda text: json.dumps({**json.loads(text), "parents": []}))
    assert hanse("verify", f"run={run}") == 2
    assert "names other parents than the checkpoint" in capfd.readouterr().out


def test_seals_beside_are_checked_with_keys_that_are_trusted(hanse, run, tmp_path, capfd):
    assert hanse("key", f"new={tmp_path / 'alice.key'}") == 0
    checkpoint, trust = folder_of(run / "checkpoints", 12), f"trust=[{tmp_path / 'alice.pub'}]"
    assert hanse("seal", f"folder={checkpoint}", "kind=checkpoint", f"key={tmp_path / 'alice.key'}") == 0
    capfd.readouterr()
    assert hanse("verify", f"run={run}") == 0
    assert "step-00000012.checkpoint.sig: sealed with keys that you do not name" in capfd.readouterr().out
    assert hanse("verify", f"run={run}", trust) == 0
    assert "13 checks passed, 0 failed, 1 could not be made" in capfd.readouterr().out
    (checkpoint / "more.txt").write_text("added")
    assert hanse("verify", f"run={run}", trust) == 2
    assert "more.txt was added" in capfd.readouterr().out


@pytest.fixture(scope="module")
def evaluation(tiny_run, tmp_path_factory, hanse):
    """What ``hanse evaluate`` writes of the last checkpoint."""
    output = tmp_path_factory.mktemp("evaluation") / "found.json"
    assert (
        hanse("evaluate", f"run={tiny_run}", f"output={output}", "tokens_per_language=512", "tasks=[]", "samples=0")
        == 0
    )
    return json.loads(output.read_text())


def test_evaluations_are_of_checkpoints_of_the_run_and_their_figures_follow_from_their_counts(
    hanse, run, capfd, evaluation
):
    def found(value, name="step-00000012.json", code=2):
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        (run / "evaluations").mkdir()
        (run / "evaluations" / name).write_text(json.dumps(value))
        assert hanse("verify", f"run={run}", "shards=gone") == code
        return next(line for line in capfd.readouterr().out.splitlines() if " evaluations " in line)

    def with_score(**changes):
        return {
            **evaluation,
            "languages": {**evaluation["languages"], "de": {**evaluation["languages"]["de"], **changes}},
        }

    assert found(evaluation, code=0).startswith("ok")
    assert "is of step 12, which its name does not say" in found(evaluation, "step-00000006.json")
    assert "of another checkpoint" in found({**evaluation, "checkpoint_merkle_root": "0" * 64})
    assert "of another checkpoint" in found({**evaluation, "checkpoint_manifest_sha256": "0" * 64})
    assert "de: loss, bits per byte or accuracy is not what the counts give" in found(with_score(bits_per_byte=1.0))
    assert "a record that no run writes" in found({**evaluation, "languages": {"de": with_score()["languages"]["de"]},
                                                   "sources": {"fr": {}}})  # fmt: skip
    more = Score(*(evaluation["languages"]["de"][key] + 1 for key in ("nll", "targets", "correct", "bytes"))).to_json()
    assert "the sources of de do not add up to it" in found(with_score(**more))
    shutil.rmtree(run / "checkpoints")  # as retention does: the ledger still knows the root
    assert found(evaluation, code=0).startswith("ok")
    assert "the ledger knows no checkpoint" in found({**evaluation, "checkpoint_merkle_root": "0" * 64})
    (run / "ledger.jsonl").unlink()
    assert "neither here nor in the ledger" in found(evaluation, code=0)
