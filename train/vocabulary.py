"""Another tokenizer for weights that exist: their embeddings are made anew, everything else is kept.

A token that both tokenizers have keeps its embedding. A new one gets the mean of its pieces, the tokens into which the
old tokenizer cuts it (fast vocabulary transfer: Gee et al., arXiv 2402.09977, EMNLP 2022). What neither says anything
about, rows that only pad the matrix among them, gets the mean of all old tokens, which keeps the model's next words
close to what they were (Hewitt, "Initializing new word embeddings for pretrained language models", 2021). The output
embedding, where it is not tied, is treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from common.errors import HanseError
from common.files import read_json
from data_pipelines.tokenizer import byte_pieces, tokenizer_sha256
from train.model import shape_of_model
from train.weights import Weights

SPACE = "\u2581"  # SentencePiece's stand-in


@dataclass(frozen=True)
class Composition:
    """Which old tokens each new one is made of.

    Attributes:
        pieces: {new id: old ids}; a new id that is not in it is made of all of them.
        copied, composed: how many new tokens are one old token, and how many the mean of several.
        old_tokens: ids of the old tokenizer, ascending.
    """

    pieces: dict[int, list[int]]
    copied: int
    composed: int
    old_tokens: list[int]


def compose(old_file: Path, new_file: Path, ends: tuple[int, int | None]) -> Composition:
    """Cut every token of a byte-level BPE by another tokenizer: a byte-level BPE, or one of SentencePiece's kind.

    Args:
        old_file, new_file: ``tokenizer.json``.
        ends: ids of the token that ends a document, new and old (None: not known).

    Raises:
        HanseError: a file is no such tokenizer.
    """
    told = read_json(new_file, "tokenizer")
    new = byte_pieces(told, new_file)
    try:
        old = Tokenizer.from_file(str(old_file))
    except Exception as error:  # the library's own, without a type
        raise HanseError(f"init_tokenizer={old_file}: not a readable tokenizer.json ({error})") from None
    vocabulary, cut = old.get_vocab(), _cutter(old, old_file)
    pieces = {number: cut(piece) for piece, number in new.items()}
    for token in told["added_tokens"]:
        same = vocabulary.get(token["content"])
        text = None if token["special"] else cut(token["content"].encode())
        pieces[token["id"]] = [same] if same is not None else text or []
    new_end, old_end = ends
    if old_end is not None and old_end in set(vocabulary.values()):
        pieces[new_end] = [old_end]
    pieces = {number: found for number, found in pieces.items() if found}
    copied = sum(len(found) == 1 for found in pieces.values())
    return Composition(pieces, copied, len(pieces) - copied, sorted(vocabulary.values()))


def _cutter(old: Tokenizer, file: Path) -> Callable[[bytes], list[int]]:
    """bytes -> old ids, [] where the old tokenizer has no way to write them."""
    spaced = any(piece.startswith(SPACE) for piece in old.get_vocab())
    try:
        whole = {} if spaced else byte_pieces(read_json(file, "tokenizer"), file)
    except HanseError:
        raise HanseError(f"init_tokenizer={file}: neither a byte-level BPE nor one of SentencePiece's kind; tokens "
                         "cannot be compared with its own") from None  # fmt: skip
    stand_ins = {piece[0]: str(old.id_to_token(number)) for piece, number in whole.items() if len(piece) == 1}

    def cut(piece: bytes) -> list[int]:
        if not spaced:
            if piece in whole:
                return [whole[piece]]
            written = [stand_ins[byte] for byte in piece if byte in stand_ins]
            return [token.id for token in old.model.tokenize("".join(written))] if len(written) == len(piece) else []
        try:
            text = piece.decode("utf-8").replace(" ", SPACE)
        except UnicodeDecodeError:  # a part of a character: by SentencePiece's tokens for bytes
            found = [number for byte in piece if (number := old.token_to_id(f"<0x{byte:02X}>")) is not None]
            return found if len(found) == len(piece) else []
        unknown = getattr(old.model, "unk_token", None)
        return [token.id for token in old.model.tokenize(text) if token.value != unknown]

    return cut


class Adapted(Weights):
    """Weights whose embeddings are those of another vocabulary.

    Args:
        weights: as they are.
        model: the configuration of the model that is to begin with them.
        composition: which old tokens the new ones are made of; None: embeddings stay as they were drawn.
    """

    def __init__(self, weights: Weights, model: PretrainedConfig, composition: Composition | None):
        self.weights, self.folder, self.composition = weights, weights.folder, composition
        self.settings, self.facts, self.tokenizer_sha256 = weights.settings, weights.facts, None
        self.constants, self.complete = weights.constants, composition is not None
        built = shape_of_model(model)
        ends = {id(cast(Any, built.get_input_embeddings()).weight), id(cast(Any, built.get_output_embeddings()).weight)}
        self.embeddings = {name: tuple(one.shape) for name, one in built.named_parameters() if id(one) in ends}
        self.shapes = dict(weights.shapes)
        for name, shape in self.embeddings.items():
            there = weights.shapes.get(name)
            if there is None or there[1:] != shape[1:]:
                continue  # the check of shapes will tell
            if composition and composition.old_tokens[-1] >= there[0]:
                raise HanseError(f"init_tokenizer: its ids go up to {composition.old_tokens[-1]}, and {name} in "
                                 f"{weights.folder} has {there[0]} rows; it is another's tokenizer")  # fmt: skip
            self.shapes[name] = shape
        self._made: dict[str, Tensor] = {}

    def read(self, name: str, start: int, stop: int, out: Tensor) -> None:
        if name not in self.embeddings:
            self.weights.read(name, start, stop, out)
        elif self.composition:
            out.copy_(self._embedding(name, self.composition).view(-1)[start:stop])

    def _embedding(self, name: str, composition: Composition) -> Tensor:
        """The new matrix, (rows, width), made once and kept: it is read in parts."""
        if name not in self._made:
            rows, width = self.weights.shapes[name]
            old = torch.empty(rows, width)
            self.weights.read(name, 0, old.numel(), old.view(-1))
            everything = old[composition.old_tokens].double().mean(0).float()
            self._made[name] = means(old, composition.pieces, everything.repeat(self.embeddings[name][0], 1))
        return self._made[name]

    def told(self) -> str:
        """What became of the embeddings, in words."""
        rows = max(shape[0] for shape in self.embeddings.values())
        if self.composition is None:
            return f"{rows:,} fresh embeddings"
        copied, composed = self.composition.copied, self.composition.composed
        return (f"of {rows:,} embeddings {copied:,} are copied, {composed:,} the mean of their old pieces, and "
                f"{rows - copied - composed:,} that of all")  # fmt: skip

    def verify(self, rank: int = 0, ranks: int = 1) -> dict[str, str]:
        return self.weights.verify(rank, ranks)

    def identity(self, hashes: dict[str, str]) -> str:
        return self.weights.identity(hashes)


def means(old: Tensor, pieces: dict[int, list[int]], out: Tensor) -> Tensor:
    """Set row n of ``out`` to the mean of the rows ``pieces[n]`` of ``old``; ``out``."""
    numbers = list(pieces)
    lists: Sequence[list[int]] = list(pieces.values())
    starts = torch.tensor([0, *map(len, lists)]).cumsum(0)[:-1]
    flat = torch.tensor([one for found in lists for one in found])
    out[numbers] = torch.nn.functional.embedding_bag(flat, old, starts, mode="mean")
    return out


def adapted(
    weights: Weights, tokenizer: str, new_file: Path, model: PretrainedConfig, rule: str
) -> tuple[Weights, str]:
    """Weights for a model with another tokenizer, and the SHA-256 of the one they had.

    Args:
        weights: as they are; ``tokenizer``: theirs, a ``tokenizer.json`` or its folder.
        new_file: the ``tokenizer.json`` of the shards; ``model``: the configuration of the model to begin.
        rule: ``pieces`` or ``random``.

    Raises:
        HanseError: it is not their tokenizer, or not one that tokens can be compared with.
    """
    old_file = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
    sha256 = tokenizer_sha256(old_file)
    if weights.tokenizer_sha256 not in (None, sha256):
        raise HanseError(f"init_tokenizer={tokenizer}: not the tokenizer that {weights.folder} was trained with (its "
                         "sha256 differs)")  # fmt: skip
    end = weights.settings.get("eos_token_id")
    old_end = end[0] if isinstance(end, list) and end else end
    ends = (int(model.eos_token_id), old_end if isinstance(old_end, int) else None)
    composition = compose(old_file, new_file, ends) if rule == "pieces" else None
    return Adapted(weights, model, composition), sha256
