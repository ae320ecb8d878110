"""Token files of others -> shards: Megatron's ``.bin``/``.idx`` and datatrove's ``.ds``, written with our tokenizer.

What they lack is made here: provenance a document, counts, a validation split, the manifest. Tokens stay as they are;
only a document that no end-of-document id closes (Megatron writes it with ``--append-eod`` alone) gets one.

    .ds           little-endian token ids, documents back to back, 2 or 4 bytes each
    .ds.index     u64 a document: where in tokens it ends; without this file, documents end at the end-of-document id
    .ds.metadata  text: "tokenizer|bytes of an id", then the number of tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import HanseError
from common.files import merkle_root, sha256_file
from common.terminal import Progress, say
from data_pipelines.config import TokenizeConfig
from data_pipelines.shards import BIN, INDEX, SPLITS, ShardEntry, TokenShard, beside, token_dtype
from data_pipelines.split_shard import SplitShard, sums_of, with_ends

if TYPE_CHECKING:
    from data_pipelines.tokenize import LoadedTokenizer

DS = ".ds"
COLUMNS = ["id", "source", "license", "language", "url", "split"]


@dataclass(frozen=True)
class Foreign:
    """Token ids of somebody's file, and where in them documents begin, the last number being where the last ends."""

    path: Path
    tokens: np.ndarray  # 1-D, memory-mapped
    starts: np.ndarray  # int64 (documents + 1,)


@dataclass(frozen=True)
class Documents:
    """Some documents of a file: ``rows`` (B of them, :data:`COLUMNS`), their ids back to back without end-of-document
    ids, and int64 (B,): where in those each ends, and its bytes of text."""

    rows: pa.RecordBatch
    ids: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray


def files_of(path: Path) -> list[Path]:
    """The files that a dataset consists of; ``path``: of a ``.ds``, or of a ``.bin``, with this ending or without.

    Raises:
        HanseError: they are not there.
    """
    if path.suffix == DS:
        found = [path, *(other for other in (beside(path, ".index"), beside(path, ".metadata")) if other.is_file())]
    else:
        prefix = _prefix(path)
        found = [beside(prefix, BIN), beside(prefix, INDEX)]
    for file in found:
        if not file.is_file():
            raise HanseError(f"{file}: missing; adopt.LANGUAGE.path is that of a .bin/.idx pair, or of a .ds")
    return found


def identity(config: TokenizeConfig) -> str:
    """One hash of all files that are adopted, of what is said about them, and of how they are split."""
    leaves = {"validation_fraction": hashlib.sha256(str(config.validation_fraction).encode()).hexdigest()}
    for language, one in config.adopt.items():
        for file in files_of(Path(one.path)):
            leaves[f"{language}/{file.name}"] = sha256_file(file)
        leaves[language] = hashlib.sha256(f"{one.source}\0{one.license}".encode()).hexdigest()
    return merkle_root(leaves)


def open_foreign(path: Path, vocabulary_size: int, end_of_document: int) -> Foreign:
    """Open a dataset of Megatron's or datatrove's.

    Raises:
        HanseError: a file is missing, damaged, or does not belong to the others.
    """
    files_of(path)
    if path.suffix == DS:
        return _open_ds(path, vocabulary_size, end_of_document)
    shard = TokenShard(_prefix(path))
    return Foreign(path, shard.tokens, np.asarray(shard.document_starts))


def read_foreign(
    foreign: Foreign, language: str, config: TokenizeConfig, byte_lengths: np.ndarray, end_of_document: int
) -> Iterator[Documents]:
    """The documents of a file, some ``batch_megabytes`` at a time; those without a token are left out.

    A document's id is ``LANGUAGE:`` and 48 bits of the SHA-256 of its ids (as int32), which also draw its split.

    Raises:
        HanseError: an id is not one of the tokenizer's.
    """
    one, first = config.adopt[language], 0
    share = int(config.validation_fraction * 2**48)
    while first < len(foreign.starts) - 1:
        limit = foreign.starts[first] + config.batch_megabytes * 10**6 // 4
        stop = max(int(np.searchsorted(foreign.starts, limit, side="right")) - 1, first + 1)
        span = foreign.starts[first : stop + 1] - foreign.starts[first]
        ids = np.asarray(foreign.tokens[foreign.starts[first] : foreign.starts[stop]])
        if len(ids) and (ids.min() < 0 or ids.max() >= len(byte_lengths)):
            where = int(np.searchsorted(span, int(np.argmax((ids < 0) | (ids >= len(byte_lengths)))), side="right"))
            raise HanseError(f"{foreign.path}: document {first + where - 1} holds ids beyond the {len(byte_lengths):,} "
                             "of the tokenizer; set tokenizer to the one that it was written with")  # fmt: skip
        held = np.flatnonzero(np.diff(span))
        lasts = span[1:][held] - 1
        closed = lasts[ids[lasts] == end_of_document]
        body = np.delete(ids, closed)
        ends = (lasts + 1) - np.searchsorted(closed, lasts, side="right")
        ends, some = _without_empty(ends)
        before = np.concatenate([[0], ends])
        sizes = sums_of(byte_lengths, body, ends)
        digests = [hashlib.sha256(body[a:b].astype("<i4").tobytes()).hexdigest()[:12]
                   for a, b in zip(before[:-1].tolist(), ends.tolist(), strict=True)]  # fmt: skip
        splits = ["validation" if int(digest, 16) < share else "train" for digest in digests]
        names = [f"{language}:{digest}" for digest in digests]
        values = [names, [one.source or foreign.path.name] * some, [one.license] * some, [language] * some,
                  pa.nulls(some, pa.string()), splits]  # fmt: skip
        yield Documents(pa.record_batch([pa.array(value, pa.string()) for value in values], COLUMNS), body, ends, sizes)
        first = stop


def adopt_all(
    config: TokenizeConfig, tokenizer: LoadedTokenizer, folder: Path
) -> tuple[list[ShardEntry], str, dict[str, float]]:
    """Write shards out of token files of others."""
    end, dtype, entries = tokenizer.end_of_document_id, token_dtype(tokenizer.vocabulary_size), []
    for language, one in config.adopt.items():
        foreign = open_foreign(Path(one.path), tokenizer.vocabulary_size, end)
        progress = Progress("adopt", len(foreign.tokens), "tokens")
        shards = [SplitShard(folder, split, language, dtype) for split in SPLITS]
        with ExitStack() as stack:
            for shard in shards:
                stack.enter_context(shard)
            for some in read_foreign(foreign, language, config, tokenizer.byte_lengths, end):
                closed = with_ends(some.ids, some.ends, end, dtype)
                lengths = np.diff(np.concatenate([[0], some.ends])) + 1
                for shard in shards:
                    shard.extend(some.rows, pc.equal(some.rows["split"], shard.split), closed, lengths, some.sizes)
                progress.advance(len(closed), language)
        for shard in shards:
            if shard.documents:
                entries.append(shard.entry())
            else:
                shard.remove()
        if not sum(shard.documents for shard in shards):
            raise HanseError(f"{one.path}: holds no document with a token")
        empty = len(foreign.starts) - 1 - sum(shard.documents for shard in shards)
        if empty:
            say(f"{language}: left out {empty:,} documents without a token")
    return entries, "adopted", {}


def _without_empty(ends: np.ndarray) -> tuple[np.ndarray, int]:
    kept = ends[np.diff(np.concatenate([[0], ends])) > 0]
    return kept, len(kept)


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (BIN, INDEX) else path


def _open_ds(path: Path, vocabulary_size: int, end_of_document: int) -> Foreign:
    width = token_dtype(vocabulary_size).itemsize
    metadata, index = beside(path, ".metadata"), beside(path, ".index")
    if metadata.is_file():
        told = metadata.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
        said = told[0].rpartition("|")[2] if told else ""
        if said not in ("2", "4"):
            raise HanseError(f"{metadata}: says no size of an id (2 or 4 bytes); is it datatrove's?")
        width = int(said)
    size = path.stat().st_size
    if size % width:
        raise HanseError(f"{path}: {size} bytes are no whole number of {width}-byte ids; it was truncated")
    tokens = np.memmap(path, f"<u{width}", "r").view(np.ndarray) if size else np.empty(0, f"<u{width}")
    if index.is_file():
        ends = np.fromfile(index, "<u8").astype(np.int64)
    else:
        ends = np.flatnonzero(tokens == end_of_document) + 1
        if not len(ends) or ends[-1] != len(tokens):
            ends = np.append(ends, len(tokens))
    starts = np.concatenate([[0], ends])
    if (np.diff(starts) < 0).any() or starts[-1] != len(tokens):
        raise HanseError(f"{index}: does not describe the {len(tokens):,} tokens of {path.name}")
    return Foreign(path, tokens, starts)
