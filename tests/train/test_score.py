"""``hanse evaluate`` measures what training's validation measures, on any number of ranks, and asks fair questions."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from common.errors import EXIT_DONE, EXIT_USER_ERROR
from tests.train.multirank import evaluations
from train import harness
from train.tally import Score, total
from train.tasks import CHOICES, Item, answer, next_sentence, sentences, summary
from train.trained import open_trained


@pytest.fixture(scope="module")
def trained(tiny_run):
    return open_trained(str(tiny_run), None, None, None)


@pytest.mark.slow
def test_bits_per_byte_are_those_of_training_and_two_ranks_write_the_same_file(tiny_run, tmp_path, hanse, capfd):
    settings = [f"run={tiny_run}", "tokens_per_language=512", "items_per_language=4", "sample_tokens=8"]
    if harness.is_installed():
        settings.append("lm_eval=[hanse_next_sentence]")
    for ranks in (1, 2):
        assert hanse("evaluate", *settings, f"ranks={ranks}", f"output={tmp_path / f'{ranks}.json'}") == EXIT_DONE
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    found = json.loads((tmp_path / "1.json").read_text())
    known = evaluations(tiny_run)[12]
    assert {name: one["bits_per_byte"] for name, one in found["languages"].items()} == pytest.approx(known, rel=1e-5)
    for language, sources in found["sources"].items():
        assert list(sources) == [f"text_{language}"]
        assert sources[f"text_{language}"] == found["languages"][language]
    assert all(len(texts) == 1 and texts[0]["text"] for texts in found["samples"].values())
    for language, told in found["tasks"]["next_sentence"].items() if harness.is_installed() else ():
        assert found["lm_eval"]["tasks"][f"hanse_next_sentence_{language}"]["acc_bytes"] == told["accuracy"]
    assert "next_sentence (guessing gives 25%)" in capfd.readouterr().out


@pytest.mark.slow
def test_an_answer_is_the_likeliest_choice_a_byte_each_choice_looked_at_alone(trained):
    model = trained.model()
    length = trained.config.data.sequence_length
    for language in trained.validation_languages:
        for item in next_sentence(trained, language, 3, seed=1):
            costs = []
            for choice in item.choices:
                context = len(trained.tokenizer.encode(item.context).ids)
                ids = trained.tokenizer.encode(item.context + choice).ids
                counted = max(1, min(len(ids) - context, length - 1))
                held = torch.tensor(ids[-length:])
                with torch.no_grad():
                    logits = model(held[None]).logits[0]
                cost = cross_entropy(logits[-counted - 1 : -1].double(), held[-counted:], reduction="sum")
                costs.append(float(cost) / len(choice.encode()))
            assert answer(trained, model, item, torch.device("cpu")) == costs.index(min(costs))


@pytest.mark.slow
def test_questions_follow_from_the_text_and_only_one_choice_does(trained):
    asked = 0
    for language in trained.validation_languages:
        texts = [trained.tokenizer.decode(trained.validation_document(language, number).tolist())
                 for number in range(12)]  # fmt: skip
        items = next_sentence(trained, language, 5, seed=3)
        assert items == next_sentence(trained, language, 5, seed=3)
        asked += len(items)
        for item in items:
            holding = [text for text in texts if " ".join(text.split()).startswith(" ".join(item.context.split()))]
            assert any(item.choices[item.answer].strip() in text for text in holding)
            assert len(item.choices) == CHOICES == len(set(item.choices))
    assert asked > 3


def test_text_is_cut_after_full_stops():
    assert sentences("Il vint. « Qui ? » Lui! Un 3.5 ici. fin") == ["Il vint.", "« Qui ? »", "Lui!", "Un 3.5 ici."]


def test_a_share_comes_with_its_error_and_what_guessing_gives():
    found = summary([True] * 30 + [False] * 70)
    assert (found["accuracy"], found["items"], found["chance"]) == (0.3, 100, 0.25)
    assert found["standard_error"] == pytest.approx(math.sqrt(0.3 * 0.7 / 100))
    assert Item("fr", "", ("a",), 0).answer == 0


def test_scores_add_up_without_rounding_on_the_way():
    parts = [Score(0.1, 2, 1, 3)] * 10 + [Score(1e16, 1, 0, 1), Score(-1e16, 0, 0, 0)]
    whole = total(parts)
    assert whole == Score(1.0, 21, 10, 31)
    assert whole.to_json()["bits_per_byte"] == pytest.approx(1 / math.log(2) / 31)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["tasks=[mmlu]"], "tasks: no task 'mmlu'; there is next_sentence"),
        (["step=7"], "step=7: no checkpoint of that step"),
        (["ranks=0"], "ranks=0: must be 1 or more"),
        (["step=al"], "step=al: a number of steps, null (the latest) or all"),
        (["step=all", "output=x.json"], "output: names one file, and step=all writes one a checkpoint"),
    ],
)
def test_nonsense_is_refused(tiny_run, hanse, capfd, wrong, message):
    assert hanse("evaluate", f"run={tiny_run}", *wrong) == EXIT_USER_ERROR
    assert message in capfd.readouterr().err
