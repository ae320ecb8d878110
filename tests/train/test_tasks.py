"""Questions out of the validation text: fair, the same every time, and none where there is nothing to ask."""

from __future__ import annotations

import re
import shutil

import pytest

from data_pipelines.shards import ShardsManifest
from tests.data_pipelines.rich_corpus import LANGUAGES, make
from train.tasks import CHOICES, description, last_word
from train.validation_text import ValidationText


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hanse):
    return make(tmp_path_factory.mktemp("rich") / "data", hanse)


@pytest.fixture(scope="module")
def trained(folder):
    """Shards, tokenizer and corpus; no question needs the model."""
    return ValidationText(ShardsManifest.read(folder / "shards"), folder / "tokenizer")


def texts(trained, language):
    entry = next(entry for entry in trained.shards.of("validation") if entry.language == language)
    return [trained.tokenizer.decode(trained.validation_document(language, number).tolist())
            for number in range(entry.documents)]  # fmt: skip


@pytest.mark.slow
def test_a_title_is_asked_with_one_sentence_of_its_text_and_three_of_others(trained):
    asked = 0
    for language in LANGUAGES:
        titles = trained.validation_titles(language, range(len(texts(trained, language))))
        items = description(trained, language, 20, seed=1)
        assert items == description(trained, language, 20, seed=1)
        for item in items:
            own = [
                text for number, text in enumerate(texts(trained, language)) if f"{titles.get(number)}:" == item.context
            ]
            holding = [choice for choice in item.choices if any(choice.strip() in text for text in own)]
            assert holding == [item.choices[item.answer]]
            assert len(set(item.choices)) == CHOICES
            assert not any("kapitel" in choice.casefold() for choice in item.choices)
        asked += len(items)
    assert asked >= CHOICES


@pytest.mark.slow
def test_without_the_corpus_or_with_another_there_are_no_titles(folder, trained, tiny_data, tmp_path):
    shutil.copytree(folder / "shards", tmp_path / "shards")
    alone = ValidationText(ShardsManifest.read(tmp_path / "shards"), folder / "tokenizer")
    assert description(alone, "de", 20, seed=1) == []
    other = ValidationText(alone.shards, folder / "tokenizer", str(tiny_data / "corpus"))
    assert other.validation_titles("de", [0, 1]) == {}
    named = ValidationText(alone.shards, folder / "tokenizer", str(folder / "corpus"))
    assert description(named, "de", 20, seed=1) == description(trained, "de", 20, seed=1) != []


@pytest.mark.slow
def test_a_cloze_asks_for_a_word_that_goes_on_its_text(trained):
    for language in LANGUAGES:
        items = last_word(trained, language, 5, seed=2)
        assert 0 < len(items) <= 5
        known = [" ".join(text.split()) for text in texts(trained, language)]
        for item in items:
            (word,) = item.choices
            assert re.fullmatch(r" \w{4,}", word)
            assert item.context == item.context.rstrip()
            assert any(f"{' '.join(item.context.split())}{word}" in text for text in known)
