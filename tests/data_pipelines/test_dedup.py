"""Exact duplicates: equal but for case and spacing, within a language, across sources; the first one stays."""

from data_pipelines.config import SourceConfig
from data_pipelines.dedup import ExactDuplicates
from data_pipelines.documents import document
from data_pipelines.sources import Record


def make(text, key, language="fr", name="web"):
    source = SourceConfig(reader="jsonl", language=language, license="CC0-1.0", path="x")
    return document(Record(key, {"text": text}), name, source, validation_fraction=0, split_seed=0)


def test_the_first_one_kept_is_the_original():
    duplicates = ExactDuplicates()
    first = make("Il était une fois", "1")
    assert duplicates.original_of(first) is None
    assert duplicates.original_of(make("Il était une fois", "2")) is None  # the first one was not kept
    duplicates.keep(first)
    duplicates.keep(make("IL ÉTAIT  une fois", "3"))
    for text in ("Il était une fois", "il  était\nUNE fois\n", "Il e\u0301tait une fois"):
        assert duplicates.original_of(make(text, "4", name="other")) == first.id


def test_other_words_accents_and_languages_are_no_duplicates():
    duplicates = ExactDuplicates()
    duplicates.keep(make("Il était une fois", "1"))
    for other in (make("Il etait une fois", "2"), make("Il était une fois.", "3"), make("Il était unefois", "4"),
                  make("Il était une fois", "5", language="it")):  # fmt: skip
        assert duplicates.original_of(other) is None
