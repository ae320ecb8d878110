"""Every wrong value of the data verbs is one line that names its key and says what to write instead."""

import dataclasses

import pytest

from data_pipelines.config import (
    AnnotateConfig,
    BoilerplateConfig,
    CorpusConfig,
    HubConfig,
    SelectConfig,
    SourceConfig,
    TokenizeConfig,
    TokenizerConfig,
)

SOURCE = SourceConfig(reader="jsonl", language="fr", license="CC0-1.0", path="x")
CORPUS = CorpusConfig(name="x", sources={"web": SOURCE})
TOKENIZER = TokenizerConfig(name="x", pattern="a")
TOKENIZE = TokenizeConfig(name="x")


def test_defaults_are_right():
    assert CORPUS.problems() == TOKENIZER.problems() == TOKENIZE.problems() == SOURCE.problems("s") == []


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        *((CORPUS, key, value) for key, value in [
            ("name", "a/b"), ("name", ""), ("name", ".hidden"), ("sources", {}), ("validation_fraction", 1.0),
            ("validation_fraction", -0.1), ("batch_megabytes", 0), ("part_megabytes", 0), ("processes", -1),
            ("worker", "1"), ("worker", "0/0"), ("worker", "4/4"), ("worker", "-1/4")]),
        *((TOKENIZER, key, value) for key, value in [
            ("name", "a b"), ("vocabulary_size", 263), ("vocabulary_size", 2**21), ("reserved_tokens", -1),
            ("max_megabytes_per_language", 0), ("min_frequency", 0), ("pattern", "")]),
        *((TOKENIZE, key, value) for key, value in [
            ("name", ".."), ("encoder", "sentencepiece"), ("tokenizer_sha256", "abc"), ("parity_documents", 0),
            ("batch_megabytes", 0)]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_begins_with_its_key(config, key, value):
    problems = dataclasses.replace(config, **{key: value}).problems()
    assert [problem.split(":")[0] for problem in problems] == [key]
    assert "\n" not in problems[0]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("annotate", key, value) for key, value in [
            ("language_characters", 0), ("max_document_megabytes", 0), ("evaluation_words", 4)]),
        *(("select", key, value) for key, value in [
            ("min_characters", 0), ("language_min_confidence", 1.5), ("language_min_confidence", float("nan")),
            ("opt_out", ["denied"]), ("max_evaluation_matches", -1), ("near_duplicate_similarity", 0.3)]),
    ],
)  # fmt: skip
def test_a_wrong_value_of_annotate_and_select_too(part, key, value):
    settings = {"annotate": AnnotateConfig, "select": SelectConfig}[part](**{key: value})
    problems = dataclasses.replace(CORPUS, **{part: settings}).problems()
    assert [problem.split(":")[0] for problem in problems] == [f"{part}.{key}"]
    assert "\n" not in problems[0]


def test_what_is_not_annotated_cannot_be_selected_by():
    config = dataclasses.replace(CORPUS, annotate=AnnotateConfig(quality=False), select=SelectConfig(quality=True))
    assert [problem.split(":")[0] for problem in config.problems()] == ["select.quality"]
    sets = {"exam": dataclasses.replace(SOURCE, license="")}
    config = dataclasses.replace(CORPUS, annotate=AnnotateConfig(evaluation_sets=sets))
    assert [problem.split(":")[0] for problem in config.problems()] == ["annotate.evaluation_sets.exam.license"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("reader", "csv"), ("language", "French"), ("license", " "), ("snapshot_date", "yesterday"), ("limit", 0),
     ("document_is", "page"), ("path", None)],
)  # fmt: skip
def test_a_wrong_value_of_a_source_too(key, value):
    problems = dataclasses.replace(SOURCE, **{key: value}).problems("sources.web")
    assert [problem.split(":")[0] for problem in problems] == [f"sources.web.{key}"]


def test_each_reader_needs_its_origin():
    hub = dataclasses.replace(SOURCE, reader="hub", path=None)
    assert [problem.split(":")[0] for problem in hub.problems("s")] == ["s.hub.dataset"]
    assert dataclasses.replace(hub, hub=HubConfig("a/b")).problems("s") == []
    sqlite = dataclasses.replace(SOURCE, reader="sqlite", path=None)
    assert [problem.split(":")[0] for problem in sqlite.problems("s")] == ["s.query", "s.path"]


def test_names_of_sources_are_checked():
    config = dataclasses.replace(CORPUS, sources={"a/b": SOURCE, "ok": dataclasses.replace(SOURCE, language="x")})
    assert [problem.split(":")[0] for problem in config.problems()] == ["sources.a/b", "sources.ok.language"]


@pytest.mark.parametrize(("key", "value"), [("min_documents", 1), ("by", "domain")])
def test_a_wrong_value_of_the_repeated_lines_too(key, value):
    annotate = AnnotateConfig(boilerplate=BoilerplateConfig(**{key: value}))
    problems = dataclasses.replace(CORPUS, annotate=annotate).problems()
    assert [problem.split(":")[0] for problem in problems] == [f"annotate.boilerplate.{key}"]


def test_a_source_of_many_languages_becomes_one_a_language():
    web = SourceConfig(reader="parquet", language="mul", license="CC0-1.0", path="in/{code}/{language}.parquet",
                       codes={"fr": "fra", "de": "deu", "es": "spa", "lld": "lld"},
                       where={"language": ["{code}", None]})  # fmt: skip
    config = CorpusConfig(name="x", sources={"web": web, "own": SOURCE}, languages=["de", "fr"])
    assert config.problems() == []
    assert list(config.sources) == ["web_de", "web_fr", "own"]
    made = config.sources["web_de"]
    assert (made.language, made.path, made.where) == ("de", "in/deu/de.parquet", {"language": ["deu", None]})
    ladin = CorpusConfig(name="x", sources={"web": dataclasses.replace(web, languages=["de", "lld"])})
    assert ladin.problems() == []
    assert [one.check_language for one in ladin.sources.values()] == [True, False]  # Ladin cannot be identified
    wrong = CorpusConfig(name="x", sources={"web": dataclasses.replace(web, languages=["it"])})
    assert [problem.split(":")[0] for problem in wrong.problems()] == ["sources.web.languages"]
    assert "add sources.web.codes.it=" in wrong.problems()[0]
    none = CorpusConfig(name="x", sources={"web": dataclasses.replace(web, languages=[])})
    assert [problem.split(":")[0] for problem in none.problems()] == ["sources.web.languages"]
