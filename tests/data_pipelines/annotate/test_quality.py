"""Quality signals are what their definitions say, whatever the batch; thresholds are data, and wrong ones are named."""

import pickle
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data_pipelines.annotate.quality as quality_module
from common.errors import ConfigError, HanseError
from data_pipelines.annotate.quality import Bounds, Quality, shipped_languages
from data_pipelines.annotate.quality_signals import SCHEMA, SIGNALS
from data_pipelines.annotate.text_arrays import (
    BULLETS,
    CLOSERS,
    KNOWN,
    LETTER,
    SPACE,
    STOPS,
    WORD,
    _tables,
)

QUALITY = Quality("fr", ("de", "la", "et", "à", "l"), ("utilise des cookies",))
PROSE = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut se prévaloir de "
    "tous les droits et de toutes les libertés proclamés dans la présente Déclaration, sans distinction aucune, "
    "notamment de race, de couleur, de sexe, de langue, de religion, d'opinion politique ou de toute autre opinion."
)


# ---------------------------------------------------------------- an oracle, written for clarity
def is_word(character):
    return unicodedata.category(character)[0] in "LMN" or character == "·"


def is_letter(character):
    return unicodedata.category(character)[0] in "LM" or character == "·"


def words_of(text):
    return "".join(character if is_word(character) else " " for character in text).split(" ")


def oracle(text, quality=QUALITY):
    raw = [word for word in words_of(text) if word]
    words = ["".join(c.lower() if len(c.lower()) == 1 else c for c in word) for word in raw]
    tokens, ink = text.split(), sum(not c.isspace() for c in text)
    lines = [line for line in text.split("\n") if line.strip()]
    letters = [c for c in text if is_letter(c)]
    share = lambda part, whole: part / whole if whole else 0.0  # noqa: E731
    line_words = [tuple(w.lower() for w in words_of(line) if w) for line in lines]
    paragraphs = [part for part in re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", "\n" + text + "\n") if part.strip()]
    paragraph_words = [tuple(w.lower() for w in words_of(part) if w) for part in paragraphs]
    padded = text + "\n"
    phrase = [w.lower() for w in words_of(quality.policy_phrases[0]) if w]
    found = {
        "characters": len(text),
        "words": len(words),
        "sentences": sum(
            c in STOPS and (padded[i + 1].isspace() or padded[i + 1] in CLOSERS) for i, c in enumerate(text)
        ),
        "lines": len(lines),
        "mean_word_length": share(sum(map(len, words)), len(words)),
        "mean_line_length": share(sum(map(len, lines)), len(lines)),
        "symbol_ratio": share(text.count("#") + text.count("…") + len(re.findall(r"\.{3,}", text)), len(words)),
        "alphabetic_tokens": share(sum(any(map(is_letter, token)) for token in tokens), len(tokens)),
        "digits": share(sum(unicodedata.category(c)[0] == "N" for c in text), ink),
        "capitals": share(sum(unicodedata.category(c) in ("Lu", "Lt") for c in text), len(letters)),
        "capital_words": share(
            sum(len(w) > 1 and all(unicodedata.category(c) in ("Lu", "Lt") for c in w) for w in raw), len(words)
        ),
        "stop_words": len(set(words) & set(quality.stop_words)),
        "stop_word_share": share(sum(word in quality.stop_words for word in words), len(words)),
        "bullet_lines": share(
            sum(
                line.strip()[0] in BULLETS.replace("*", "").replace("-", "") or bool(re.match(r"\s*[*-]\s+\S", line))
                for line in lines
            ),
            len(lines),
        ),
        "ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)),
        "punctuated_lines": share(sum(line.rstrip()[-1] in STOPS + CLOSERS for line in lines), len(lines)),
        "short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "line_ends_per_word": share(text.count("\n"), len(words)),
        "curly_brackets": text.count("{") + text.count("}"),
        "javascript": words.count("javascript"),
        "lorem_ipsum": sum(pair == ("lorem", "ipsum") for pair in pairwise(words)),
        "policy_phrases": sum(words[i : i + len(phrase)] == phrase for i in range(len(words))),
    }
    for name, parts, texts in (("line", line_words, lines), ("paragraph", paragraph_words, paragraphs)):
        again = [part in parts[:i] for i, part in enumerate(parts)]
        sizes = [sum(not c.isspace() for c in part) for part in texts]
        found[f"duplicate_{name}s"] = share(sum(again), len(parts))
        found[f"duplicate_{name}_characters"] = share(
            sum(s for s, a in zip(sizes, again, strict=True) if a), sum(sizes)
        )
    return found | oracle_n_grams(words, share)


def oracle_n_grams(words, share):
    found, total = {}, sum(map(len, words))
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n <= 4:
            ranked = [(count, sum(map(len, gram))) for gram, count in Counter(grams).items() if count > 1]
            count, length = max(ranked, default=(0, 0))
            found[f"top_{n}_gram"] = share(min(count * length, total), total)
        else:
            seen, covered = set(), set()
            for i, gram in enumerate(grams):
                covered |= set(range(i, i + n)) if gram in seen else set()
                seen.add(gram)
            found[f"duplicate_{n}_grams"] = share(sum(len(words[i]) for i in covered), total)
    return found


PIECES = st.sampled_from(
    ["de", "la", "et", "Été", "À", "l'", "AB", "ab", "x1", "42", "col·legi", " ", " ", " ", "\n", "\n\n", "\n \n", ". ",
     "...", "…", "?!", "»", "“", "#", "{}", "- ", "• ", "* ", "*", "\u00a0", "utilise des cookies ", "Lorem ipsum ",
     "JavaScript ", "İ", "ß", "ǅ", "日本", "𠀀", "é", "\t", "a b c d e f g h i j k "]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join)
# Above U+1FFFF all code points count as letters, the unassigned ones too.
ANY = st.text(st.characters(max_codepoint=0x1FFFD), max_size=40)


@given(st.lists(st.one_of(TEXTS, ANY), max_size=6))
@example([])
@example(["", "\n", " ", "a", ".", "…", "-", "...", "a" * 3000])
@settings(max_examples=60, deadline=None)
def test_signals_are_those_of_a_plain_implementation(texts):
    batch = QUALITY.signals(texts)
    assert batch.schema == SCHEMA
    for row, text in zip(batch.to_pylist(), texts, strict=True):
        expected = oracle(text)
        assert expected.keys() == SIGNALS.keys()
        for name, value in expected.items():
            assert row[f"quality_{name}"] == pytest.approx(value, rel=1e-6, abs=1e-7), (name, text)


def test_words_that_differ_in_case_alone_have_one_hash_and_every_character_its_class():
    classes, values = _tables()
    base = np.random.Generator(np.random.PCG64(0x7E57)).integers(2**64, size=KNOWN, dtype=np.uint64)
    for code, character in enumerate(map(chr, range(KNOWN - 1))):
        lower, found = character.lower(), int(classes[code])
        assert values[code] == base[ord(lower) if len(lower) == 1 else code]
        assert bool(found & LETTER) == is_letter(character)
        assert bool(found & WORD) == is_word(character)
        assert bool(found & SPACE) == character.isspace()


@given(st.lists(TEXTS, max_size=12), st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_signals_do_not_depend_on_the_batch(texts, size):
    whole = QUALITY.signals(texts)
    alone = [QUALITY.signals([text]) for text in texts]
    assert pa.Table.from_batches(alone, SCHEMA).equals(pa.Table.from_batches([whole]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_module, "BATCH_CHARACTERS", size)
        assert QUALITY.signals(texts).equals(whole)


def test_lists_arrays_and_missing_texts_are_taken():
    texts = [PROSE, None, ""]
    expected = QUALITY.signals([PROSE, "", ""])
    assert QUALITY.signals(texts).equals(expected)
    assert QUALITY.signals(pa.array(texts)).equals(expected)
    assert QUALITY.signals(pa.chunked_array([texts[:1], texts[1:]])).equals(expected)


def test_a_very_long_text_is_judged_by_its_beginning_and_counted_whole(monkeypatch):
    monkeypatch.setattr(quality_module, "LONGEST", 1000)
    row = QUALITY.signals(["mot " * 1000]).to_pylist()[0]
    assert (row["quality_characters"], row["quality_words"]) == (4000, 250)


def test_travels_to_other_processes():
    again = pickle.loads(pickle.dumps(Quality.of("de")))
    assert again == Quality.of("de")


# ---------------------------------------------------------------- thresholds
def test_eight_languages_are_shipped_with_thresholds_for_known_signals():
    assert shipped_languages() == ["ca", "de", "en", "es", "fr", "it", "nl", "pt"]
    for language in shipped_languages():
        quality = Quality.of(language)
        assert quality.language == language
        assert len(quality.stop_words) > 60
        assert quality.thresholds.keys() <= SIGNALS.keys()


def test_good_text_passes_and_each_defect_fails_for_its_reason():
    quality = Quality.of("fr")
    defects = {
        PROSE: "",
        "Trop court.": "quality_words",
        (PROSE + "\n") * 12: "quality_duplicate_lines",
        "achetez maintenant ici " * 40: "quality_stop_words",
        PROSE + " Lorem ipsum dolor.": "quality_lorem_ipsum",
        "\n".join(f"- {word} de la liberté et l'égalité des droits" for word in PROSE.split()): "quality_bullet_lines",
        " ".join(f"# {word}" for word in PROSE.split()): "quality_symbol_ratio",
        "\n".join(f"Chapitre {n} : avis, annonces, horaires, tarifs. De rien." for n in "abcdefghij"):
            "quality_stop_word_share",
    }  # fmt: skip
    failures = quality.failures(quality.signals(list(defects)))
    assert [reason for reason, _ in failures] == list(defects.values())
    assert failures[1][1] == "2 < 50"


def test_a_value_equal_to_its_threshold_passes():
    quality = Quality("fr", ("de",), ("x",), {"stop_word_share": Bounds(min=0.1, max=0.1)})
    assert quality.failures(quality.signals(["de " + "mot " * 9])) == [("", "")]


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    path = tmp_path / "xx.yaml"
    path.write_text(
        "language: xx\nstop_words: ''\nthresholds: {wordz: {min: 1}, words: {min: 9, max: 3}, lines: {least: 1}}\nx: 1"
    )
    with pytest.raises(ConfigError) as caught:
        Quality.read(path)
    assert len(caught.value.problems) == 5
    for part in ("x: unknown", "stop_words", "wordz", "min 9 is above max 3", "thresholds.lines"):
        assert any(part in problem for problem in caught.value.problems)


@pytest.mark.parametrize("content", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "xx.yaml"
    path.write_text(content)
    with pytest.raises(HanseError, match=r"xx\.yaml"):
        Quality.read(path)


def test_an_unknown_language_names_the_known_ones():
    with pytest.raises(HanseError, match=r"no quality thresholds for language 'xx' .*ca, de, en"):
        Quality.of("xx")
