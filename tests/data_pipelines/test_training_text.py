"""Every language gives the same number of bytes, drawn by document hash, no text twice."""

import pytest

from data_pipelines.training_text import drawn_texts, texts_of, train_bytes

LANGUAGES = ("fr", "de", "es", "it")


@pytest.fixture(scope="module")
def corpus(tiny_data):
    from data_pipelines.manifest import CorpusManifest

    return CorpusManifest.read(tiny_data / "corpus")


@pytest.fixture(scope="module")
def rows(corpus, rows_of):
    return {language: rows_of(corpus, "documents", language) for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_sizes_and_splits_are_those_of_the_files(corpus, rows, language):
    train = [row["text"] for row in rows[language] if row["split"] == "train"]
    assert train_bytes(corpus, language) == sum(len(text.encode()) for text in train)
    assert [text for batch in texts_of(corpus, language, "train") for text in batch] == train
    assert 0 < len([text for batch in texts_of(corpus, language, "validation") for text in batch]) < len(train)


@pytest.mark.parametrize("budget", [1, 500, 5_000])
def test_every_language_gives_the_same_number_of_bytes(corpus, budget):
    for language in LANGUAGES:
        given = sum(len(text.encode()) for text in drawn_texts(corpus, language, budget))
        assert budget - 3 <= given <= budget  # a character is never cut


def test_a_budget_of_everything_gives_every_training_text_once(corpus, rows):
    train = [row["text"] for row in rows["fr"] if row["split"] == "train"]
    assert list(drawn_texts(corpus, "fr", train_bytes(corpus, "fr"))) == train
    assert list(drawn_texts(corpus, "fr", 10**9)) == train


def test_a_small_budget_is_not_spent_on_the_first_documents(corpus, rows):
    drawn = list(drawn_texts(corpus, "fr", 4_000))
    places = [number for number, row in enumerate(rows["fr"]) if any(row["text"].startswith(text) for text in drawn)]
    assert len(drawn) > 5
    assert max(places) > len(rows["fr"]) // 2
    more = list(drawn_texts(corpus, "fr", 8_000))
    assert sum(text in more for text in drawn) >= len(drawn) - 1  # a larger budget adds; only the cut one is completed
