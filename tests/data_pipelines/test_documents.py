"""Normalising twice changes nothing; ids and splits depend on the content alone; what is malformed says why."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.config import SourceConfig
from data_pipelines.documents import content_of, document, id_of, normalise, split_of
from data_pipelines.sources import Record

SOURCE = SourceConfig(reader="jsonl", language="fr", license="CC0-1.0", path="x")
HOSTILE = st.text(
    st.sampled_from("aé\u0301\u0327\u1100\u1161\x00\x1c\x7f\x85\ufeff\u2028\u00a0\u3000\u200b \t\n\r\f\v")
)


def make(fields, source=SOURCE, key="k", problem="", **settings):
    return document(Record(key, fields, problem), source, **settings)


def make_id(text, key="k"):
    item = make({"text": text}, key=key)
    return id_of("web", item.key, item.text)


@given(st.text() | HOSTILE)
@example("e\x00\u0301")  # a control character between a letter and its accent
@example("a\n \n \n b")
def test_normalise_is_idempotent_and_does_what_it_says(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not [char for char in once if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert not set(once) & set("\r\x0b\x0c\x85\u2028\u2029\ufeff")
    assert all(line == line.rstrip() for line in once.split("\n"))
    assert "\n\n\n" not in once
    assert once == once.strip()


@given(st.text() | HOSTILE)
def test_normalise_changes_nothing_but_controls_and_spacing(text):
    def visible(value):
        kept = (
            char for char in value if unicodedata.category(char) != "Cc" and char != "\ufeff" and not char.isspace()
        )
        return unicodedata.normalize("NFD", "".join(kept))

    assert visible(normalise(text)) == visible(unicodedata.normalize("NFC", text))


def by_definition(text):
    """Slow and plain: every step taken, whatever the text."""
    text = re.sub("\r\n?|[\x0b\x0c\x85\u2028\u2029]", "\n", text)
    text = unicodedata.normalize("NFC", re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]", "", text))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


@given(st.text(st.characters()) | HOSTILE | st.text(st.sampled_from("aé\u0301\u0327 \n")) | st.text("\r\n\ud800 x"))
def test_texts_without_much_to_do_are_normalised_as_all_others(text):
    assert normalise(text) == by_definition(text)


def test_every_character_is_normalised_by_definition():
    for text in (f"a{chr(code)}\n\u0301{chr(code)} \n" for code in range(0x10000)):
        assert normalise(text) == by_definition(text)


def test_normalise_takes_no_quadratic_time():
    assert normalise("a" + " " * 1_000_000 + "b").count(" ") == 1_000_000
    assert normalise(("\n \t" * 300_000) + "b") == "b"


def test_normalise_by_example():
    assert (
        normalise("\ufeffUn \r\n\tdeux\x00\r\rtrois\u2028 quatre\n\n\n\n\ncinq  ")
        == "Un\n\tdeux\n\ntrois\n quatre\n\ncinq"
    )
    assert normalise("E\u0301te\u0301 l\u2019e\xf1e") == "\xc9t\xe9 l\u2019e\xf1e"


def test_ids_are_stable():
    assert make_id("Bonjour  \n") == "web:k:9172e8eec99f"  # for ever: ledgers and papers name documents by it
    assert make_id("Bonjour") == make_id("Bonjour\r\n")
    assert len({make_id("Bonjour"), make_id("bonjour"), make_id("Bonjour", "other")}) == 3
    assert make_id("x", "\ud800").startswith("web:?:")


@pytest.mark.parametrize(
    ("fields", "problem", "detail"),
    [
        ({}, "not JSON", "not JSON"),
        ({}, "", "no 'text'"),
        ({"text": None}, "", "no 'text'"),
        ({"text": b"caf\xe9"}, "", "not UTF-8"),
        ({"text": 3}, "", "'text' is int, not text"),
        ({"text": ["a"]}, "", "'text' is list, not text"),
        ({"text": "half \ud83d"}, "", "not Unicode (half of a surrogate pair)"),
    ],
)
def test_what_is_malformed_says_why(fields, problem, detail):
    item = make(fields, problem=problem)
    assert (item.reason, item.detail, item.text) == ("malformed", detail, "")


def test_a_text_that_is_too_long_is_set_aside():
    assert make({"text": "é" * 50}, longest=100).reason == ""
    item = make({"text": "é" * 50 + "."}, longest=100)
    assert (item.reason, item.detail, item.text) == ("too_long", "101 bytes, more than 100", "")


def test_facts_come_from_the_record_and_else_from_the_source():
    source = SourceConfig(
        reader="jsonl", language="de", license="CC-BY-4.0", path="x",
        url="https://example.org", snapshot_date="2024-05",
        text_field="body", title_field="head", url_field="link", date_field="day", license_field="rights",
    )  # fmt: skip
    item = make({"body": "é", "head": "Titel", "link": "https://example.org/1", "day": 1910}, source)
    assert (item.title, item.url, item.date, item.license) == ("Titel", "https://example.org/1", "1910", "CC-BY-4.0")
    item = make({"body": "x", "head": b"\xff", "day": "\ud800", "rights": "CC0-1.0"}, source)
    assert (item.title, item.url, item.date, item.license) == (None, "https://example.org", "2024-05", "CC0-1.0")


@given(st.lists(st.binary(min_size=1), max_size=50), st.floats(0, 0.5), st.integers(0, 9))
def test_a_larger_share_moves_documents_only_towards_validation(keys, fraction, seed):
    for key in keys:
        if split_of(key, fraction, seed) == "validation":
            assert split_of(key, fraction + 0.3, seed) == "validation"
        assert split_of(key, 0, seed) == "train"


def test_the_share_of_validation_is_as_asked_and_another_seed_draws_others():
    keys = [str(number).encode() for number in range(20_000)]
    drawn = [{key for key in keys if split_of(key, 0.1, seed) == "validation"} for seed in (0, 1)]
    assert all(abs(len(each) / len(keys) - 0.1) < 0.01 for each in drawn)
    assert len(drawn[0] & drawn[1]) / len(keys) < 0.02
    assert [key for key in keys[:60] if key in drawn[0]] == [b"15", b"44", b"46"]  # no release moves a document


def test_equal_texts_have_equal_content():
    assert content_of("Le même texte") == content_of("le  MÊME\ntexte")
    assert content_of("Le même texte") != content_of("Le meme texte")
    assert make({"text": "un", "place": 7}, SourceConfig("jsonl", "fr", "CC0-1.0", split_field="place")).group == "7"
