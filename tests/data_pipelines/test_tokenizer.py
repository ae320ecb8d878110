"""A byte-level BPE that can write every byte sequence, is the same every time, and loads in transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.errors import HanseError
from common.files import read_json, sha256_file
from data_pipelines import tokenizer
from data_pipelines.config import TokenizerConfig
from data_pipelines.tokenizer import byte_pieces, token_byte_lengths, tokenizer_sha256

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
PATTERN = r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]"


@pytest.fixture(scope="module")
def file(tiny_data):
    return tiny_data / "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def loaded(file):
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # written out in a text they are text, as in the shards
    return tokenizer


@pytest.fixture(scope="module")
def pieces(file):
    return byte_pieces(read_json(file, "tokenizer"), file)


@example(text="a <|endoftext|> b<|pad|>")
@given(text=ANY_TEXT | st.text(st.sampled_from("\0\x01\t\n\r\x7f\x85\u2028 é’«😀")))
def test_any_text_comes_back(loaded, file, text):
    ids = loaded.encode(text, add_special_tokens=False).ids
    assert loaded.decode(ids, skip_special_tokens=False) == text
    assert token_byte_lengths(file)[ids].sum() == len(text.encode())


@given(data=st.binary())
def test_any_bytes_can_be_written(pieces, data):
    """All 256 single bytes are tokens, so that even what is not UTF-8 has ids, and the ids give it back."""
    content = {number: piece for piece, number in pieces.items()}
    assert b"".join(content[pieces[data[at : at + 1]]] for at in range(len(data))) == data
    assert all(bytes([byte]) in pieces for byte in range(256))


def test_special_tokens_come_first_and_stand_for_no_text(loaded, file):
    assert [loaded.id_to_token(number) for number in range(9)] == [
        "<|endoftext|>", "<|pad|>", *(f"<|reserved_{number}|>" for number in range(6)), "!",
    ]  # fmt: skip
    lengths = token_byte_lengths(file)
    assert len(lengths) == loaded.get_vocab_size() == 1024
    assert (lengths[:8] == 0).all()
    assert (lengths[8:] > 0).all()


def test_merges_do_not_cross_the_pattern(pieces):
    assert len([piece for piece in pieces if piece.startswith(b" ") and piece[1:].isalpha()]) > 200
    assert not [piece for piece in pieces if b" " in piece.strip(b" ")]
    assert not [piece for piece in pieces if piece.isdigit() and len(piece) > 3]


def test_transformers_loads_it_without_a_network_and_gives_the_same_ids(tiny_data, loaded, prose, monkeypatch):
    import socket

    import transformers

    def refused(*arguments, **settings):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    auto = transformers.AutoTokenizer.from_pretrained(tiny_data / "tokenizer")
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (0, 1, 1024)
    for text in [*prose("fr")[:5], " « Oui ! »  L’été , déjà ?\n\n"]:
        ids = auto(text)["input_ids"]
        assert ids == loaded.encode(text).ids
        assert auto.decode(ids) == text  # the space before ! stays
    assert auto("a<|endoftext|>")["input_ids"][-1] == 0


@pytest.mark.slow
def test_the_same_corpus_gives_the_same_file_with_any_number_of_threads(tiny_data, tmp_path):
    expected = sha256_file(tiny_data / "tokenizer/tokenizer.json")
    for threads in ("1", "3"):
        command = [sys.executable, "-c", "import hanse; hanse.cli()", "tokenizer", "name=tiny", "vocabulary_size=1024",
                   f"corpus={tiny_data / 'corpus'}", f"output={tmp_path / threads}"]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "RAYON_NUM_THREADS": threads}, stdout=subprocess.DEVNULL)
        assert sha256_file(tmp_path / threads / "tokenizer.json") == expected


def test_a_language_with_ten_times_the_text_weighs_no_more(make_corpus, write_jsonl, local, prose, tmp_path):
    """The merges are those of equal shares: repeating French tenfold, under other words, changes nothing of German."""

    def trained(french, name):
        sources = {"de": local(write_jsonl("de.jsonl", [{"text": text} for text in prose("de")]), "de"),
                   "fr": local(write_jsonl("fr.jsonl", [{"text": text} for text in french]))}  # fmt: skip
        make_corpus(sources, output=str(tmp_path / f"corpus-{name}"), validation_fraction=0.1)
        config = TokenizerConfig(name="x", corpus=str(tmp_path / f"corpus-{name}"), output=str(tmp_path / name),
                                 vocabulary_size=800, pattern=PATTERN)  # fmt: skip
        tokenizer.run(config)
        rows = read_json(tmp_path / name / "fertility.json", "fertility")
        training = read_json(tmp_path / name / "manifest.json", "manifest")["training"]
        return rows["de"]["tokens_per_word"], rows["fr"]["tokens_per_word"], training["bytes_per_language"]

    french = prose("fr")
    more = [f"{text} {number}" for number in range(10) for text in french]
    little, much = trained(french, "little"), trained(more, "much")
    assert len(set(much[2].values())) == 1
    assert much[2]["de"] <= 1.2 * little[2]["de"]  # the share of both is what the smaller one has
    assert abs(much[0] / little[0] - 1) < 0.1
    assert 0.6 < little[0] / little[1] < 1.6


def config_of(tiny_data, output, **settings):
    values = {"name": "x", "corpus": str(tiny_data / "corpus"), "output": str(output), "vocabulary_size": 400}
    return TokenizerConfig(**{**values, "pattern": PATTERN, **settings})


def test_a_rerun_does_nothing_and_another_setting_or_damage_trains_again(tiny_data, tmp_path, capsys):
    folder = tmp_path / "out"
    tokenizer.run(config_of(tiny_data, folder))
    before = {path.name: sha256_file(path) for path in folder.iterdir()}
    capsys.readouterr()
    tokenizer.run(config_of(tiny_data, folder))
    assert "holds this tokenizer already: nothing to do" in capsys.readouterr().out
    (folder / "tokenizer.json").write_text("{}")
    tokenizer.run(config_of(tiny_data, folder))
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == before
    tokenizer.run(config_of(tiny_data, folder, vocabulary_size=500))
    assert sha256_file(folder / "tokenizer.json") != before["tokenizer.json"]


def test_the_table_counts_what_it_says(tiny_data, loaded, rows_of, capsys):
    from data_pipelines.manifest import CorpusManifest

    table = read_json(tiny_data / "tokenizer/fertility.json", "fertility table")
    manifest = CorpusManifest.read(tiny_data / "corpus")
    for language, row in table.items():
        texts = [r["text"] for r in rows_of(manifest, "documents", language) if r["split"] == "validation"]
        tokens, words = sum(len(loaded.encode(text).ids) for text in texts), sum(len(text.split()) for text in texts)
        assert (row["tokens"], row["words"]) == (tokens, words)
        assert row["tokens_per_word"] == pytest.approx(tokens / words)
        assert row["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in texts) / tokens)
    tokenizer._show(tiny_data / "tokenizer")
    assert f"{table['fr']['tokens_per_word']:.3f}" in capsys.readouterr().out


def test_a_corpus_without_validation_is_trained_on_and_not_measured(
    make_corpus, write_jsonl, local, prose, tmp_path, capsys
):
    path = write_jsonl("fr.jsonl", [{"text": text} for text in prose("fr")])
    make_corpus({"web": local(path)}, validation_fraction=0.0)
    tokenizer.run(TokenizerConfig(name="x", corpus=str(tmp_path / "corpus"), output=str(tmp_path / "out"),
                                  vocabulary_size=400, pattern=PATTERN))  # fmt: skip
    assert "nothing to measure them on" in capsys.readouterr().out


def test_a_changed_corpus_is_refused(tiny_data, tmp_path):
    shutil.copytree(tiny_data / "corpus", tmp_path / "corpus")
    path = tmp_path / "corpus/documents/it.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(HanseError, match=r"it\.parquet: not the file that .*manifest\.json describes"):
        tokenizer.run(config_of(tiny_data, tmp_path / "out", corpus=str(tmp_path / "corpus")))
    path.unlink()
    with pytest.raises(HanseError, match=r"it\.parquet: missing; make the corpus again"):
        tokenizer.run(config_of(tiny_data, tmp_path / "out", corpus=str(tmp_path / "corpus")))
    assert not (tmp_path / "out").exists()


def test_added_tokens_count_as_they_are_written_and_special_ones_as_nothing(file, tmp_path):
    value = json.loads(file.read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    value["added_tokens"] += [{**added, "id": 1024, "content": "<été>", "special": False},
                              {**added, "id": 1025, "content": "<eos>", "special": True}]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    lengths = token_byte_lengths(tmp_path)
    assert lengths.dtype == np.int64
    assert lengths[1024:].tolist() == [len("<été>".encode()), 0]
    assert (lengths[:1024] == token_byte_lengths(file)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: [],
        lambda value: {**value, "model": {**value["model"], "type": "WordPiece"}},
        lambda value: {**value, "model": {**value["model"], "vocab": {"日本": 300}}},
        lambda value: {**value, "model": {**value["model"], "vocab": {"a": -1}}},
        lambda value: {**value, "model": {**value["model"], "vocab": {"a": 2**60}}},
        lambda value: {**value, "model": {**value["model"], "vocab": [["a", 1.0]]}},
        lambda value: {key: inner for key, inner in value.items() if key != "added_tokens"},
    ],
)
def test_what_is_no_byte_level_bpe_is_refused(file, tmp_path, change):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(HanseError, match="not a byte-level BPE; bits per byte need one"):
        token_byte_lengths(path)


def test_a_pattern_that_is_no_regular_expression_is_refused_before_anything_is_read(tiny_data, tmp_path):
    with pytest.raises(HanseError, match=r"pattern: not a regular expression \(.*\); "):
        tokenizer.run(config_of(tiny_data, tmp_path / "out", pattern="(", corpus=str(tmp_path / "absent")))


def test_a_missing_tokenizer_is_one_clear_error(tmp_path, file):
    for call in (tokenizer_sha256, token_byte_lengths):
        with pytest.raises(HanseError, match="hanse tokenizer"):
            call(tmp_path)
    assert tokenizer_sha256(file) == tokenizer_sha256(file.parent) == sha256_file(Path(file))


@pytest.mark.slow
def test_the_demo_needs_about_as_many_tokens_in_each_language(demo_data):
    table = read_json(demo_data / "tokenizer/fertility.json", "fertility table")
    fertility = [row["tokens_per_word"] for row in table.values()]
    assert list(table) == ["fr", "de", "es", "it"]
    assert max(fertility) < 1.6
    assert max(fertility) / min(fertility) < 1.1
    assert token_byte_lengths(demo_data / "tokenizer").shape == (16_384,)
