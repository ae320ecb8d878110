"""What becomes of an evaluation that the start at hand did not make, or not to its end."""

import json

import pytest

from common.errors import EXIT_GO_ON
from tests.train.multirank import evaluations, train_cases

pytestmark = pytest.mark.slow


def test_a_start_that_evaluates_nothing_keeps_what_the_run_knows(tiny_settings, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny_settings, f"run={run}", "evaluate.every_steps=4", "evaluate.tasks=[last_word]",
                "evaluate.items_per_language=4"]  # fmt: skip
    cases = {f"until {step}": [*settings, f"until_step={step}"] for step in (3, 5)}
    assert set(train_cases(tmp_path / "first", 2, cases).values()) == {EXIT_GO_ON}
    before = json.loads((run / "summary.json").read_text())
    assert set(train_cases(tmp_path / "second", 2, {"until 7": [*settings, "until_step=7"]}).values()) == {EXIT_GO_ON}
    assert list(evaluations(run)) == [4]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["evaluated_after_step"]) == (7, 4)
    for name, bits in evaluations(run)[4].items():
        assert summary["languages"][name]["bits_per_byte"] == bits
    assert (summary["languages"], summary["tasks"]) == (before["languages"], before["tasks"])
    assert set(summary["tasks"]) == {"last_word"}
