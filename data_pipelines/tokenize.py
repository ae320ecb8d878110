"""``hanse tokenize``: curated corpus + tokenizer -> token shards, their sidecars, manifest.

One shard a language and split. Every document is its tokens and one end-of-document id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from common.configuration import same_again
from common.errors import HanseError
from common.files import sha256_file
from common.folders import replaced_folder, restore
from common.terminal import Progress, count, next_step, say, table
from data_pipelines.config import TokenizeConfig
from data_pipelines.encoders import Encoder, choose
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import (
    ENDINGS,
    FORMAT,
    SIDECAR,
    ShardEntry,
    ShardsManifest,
    ShardWriter,
    beside,
    token_dtype,
)
from data_pipelines.tokenizer import described_sha256, token_byte_lengths, tokenizer_sha256

SPLITS = ("train", "validation")
COLUMNS = ["id", "text", "source", "license", "language", "url", "split"]
READ_ROWS = 64
TABLE_ROWS = 10_000
DOCUMENTS = pa.schema(
    [
        ("document", pa.int64()),  # number within the shard
        *((name, pa.string()) for name in ("id", "source", "license", "language", "url")),
        ("bytes", pa.int64()),  # of UTF-8 text
        ("token_start", pa.int64()),  # within the shard's .bin
        ("token_end", pa.int64()),  # behind the end-of-document id
    ]
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A ``tokenizer.json`` after all checks."""

    path: Path
    sha256: str
    vocabulary_size: int
    end_of_document_id: int
    byte_lengths: np.ndarray  # int64 (vocabulary_size,)


def run(config: TokenizeConfig) -> None:
    """Write the shards, unless the same ones are there already."""
    folder, corpus = Path(config.output), CorpusManifest.read(Path(config.corpus))
    tokenizer = load(config)
    restore(folder)
    manifest = _finished(folder, corpus, tokenizer)
    speeds: dict[str, float] = {}
    if manifest:
        say(f"{folder}/ holds these shards already: nothing to do (delete it to write them again)")
    else:
        with replaced_folder(folder, FORMAT) as partial:
            manifest, speeds = _build(config, corpus, tokenizer, partial)
        say(f"wrote {folder}/ (Merkle root {manifest.merkle_root[:16]})")
    _show(config.name, manifest, speeds)
    next_step(f"hanse train {same_again(config.name)}")


def load(config: TokenizeConfig) -> LoadedTokenizer:
    """The tokenizer of the configuration.

    Raises:
        HanseError: it is missing, was changed since it was trained, is not the expected one, or does not fit.
    """
    folder = Path(config.tokenizer)
    path, found = folder / "tokenizer.json", tokenizer_sha256(folder / "tokenizer.json")
    if found != described_sha256(folder, found):
        raise HanseError(
            f"{path}: not the file that its manifest.json describes; train it again with 'hanse tokenizer'"
        )
    if config.tokenizer_sha256 not in (None, found):
        raise HanseError(f"{path}: sha256 is {found}, but tokenizer_sha256 asks for {config.tokenizer_sha256}")
    lengths = token_byte_lengths(path)
    try:
        end = Tokenizer.from_file(str(path)).token_to_id(config.end_of_document)
    except Exception as error:  # the library raises nothing finer
        raise HanseError(f"{path}: not a readable tokenizer ({error}); train one with 'hanse tokenizer'") from None
    if end is None:
        raise HanseError(
            f"{path}: has no token {config.end_of_document!r}; set end_of_document to the one that ends a text"
        )
    return LoadedTokenizer(path, found, len(lengths), end, lengths)


def _finished(folder: Path, corpus: CorpusManifest, tokenizer: LoadedTokenizer) -> ShardsManifest | None:
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = ShardsManifest.read(folder)
        for entry in manifest.shards:
            manifest.open(entry, hashes=True)
    except HanseError as error:
        say(f"writing the shards again: {error}")
        return None
    made_of = (manifest.corpus_merkle_root, manifest.tokenizer_sha256, manifest.end_of_document_id)
    return manifest if made_of == (corpus.merkle_root, tokenizer.sha256, tokenizer.end_of_document_id) else None


def _build(
    config: TokenizeConfig, corpus: CorpusManifest, tokenizer: LoadedTokenizer, folder: Path
) -> tuple[ShardsManifest, dict[str, float]]:
    """Write all shards; also the MB/s at which each language was encoded."""
    entries: list[ShardEntry] = []
    used, speeds, dtype = [], {}, token_dtype(tokenizer.vocabulary_size)
    progress = Progress("tokenize", sum(tally.bytes_kept for tally in corpus.languages.values()), "B")
    for language in corpus.kept_languages:
        path = corpus.documents(language)
        # A new encoder for each file: gigatoken's cache of words grows without bound.
        encoder, remarks = choose(config.encoder, tokenizer.path, _sample(path, config.parity_documents))
        for remark in remarks:
            say(f"{language}: passed over {remark}")
        used.append(f"{encoder.name} {encoder.version}")
        seconds, size = 0.0, 0
        with ExitStack() as stack:
            shards = {
                split: stack.enter_context(SplitShard(folder, split, language, dtype))
                for split in corpus.splits(language)
            }
            for batch in _batches(path, config.batch_megabytes * 10**6):
                seconds += _encode(batch, encoder, tokenizer, shards)
                size += sum(row["bytes"] for row in batch)
                progress.advance(sum(row["bytes"] for row in batch), language)
        entries += [shard.entry() for shard in shards.values()]
        speeds[language] = size / 1e6 / max(seconds, 1e-9)
    encoders = ", ".join(dict.fromkeys(used))
    say(f"encoded with {encoders}: ids equal to those of tokenizers on a sample of each file and on hard texts")
    entries.sort(key=lambda entry: SPLITS.index(entry.split))
    manifest = ShardsManifest(
        tokenizer_sha256=tokenizer.sha256,
        vocabulary_size=tokenizer.vocabulary_size,
        end_of_document_id=tokenizer.end_of_document_id,
        encoder=encoders,
        corpus_merkle_root=corpus.merkle_root,
        shards=entries,
        folder=folder,
    )
    manifest.write()
    return manifest, speeds


def _encode(
    batch: list[dict[str, Any]], encoder: Encoder, tokenizer: LoadedTokenizer, shards: dict[str, SplitShard]
) -> float:
    """Encode documents into the shards of their splits; seconds that the encoder took.

    Raises:
        HanseError: a document's tokens do not stand for as many bytes as it has.
    """
    start = time.perf_counter()
    ids, lengths = encoder.encode([row["text"] for row in batch])
    seconds = time.perf_counter() - start
    ends = np.cumsum(lengths)
    for row, begin, end in zip(batch, ends - lengths, ends, strict=True):
        tokens = ids[begin:end]
        # Parity was seen on a sample; that nothing is lost is checked on every document.
        if int(tokenizer.byte_lengths[tokens].sum()) != row["bytes"]:
            raise HanseError(f"document {row['id']}: {encoder.name} loses text; use encoder=tokenizers")
        shards[row["split"]].add(row, np.append(tokens, tokenizer.end_of_document_id))
    return seconds


def _batches(path: Path, batch_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of a corpus file with their ``bytes``, about ``batch_bytes`` of text at a time."""
    batch: list[dict[str, Any]] = []
    held = 0
    for rows in pq.ParquetFile(path).iter_batches(READ_ROWS, columns=COLUMNS):
        for row in rows.to_pylist():
            row["bytes"] = len(row["text"].encode("utf-8"))
            held += row["bytes"]
            batch.append(row)
        if held >= batch_bytes:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _sample(path: Path, number: int) -> list[str]:
    """``number`` texts spread evenly over a corpus file."""
    file = pq.ParquetFile(path)
    rows = file.metadata.num_rows
    wanted = set(np.linspace(0, rows - 1, min(number, rows)).astype(int).tolist())
    texts, row = [], 0
    for batch in file.iter_batches(READ_ROWS, columns=["text"]):
        texts += [batch.column(0)[index].as_py() for index in range(len(batch)) if row + index in wanted]
        row += len(batch)
    return texts


class SplitShard:
    """The shard of one language and split, with its ``.docs.parquet``."""

    def __init__(self, folder: Path, split: str, language: str, dtype: np.dtype):
        self.name, self.split, self.language = f"{split}/{language}", split, language
        self.prefix = folder / self.name
        self.documents = self.tokens = self.bytes = 0
        self._rows: list[dict[str, Any]] = []
        self._shard = ShardWriter(self.prefix, dtype)
        self._table = pq.ParquetWriter(beside(self.prefix, SIDECAR), DOCUMENTS, compression="zstd")

    def add(self, row: dict[str, Any], ids: np.ndarray) -> None:
        """Append a document: its corpus row with ``bytes``, and its ids with the end-of-document id."""
        self._shard.add(ids)
        place = {"document": self.documents, "token_start": self.tokens, "token_end": self.tokens + len(ids)}
        self._rows.append({**{name: row[name] for name in DOCUMENTS.names if name in row}, **place})
        self.documents += 1
        self.tokens += len(ids)
        self.bytes += row["bytes"]
        if len(self._rows) >= TABLE_ROWS:
            self._flush()

    def entry(self) -> ShardEntry:
        """What the manifest says of the closed shard."""
        files = {ending: sha256_file(beside(self.prefix, ending)) for ending in ENDINGS}
        return ShardEntry(self.name, self.split, self.language, self.documents, self.tokens, self.bytes, files)

    def _flush(self) -> None:
        self._table.write_table(pa.Table.from_pylist(self._rows, schema=DOCUMENTS))
        self._rows = []

    def __enter__(self) -> SplitShard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._table.close()
        self._shard.__exit__(kind, error, trace)


def _show(name: str, manifest: ShardsManifest, speeds: dict[str, float]) -> None:
    rows = [
        [shard.name, f"{shard.documents:,}", f"{shard.tokens:,}", count(shard.bytes, "B"),
         f"{shard.bytes / max(shard.tokens - shard.documents, 1):.3f}",
         *([f"{speeds[shard.language]:.0f}"] if speeds else [])]
        for shard in manifest.shards
    ]  # fmt: skip
    head = ["shard", "documents", "tokens", "bytes", "bytes/token", *(["MB/s"] if speeds else [])]
    sums = [sum(getattr(shard, key) for shard in manifest.shards) for key in ("documents", "tokens", "bytes")]
    last = ["all", f"{sums[0]:,}", f"{sums[1]:,}", count(sums[2], "B"), f"{sums[2] / max(sums[1] - sums[0], 1):.3f}"]
    table(f"shards {name}", head, [*rows, [*last, *([""] if speeds else [])]], total=True)
