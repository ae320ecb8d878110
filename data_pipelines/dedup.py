"""Duplicates within a language, across sources and earlier corpora: which documents belong together, and which stays.

Two documents are one when their texts are equal but for case and spacing, or when their signatures agree in enough
places (:mod:`~data_pipelines.annotate.signature`). Clusters are the connected components. They depend on the documents
alone; which one of a cluster stays is decided when documents are selected: of an earlier corpus, if it holds one, else
the first in the order of sources and records that nothing else removes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.files import atomic_file
from data_pipelines.annotate.signature import BANDS, BYTES, PLACES, ROWS, mixed, places_of
from data_pipelines.annotate.text_arrays import Bools, Hashes, Integers
from data_pipelines.documents import content_of
from data_pipelines.memory import give_back, parquet_batches

# What a corpus keeps of each document that stays, for corpora that come after it.
SIGNATURES = pa.schema([("id", pa.string()), ("content", pa.binary(32)), ("signature", pa.binary(BYTES))])
CLUSTERS = pa.schema(
    [
        ("cluster", pa.int64()),
        ("cluster_size", pa.int32()),
        ("earlier_id", pa.string()),
        ("earlier_content", pa.binary()),
    ]
)
EMPTY = content_of("")
ROUNDS = 8  # documents that meet in a bucket and are not alike are compared among themselves so many times
CHUNK = 1 << 15  # pairs of signatures compared at once: 16 MB
ALONE = -1


@dataclass
class Clusters:
    """Of every document: the number of its cluster (ALONE: none) and how many are in it, itself included.

    ``earlier``: {cluster: (id, content)} of the document of an earlier corpus that is in it.
    """

    cluster: Integers
    size: NDArray[np.int32]
    earlier: dict[int, tuple[str, bytes]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write Parquet, a row a document."""
        found = [self.earlier.get(number, (None, None)) for number in self.cluster.tolist()]
        columns = [self.cluster, self.size, [one[0] for one in found], [one[1] for one in found]]
        with atomic_file(path, shared=True) as partial:
            pq.write_table(pa.table(list(map(pa.array, columns, CLUSTERS.types)), schema=CLUSTERS), partial)

    @classmethod
    def read(cls, path: Path) -> Clusters:
        """Read what :meth:`write` wrote."""
        table = pq.read_table(path, schema=CLUSTERS)
        cluster, size = table["cluster"].to_numpy(), table["cluster_size"].to_numpy()
        rows = np.flatnonzero(table["earlier_id"].is_valid().to_numpy())
        ids, contents = (table[name].take(rows).to_pylist() for name in ("earlier_id", "earlier_content"))
        return cls(cluster, size, dict(zip(cluster[rows].tolist(), zip(ids, contents, strict=True), strict=True)))


class Originals:
    """The document of each cluster that stays; documents come in order."""

    def __init__(self, clusters: Clusters):
        self.clusters = clusters
        self._kept = dict(clusters.earlier)
        self._next = 0

    def sizes(self, documents: int) -> NDArray[np.int32]:
        """Sizes of the clusters of the next documents."""
        return self.clusters.size[self._next : self._next + documents]

    def judge(self, ids: Sequence[str], contents: Sequence[bytes], passing: Bools) -> list[tuple[int, str, bool]]:
        """(row, id of the document that stays instead, equal to it) of the next documents that repeat another.

        ``passing``: which of them nothing else removes; only those can stay, or be duplicates.
        """
        cluster = self.clusters.cluster[self._next : self._next + len(ids)]
        self._next += len(ids)
        found = []
        for row in np.flatnonzero(passing & (cluster != ALONE)).tolist():
            number = int(cluster[row])
            if number in self._kept:
                original, content = self._kept[number]
                found.append((row, original, content == contents[row]))
            else:
                self._kept[number] = (ids[row], contents[row])
        return found


def cluster(batches: Iterable[pa.RecordBatch], similarity: float | None, folder: Path, earlier: int = 0) -> Clusters:
    """Cluster the documents of one language.

    Args:
        batches: columns ``content`` and ``signature`` of all documents, those of earlier corpora first.
        similarity: share of common runs of five words from which on two documents are one; None: only equal ones are.
        folder: where signatures lie while they are worked on (240 bytes a document).
        earlier: how many documents are of earlier corpora. They are left out of the result, and without their ids: it
            has the numbers of clusters below ``earlier`` where one of them comes first.
    """
    contents, signed, rows = [], [], 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for batch in batches:
            contents.append(halves_of(batch.column("content")))
            known = batch.column("signature").is_valid().to_numpy(zero_copy_only=False)
            if similarity is not None:
                file.write(places_of(batch.column("signature").filter(pa.array(known))).tobytes())
                signed.append(np.flatnonzero(known) + rows)
            rows += batch.num_rows
        file.flush()
        halves = np.concatenate([np.zeros((0, 2), np.uint64), *contents])
        root = np.arange(rows)
        join_equal(root, halves)
        which = np.concatenate([np.zeros(0, np.int64), *signed])
        if similarity is not None and len(which):
            places = np.memmap(file, "<u2", "r", shape=(len(which), PLACES))
            _join_alike(root, which, places, least_places(similarity))
    return clusters_of(root, halves, earlier)


def clusters_of(root: Integers, halves: Hashes, earlier: int) -> Clusters:
    """Clusters, of every document's first companion (itself included) and the halves of its content."""
    size = np.bincount(root, minlength=len(root))[root]
    empty = (halves == np.frombuffer(EMPTY[:16], np.uint64)).all(axis=1)  # no text is no duplicate of no text
    alone = (size == 1) | empty
    return Clusters(np.where(alone, ALONE, root)[earlier:], np.where(empty, 1, size).astype(np.int32)[earlier:])


def least_places(similarity: float) -> int:
    """In how many places two signatures must agree."""
    return math.ceil(round(similarity * PLACES, 6))


def halves_of(contents: pa.Array) -> Hashes:
    """The first 128 bits of each content, as two numbers."""
    data = np.frombuffer(contents.buffers()[1], np.uint8)[contents.offset * 32 : (contents.offset + len(contents)) * 32]
    return data.reshape(-1, 32)[:, :16].copy().view(np.uint64)


def join_equal(root: Integers, halves: Hashes) -> None:
    """Join documents with the same content."""
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    equal = np.flatnonzero((halves[order][1:] == halves[order][:-1]).all(axis=1))
    join(root, order[equal], order[equal + 1])


def _join_alike(root: Integers, rows: Integers, places: NDArray[np.uint16], least: int) -> None:
    """Join documents that share a band and agree in at least ``least`` places."""
    for band in range(BANDS):
        left, right = alike_in(places, *shared_buckets(band_keys(places, band)), least)
        join(root, rows[left], rows[right])


def band_keys(places: NDArray[np.uint16], band: int) -> Hashes:
    """A number of each document, the same where all places of the band are."""
    keys = np.zeros(len(places), np.uint64)
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK, band * ROWS : (band + 1) * ROWS]
        halves = np.zeros((len(part), 8), np.uint16)  # 16 bytes, of which the band takes 12
        halves[:, :ROWS] = part
        first, second = halves.view(np.uint64).T
        keys[start : start + CHUNK] = mixed(mixed(first) + second)
    return keys


def shared_buckets(keys: Hashes) -> tuple[Integers, Integers]:
    """(document, bucket) of those whose key another one has: bucket after bucket, the first document of each first."""
    order = np.argsort(keys, kind="stable")
    bucket = np.cumsum(np.append(True, keys[order][1:] != keys[order][:-1])) - 1 if len(keys) else order
    shared = np.bincount(bucket)[bucket] > 1 if len(keys) else order.astype(bool)
    return order[shared], bucket[shared]


def alike_in(
    places: NDArray[np.uint16], order: Integers, bucket: Integers, least: int
) -> tuple[Integers, Integers]:  # fmt: skip
    """Pairs of documents of the same bucket that agree in at least ``least`` places. What is found in a bucket depends
    on that bucket alone, so that it does not matter where and in which order buckets are looked at.
    """
    left, right = [order[:0]], [order[:0]]
    for _ in range(ROUNDS):
        shared = np.bincount(bucket)[bucket] > 1 if len(bucket) else bucket.astype(bool)
        order, bucket = order[shared], bucket[shared]
        if not len(order):
            break
        opens = np.append(True, bucket[1:] != bucket[:-1])
        first, others = order[opens][np.cumsum(opens) - 1][~opens], order[~opens]
        alike = _agree(places, first, others, least)
        left.append(first[alike])
        right.append(others[alike])
        order, bucket = others[~alike], bucket[~opens][~alike]
    return np.concatenate(left), np.concatenate(right)


def _agree(places: NDArray[np.uint16], first: Integers, others: Integers, least: int) -> Bools:
    agree = np.zeros(len(first), bool)
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        agree[part] = (places[first[part]] == places[others[part]]).sum(axis=1) >= least
    return agree


def join(root: Integers, left: Integers, right: Integers) -> None:
    """Make one component of each pair's two; every document's root is the first of its component, before and after."""
    while True:
        one, other = root[left], root[right]
        apart = np.flatnonzero(one != other)
        if not len(apart):
            return
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(root[root], root):
            root[:] = root[root]


def batches_of(files: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """The columns that :func:`cluster` wants, out of annotated files or a corpus's ``signatures/``."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in parquet_batches(file, 1 << 14, ["content", "signature"]):
                yield batch
                del batch  # or it would be held while the next is read
                give_back()
