"""One reason for each document that goes: the first that applies."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.annotate.quality import Bounds, Quality
from data_pipelines.annotate.stage import ANNOTATED
from data_pipelines.config import SelectConfig
from data_pipelines.dedup import ALONE, Clusters, Originals
from data_pipelines.select import REASONS, judge

GOOD = {"id": "id", "text": "x" * 200, "language": "fr", "license": "CC0-1.0", "reason": "", "detail": "",
        "language_detected": "fr", "language_score": 0.9, "content": b"0" * 32, "quality_words": 80}  # fmt: skip
WRONG = {"language_detected": "de", "language_score": 0.9}
DENIED = {"opt_out": "deny", "opt_out_reason": "robots.txt: GPTBot"}
QUALITY = Quality("fr", ("le",), thresholds={"words": Bounds(min=50)})


def verdict(changes, select=None, *, original=None, languages=("fr",), quality=QUALITY):
    """(reason, detail) for one document; ``original``: (id, content) of one that it repeats."""
    row = {**GOOD, **changes}
    batch = pa.RecordBatch.from_pylist([row], schema=ANNOTATED)
    cluster = ALONE if original is None else 0
    clusters = Clusters(np.array([cluster]), np.array([1], np.int32), {0: original} if original else {})
    config = SelectConfig(**{"licenses": ["CC*"], **(select or {})})
    found = judge(batch, config, languages=languages, quality=quality, originals=Originals(clusters))
    assert found.staying.tolist() == [not found.reason[0]]
    assert found.reason[0] in ("", *REASONS)
    return found.reason[0], found.detail[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("", "")),
        ({"reason": "malformed", "detail": "not JSON", "text": ""}, ("malformed", "not JSON")),
        ({"reason": "broken_file", "detail": "cut", "text": ""}, ("broken_file", "cut")),
        ({"text": "", **WRONG}, ("empty", "")),
        ({"text": "x" * 99, **WRONG}, ("too_short", "99 characters")),
        ({"text": "é" * 100}, ("", "")),
        ({**WRONG, "license": "unknown"}, ("wrong_language", "de with 0.90")),
        ({**WRONG, "language_score": 0.5}, ("wrong_language", "de with 0.50")),
        ({**WRONG, "language_score": 0.49}, ("", "")),
        ({"language_detected": None, "language_score": None}, ("", "")),
        ({"license": "MIT", **DENIED}, ("license", "MIT")),
        ({**DENIED, "quality_words": 3}, ("opt_out", "deny: robots.txt: GPTBot")),
        ({**DENIED, "opt_out": "unknown"}, ("", "")),
        ({"quality_words": 3, "evaluation_matches": 1}, ("quality", "quality_words: 3 < 50")),
        ({"evaluation_matches": 2, "evaluation_set": "exam"}, ("evaluation", "2 in exam")),
        ({"evaluation_matches": 0}, ("", "")),
    ],
)
def test_the_first_reason_that_applies(changes, expected):
    assert verdict(changes) == expected


def test_duplicates_come_last_and_equal_ones_are_told_from_near_ones():
    assert verdict({}, original=("a", b"0" * 32)) == ("duplicate", "a")
    assert verdict({}, original=("a", b"1" * 32)) == ("near_duplicate", "a")
    assert verdict(WRONG, original=("a", b"0" * 32)) == ("wrong_language", "de with 0.90")


def test_thresholds_are_the_configurations():
    assert verdict(WRONG, languages=()) == ("", "")
    assert verdict(WRONG, languages=("oc", "de")) == ("", "")
    assert verdict({"quality_words": 3}, quality=None) == ("", "")
    assert verdict({"license": "MIT"}, {"licenses": []}) == ("", "")
    assert verdict({"opt_out": "unknown"}, {"opt_out": ["deny", "unknown"]}) == ("opt_out", "unknown: None")
    assert verdict(DENIED, {"opt_out": []}) == ("", "")
    assert verdict({"evaluation_matches": 2}, {"max_evaluation_matches": 2}) == ("", "")
    assert verdict({"text": "x" * 99}, {"min_characters": 99}) == ("", "")
