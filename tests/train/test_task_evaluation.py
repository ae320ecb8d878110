"""Tasks on a run's way: rows are packed and do not see each other; the answers are those of hanse evaluate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from tests.train.multirank import train_cases
from train.evaluate_config import EvaluateConfig, task_problems
from train.model import PackedLanguageModel, build_model, model_inputs
from train.run_folder import read_metrics
from train.stream import IGNORED
from train.task_evaluation import Question, TaskEvaluation, told
from train.tasks import cut_to, of_tokens

TASKS, ITEMS = ("next_sentence", "last_word"), 5


def question(rows, task="t", language="fr", answer=0):
    rows = [(np.array(ids, dtype=np.int32), counted) for ids, counted in rows]
    return Question(task, language, rows, [3] * len(rows), answer)


rows_of_ids = st.lists(st.integers(2, 17).flatmap(
    lambda size: st.tuples(st.lists(st.integers(0, 99), min_size=size, max_size=size), st.integers(1, size - 1))
), min_size=1, max_size=20)  # fmt: skip


@given(rows_of_ids, st.integers(1, 5))
@settings(max_examples=100)
def test_each_row_is_in_one_sequence_alone_and_its_last_labels_count(rows, micro_batch):
    tasks, seen = TaskEvaluation([question(rows)], 16, micro_batch), []
    for index in range(tasks.batches):
        batch, asked = tasks.batch(index)
        assert batch.input_ids.shape == (micro_batch, 16)
        left = batch.labels.copy()
        for one in asked:
            ids, counted = rows[one.row]
            here = slice(one.first, one.stop)
            assert batch.labels[one.window, here].tolist() == ids[-counted:]
            start = one.stop - len(ids) + 1
            assert batch.input_ids[one.window, start : one.stop].tolist() == ids[:-1]
            assert batch.positions[one.window, start : one.stop].tolist() == list(range(len(ids) - 1))
            document = batch.documents[one.window, start]
            own = batch.documents[one.window] == document
            assert own[start : one.stop].all()
            assert own.sum() <= len(ids)  # nobody else is in it
            left[one.window, here] = IGNORED
            seen.append(one.row)
        counting = {one.window for one in asked}
        assert (left[sorted(counting)] == IGNORED).all()
    assert sorted(seen) == list(range(len(rows)))


def test_a_packed_row_has_the_likelihood_that_it_has_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, dice = build_model(LlamaConfig(vocab_size=97, **sizes), seed=0).eval(), np.random.default_rng(5)
    rows = [(dice.integers(97, size=size).tolist(), counted) for size, counted in
            [(33, 4), (5, 2), (2, 1), (20, 19), (7, 3), (32, 1), (11, 5), (9, 8)]]  # fmt: skip
    alone = of_tokens(model, *zip(*rows, strict=True), 33, torch.device("cpu"))
    tasks, packed, found = TaskEvaluation([question(rows)], 32, 2), PackedLanguageModel(model), {}
    for index in range(tasks.batches):
        batch, asked = tasks.batch(index)
        with torch.no_grad():
            nll, first = packed(**model_inputs(batch, torch.device("cpu")), scored=True)
        for one in asked:
            labels = slice(one.first, one.stop)
            found[one.row] = -float(nll[one.window, labels].double().sum()), bool(first[one.window, labels].all())
    assert [likeliest for _, likeliest in alone] == [found[row][1] for row in range(len(rows))]
    assert [total for total, _ in alone] == pytest.approx([found[row][0] for row in range(len(rows))], rel=1e-5)


def test_answers_are_the_likeliest_choice_a_byte_and_a_cloze_that_would_have_been_written():
    four = [question([([1, 2], 1)] * 4, "next_sentence", language, 2) for language in ("de", "de", "fr")]
    tasks = TaskEvaluation([*four, question([([1, 2], 1)], "last_word", "fr")], 16, 2)
    costs = [[9, 8, 1, 7], [1, 2, 3, 4], [4, 4, 3, 4]]
    found = np.array([[cost, 0] for row in costs for cost in row] + [[5.0, 1]])
    told = tasks.answers(found)
    assert {name: row["accuracy"] for name, row in told["next_sentence"].items()} == {"de": 0.5, "fr": 1.0}
    assert told["last_word"]["fr"] == {"accuracy": 1.0, "standard_error": 0.0, "items": 1, "chance": 0.0}


def test_nothing_asked_is_no_sequence_and_is_told_of():
    empty = TaskEvaluation([], 16, 2)
    assert (empty.batches, empty.rows, empty.windows) == (0, [], [])
    some = TaskEvaluation([question([([1, 2], 1)] * 4, "next_sentence", name) for name in ("de", "de", "it")], 16, 2)
    said = told(some, ["next_sentence", "description"], ["de", "fr", "it"], 0.31)
    assert "next_sentence: not asked in fr" in said
    assert "next_sentence: 3 questions (de 2, it 1)" in said
    assert "description: not asked in de, fr, it: too little validation text for it (titles" in said


def test_rows_are_cut_from_the_left_and_never_ask_for_their_first_id():
    assert cut_to([1, 2, 3, 4, 5], 2, 3) == ([3, 4, 5], 2)
    assert cut_to([1, 2, 3, 4, 5], 5, 3) == ([3, 4, 5], 2)
    assert cut_to([1, 2], 2, 9) == ([1, 2], 1)
    assert cut_to([1, 2], 0, 9) == ([1, 2], 1)


def test_tasks_that_do_not_exist_or_are_named_twice_are_refused_all_at_once():
    found = EvaluateConfig(10, 10, ["last_word", "mmlu", "arc", "last_word"]).problems()
    wrong = ["no task 'mmlu'", "no task 'arc'", "'last_word' is named twice"]
    assert [line.partition(";")[0] for line in found] == [f"evaluate.tasks: {one}" for one in wrong]
    assert task_problems("tasks", ["description"]) == []


@pytest.mark.slow
def test_tasks_on_the_way_are_those_of_hanse_evaluate_at_any_stage_and_number_of_ranks(
    tiny_settings, tmp_path, hanse, capfd
):
    common = [*tiny_settings, f"evaluate.tasks=[{','.join(TASKS)}]", f"evaluate.items_per_language={ITEMS}",
              "schedule.warmup_steps=0", "checkpoint.keep_last=9",
              "evaluate.tokens_per_language=1_000_000"]  # fmt: skip
    still = [f"tokens={8 * 64}", "schedule.decay_fraction=0", "optimizer.learning_rate=1e-30"]
    two = {
        "stage-1": [*common, f"tokens={4 * 8 * 64}", "evaluate.every_steps=2", "checkpoint.every_steps=1"],
        "stage-3": [*common, *still, "engine.zero_stage=3"],
        "shared": [*common, *still, "engine.sequence_parallel=2", "batch.micro_batch_size=4"],
    }
    one = {"one": [*common, *still, "ranks=1"]}
    for ranks, cases in ((2, two), (1, one)):
        runs = {name: [*settings, f"run={tmp_path / name}"] for name, settings in cases.items()}
        assert set(train_cases(tmp_path / f"ranks-{ranks}", ranks, runs).values()) == {0}
    asked = {name: {record["step"]: record for record in read_metrics(tmp_path / name / "metrics.jsonl")
                    if "evaluation" in record} for name in (*two, *one)}  # fmt: skip
    assert asked["one"][1]["evaluation_tasks"] == asked["stage-3"][1]["evaluation_tasks"]
    assert asked["one"][1]["evaluation_tasks"] == asked["shared"][1]["evaluation_tasks"]

    evaluate = ["samples=0", f"tasks=[{','.join(TASKS)}]", f"items_per_language={ITEMS}"]
    for name in ("stage-1", "stage-3"):
        assert hanse("evaluate", f"run={tmp_path / name}", "step=all", *evaluate) == 0
    for name, steps in (("stage-1", (2, 4)), ("stage-3", (1,))):
        for step in steps:
            path = tmp_path / name / f"evaluations/step-{step:08d}.json"
            found, known = json.loads(path.read_text()), asked[name][step]
            assert found["tasks"] == known["evaluation_tasks"]
            assert set(found["tasks"]) == set(TASKS)
            for language, rates in known["evaluation"].items():
                for key, value in rates.items():
                    assert found["languages"][language][key] == pytest.approx(value, rel=1e-5), (language, key)
    state = json.loads((tmp_path / "stage-1/checkpoints/step-00000004/state.json").read_text())
    known = asked["stage-1"][4]["evaluation_tasks"]
    assert state["task_accuracy"] == {task: {name: row["accuracy"] for name, row in rows.items()}
                                      for task, rows in known.items()}  # fmt: skip
    assert json.loads((tmp_path / "stage-1/summary.json").read_text())["tasks"] == known

    # all but the oldest were evaluated; the third is damaged; the second was evaluated with other settings
    evaluations = tmp_path / "stage-1/evaluations"
    assert sorted(path.name[11:13] for path in evaluations.glob("*.json")) == ["01", "02", "03", "04"]
    (evaluations / "step-00000001.json").unlink()
    (evaluations / "step-00000003.json").unlink()
    changed = json.loads((evaluations / "step-00000002.json").read_text())
    changed["settings"]["seed"] = 7
    (evaluations / "step-00000002.json").write_text(json.dumps(changed))
    weights = next((tmp_path / "stage-1/checkpoints/step-00000003/model").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capfd.readouterr()
    assert hanse("evaluate", f"run={tmp_path / 'stage-1'}", "step=all", *evaluate) == 2
    out, error = capfd.readouterr()
    assert "skipped 1 of 4, evaluated already with these settings: step 4" in out
    assert "step 2, 2 of 3 (evaluated before with other settings)" in out
    assert "skipped step 3: " in out
    assert "1 of 3 checkpoints could not be evaluated" in error
    assert sorted(path.name[11:13] for path in evaluations.glob("*.json")) == ["01", "02", "04"]
    assert hanse("report", f"run={tmp_path / 'stage-1'}") == 0
    assert "Next sentence" in (tmp_path / "stage-1/report.html").read_text()
