"""One reason for each document that goes: the first that applies."""

import dataclasses

import pytest

from data_pipelines.documents import Document
from data_pipelines.select import REASONS, removal

GOOD = Document("id", "x" * 200, "fr", "web", None, None, "CC0-1.0", None, "train", "fr", 0.9)
WRONG = {"language_detected": "de", "language_score": 0.9}
LIMITS = {"min_characters": 100, "check_language": True, "min_confidence": 0.5}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("", "")),
        ({"reason": "malformed", "detail": "not JSON", "text": ""}, ("malformed", "not JSON")),
        ({"text": "", **WRONG}, ("empty", "")),
        ({"text": "x" * 99, **WRONG}, ("too_short", "99 characters")),
        ({"text": "x" * 100}, ("", "")),
        ({**WRONG, "duplicate_of": "a"}, ("wrong_language", "de with 0.90")),
        ({**WRONG, "language_score": 0.5}, ("wrong_language", "de with 0.50")),
        ({**WRONG, "language_score": 0.49}, ("", "")),
        ({"language_detected": None, "language_score": None}, ("", "")),
        ({"duplicate_of": "a"}, ("duplicate", "a")),
    ],
)
def test_the_first_reason_that_applies(changes, expected):
    assert removal(dataclasses.replace(GOOD, **changes), **LIMITS) == expected
    assert expected[0] in ("", *REASONS)


def test_the_declared_language_is_believed_where_it_is_not_checked():
    wrong = dataclasses.replace(GOOD, **WRONG)
    assert removal(wrong, **{**LIMITS, "check_language": False}) == ("", "")
