"""Sequences of whole documents, as a best-fit packing plan puts them together (:mod:`data_pipelines.packing`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.packing import Bins, PackingManifest
from data_pipelines.shards import ShardsManifest, TokenShard
from train.pools import Pool
from train.stream import BEST_FIT, Source, spans_by_pool

PADDING = -1  # document of a position that holds none


class PackedSource(Source):
    """A source whose windows are the bins of a plan: fragments of documents of one shard, then padding.

    Every id but a document's first is a label exactly once an epoch. ``spans`` are of bins, in place of tokens.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[TokenShard],
        bins: Sequence[Bins],
        seed: int | str = 0,
        end_of_document_id: int = 0,
        *,
        spans: Sequence[tuple[int, int, int]] | None = None,
    ):
        super().__init__(name, shards, bins[0].length if bins else 1, seed, ())
        self.bins, self.end_of_document_id = bins, end_of_document_id
        if spans is None:
            spans = [(number, 0, len(one)) for number, one in enumerate(bins)]
        self._lay(spans, [stop - start for _, start, stop in spans])

    def window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, documents): int64 arrays of ``length + 1``; behind the last fragment ends of documents, and PADDING."""
        which, row = self._bin(number)
        shard, (starts, lengths) = self.shards[which], self.bins[which].fragments(row)
        ids = np.full(self.length + 1, self.end_of_document_id, dtype=np.int64)
        documents = np.full(self.length + 1, PADDING, dtype=np.int64)
        ends = np.cumsum(lengths)
        for start, length, end in zip(starts.tolist(), lengths.tolist(), ends.tolist(), strict=True):
            ids[end - length : end] = shard.tokens[start : start + length]
        numbers = np.searchsorted(shard.document_starts, starts, side="right") - 1
        documents[: ends[-1]] = np.repeat(numbers, lengths)
        return ids, documents

    def targets(self, number: int) -> int:
        """Labels that count in a window: all of a fragment but its first id."""
        which, row = self._bin(number)
        _, lengths = self.bins[which].fragments(row)
        return int(lengths.sum()) - len(lengths)

    def windows_of(self, prefix: Path, start: int, stop: int) -> np.ndarray:
        """Numbers of the windows that hold, as an input or a label, any of a shard's tokens ``start..stop``."""
        found = [np.empty(0, dtype=np.int64)]
        for shard, first, end, before, _ in self._spans_of(prefix):
            rows = self.bins[shard].holding(start, stop)
            found.append(rows[(rows >= first) & (rows < end)] - first + before)
        return np.concatenate(found)

    def place(self, number: int) -> tuple[TokenShard, int]:
        """The shard of a window, and the token at which its first fragment starts there."""
        which, row = self._bin(number)
        return self.shards[which], int(self.bins[which].fragments(row)[0][0])

    def _bin(self, number: int) -> tuple[int, int]:
        shard, start, row = self._span(number)
        return shard, start + row


def open_packed(
    manifest: ShardsManifest, length: int, seed: int | str, *, hashes: bool = False, pools: Sequence[Pool] = ()
) -> dict[str, Source]:
    """The packed sources of the training split by language, in alphabetical order; and ``pools``, by name.

    Raises:
        HanseError: there is no plan for this length, or a file is not the one that was described.
    """
    plan, entries = PackingManifest.read(manifest, length), manifest.of("train")
    apart = PackingManifest.read(manifest, length, by_source=True) if pools else plan
    found: dict[str, Source] = {}
    for language in sorted({entry.language for entry in entries}):
        mine = [entry for entry in entries if entry.language == language]
        shards = [manifest.open(entry, hashes=hashes) for entry in mine]
        bins = [plan.open(entry.name, shard) for entry, shard in zip(mine, shards, strict=True)]
        found[language] = PackedSource(language, shards, bins, seed, manifest.end_of_document_id)
    for pool in pools:
        shards = list(found[pool.language].shards)
        mine = [entry for entry in entries if entry.language == pool.language]
        bins = [apart.open(entry.name, shard) for entry, shard in zip(mine, shards, strict=True)]
        spans = spans_by_pool(manifest, pool, length, BEST_FIT)
        found[pool.name] = PackedSource(pool.name, shards, bins, seed, manifest.end_of_document_id, spans=spans)
    return found
