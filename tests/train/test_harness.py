"""lm-eval on a checkpoint: the same questions get the same answers as from our own scorer; nothing is downloaded."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from torch.nn.functional import log_softmax

from train import harness
from train.ranks import Place
from train.score import shared_out
from train.tasks import Item, answer, log_likelihoods, questions, summary
from train.trained import open_trained

ALONE = partial(shared_out, Place(0, 1))


class Asked:
    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def trained(tiny_run):
    return open_trained(str(tiny_run), None, None, None)


@pytest.fixture(scope="module")
def model(trained):
    return trained.model()


def test_questions_are_written_as_tasks_of_lm_eval(tmp_path):
    hostile = '{{ 7*7 }} "\n# : - |'
    items = {"next_sentence": [Item("fr", hostile, (" a", " b", " c", " d"), 2)],
             "last_word": [Item("de", "Der", (" Hund",), 0)]}  # fmt: skip
    assert harness.write_tasks(tmp_path, items) == ["hanse_next_sentence_fr", "hanse_last_word_de"]
    row = json.loads((tmp_path / "hanse_next_sentence_fr.jsonl").read_text(encoding="utf-8"))
    assert (row["context"], row["choices"][row["answer"]]) == (hostile, " c")
    assert "output_type: loglikelihood" in (tmp_path / "hanse_last_word_de.yaml").read_text()


@pytest.mark.slow
def test_lm_eval_answers_as_our_own_scorer_does(trained, model, tmp_path):
    pytest.importorskip("lm_eval")
    asked = questions(trained, ["next_sentence", "last_word"], 4, 0)
    names = harness.write_tasks(tmp_path, asked)
    assert {f"hanse_next_sentence_{name}" for name in trained.validation_languages} <= set(names)
    lm = harness.harness_model(trained, model, ALONE)
    found = harness.run(lm, ["hanse_next_sentence", "hanse_last_word"], [tmp_path], None)["tasks"]
    for task, metric in (("next_sentence", "acc_bytes"), ("last_word", "acc")):
        for language in trained.validation_languages:
            items = [item for item in asked[task] if item.language == language]
            right = [answer(trained, model, item, torch.device("cpu")) == item.answer for item in items]
            if items:
                told = found[f"hanse_{task}_{language}"]
                assert told[metric] == pytest.approx(summary(right)["accuracy"])
                assert told["items"] == len(items)
    assert harness.run(lm, [names[0]], [tmp_path], 2)["tasks"][names[0]]["items"] == 2


@pytest.mark.slow
def test_whole_texts_and_generations_are_those_of_the_plain_model(trained, model):
    pytest.importorskip("lm_eval")
    lm = harness.harness_model(trained, model, ALONE)
    length, end = trained.config.data.sequence_length, trained.shards.end_of_document_id
    text = trained.tokenizer.decode(trained.validation_document("fr").tolist())
    ids = [end, *trained.tokenizer.encode(text).ids][: length - 20]
    short = trained.tokenizer.decode(ids[1:])
    assert [end, *trained.tokenizer.encode(short).ids] == ids
    with torch.no_grad():
        scores = log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    alone = math.fsum(scores[at, one].item() for at, one in enumerate(ids[1:]))
    assert lm.loglikelihood_rolling([Asked(short)])[0] == pytest.approx(alone, rel=1e-5)
    assert lm.loglikelihood([Asked("", short)])[0][0] == pytest.approx(alone, rel=1e-5)
    long = lm.loglikelihood_rolling([Asked(" ".join([text] * 3))])[0]
    assert math.isfinite(long)
    assert long < alone
    first = scores[-1].argmax().item()
    told = lm.generate_until([Asked(short, {"max_gen_toks": 1, "until": []})])[0]
    assert told == trained.tokenizer.decode([first])
    eight = lm.generate_until([Asked(short, {"max_gen_toks": 8, "until": []})])[0]
    stop = eight[3:5]
    assert lm.generate_until([Asked(short, {"max_gen_toks": 8, "until": [stop]})])[0] == eight[: eight.index(stop)]


@pytest.mark.slow
def test_an_unknown_task_is_one_clear_line(trained, model, tmp_path):
    pytest.importorskip("lm_eval")
    from common.errors import HanseError

    lm = harness.harness_model(trained, model, ALONE)
    with pytest.raises(HanseError, match="no task hanse_nothing"):
        harness.run(lm, ["hanse_nothing"], [tmp_path], None)


def test_without_lm_eval_it_is_said_how_to_get_it(monkeypatch):
    from train.verb_config import EvaluateVerbConfig

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = EvaluateVerbConfig(run="x", lm_eval=["hellaswag"], lm_eval_folder="nowhere").problems()
    assert any("pip install 'hanse[eval]'" in one for one in problems)
    assert any("lm_eval_folder=nowhere: no such folder" in one for one in problems)


@pytest.mark.slow
def test_a_likeliest_word_is_told_from_another(trained, model):
    context = trained.tokenizer.decode(trained.validation_document("de")[:20].tolist())
    ids = trained.tokenizer.encode(context).ids
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    words = [trained.tokenizer.decode([one]) for one in best[:2]]
    found = log_likelihoods(trained, model, context, words, torch.device("cpu"))
    if all(trained.tokenizer.encode(context + word).ids[:-1] == ids for word in words):
        assert [greedy for _, greedy in found] == [True, False]
        assert found[0][0] > found[1][0]
