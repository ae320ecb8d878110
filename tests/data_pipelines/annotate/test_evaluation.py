"""Evaluation texts inside documents are found whatever their case and punctuation, and nothing else is."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.annotate.evaluation import EvaluationSets
from data_pipelines.annotate.text_arrays import TextArrays

QUESTION = "Quelle est la capitale de la France, et depuis quand l'est-elle sans interruption ? Une réponse suffit."


def found(sets, texts, words=13):
    known = EvaluationSets(sets, words)
    return known.columns(*known.matches(TextArrays.of(texts))).to_pydict()


def test_a_question_is_found_inside_a_page_with_its_set():
    shouted = QUESTION.upper().replace(",", " –")
    pages = [f"Jeu de questions. {shouted} C'est Paris.", "Quelle est la capitale de la France ?", ""]
    columns = found({"quiz": [QUESTION], "other": ["a b c d e f g"]}, pages)
    assert columns["evaluation_matches"] == [6, 0, 0]  # 18 words hold six runs of 13
    assert columns["evaluation_set"] == ["quiz", None, None]


def test_short_texts_are_looked_for_whole_and_very_short_ones_not_at_all():
    sets = {"short": ["eins zwei drei vier fünf", "vier Wörter sind wenig"]}
    pages = ["Er zählte: Eins, zwei, drei, vier, FÜNF.", "eins zwei drei vier sechs", "vier Wörter sind wenig"]
    assert found(sets, pages)["evaluation_matches"] == [1, 0, 0]


def test_a_run_does_not_reach_over_the_end_of_a_document():
    assert found({"a": ["un deux trois quatre cinq"]}, ["un deux trois", "quatre cinq"])["evaluation_matches"] == [0, 0]


def test_the_first_set_is_named_where_two_have_the_same_text():
    assert found({"one": [QUESTION], "two": [QUESTION]}, [QUESTION])["evaluation_set"] == ["one"]
    assert found({"one": ["x " * 20], "two": [QUESTION]}, [QUESTION])["evaluation_set"] == ["two"]


@pytest.mark.parametrize("words", [5, 7, 13])
def test_as_many_runs_as_by_brute_force(prose, words):
    rng = random.Random(words)
    passages = prose("fr")
    exam = [" ".join(passage.split()[5:40]) for passage in passages[:10]]
    texts = [" ".join(rng.sample(passages, 3)) for _ in range(30)]

    def runs(text):
        split = re.findall(r"\w+", text.casefold())
        return [tuple(split[place : place + words]) for place in range(len(split) - words + 1)]

    known = {run for text in exam for run in runs(text)}
    expected = [sum(run in known for run in runs(text)) for text in texts]
    assert sum(expected) > 100
    assert found({"exam": exam}, texts, words)["evaluation_matches"] == expected


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.lists(st.sampled_from("abcde"), max_size=12))
def test_a_text_of_five_words_and_more_is_found_exactly_where_it_stands(page, exam):
    count = sum(page[place : place + len(exam)] == exam for place in range(len(page) - len(exam) + 1))
    expected = count if len(exam) >= 5 else 0
    assert found({"exam": [" ".join(exam)]}, [" ".join(page)])["evaluation_matches"] == [expected]
