"""Evaluations belong to the checkpoint that they name, or are not believed; they are shown, and break nothing."""

from __future__ import annotations

import json

import pytest

from tests.train.test_report import HOSTILE, START, config, evaluation, step, text_of, write_run
from train.evaluations import DONE, card_section, read_evaluations, task_scores, to_evaluate, with_task_scores
from train.fairness import fairness_of
from train.run_folder import RunFolder, folder_of


def saved(number: int, manifest_sha256: str = "0" * 64, **other) -> dict:
    score = {"loss": 4.0, "bits_per_byte": 2.0, "token_accuracy": 0.1, "nll": 400.0, "targets": 100, "correct": 10,
             "bytes": 290}  # fmt: skip
    told = {"accuracy": 0.3, "standard_error": 0.1, "items": 20, "chance": 0.25}
    languages = ("de", "fr")
    return {
        "format": "hanse.evaluation/1", "step": number, "checkpoint_manifest_sha256": manifest_sha256,
        "languages": dict.fromkeys(languages, score),
        "sources": {name: {f"{name}_one": score, f"{name}_two": score} for name in languages},
        "tasks": {"next_sentence": {"de": told, "fr": {**told, "accuracy": 0.6}}},
        "lm_eval": {"version": "0.4.13", "tasks": {"hellaswag_fr": {"acc": 0.26, "items": 100, "num_fewshot": 0}}},
        "samples": {"fr": [{"prompt": "Le serpent", "text": f" était \x1b[31m {HOSTILE}"}]},
        **other,
    }  # fmt: skip


@pytest.fixture
def run(tiny_data, tmp_path):
    """(folder, write): a run of 20 steps without checkpoints, and what writes an evaluation of it."""
    records = [START, *(step(number) for number in range(1, 21)), evaluation(10), evaluation(20)]
    folder = write_run(tmp_path / "run", config(tiny_data, 20), records)
    (folder / "evaluations").mkdir()

    def write(value, number: int = 20) -> None:
        (folder / f"evaluations/step-{number:08d}.json").write_text(json.dumps(value), encoding="utf-8")

    return folder, write


def test_the_report_shows_tasks_over_the_steps_sources_lm_eval_and_samples(run, hanse):
    folder, write = run
    write(saved(10), 10)
    write(saved(20))
    assert hanse("report", f"run={folder}") == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert "Next sentence" in text
    assert "fr 60.0% (39% to 78%)" in text
    assert "de, de_two 2.000 4.000 10.0%" in text
    assert "hellaswag_fr acc 0.2600 100 0" in text
    assert "Le serpent" in text
    assert "next sentence" in text.partition("Fairness between languages")[2]
    assert "<img" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "not a readable evaluation"),
        (json.dumps(saved(20, format="other/1")), "not an evaluation of"),
        (json.dumps(saved(20, tasks={"t": {"de": {"accuracy": "much"}}})), "not an evaluation of"),
        (json.dumps(saved(20, tasks={"t": {"de": {"accuracy": 0.1}}})), "not an evaluation of"),
        (json.dumps(saved(20)).replace("290", "NaN"), "not a number"),
        ("[]", "not an evaluation of"),
    ],
)
def test_what_is_no_evaluation_is_told_and_left_out(run, hanse, broken, message):
    folder, _ = run
    (folder / "evaluations/step-00000020.json").write_text(broken)
    assert hanse("report", f"run={folder}") == 0
    text = text_of((folder / "report.html").read_text(encoding="utf-8"))
    assert message in text
    assert "hanse evaluate, step" not in text


def test_an_evaluation_of_another_checkpoint_is_not_believed(run):
    from common.files import sha256_file

    folder, write = run
    manifest = folder_of(RunFolder(folder).checkpoints, 20) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    write(saved(20))
    found, wrong = read_evaluations(RunFolder(folder))
    assert found == []
    assert "of another checkpoint" in wrong[0]
    write(saved(20, sha256_file(manifest)))
    assert [one.step for one in read_evaluations(RunFolder(folder))[0]] == [20]


def test_task_scores_join_the_fairness_of_the_run_and_the_model_card(run):
    folder, write = run
    write(saved(20))
    scores = {one.language: one.scores for one in fairness_of(folder).languages}
    assert scores["fr"] == {"next_sentence": 0.6}
    assert scores["es"] == {}
    card = card_section(RunFolder(folder), 20)
    assert "| next_sentence | fr | 60.0% | 39% to 78% | 25% | 20 |" in card
    assert "| hellaswag_fr | acc | 0.2600 |" in card
    assert card_section(RunFolder(folder), 10) == ""


def test_scores_of_a_step_without_a_validation_stand_alone_and_change_no_other_record(run):
    folder, write = run
    write(saved(15), 15)
    records = [step(1), evaluation(10), evaluation(20)]
    merged = with_task_scores(records, read_evaluations(RunFolder(folder))[0])
    assert [one for one in merged if one["step"] != 15] == records
    assert merged[2] == {"step": 15, "evaluation": {"de": {"next_sentence": 0.3}, "fr": {"next_sentence": 0.6}}}


def test_tasks_that_a_run_asked_itself_are_drawn_too_and_of_two_who_asked_more_counts(run, hanse):
    folder, write = run
    few = {"accuracy": 0.5, "standard_error": 0.2, "items": 5, "chance": 0.25}
    own = [{**evaluation(number), "evaluation_tasks": {"next_sentence": {"de": few}}} for number in (10, 20)]
    records = [START, *(step(number) for number in range(1, 21)), *own]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert hanse("report", f"run={folder}") == 0
    text = text_of((folder / "report.html").read_text(encoding="utf-8"))
    assert "Asked after step 20. Share of right answers" in text
    assert "de 50.0% (17% to 83%)" in text
    assert "hanse evaluate, step" not in text
    write(saved(20))  # 20 questions
    found = task_scores(records, read_evaluations(RunFolder(folder))[0])
    assert {number: row["next_sentence"]["de"]["items"] for number, row in found.items()} == {10: 5, 20: 20}
    assert {one.language: one.scores for one in fairness_of(folder).languages}["de"] == {"next_sentence": 0.3}


def test_all_checkpoints_are_evaluated_but_those_that_were_with_these_settings(run):
    from common.files import sha256_file

    folder, write = run
    settings = {"tasks": ["last_word"], "seed": 0}
    for number in (5, 10, 15, 20):
        manifest = folder_of(RunFolder(folder).checkpoints, number) / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(str(number))
        write(saved(number, sha256_file(manifest), settings=settings), number)
    (folder / "evaluations/step-00000005.json").unlink()
    write(saved(10, settings=settings), 10)
    found = to_evaluate(RunFolder(folder), settings, "master")
    assert list(found) == [5, 10, 15, 20]
    assert (found[5], found[15], found[20]) == ("", DONE, DONE)
    assert "of another checkpoint" in found[10]
    assert (
        to_evaluate(RunFolder(folder), {**settings, "seed": 1}, "master")[20] == "evaluated before with other settings"
    )
    assert set(to_evaluate(RunFolder(folder), settings, "ema").values()) == {""}
