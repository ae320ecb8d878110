"""The shard of one language and split while it is written, with the sidecar that says where its tokens came from."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import sha256_file
from data_pipelines.shards import BIN, ENDINGS, INDEX, SIDECAR, ShardEntry, ShardWriter, beside
from data_pipelines.source_runs import runs_in

TABLE_ROWS = 10_000
SUMMED = 1 << 18  # ids, of which the bytes are added at once
DOCUMENTS = pa.schema(
    [
        ("document", pa.int64()),  # number within the shard
        *((name, pa.string()) for name in ("id", "source", "license", "language", "url")),
        ("bytes", pa.int64()),  # of UTF-8 text
        ("token_start", pa.int64()),  # within the shard's .bin
        ("token_end", pa.int64()),  # behind the end-of-document id
    ]
)


def with_ends(ids: np.ndarray, ends: np.ndarray, end_of_document: int, dtype: np.dtype) -> np.ndarray:
    """Tokens of documents back to back, each closed by ``end_of_document``; ``ends``: where in ``ids`` each ends."""
    closed = np.empty(len(ids) + len(ends), dtype=dtype)
    last = ends + np.arange(len(ends))
    inside = np.ones(len(closed), dtype=bool)
    inside[last] = False
    closed[inside] = ids
    closed[last] = end_of_document
    return closed


def sums_of(byte_lengths: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bytes that the tokens of each document stand for, int64; ``ends``: where in ``ids`` each ends."""
    starts = np.concatenate([[0], ends[:-1]])
    held, found = np.flatnonzero(starts < ends), np.zeros(len(ends), dtype=np.int64)
    # Some documents at once: numpy wants eight bytes for each id that it looks up, and as many for what it adds.
    cuts = np.unique(np.searchsorted(ends[held], np.arange(0, len(ids), SUMMED), side="right")).tolist()
    for rows in np.split(held, cuts[1:]) if len(held) else ():
        first, stop = starts[rows[0]], ends[rows[-1]]
        lengths = byte_lengths.take(ids[first:stop].astype(np.intp))
        found[rows] = np.add.reduceat(lengths, starts[rows] - first, dtype=np.int64)
    return found


class SplitShard:
    """The shard of one language and split, with its ``.docs.parquet``; nothing is written before it is entered."""

    def __init__(self, folder: Path, split: str, language: str, dtype: np.dtype):
        self.name, self.split, self.language, self.dtype = f"{split}/{language}", split, language, dtype
        self.prefix = folder / self.name
        self.documents = self.tokens = self.bytes = 0
        self._held: list[pa.Table] = []

    def extend(
        self, batch: pa.RecordBatch, mask: pa.BooleanArray, ids: np.ndarray, lengths: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Append the documents that are of this split.

        Args:
            batch: B rows of the corpus; ``mask``: which of them.
            ids: the tokens of all B, back to back; ``lengths``: (B,) how many each has; ``sizes``: its bytes of text.
        """
        mine, starts = np.asarray(mask), np.concatenate([[0], np.cumsum(lengths)])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mine, [False]]).astype(np.int8)))
        for first, stop in edges.reshape(-1, 2).tolist():  # runs of documents of this split
            self._shard.extend(ids[starts[first] : starts[stop]], lengths[first:stop])
        lengths, sizes = lengths[mine], sizes[mine]
        told = [name for name in DOCUMENTS.names if name in batch.schema.names]
        rows = batch.select(told).filter(mask)
        ends = self.tokens + np.cumsum(lengths)
        columns = {name: rows[name] for name in told}
        columns |= {"document": np.arange(self.documents, self.documents + len(lengths)), "bytes": sizes,
                    "token_start": ends - lengths, "token_end": ends}  # fmt: skip
        self._held.append(pa.table([columns[name] for name in DOCUMENTS.names], schema=DOCUMENTS))
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())
        self.bytes += int(sizes.sum())
        self._flush(TABLE_ROWS)

    def entry(self) -> ShardEntry:
        """What the manifest says of the closed shard."""
        files = {ending: sha256_file(beside(self.prefix, ending)) for ending in (INDEX, SIDECAR)}
        files = {BIN: self._shard.sha256} | files
        sources = runs_in(beside(self.prefix, SIDECAR))
        return ShardEntry(self.name, self.split, self.language, self.documents, self.tokens, self.bytes, files, sources)

    def remove(self) -> None:
        """Take the files away again."""
        for ending in ENDINGS:
            beside(self.prefix, ending).unlink()

    def _flush(self, least: int) -> None:
        """Write what is held in row groups of TABLE_ROWS, as long as ``least`` rows are there."""
        if sum(map(len, self._held)) < least:
            return
        held = pa.concat_tables(self._held)
        while len(held) >= least and len(held):
            self._table.write_table(held[:TABLE_ROWS])
            held = held[TABLE_ROWS:]
        self._held = [held]

    def __enter__(self) -> SplitShard:
        self._shard = ShardWriter(self.prefix, self.dtype)
        self._table = pq.ParquetWriter(beside(self.prefix, SIDECAR), DOCUMENTS, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush(1)
        self._table.close()
        self._shard.__exit__(kind, error, trace)
