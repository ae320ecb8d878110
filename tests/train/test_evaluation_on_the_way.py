"""What becomes of an evaluation that the start at hand did not make, or not to its end."""

import json
import shutil

import pytest

from common.errors import EXIT_DONE, EXIT_GO_ON
from tests.train.multirank import evaluations, losses, train_cases
from train.run_folder import folder_of, read_metrics

pytestmark = pytest.mark.slow

TURNS = 8  # batches of validation text of each rank, after which the tasks are asked


def state(run, step):
    return json.loads((folder_of(run / "checkpoints", step) / "state.json").read_text())


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_start_that_evaluates_nothing_keeps_what_the_run_knows(tiny_settings, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny_settings, f"run={run}", "evaluate.every_steps=4", "evaluate.tasks=[last_word]",
                "evaluate.items_per_language=4"]  # fmt: skip
    cases = {f"until {step}": [*settings, f"until_step={step}"] for step in (3, 5)}
    assert set(train_cases(tmp_path / "first", 2, cases).values()) == {EXIT_GO_ON}
    before = summary(run)
    assert set(train_cases(tmp_path / "second", 2, {"until 7": [*settings, "until_step=7"]}).values()) == {EXIT_GO_ON}
    assert list(evaluations(run)) == [4]
    after = summary(run)
    assert (after["steps"], after["evaluated_after_step"]) == (7, 4)
    for name, bits in evaluations(run)[4].items():
        assert after["languages"][name]["bits_per_byte"] == bits
    assert (after["languages"], after["tasks"]) == (before["languages"], before["tasks"])
    assert set(after["tasks"]) == {"last_word"}


def test_an_evaluation_is_left_for_a_stop_and_made_by_the_start_that_goes_on(tiny_settings, tmp_path):
    def settings(run, stage):
        return [*tiny_settings, f"run={tmp_path / run}", f"engine.zero_stage={stage}", "evaluate.every_steps=4",
                "evaluate.tasks=[last_word]", "evaluate.items_per_language=4", "checkpoint.keep_last=9"]  # fmt: skip

    quiet = {f"quiet-{stage}": settings(f"quiet-{stage}", stage) for stage in (1, 3)}
    cases = {
        **quiet,
        "left": settings("run-1", 1), "left again": settings("run-1", 1),  # before a step is made
        "left among tasks": settings("run-3", 3),
        "last": [*settings("last", 1), "evaluate.every_steps=100"],
    }  # fmt: skip
    faults = {"left": {"stop": 3}, "left again": {"stop": 2}, "left among tasks": {"stop": TURNS + 1},
              "last": {"stop": 3}}  # fmt: skip
    codes = train_cases(tmp_path / "first", 2, cases, faults)
    assert {name for name, code in codes.items() if code == EXIT_GO_ON} == {"left", "left again", "left among tasks"}
    assert {codes[name] for name in (*quiet, "last")} == {EXIT_DONE}
    assert list(evaluations(tmp_path / "last")) == [12]  # there is no later start that would make it
    for stage in (1, 3):
        run = tmp_path / f"run-{stage}"
        assert (max(losses(run)), evaluations(run)) == (4, {})
        assert (state(run, 4)["evaluation_owed"], "bits_per_byte" in state(run, 4)) == (True, False)
        assert (summary(run)["finished"], summary(run)["evaluated_after_step"]) == (False, None)

    on = {"on": [*settings("run-1", 1), "until_step=5"], "on to the end": settings("run-3", 3)}
    assert list(train_cases(tmp_path / "second", 2, on).values()) == [EXIT_GO_ON, EXIT_DONE]
    shutil.rmtree(folder_of(tmp_path / "run-1/checkpoints", 5))  # as of a start that was killed: back to step 4
    assert train_cases(tmp_path / "third", 2, {"on": settings("run-1", 1)}) == {"on": EXIT_DONE}
    for stage in (1, 3):
        run, whole = tmp_path / f"run-{stage}", tmp_path / f"quiet-{stage}"
        assert losses(run) == losses(whole)
        assert evaluations(run) == evaluations(whole)
        told = [record["step"] for record in read_metrics(run / "metrics.jsonl") if "evaluation" in record]
        assert told == [4, 8, 12]  # once each
        assert "evaluation_owed" not in state(run, 12)
        assert summary(run)["tasks"] == summary(whole)["tasks"]
