"""A contribution holds what others need to judge a checkpoint, and nothing of the machine it was made on."""

import json
import shutil
from hashlib import sha256

import pytest

from common.errors import HanseError
from consortium import contribution as form_of
from consortium.accept import examined
from consortium.config import AcceptConfig
from consortium.form import check_ledger
from consortium.index import Registry
from consortium.measure import golden_batch
from tests.consortium.runs import write_checkpoint
from train import ledger
from train.checkpoint import Checkpoint


def contribute(hanse, registry, people, *more, who="alice"):
    return hanse("contribute", f"registry={registry}", f"key={people.file(who)}", "tokens_per_language=512", *more)


def test_it_holds_exactly_what_it_must(waiting):
    names = {str(path.relative_to(waiting)) for path in waiting.rglob("*") if path.is_file()}
    tensors = {name for name in names if form_of.TENSORS.fullmatch(name)}
    assert names - tensors == {*form_of.NEEDED, *form_of.OF_A_RUN}
    assert len(tensors) == 4
    paper = form_of.read_contribution(waiting)
    assert paper.manifest_sha256 == sha256((waiting / form_of.MANIFEST).read_bytes()).hexdigest()
    assert (paper.step, paper.tokens) == (12, 12 * 8 * 64)
    assert paper.data_licenses == ["public-domain"]  # of the corpus beside the shards
    last = [record for _, record in ledger.lines(waiting / form_of.LEDGER)][-1]
    assert (last["kind"], last["merkle_root"]) == ("checkpoint", paper.merkle_root)


def test_flops_are_those_of_the_formula(waiting):
    paper = form_of.read_contribution(waiting)
    model = json.loads((waiting / form_of.STATE).read_text())["model"]
    width, inner, layers, heads, head = 48, 96, 2, 4, 12
    assert model["hidden_size"] == width
    attention = 2 * width * heads * head + 2 * width * 2 * head  # queries and output; keys and values of two heads
    parameters = layers * (attention + 3 * width * inner + 2 * width) + width + 1024 * width  # with the tied embedding
    assert paper.flops == paper.tokens * (6 * parameters + 12 * layers * heads * head * 64)
    assert paper.cumulative_flops == paper.flops


def test_nothing_in_it_names_the_machine(waiting, tiny_data):
    for path in waiting.rglob("*"):
        if path.is_file():
            assert str(tiny_data.parent).encode() not in path.read_bytes(), path


def test_the_golden_batch_is_nobodys_choice():
    batch = golden_batch(1024, 4096)
    assert batch.shape == (2, 32)
    first = int.from_bytes(sha256(b"hanse golden batch 0").digest()[:7], "big") % 1024
    assert batch[0, 0] == first
    assert golden_batch(1024, 8).shape == (2, 8)


def test_a_run_that_went_back_and_did_steps_again_is_whole():
    def step(number):
        numbers = dict.fromkeys(("loss", "gradient_norm", "learning_rate"), "0x1p+0")
        return {"kind": "step", "step": number, "samples": [0, 8], "batch": "0" * 64, **numbers}

    start = {"kind": "start", "step": 0, "lock": "0" * 64}
    again, rewind = {**start, "step": 1}, {"kind": "rewind", "step": 0, "samples": [0, 16]}
    check_ledger([start, step(1), step(2), again, step(2), {"kind": "state"}, rewind, step(1), step(2)])
    with pytest.raises(HanseError, match="line 5 tells of step 3, after step 1"):
        check_ledger([start, step(1), step(2), again, step(3)])
    check_ledger([start, step(1), {**step(2), "gradient_norm": "inf", "skipped": "overflow"}])
    for odd in ({"gradient_norm": "inf"}, {"loss": "inf", "skipped": "overflow"}):
        with pytest.raises(HanseError, match="line 3 lacks"):
            check_ledger([start, step(1), {**step(2), **odd}])


@pytest.mark.slow
def test_who_and_what_may_not_be_contributed(hanse, begun, people, run_of, waiting, tmp_path, capfd):
    run = run_of(step=2)
    settings = ["name=tiny", "license=MIT", f"output={tmp_path / 'out'}"]
    assert contribute(hanse, begun, people, f"run={run}", *settings, who="bob") == 2
    assert "this takes a contributor" in capfd.readouterr().err
    assert contribute(hanse, begun, people, f"run={run}", "step=7", *settings) == 2
    assert "no checkpoint of that step" in capfd.readouterr().err
    (run / "run.lock.json").rename(run / "kept")
    assert contribute(hanse, begun, people, f"run={run}", *settings) == 2
    assert "a run without its lock" in capfd.readouterr().err
    (run / "kept").rename(run / "run.lock.json")
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    assert contribute(hanse, begun, people, f"run={run}", *settings) == 2
    assert "knows no checkpoint of step 2 with this Merkle root" in capfd.readouterr().err
    assert contribute(hanse, begun, people, "name=../x", "license=MIT", "opt_out_date=soon") == 2
    said = capfd.readouterr().err
    assert all(word in said for word in ("run, checkpoint: give one", "name=../x", "opt_out_date=soon"))
    shutil.copytree(run / "checkpoints/step-00000002", tmp_path / "alone")
    alone = [f"checkpoint={tmp_path / 'alone'}", "tokenizer=x", *settings]
    assert contribute(hanse, begun, people, *alone) == 2
    assert "nobody could tell where it is from" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_merged_checkpoint_without_a_run_is_accepted_with_its_parents(
    hanse, registry, people, contribution, tiny_data, tmp_path
):
    for name in ("bob", "carol"):
        assert hanse("accept", f"registry={registry}", f"contribution={contribution}", f"key={people.file(name)}") == 0
    (identity,) = Registry(registry).register.models
    parent = Checkpoint(contribution / "checkpoint")
    parents = [{"manifest_sha256": identity, "role": "average", "weight": 1.0}]
    write_checkpoint(tmp_path / "merged", parent.weights(), parent.state, parents, optimizer=False)
    assert contribute(hanse, registry, people, "name=tiny-average", f"checkpoint={tmp_path / 'merged'}", "license=MIT",
                      f"tokenizer={tiny_data / 'tokenizer'}", f"data={tiny_data / 'shards'}") == 0  # fmt: skip
    (waiting,) = (registry / "incoming").iterdir()
    config = AcceptConfig(registry=str(registry), contribution=str(waiting), data=str(tiny_data / "shards"))
    with examined(Registry(registry), config) as (_, rows):
        found = {name: (outcome, told) for name, outcome, told in rows}
    assert not [row for row in found.values() if row[0] == "refused"], found
    assert found["run"] == ("not checked", "merged from its parents, by no run")
    paper = form_of.read_contribution(waiting)
    assert (paper.flops, paper.cumulative_flops) == (0, form_of.read_contribution(contribution).flops)
    for name in ("bob", "carol"):
        assert hanse("accept", f"registry={registry}", f"contribution={waiting}", f"key={people.file(name)}") == 0
    assert len(Registry(registry).register.models) == 2


@pytest.mark.slow
def test_a_trained_run_is_contributed_accepted_and_its_first_steps_replayed(
    hanse, registry, people, tiny_run, tiny_data, capfd
):
    assert hanse("registry", f"registry={registry}", f"key={people.file('lead')}", "change_policy=true") == 0
    assert contribute(hanse, registry, people, "name=tiny", f"run={tiny_run}", "license=Apache-2.0") == 0
    (waiting,) = (registry / "incoming").iterdir()
    accept = ["accept", f"registry={registry}", f"contribution={waiting}", f"data={tiny_data / 'shards'}"]
    assert hanse(*accept, f"key={people.file('bob')}", "replay_steps=3") == 0
    said = capfd.readouterr().out
    assert "steps 1 to 3 computed again" in said
    assert "12 of 12 steps drawn again" in said
    assert "accepted: " in said
    assert hanse("registry", f"registry={registry}", "files=true") == 0
