"""Fast encoders, each used only where its ids are equal to those of ``tokenizers`` (:mod:`data_pipelines.parity`).

``tokenizers`` defines what a tokenizer.json means; ``gigatoken`` and ``tiktoken`` are many times faster at the same
ids. A special token written out in a text is text here, never the special id: no document can end another.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from common.errors import HanseError
from common.files import read_json
from data_pipelines.memory import resident_bytes
from data_pipelines.tokenizer import byte_pieces

# Where encoders have differed or could differ.
HARD_TEXTS = (
    "",
    "<|endoftext|>",
    "a <|endoftext|> b<|pad|><|reserved_0|>",  # special tokens, written out
    " " * 200,
    "\n" * 60,
    "a" + " " * 37 + "b" + "\t" * 9 + "c  ",
    " \n \n\t\n x \r\n\r\n y\r",
    "\u2028\u2029\x85\x0b\x0c\xa0\xa0 \u3000 x",  # spaces and line ends beyond ASCII
    "\x00\x01\x7f\x80\ufffd\U0010ffff",
    "1 12 123 1234 1234567890123 3,14 1.000.000,00 \u0663\u0664\u0665 \xbd\xb2",
    "a" * 3000,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1ea\U0001f1fa",  # joined emoji, a flag
    "e\u0301le\u0300ve A\u030a\u0323 \u200bz\u00adx\ufeff",  # combining and invisible marks
    "l'\xe9t\xe9 d\u2019or dell'acqua I'LL we'Ve qu'IL 's'S \u2019s \u017f'\u017f",  # the long s folds to s
    "中文字符 русский текст العربية עברית ไทย हिन्दी",
    "«\u202fOui\u202f!\u202f» – „Nein“ … ¿Qué? ¡Sí!",
    "foo(bar)[0]{x}=>\\n//#@!$%^&*~`|",
)


Texts: TypeAlias = Sequence[str] | pa.Array
CACHE_BYTES = 12 * 2**20  # a thread: more makes it no faster, and the next doubling would be seen
THREADS = 16  # of gigatoken's, at most: what a batch gives work to


@dataclass(frozen=True)
class Encoder:
    """An encoder of one tokenizer; ``encode`` maps texts to (ids back to back, ids of each text), both 1-D integers.

    Texts are a sequence, or an array of pyarrow's, which gigatoken reads without a Python object for each.
    """

    name: str
    version: str
    encode: Callable[[Texts], tuple[np.ndarray, np.ndarray]]


def with_tokenizers(path: Path) -> Encoder:
    """The reference: Hugging Face ``tokenizers``."""
    return reference(Tokenizer.from_file(str(path)))


def reference(tokenizer: Tokenizer) -> Encoder:
    """The same with a tokenizer that is loaded already."""
    tokenizer.encode_special_tokens = True  # their text is text

    def encode(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        return _flat([found.ids for found in tokenizer.encode_batch_fast(_listed(texts), add_special_tokens=False)])

    return Encoder("tokenizers", importlib.metadata.version("tokenizers"), encode)


def with_gigatoken(path: Path) -> Encoder:
    """gigatoken. Its cache of words, one a thread, has no bound and doubles when it is full: a new one takes its place
    when memory has grown by CACHE_BYTES a thread since the first batch.
    """
    import awkward
    import gigatoken
    from awkward.contents import ListOffsetArray, NumpyArray
    from awkward.index import Index64

    value = json.loads(path.read_text(encoding="utf-8"))
    # The vocabulary keeps the special ones, but no merge leads there: their text is text.
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["special"]]
    text = json.dumps(value)
    held, most = [gigatoken.Tokenizer.from_json(text)], 0
    room = CACHE_BYTES * min(len(os.sched_getaffinity(0)), THREADS)

    def encode(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        nonlocal most
        if most and resident_bytes() > most:
            held.clear()  # before the new one is made
            held.append(gigatoken.Tokenizer.from_json(text))
            most = 0
        offsets, data = text_bytes(_array(texts))
        letters = NumpyArray(data, parameters={"__array__": "char"})
        strings = ListOffsetArray(Index64(offsets), letters, parameters={"__array__": "string"})
        ids = held[0].encode_batch(awkward.Array(strings))
        most = most or resident_bytes() + room  # a large vocabulary alone is some megabytes a thread
        return awkward.to_numpy(awkward.flatten(ids)), awkward.to_numpy(awkward.num(ids))

    return Encoder("gigatoken", importlib.metadata.version("gigatoken"), encode)


def with_tiktoken(path: Path) -> Encoder:
    """tiktoken with this file's tokens as ranks; for files with one Split pattern and no normalizer.

    Raises:
        ValueError: the file is of another kind.
    """
    import tiktoken

    value = json.loads(path.read_text(encoding="utf-8"))
    steps = value["pre_tokenizer"].get("pretokenizers", [])
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split" and "Regex" in step["pattern"]]
    if len(patterns) != 1 or any(step["type"] not in ("Split", "ByteLevel") for step in steps) or value["normalizer"]:
        raise ValueError("its pre-tokenizer is not a single Split pattern and ByteLevel")
    encoding = tiktoken.Encoding(
        path.stem, pat_str=patterns[0], mergeable_ranks=byte_pieces(value, path), special_tokens={}
    )

    def encode(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        return _flat(encoding.encode_ordinary_batch(_listed(texts)))

    return Encoder("tiktoken", importlib.metadata.version("tiktoken"), encode)


MAKERS: dict[str, Callable[[Path], Encoder]] = {
    "gigatoken": with_gigatoken, "tiktoken": with_tiktoken, "tokenizers": with_tokenizers,
}  # fmt: skip


def choose(
    wanted: str, path: Path, sample: Sequence[str], known: Encoder | None = None, after: str = ""
) -> tuple[Encoder, list[str]]:
    """The fastest encoder whose ids are right on ``sample`` and on hard texts, and remarks on those passed over.

    Args:
        wanted: ``auto``, or the name of one encoder.
        path: ``tokenizer.json``.
        sample: texts of the file to be encoded.
        known: the reference, where it is loaded already.
        after: an encoder that was found wrong; only slower ones are left.

    Raises:
        HanseError: the encoder asked for by name cannot be used.
    """
    added = [token["content"] for token in read_json(path, "tokenizer")["added_tokens"] if not token["special"]]
    texts = [*sample, *HARD_TEXTS, *(f"a {token} b{token}{token}" for token in added), *mixed(sample)]
    expected = (known or with_tokenizers(path)).encode(texts)
    remarks: list[str] = []
    names = list(MAKERS)[list(MAKERS).index(after) + 1 if after else 0 :]
    for name in names if wanted == "auto" else [wanted]:
        why = ""
        try:
            encoder = MAKERS[name](path)
            why = difference(expected, encoder.encode(texts), texts)
        except ImportError:
            why = "not installed"
        except Exception as error:  # a foreign tokenizer.json, which each library refuses in its own way
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not why:
            return encoder, remarks
        remarks.append(f"{name}: {why}")
    raise HanseError(f"encoder {remarks[-1]}; use encoder=auto")


def difference(
    expected: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], texts: Sequence[str]
) -> str:
    """How two encodings of the same texts differ, in words; empty when they are equal."""
    starts = [np.concatenate([[0], np.cumsum(lengths)]) for _, lengths in (expected, found)]
    wrong = [
        text
        for index, text in enumerate(texts)
        if not np.array_equal(
            expected[0][starts[0][index] : starts[0][index + 1]], found[0][starts[1][index] : starts[1][index + 1]]
        )
    ]
    return f"other ids than tokenizers for {len(wrong)} of {len(texts)} texts, e.g. {wrong[0][:40]!r}" if wrong else ""


def mixed(sample: Sequence[str], number: int = 64) -> list[str]:
    """Random strings over the characters of the sample, spaces, digits and signs: what nobody thought of."""
    rng = random.Random(0)
    letters = "".join(sorted(set("".join(sample)))) + "  \n\n\t'’-0123456789"
    return ["".join(rng.choices(letters, k=rng.randint(1, 200))) for _ in range(number)]


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, data): int64 (B + 1,), and the UTF-8 of all texts as bytes; text n is ``data[offsets[n] : ...]``."""
    wide = pa.types.is_large_string(texts.type)
    assert wide or pa.types.is_string(texts.type)
    assert not texts.null_count
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    size = 8 if wide else 4
    where = np.frombuffer(offsets, f"<i{size}", len(texts) + 1, size * texts.offset).astype(np.int64)
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, dtype=np.uint8)
    return where - where[0], held[where[0] : where[-1]]


def _listed(texts: Texts) -> list[str]:
    return texts.to_pylist() if isinstance(texts, pa.Array) else list(texts)


def _array(texts: Texts) -> pa.Array:
    return texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return np.fromiter((number for one in ids for number in one), dtype=np.int64, count=int(lengths.sum())), lengths
