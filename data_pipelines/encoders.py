"""Fast encoders, each used only after its ids were found equal to those of ``tokenizers`` on the file at hand.

``tokenizers`` defines what a tokenizer.json means; ``gigatoken`` and ``tiktoken`` are many times faster at the same
ids. A special token written out in a text is text here, never the special id: no document can end another.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from common.errors import HanseError
from common.files import read_json
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


@dataclass(frozen=True)
class Encoder:
    """An encoder of one tokenizer; ``encode`` maps texts to (ids back to back, ids of each text), both 1-D integers."""

    name: str
    version: str
    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def with_tokenizers(path: Path) -> Encoder:
    """The reference: Hugging Face ``tokenizers``."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # their text is text

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat([encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])

    return Encoder("tokenizers", importlib.metadata.version("tokenizers"), encode)


def with_gigatoken(path: Path) -> Encoder:
    """gigatoken. Its cache of words has no bound, so make a new one for each file."""
    import awkward
    import gigatoken

    value = json.loads(path.read_text(encoding="utf-8"))
    # The vocabulary keeps the special ones, but no merge leads there: their text is text.
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["special"]]
    tokenizer = gigatoken.Tokenizer.from_json(json.dumps(value))

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = tokenizer.encode_batch(list(texts))
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

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat(encoding.encode_ordinary_batch(list(texts)))

    return Encoder("tiktoken", importlib.metadata.version("tiktoken"), encode)


MAKERS: dict[str, Callable[[Path], Encoder]] = {
    "gigatoken": with_gigatoken, "tiktoken": with_tiktoken, "tokenizers": with_tokenizers,
}  # fmt: skip


def choose(wanted: str, path: Path, sample: Sequence[str]) -> tuple[Encoder, list[str]]:
    """The fastest encoder whose ids are right on ``sample`` and on hard texts, and remarks on those passed over.

    Args:
        wanted: ``auto``, or the name of one encoder.
        path: ``tokenizer.json``.
        sample: texts of the file to be encoded.

    Raises:
        HanseError: the encoder asked for by name cannot be used.
    """
    added = [token["content"] for token in read_json(path, "tokenizer")["added_tokens"] if not token["special"]]
    texts = [*sample, *HARD_TEXTS, *(f"a {token} b{token}{token}" for token in added), *_mixed(sample)]
    expected = with_tokenizers(path).encode(texts)
    remarks: list[str] = []
    for name in MAKERS if wanted == "auto" else [wanted]:
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


def _mixed(sample: Sequence[str], number: int = 64) -> list[str]:
    """Random strings over the characters of the sample, spaces, digits and signs: what nobody thought of."""
    rng = random.Random(0)
    letters = "".join(sorted(set("".join(sample)))) + "  \n\n\t'’-0123456789"
    return ["".join(rng.choices(letters, k=rng.randint(1, 200))) for _ in range(number)]


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return np.fromiter((number for one in ids for number in one), dtype=np.int64, count=int(lengths.sum())), lengths
