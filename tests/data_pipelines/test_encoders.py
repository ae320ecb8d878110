"""A fast encoder is used where its ids are those of tokenizers, and passed over, with the reason, where not."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines import encoders
from data_pipelines.config import TokenizerConfig
from data_pipelines.encoders import HARD_TEXTS, MAKERS, choose, difference
from data_pipelines.tokenizer import token_byte_lengths, train

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)
TRICKY = st.lists(
    st.sampled_from(
        ["<|endoftext|>", "<|pad|>", " ", "  ", "\n", "\r\n", "\t", "\0", "\u2028", "\xa0", "'s", "'LL", "’s", "ſ",
         "l'", "Été", "ß", "İ", "é", "e\u0301", "1", "23", "٣", "中文", "😀", "\u200d", "!", "?!", "«", "-", "a", "Z"]
    ),
    max_size=20,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def file(tiny_data):
    return tiny_data / "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def made(file):
    return {name: make(file) for name, make in MAKERS.items()}


@settings(max_examples=60)
@given(texts=st.lists(ANY_TEXT | TRICKY, max_size=12))
def test_all_encoders_give_the_ids_of_tokenizers(made, file, texts):
    expected = made["tokenizers"].encode(texts)
    lengths = token_byte_lengths(file)
    ends = np.cumsum(expected[1])
    for text, begin, end in zip(texts, ends - expected[1], ends, strict=True):
        assert lengths[expected[0][begin:end]].sum() == len(text.encode())  # no special id, nothing lost
    for name in ("gigatoken", "tiktoken"):
        ids, counts = made[name].encode(texts)
        assert ids.tolist() == expected[0].tolist(), name
        assert counts.tolist() == expected[1].tolist(), name


def test_prose_and_hard_texts_are_equal_too(made, prose):
    texts = [*HARD_TEXTS, *(text for language in ("fr", "de", "es", "it") for text in prose(language))]
    expected = made["tokenizers"].encode(texts)
    for name, encoder in made.items():
        assert difference(expected, encoder.encode(texts), texts) == "", name


def test_auto_takes_the_fastest_that_is_right(file, prose):
    encoder, remarks = choose("auto", file, prose("fr"))
    assert (encoder.name, remarks) == ("gigatoken", [])


def shifted(name):
    """A real encoder whose ids are wrong in one place: the last id of every text that holds a capital É."""

    def make(path):
        real = encoders.with_tokenizers(path)

        def encode(texts):
            ids, lengths = real.encode(texts)
            ids, ends = ids.copy(), np.cumsum(lengths)
            for text, end in zip(texts, ends, strict=True):
                if "É" in text:
                    ids[end - 1] += 1
            return ids, lengths

        return encoders.Encoder(name, "0", encode)

    return make


def test_an_encoder_with_wrong_ids_is_passed_over_and_another_one_missing(file, prose, monkeypatch):
    def missing(path):
        raise ImportError("No module named 'tiktoken'")

    monkeypatch.setitem(MAKERS, "gigatoken", shifted("gigatoken"))
    monkeypatch.setitem(MAKERS, "tiktoken", missing)
    sample = ["Ceci va bien.", *[text for text in prose("fr") if "É" in text][:3]]
    encoder, remarks = choose("auto", file, sample)
    assert encoder.name == "tokenizers"
    assert len(remarks) == 2
    assert remarks[0].startswith("gigatoken: other ids than tokenizers for ")
    assert repr(sample[1][:40]) in remarks[0]  # the first text that shows it
    assert remarks[1] == "tiktoken: not installed"
    with pytest.raises(HanseError, match=r"encoder gigatoken: other ids than tokenizers .*; use encoder=auto"):
        choose("gigatoken", file, sample)


def test_lengths_that_differ_are_noticed_though_the_ids_are_equal():
    one, two = (np.array([1, 2, 3]), np.array([1, 2])), (np.array([1, 2, 3]), np.array([2, 1]))
    assert difference(one, one, ["a", "b"]) == ""
    assert difference(one, two, ["a", "b"]) == "other ids than tokenizers for 2 of 2 texts, e.g. 'a'"


def test_a_pattern_of_ones_own_falls_back_to_one_that_knows_it(tmp_path, prose):
    """Every letter and digit by itself, signs in pairs: no library has this one built in."""
    config = TokenizerConfig(
        name="x", vocabulary_size=400, pattern=r"[\p{L}\p{M}]{1,5}| ?\p{N}{1,2}|\s+|[^\s\p{L}\p{M}\p{N}]{1,2}"
    )
    train({"fr": prose("fr")}, config).save(str(tmp_path / "tokenizer.json"))
    encoder, remarks = choose("auto", tmp_path / "tokenizer.json", prose("fr"))
    assert encoder.name in ("tiktoken", "tokenizers")
    assert remarks
    assert remarks[0].startswith("gigatoken: ")


def test_tokens_added_to_a_foreign_tokenizer_are_part_of_the_comparison(file, tmp_path, prose):
    value = json.loads(file.read_text())
    rules = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    value["added_tokens"].append({"id": 1024, "content": "<été>", **rules})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value))
    with pytest.raises(HanseError, match="encoder tiktoken: other ids than tokenizers"):
        choose("tiktoken", path, prose("fr"))
    encoder, _ = choose("auto", path, prose("fr"))
    ids, _ = encoder.encode(["l'<été> <|pad|>"])
    assert 1024 in ids
    assert 1 not in ids
    assert token_byte_lengths(path)[ids].sum() == len("l'<été> <|pad|>".encode())


def test_gigatoken_is_made_anew_when_memory_has_grown_and_the_ids_stay(file, prose, monkeypatch):
    """Its cache of words has no bound of its own. That memory grows with new words is shown in a process of its own:
    one that has run other tests has freed memory to take it from.
    """
    import gigatoken

    grown = "import sys; from pathlib import Path; from data_pipelines import encoders as e; "
    grown += "encode = e.with_gigatoken(Path(sys.argv[1])).encode; encode(['a']); before = e.resident_bytes(); "
    grown += "encode([' '.join(f'{number:x}q' for number in range(80_000))]); print(e.resident_bytes() - before)"
    said = subprocess.run([sys.executable, "-c", grown, str(file)], capture_output=True, text=True, check=True).stdout
    assert int(said) > 2**20

    made, real, memory = [], gigatoken.Tokenizer.from_json, itertools.count(0, 2**20)
    monkeypatch.setattr(encoders, "CACHE_BYTES", 0)
    monkeypatch.setattr(encoders, "resident_bytes", lambda: next(memory))
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda value: made.append(1) or real(value))
    encoder, reference = encoders.with_gigatoken(file), encoders.with_tokenizers(file)
    for turn in range(4):
        encoder.encode([" ".join(f"{chr(97 + turn)}{number:x}q" for number in range(2_000))])
    ids, lengths = encoder.encode(prose("fr"))
    assert len(made) > 1
    expected = reference.encode(prose("fr"))
    assert ids.tolist() == expected[0].tolist()
    assert lengths.tolist() == expected[1].tolist()
