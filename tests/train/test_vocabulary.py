"""Another tokenizer for weights that exist: what both know is kept, what is new is made of its pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig

from common.errors import HanseError
from common.files import sha256_file
from data_pipelines.tokenizer import byte_pieces
from tests.conftest import TEXTS
from train.initial import check
from train.model import build_model
from train.vocabulary import adapted, compose
from train.weights import open_weights

SETTINGS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "pad_token_id": None, "bos_token_id": None}  # fmt: skip


def text(*languages: str) -> list[str]:
    return [line for name in languages for line in (TEXTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()]


def byte_level(path: Path, size: int, specials: list[str], *languages: str) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(text(*languages), trainer)
    tokenizer.save(str(path))
    return path


def sentence_piece(path: Path) -> Path:
    """As Llama 2's and Mistral's: ``▁`` for a space, tokens for single bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(text("fr"), trainer)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"old": byte_level(folder / "old.json", 500, ["<pad>", "<eos>"], "fr"),
            "new": byte_level(folder / "new.json", 600, ["<|endoftext|>", "<pad>", "<mask>"], "de"),
            "spaced": sentence_piece(folder / "spaced.json")}  # fmt: skip


def bytes_of(path: Path) -> dict[int, bytes]:
    return {number: piece for piece, number in byte_pieces(json.loads(path.read_text()), path).items()}


def test_pieces_of_a_byte_level_tokenizer_spell_the_token_and_shared_ones_are_themselves(files):
    found, old, new = compose(files["old"], files["new"], (0, 1)), bytes_of(files["old"]), bytes_of(files["new"])
    for number, piece in new.items():
        assert b"".join(old[one] for one in found.pieces[number]) == piece
        assert (len(found.pieces[number]) == 1) == (piece in old.values())
    assert found.pieces[0] == [1]  # what ends a document
    assert found.pieces[1] == [0]  # a special token of the same name
    assert 2 not in found.pieces  # a special token that is new
    assert found.copied > 256
    assert found.composed == sum(piece not in old.values() for piece in new.values()) > 50


def test_pieces_of_a_sentence_piece_tokenizer_spell_the_token(files):
    found, new = compose(files["spaced"], files["new"], (0, 2)), bytes_of(files["new"])
    old = {number: token for token, number in Tokenizer.from_file(str(files["spaced"])).get_vocab().items()}

    def spelled(token: str) -> bytes:
        if token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    for number, piece in new.items():
        assert b"".join(spelled(old[one]) for one in found.pieces[number]) == piece
    assert found.pieces[0] == [2]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["old", "spaced"])
def test_rows_are_copies_and_means_and_all_else_is_kept(files, tmp_path, tied, kind):
    rows = 512 if kind == "old" else 704
    before = AutoConfig.for_model("llama", vocab_size=rows, tie_word_embeddings=tied, eos_token_id=1, **SETTINGS)
    build_model(before, 3).save_pretrained(tmp_path / "hub")
    weights = open_weights(tmp_path / "hub")
    now = AutoConfig.for_model("llama", vocab_size=640, tie_word_embeddings=tied, eos_token_id=0, **SETTINGS)
    with pytest.raises(HanseError, match=r"embed_tokens.weight is \[\d+, 16\] there and \[640, 16\]"):
        check(weights, now, "t")
    made, old_sha256 = adapted(weights, str(files[kind]), files["new"], now, "pieces")
    assert old_sha256 == sha256_file(files[kind])
    check(made, now, "t")
    model = build_model(now, 4)
    made.load(model)
    found, right = dict(model.named_parameters()), dict(build_model(before, 3).named_parameters())
    composition = compose(files[kind], files["new"], (0, 1))
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        old, new = right.pop(name).detach(), found.pop(name).detach()
        mean = old[composition.old_tokens].mean(0)
        for number in range(640):
            pieces = composition.pieces.get(number)
            expected = old[pieces].mean(0) if pieces else mean
            assert torch.allclose(new[number], expected, atol=1e-7)
        part = torch.empty(50)
        made.read(name, 100, 150, part)
        assert torch.equal(part, new.reshape(-1)[100:150])
    assert found.keys() == right.keys()
    assert all(torch.equal(one, right[name]) for name, one in found.items())
    drawn, fresh = build_model(now, 4), build_model(now, 4)
    adapted(weights, str(files[kind]), files["new"], now, "random")[0].load(drawn)
    assert torch.equal(drawn.get_input_embeddings().weight, fresh.get_input_embeddings().weight)
    assert not torch.equal(drawn.model.layers[0].mlp.up_proj.weight, fresh.model.layers[0].mlp.up_proj.weight)


def test_the_wrong_tokenizer_is_refused(files, tmp_path):
    small = AutoConfig.for_model("llama", vocab_size=300, tie_word_embeddings=True, **SETTINGS)
    build_model(small, 3).save_pretrained(tmp_path / "hub")
    now = AutoConfig.for_model("llama", vocab_size=640, tie_word_embeddings=True, eos_token_id=0, **SETTINGS)
    with pytest.raises(HanseError, match=r"ids go up to 499, and model\.embed_tokens\.weight in .* has 300 rows"):
        adapted(open_weights(tmp_path / "hub"), str(files["old"]), files["new"], now, "pieces")
    (tmp_path / "hub/tokenizer.json").write_bytes(files["spaced"].read_bytes())
    with pytest.raises(HanseError, match=r"not the tokenizer that .* was trained with"):
        adapted(open_weights(tmp_path / "hub"), str(files["old"]), files["new"], now, "pieces")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(HanseError, match="not a readable tokenizer"):
        compose(tmp_path / "broken.json", files["new"], (0, 1))
    word = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    word.save(str(tmp_path / "word.json"))
    with pytest.raises(HanseError, match="neither a byte-level BPE nor one of SentencePiece's kind"):
        compose(tmp_path / "word.json", files["new"], (0, 1))
