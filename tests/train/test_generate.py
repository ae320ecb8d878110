from __future__ import annotations

import pytest
import torch

from train import generate
from train.trained import open_trained
from train.verb_config import GenerateConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def written(tiny_run, hanse, capfd):
    """What ``hanse generate`` prints for some arguments."""

    def call(*arguments: str) -> str:
        assert hanse("generate", f"run={tiny_run}", *arguments) == 0
        return capfd.readouterr().out

    return call


@pytest.fixture(scope="module")
def trained(tiny_run):
    return open_trained(str(tiny_run), None, None, None)


def test_without_prompts_every_language_goes_on_from_a_text_that_was_never_trained_on(written, trained):
    out = " ".join(written("prompt_words=3").split())
    for language in ("de", "es", "fr", "it"):
        text = trained.tokenizer.decode(trained.validation_document(language).tolist())
        assert f"{language} {' '.join(text.split()[:3])}" in out


def test_the_same_command_writes_the_same_text_and_another_seed_another(written):
    prompt = 'prompts=["Und es geschah"]'
    assert written(prompt, "seed=1") == written(prompt, "seed=1")
    assert written(prompt, "seed=1") != written(prompt, "seed=2")


def test_a_prompt_goes_on_in_the_same_way_whatever_stands_before_it(written):
    alone = written('prompts=["Il y eut"]').splitlines()[3:]
    second = written('prompts=["OR al tempo","Il y eut"]').splitlines()
    assert second[second.index("prompt 2") + 1 :] == alone


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_token_each_time(trained):
    model, ids = trained.model(), trained.tokenizer.encode("Und es geschah in den Tagen").ids
    config = GenerateConfig(run="", temperature=0.0)
    expected = list(ids)
    for _ in range(20):  # no cache, no library: the whole text again for every token
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert generate.generate(model, ids, 20, config, end=-1) == expected[len(ids) :]


@torch.no_grad()
def test_a_small_top_p_leaves_only_the_likeliest_token(trained):
    model, ids = trained.model(), trained.tokenizer.encode("Il y eut").ids
    nucleus = generate.generate(model, ids, 8, GenerateConfig(run="", temperature=1.0, top_p=1e-6), end=-1)
    assert nucleus == generate.generate(model, ids, 8, GenerateConfig(run="", temperature=0.0), end=-1)


def test_the_end_of_a_document_ends_the_text(trained):
    model, ids = trained.model(), trained.tokenizer.encode("Und es geschah").ids
    config = GenerateConfig(run="", temperature=0.0)
    first = generate.generate(model, ids, 1, config, end=-1)[0]
    assert generate.generate(model, ids, 8, config, end=first) == []


def test_a_text_never_gets_longer_than_what_the_model_was_trained_on(trained, tiny_run, hanse, capfd):
    words = "Il y eut une famine dans le pays et un homme de Bethléhem " * 2
    ids = trained.tokenizer.encode(words).ids[:60]
    prompt = trained.tokenizer.decode(ids).replace('"', "")
    assert hanse("generate", f"run={tiny_run}", f'prompts=["{prompt}"]', "max_new_tokens=1000") == 0
    capfd.readouterr()
    assert hanse("generate", f"run={tiny_run}", f'prompts=["{words * 3}"]') == 2
    assert "the model was trained on 64 in a row" in capfd.readouterr().err


def test_what_could_command_a_terminal_is_shown_as_a_stand_in():
    assert generate._shown("a\x1b[31mb\nc\x07") == "a\N{REPLACEMENT CHARACTER}[31mb\nc\N{REPLACEMENT CHARACTER}"


def test_wrong_settings_are_reported_together(tiny_run, hanse, capfd):
    assert hanse("generate", f"run={tiny_run}", "top_p=0", "temperature=-1", "max_new_tokens=0") == 2
    said = capfd.readouterr().err
    assert "3 problems" in said
    assert all(key in said for key in ("top_p", "temperature", "max_new_tokens"))
