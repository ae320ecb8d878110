"""Best-fit packing: which documents share a training sequence, so that no more of them are cut than must be.

Concatenation cuts whatever lies across the end of a sequence. Here documents are the items and sequences the bins of
best-fit-decreasing bin packing (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830): the
longest first, each into the bin with the least room that suffices. Only what is longer than a sequence is cut.

A sequence of L tokens needs L + 1 ids, the last being only a label; a fragment of n ids gives n - 1 labels. A document
of more than L + 1 ids gives fragments of L + 1, each beginning with the last id of the one before, and a rest: so every
id but a document's first is a label exactly once. A document of a single id gives no label, and is left out.

The plan of a shards folder and a length is the folder ``packing-L`` in it: ``train/LANGUAGE.arrow`` for each training
shard, an Arrow IPC file with a row a bin (``starts``: token of the ``.bin`` at which each fragment begins, ``lengths``:
its ids), and a manifest. It follows from the ``.idx`` alone, and the shards do not change by it.

Where a shard holds several sources, ``packing-L-by-source`` beside it is a second plan, in which no sequence holds
documents of two of them: what a mixture that names sources draws from. A source's bins lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import HanseError
from common.files import atomic_file, from_json, inside, merkle_root, sha256_file, write_json
from common.folders import replaced_folder, restore
from data_pipelines.manifest import COUNTS, fingerprint, read_manifest
from data_pipelines.shards import ShardsManifest, TokenShard

# To be raised whenever the same shards would give other bins: of a plan, and of a plan by source.
FORMATS = ("hanse.packing/1", "hanse.packing-by-source/1")
GROUP = 2**20  # fragments planned at once: what bounds the memory; bins hold fragments of one group
SCHEMA = pa.schema([("starts", pa.list_(pa.int64())), ("lengths", pa.list_(pa.int32()))])


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit-decreasing bin packing.

    Items of one size are placed together: best fit gives a bin as many of them as it has room for before it turns to
    the next. How many bins there are depends on the sizes alone, not on their order.

    Args:
        sizes: int (n,), from 1 to ``capacity``.
        capacity: of a bin.

    Returns:
        int64 (n,): the bin of each item, counted from 0.
    """
    found = np.empty(len(sizes), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    kinds, counts = np.unique(sizes, return_counts=True)
    by_room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # bins by the room that they have left
    rooms, bins, at = 0, 0, 0  # rooms: a bit for each that is not empty
    for size, count in zip(kinds[::-1].tolist(), counts[::-1].tolist(), strict=True):
        stop = at + count
        while at < stop:
            suiting = rooms >> size
            if suiting:
                room = size + (suiting & -suiting).bit_length() - 1
                some = by_room[room].pop()
            else:
                room, new = capacity, -(-(stop - at) // (capacity // size))
                some = np.arange(bins, bins + new)
                bins += new
            each = room // size
            full = min((stop - at) // each, len(some))
            rest = min(stop - at - full * each, each) if full < len(some) else 0
            found[order[at : at + full * each]] = np.repeat(some[:full], each)
            at += full * each
            parts = [(room - each * size, some[:full])]
            if rest:
                found[order[at : at + rest]] = some[full]
                at += rest
                parts.append((room - rest * size, some[full : full + 1]))
            parts.append((room, some[full + bool(rest) :]))
            if not by_room[room]:
                rooms &= ~(1 << room)
            for left, those in parts:
                if len(those):
                    by_room[left].append(those)
                    rooms |= 1 << left
    return found


def fragments_of(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The fragments of consecutive documents: (first id, number of ids) of each, int64, in the order of the text.

    Args:
        starts: int64 (documents + 1,), where each begins and the last one ends.
        length: tokens of a sequence.
    """
    labels = np.maximum(np.diff(starts) - 1, 0)
    pieces = -(-labels // length)
    document = np.repeat(np.arange(len(labels)), pieces)
    before = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * length
    return starts[document] + before, np.minimum(labels[document] - before, length) + 1


def bins_of(document_starts: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Plan consecutive documents, group by group: (starts, lengths) of the fragments, bin after bin, and each bin's end
    in them."""
    pieces = -(-np.maximum(np.diff(document_starts) - 1, 0) // length)
    ends = np.cumsum(pieces)
    first = 0
    while first < len(ends):
        done = int(ends[first - 1]) if first else 0
        stop = max(int(np.searchsorted(ends, done + GROUP, side="right")), first + 1)
        starts, sizes = fragments_of(document_starts[first : stop + 1], length)
        if len(starts):
            places = best_fit(sizes, length + 1)
            order = np.argsort(places, kind="stable")
            yield starts[order], sizes[order], np.cumsum(np.bincount(places))
        first = stop


@dataclass(frozen=True)
class PackingEntry:
    """The plan of one training shard; ``name`` is the shard's.

    Attributes:
        bins: sequences; ``fragments`` they hold; ``labels`` that count in them; ``padding``: ids that are none.
        cut: documents longer than a sequence.
        cut_by_concatenation: documents that are not, and would lie across the end of a sequence.
        sha256: of the file.
        sources: {source: bins}, in their order, of a plan by source.
    """

    name: str
    bins: int
    fragments: int
    labels: int
    padding: int
    cut: int
    cut_by_concatenation: int
    sha256: str
    sources: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PackingManifest:
    """``manifest.json`` of a plan."""

    sequence_length: int
    shards_merkle_root: str  # of the shards that it is of
    plans: list[PackingEntry]
    folder: Path = Path(".")

    @property
    def by_source(self) -> bool:
        """Whether no sequence holds two sources."""
        return any(plan.sources for plan in self.plans)

    @property
    def merkle_root(self) -> str:
        """One hash for all files and counts."""
        return merkle_root({f"{one.name}.arrow": one.sha256 for one in self.plans} | {COUNTS: fingerprint(self._facts)})

    @property
    def _facts(self) -> dict[str, Any]:
        facts = asdict(self)
        del facts["folder"]
        for plan in facts["plans"] if not self.by_source else ():
            del plan["sources"]
        return facts

    def write(self) -> None:
        """Write ``manifest.json`` atomically."""
        write_json(self.folder / "manifest.json", {"format": FORMATS[self.by_source],
                                                    "merkle_root": self.merkle_root, **self._facts})  # fmt: skip

    @classmethod
    def read(cls, shards: ShardsManifest, length: int, *, by_source: bool = False) -> PackingManifest:
        """The plan of these shards for sequences of ``length`` tokens.

        Raises:
            HanseError: there is none, it is of other shards, or it was edited.
        """

        def made(value: dict[str, Any]) -> PackingManifest:
            value["plans"] = [from_json(PackingEntry, plan) for plan in value["plans"]]
            return from_json(cls, {**value, "folder": folder})

        folder = folder_of(shards, length, by_source=by_source)
        path, again = folder / "manifest.json", f"make it with 'hanse tokenize packing_lengths=[{length}]'"
        if not path.is_file():
            alone = " of one source each" if by_source else ""
            raise HanseError(f"{folder}: no packing plan for sequences of {length} tokens{alone}; {again}")
        found = read_manifest(path, "packing plan", FORMATS[by_source], made, f"; {again}")
        if (found.shards_merkle_root, found.sequence_length) != (shards.merkle_root, length) or (
            [plan.name for plan in found.plans] != [entry.name for entry in shards.of("train")]
        ):
            raise HanseError(f"{path}: a plan for other shards or another length; {again}")
        return found

    def open(self, name: str, shard: TokenShard) -> Bins:
        """The bins of a training shard, after checking the file's hash.

        Raises:
            HanseError: it is missing or another.
        """
        plan = next(plan for plan in self.plans if plan.name == name)
        path = inside(self.folder, f"{name}.arrow")
        if not path.is_file() or sha256_file(path) != plan.sha256:
            raise HanseError(
                f"{path}: not the file that {self.folder / 'manifest.json'} describes; make the plan again with "
                f"'hanse tokenize packing_lengths=[{self.sequence_length}]'"
            )
        bins = Bins(path, shard, self.sequence_length)
        if len(bins) != plan.bins:
            raise HanseError(f"{path}: its bins are not as many as {self.folder / 'manifest.json'} says")
        return bins


class Bins:
    """The bins of a shard, memory-mapped; fragments are checked against the shard when they are read.

    Raises:
        HanseError: not an Arrow IPC file of our schema.
    """

    def __init__(self, path: Path, shard: TokenShard, length: int):
        self.path, self.length, self._tokens = path, length, len(shard.tokens)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if not reader.schema.equals(SCHEMA):
                raise pa.ArrowInvalid("its columns are others")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)
            self._groups = [_Group(batch) for batch in batches]
        except pa.ArrowException as error:
            raise HanseError(f"{path}: not a packing plan ({error})") from None
        self._ends = np.cumsum([len(group.ends) - 1 for group in self._groups])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fragments(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(first id, number of ids) of each fragment of a bin, int64.

        Raises:
            HanseError: they do not lie in the shard, or are more than a sequence holds.
        """
        which = int(np.searchsorted(self._ends, number, side="right"))
        group = self._groups[which]
        row = number - (int(self._ends[which - 1]) if which else 0)
        span = slice(int(group.ends[row]), int(group.ends[row + 1]))
        starts, lengths = group.starts[span], group.lengths[span].astype(np.int64)
        if (
            not len(starts)
            or starts.min() < 0
            or lengths.min() < 2
            or lengths.sum() > self.length + 1
            or (starts + lengths).max() > self._tokens
        ):
            raise HanseError(f"{self.path}: bin {number} does not fit the shard; make the plan again")
        return starts, lengths

    def holding(self, start: int, stop: int) -> np.ndarray:
        """Numbers of the bins with any of the shard's tokens ``start..stop``, ascending."""
        found = [np.empty(0, dtype=np.int64)]
        for group, end in zip(self._groups, self._ends.tolist(), strict=True):
            if group.low < stop and group.high > start:
                hit = np.flatnonzero((group.starts < stop) & (group.starts + group.lengths > start))
                rows = np.searchsorted(group.ends, hit, side="right") - 1
                found.append(np.unique(rows) + end - len(group.ends) + 1)
        return np.concatenate(found)


class _Group:
    def __init__(self, batch: pa.RecordBatch):
        columns = [batch.column(number) for number in range(2)]
        self.ends = columns[0].offsets.to_numpy()
        self.starts, self.lengths = (column.values.to_numpy() for column in columns)
        if not np.array_equal(self.ends, columns[1].offsets.to_numpy()) or self.ends[0]:
            raise pa.ArrowInvalid("its two columns do not belong together")
        self.low = int(self.starts.min(initial=0)) if len(self.starts) else 0
        self.high = int((self.starts + self.lengths).max(initial=0))


def folder_of(shards: ShardsManifest, length: int, *, by_source: bool = False) -> Path:
    """Where the plan of a shards folder for a sequence length lies."""
    return shards.folder / f"packing-{length}{'-by-source' if by_source else ''}"


def make_plans(shards: ShardsManifest, length: int) -> Iterator[tuple[PackingManifest, bool]]:
    """:func:`make_plan`; and the plan by source, where a training shard holds several."""
    yield make_plan(shards, length)
    if any(len(shards.sources_of(entry)) > 1 for entry in shards.of("train")):
        yield make_plan(shards, length, by_source=True)


def make_plan(shards: ShardsManifest, length: int, *, by_source: bool = False) -> tuple[PackingManifest, bool]:
    """Write the plan of the training shards for sequences of ``length`` tokens, unless it is there; and whether it was.

    Raises:
        HanseError: a shard is not the one that its manifest describes.
    """
    folder = folder_of(shards, length, by_source=by_source)
    restore(folder)
    try:
        found = PackingManifest.read(shards, length, by_source=by_source)
        if all(sha256_file(inside(folder, f"{plan.name}.arrow")) == plan.sha256 for plan in found.plans):
            return found, True
    except (HanseError, FileNotFoundError):
        pass
    with replaced_folder(folder, FORMATS[by_source]) as partial:
        plans = [_plan(entry.name, shards.open(entry), partial, length, shards.sources_of(entry) if by_source else {})
                 for entry in shards.of("train")]  # fmt: skip
        PackingManifest(length, shards.merkle_root, plans, partial).write()
    return PackingManifest.read(shards, length, by_source=by_source), False


def _plan(name: str, shard: TokenShard, folder: Path, length: int, sources: dict[str, int]) -> PackingEntry:
    """Plan a shard: {source: tokens} one after the other, or its documents together."""
    path, starts_of = folder / f"{name}.arrow", np.asarray(shard.document_starts)
    bins = fragments = ids = 0
    by_source = dict.fromkeys(sources, 0)
    cuts = np.searchsorted(starts_of, np.cumsum([0, *sources.values()]) if sources else [0, len(shard.tokens)])
    with atomic_file(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for source, first, last in zip(sources or [None], cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            for starts, sizes, ends in bins_of(starts_of[first : last + 1], length):
                offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
                columns = [pa.ListArray.from_arrays(offsets, pa.array(values, kind))
                           for values, kind in ((starts, pa.int64()), (sizes, pa.int32()))]  # fmt: skip
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
                bins, fragments, ids = bins + len(ends), fragments + len(starts), ids + int(sizes.sum())
                if source is not None:
                    by_source[source] += len(ends)
    lengths = np.diff(shard.document_starts)
    fits = lengths <= length + 1
    # ids s + 1 .. e - 1 of a document are labels of the sequences s // L .. (e - 2) // L
    across = starts_of[:-1] // length != (starts_of[1:] - 2) // length
    return PackingEntry(
        name=name,
        bins=bins,
        fragments=fragments,
        labels=ids - fragments,
        padding=bins * (length + 1) - ids,
        cut=int((~fits).sum()),
        cut_by_concatenation=int((fits & across & (lengths > 1)).sum()),
        sha256=sha256_file(path),
        sources=by_source,
    )
