"""The order of data: which window of which source is sample n, at any number of ranks, for ever.

Sample n -> its source (:class:`Mixture`) -> the k-th window of that source -> epoch and place in a keyed permutation
(:class:`Permutation`) -> tokens. Every arrow can be computed from its left side alone, and inverted; there is no index
file and no state but the number of samples consumed. This is the order of one mixture of windows of one length;
:mod:`train.order` puts a run together of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipelines.packing import PackingManifest
from data_pipelines.shards import ShardsManifest, TokenShard
from train.mixture import Mixture
from train.pools import Pool, language_of, spans_in

IGNORED = -100  # label of a position whose next token belongs to another document (torch's ignore_index)
ROUNDS = 6
CONCATENATE, BEST_FIT = "concatenate", "best_fit"  # data.packing; the second is train/packed.py
MIX, ALL_BITS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), 2**64 - 1


class Permutation:
    """A keyed bijection of 0..size-1 that needs no table: a Feistel network with cycle walking (Black and Rogaway,
    CT-RSA 2002). Works on int64 arrays."""

    def __init__(self, size: int, key: str):
        self.size = size
        self.half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        digest = hashlib.sha256(key.encode()).digest() + hashlib.sha256(b"more" + key.encode()).digest()
        self.keys = np.frombuffer(digest, "<u8")[:ROUNDS]
        self._keys: list[int] = self.keys.tolist()
        self.mask = np.uint64((1 << self.half_bits) - 1)

    def __call__(self, index: np.ndarray | int) -> np.ndarray:
        """Image of each index."""
        return self._walk(index, range(ROUNDS), forward=True)

    def inverse(self, index: np.ndarray | int) -> np.ndarray:
        """The index that each value is the image of."""
        return self._walk(index, range(ROUNDS - 1, -1, -1), forward=False)

    def one(self, index: int) -> int:
        """Image of one index: the same in plain integers, which for a single one is many times faster than arrays."""
        assert 0 <= index < self.size, "outside the permutation's domain: its cycle might never lead back"
        bits, mask, keys = self.half_bits, int(self.mask), self._keys
        while True:
            left, right = index >> bits, index & mask
            for key in keys:
                value = (right + key) & ALL_BITS
                value = ((value ^ (value >> 30)) * MIX[0]) & ALL_BITS
                value = ((value ^ (value >> 27)) * MIX[1]) & ALL_BITS
                left, right = right, left ^ ((value ^ (value >> 31)) & mask)
            index = (left << bits) | right
            if index < self.size:
                return index

    def _walk(self, index: np.ndarray | int, rounds: range, *, forward: bool) -> np.ndarray:
        value = np.atleast_1d(np.asarray(index, dtype=np.uint64)).copy()
        assert (value < self.size).all(), "outside the permutation's domain: its cycle might never lead back"
        outside = np.ones(len(value), dtype=bool)
        while outside.any():  # walk the cycle until it is back inside; the domain is at most four times the size
            value[outside] = self._network(value[outside], rounds, forward=forward)
            outside = value >= self.size
        return value.astype(np.int64)

    def _network(self, value: np.ndarray, rounds: range, *, forward: bool) -> np.ndarray:
        shift = np.uint64(self.half_bits)
        left, right = value >> shift, value & self.mask
        for number in rounds:
            if forward:
                left, right = right, left ^ (_mix(right, self.keys[number]) & self.mask)
            else:
                left, right = right ^ (_mix(left, self.keys[number]) & self.mask), left
        return (left << shift) | right


def _mix(value: np.ndarray, key: np.uint64) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        value = value + key
        value = (value ^ (value >> np.uint64(30))) * np.uint64(MIX[0])
        value = (value ^ (value >> np.uint64(27))) * np.uint64(MIX[1])
    return value ^ (value >> np.uint64(31))


def windows_in(tokens: int, length: int) -> int:
    """Windows of ``length + 1`` ids, one shared by neighbours, in a shard of so many tokens."""
    return max(tokens - 1, 0) // length


def windows_by_language(
    manifest: ShardsManifest, length: int, packing: str = CONCATENATE, pools: Sequence[Pool] = ()
) -> dict[str, int]:
    """{language: windows of training text, of ``length`` tokens}, in alphabetical order; and of ``pools``, by name.

    Raises:
        HanseError: they are to be packed, and there is no plan for it.
    """
    windows = dict.fromkeys(sorted(entry.language for entry in manifest.of("train")), 0)
    plans = (
        {}
        if packing == CONCATENATE
        else {plan.name: plan.bins for plan in PackingManifest.read(manifest, length).plans}
    )
    for entry in manifest.of("train"):
        windows[entry.language] += plans[entry.name] if plans else windows_in(entry.tokens, length)
    for pool in pools:
        spans = spans_by_pool(manifest, pool, length, packing)
        windows[pool.name] = sum(
            stop - start if plans else windows_in(stop - start, length) for _, start, stop in spans
        )
    return windows


def spans_by_pool(manifest: ShardsManifest, pool: Pool, length: int, packing: str) -> list[tuple[int, int, int]]:
    """Where a part of a language lies in its shards: their numbers, and spans of tokens, or of the bins of a plan.

    Raises:
        HanseError: it is to be packed, and there is no plan by source.
    """
    entries = [entry for entry in manifest.of("train") if entry.language == pool.language]
    if packing == CONCATENATE:
        return spans_in(manifest, entries, pool)
    plans = {plan.name: plan.sources for plan in PackingManifest.read(manifest, length, by_source=True).plans}
    return [(number, *span) for number, entry in enumerate(entries) for span in pool.parts(plans[entry.name].items())]


class Source:
    """The windows of one pool of text: token ranges of ``length + 1`` ids, one id shared by neighbours.

    Window w of a span of T tokens covers ids ``w * length .. w * length + length`` of it; there are (T - 1) // length.
    Every id but a span's first, and the tail, is a label exactly once an epoch.

    Attributes:
        shards: of its language.
        spans: where in them it lies: (number of the shard, first token, token behind the last); whole documents each.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[TokenShard],
        length: int,
        seed: int | str = 0,
        spans: Sequence[tuple[int, int, int]] | None = None,
    ):
        self.name, self.language, self.shards, self.length, self.seed = name, language_of(name), shards, length, seed
        if spans is None:
            spans = [(number, 0, len(shard.tokens)) for number, shard in enumerate(shards)]
        self._lay(spans, [windows_in(stop - start, length) for _, start, stop in spans])
        self._permutation: tuple[int, Permutation] | None = None

    def _lay(self, spans: Sequence[tuple[int, int, int]], windows: Sequence[int]) -> None:
        self.spans, self._ends = spans, np.cumsum(windows)
        self.windows = int(self._ends[-1]) if len(spans) else 0

    def _span(self, number: int) -> tuple[int, int, int]:
        """The shard of a window, where the window's span begins there, and the window's number in it."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        shard, start, _ = self.spans[which]
        return shard, start, number - (int(self._ends[which - 1]) if which else 0)

    def _spans_of(self, prefix: Path) -> Iterator[tuple[int, int, int, int, int]]:
        """(shard, first, stop, first window, window behind the last) of the spans in a shard."""
        before = 0
        for (shard, first, stop), end in zip(self.spans, self._ends.tolist(), strict=True):
            if self.shards[shard].prefix == prefix:
                yield shard, first, stop, before, end
            before = end

    def order(self, epoch: int) -> Permutation:
        """The permutation of the windows in one epoch."""
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, Permutation(self.windows, f"{self.seed}/{self.name}/{epoch}")
        return self._permutation[1]

    def drawn(self, k: int) -> int:
        """Window number of the k-th draw."""
        epoch, place = divmod(k, self.windows)
        return self.order(epoch).one(place)

    def window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, documents): int64 arrays of ``length + 1`` ids, and of the document (counted in the shard) of each."""
        shard, start = self.place(number)
        stop = start + self.length + 1
        first, last = np.searchsorted(shard.document_starts, (start, stop - 1), side="right")
        edges = np.concatenate(([start], shard.document_starts[first:last], [stop]))
        documents = np.repeat(np.arange(first - 1, last), np.diff(edges))
        return shard.tokens[start:stop].astype(np.int64), documents

    def targets(self, number: int) -> int:
        """Labels that count in a window, told by the index alone: a document's first token is nobody's next token."""
        shard, start = self.place(number)
        first, last = np.searchsorted(shard.document_starts, (start, start + self.length), side="right")
        return self.length - len(np.unique(shard.document_starts[first:last]))

    def windows_of(self, prefix: Path, start: int, stop: int) -> np.ndarray:
        """Numbers of the windows that hold, as an input or a label, any of a shard's tokens ``start..stop``."""
        found = [np.empty(0, dtype=np.int64)]
        for _, begin, end, before, behind in self._spans_of(prefix):
            here, there = max(start, begin) - begin, min(stop, end) - begin
            first, last = max(-(-(here - self.length) // self.length), 0), (there - 1) // self.length
            if here < there:
                found.append(np.arange(before + first, min(before + last + 1, behind)))
        return np.concatenate(found)

    def place(self, number: int) -> tuple[TokenShard, int]:
        """The shard of a window, and the token at which it starts there."""
        shard, start, window = self._span(number)
        return self.shards[shard], start + window * self.length


@dataclass(frozen=True)
class MicroBatch:
    """What a rank runs through the model at once; B sequences of L tokens, all int64.

    Attributes:
        input_ids, labels, positions, documents: (B, L). ``labels[b, t]`` is the next token, or IGNORED where that
            belongs to another document or is padding; ``positions`` start at 0 in each document; equal ``documents``
            may attend; padding has -1. Of a slice the first three are (B, L / slices), and ``documents`` is the whole.
        sources: (B,) number of each sequence's source; of training data, of its language.
        packed: whether any sequence holds more than one document.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    documents: np.ndarray
    sources: np.ndarray
    packed: bool

    def slice(self, number: int, slices: int) -> MicroBatch:
        """One of so many equal slices of the positions, which divide them; labels were shifted before."""
        if slices == 1:
            return self
        ids, labels, positions = (np.ascontiguousarray(np.split(one, slices, axis=1)[number])
                                  for one in (self.input_ids, self.labels, self.positions))  # fmt: skip
        return replace(self, input_ids=ids, labels=labels, positions=positions)


def pack(windows: Sequence[tuple[np.ndarray, np.ndarray]], sources: Sequence[int]) -> MicroBatch:
    """Windows of ``length + 1`` ids -> a micro-batch.

    Arrays are contiguous: a compiled layer is compiled anew for other strides, and a GPU fetches only whole blocks of
    page-locked memory while the host goes on.
    """
    ids, documents = (np.stack(part) for part in zip(*windows, strict=True))
    inside = np.ascontiguousarray(documents[:, :-1])
    labels = np.where((inside == documents[:, 1:]) & (inside >= 0), ids[:, 1:], IGNORED)
    places = np.broadcast_to(np.arange(inside.shape[1]), inside.shape)
    starts = np.where(np.diff(inside, axis=1, prepend=-1) != 0, places, 0)
    positions = places - np.maximum.accumulate(starts, axis=1)
    packed = bool((inside[:, 0] != inside[:, -1]).any())
    before, drawn = np.ascontiguousarray(ids[:, :-1]), np.asarray(sources, dtype=np.int64)
    return MicroBatch(before, labels, positions, inside, drawn, packed)


class Stream:
    """The training data of one piece of a run in its order; samples are counted from where the piece begins.

    Attributes:
        before: draws of each source in earlier pieces with windows of this length, which this one goes on after.
        languages: of the sources, in their order.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources, self.mixture = sources, Mixture(weights)
        self.before = [0] * len(sources)
        self.languages = list(dict.fromkeys(source.language for source in sources))
        self._language = [self.languages.index(source.language) for source in sources]

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.sources[0].length

    def sample(self, number: int) -> tuple[int, int]:
        """(source, window) of a sample."""
        source, k = self.mixture.draw(number)
        return source, self.sources[source].drawn(self.before[source] + k)

    def samples_of(self, source: int, windows: np.ndarray, below: int) -> np.ndarray:
        """The inverse of :meth:`sample`: the sample numbers under ``below`` that are these windows, ascending."""
        held, begin = self.sources[source], self.before[source]
        draws, found = self.mixture.drawn(below)[source], [np.empty(0, dtype=np.int64)]
        for epoch in range(begin // held.windows, -(-(begin + draws) // held.windows)) if draws else ():
            k = epoch * held.windows + held.order(epoch).inverse(windows) - begin
            found.append(self.mixture.samples(source, k[(k >= 0) & (k < draws)]))
        return np.sort(np.concatenate(found))

    def fingerprint(self, samples: Sequence[int]) -> str:
        """SHA-256 of the ids and document borders of these samples: the same for all who draw them."""
        digest = hashlib.sha256()
        for number in samples:
            source, window = self.sample(number)
            for part in self.sources[source].window(window):
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()

    def micro_batch(self, samples: Sequence[int]) -> MicroBatch:
        """The micro-batch of these samples."""
        drawn = [self.sample(number) for number in samples]
        windows = [self.sources[source].window(window) for source, window in drawn]
        return pack(windows, [self._language[source] for source, _ in drawn])

    def targets(self, samples: Sequence[int]) -> int:
        """Labels that count in these samples; every rank can tell for the whole step, without asking the others."""
        drawn = [self.sample(number) for number in samples]
        return sum(self.sources[source].targets(window) for source, window in drawn)

    def step(self, consumed: int, *, global_batch: int, micro_batch: int, rank: int, ranks: int) -> list[MicroBatch]:
        """One rank's micro-batches of the step that starts at sample ``consumed``, in the order they are run."""
        mine = rank_samples(consumed, global_batch=global_batch, micro_batch=micro_batch, rank=rank, ranks=ranks)
        return [self.micro_batch(samples) for samples in mine]


def rank_samples(consumed: int, *, global_batch: int, micro_batch: int, rank: int, ranks: int) -> list[range]:
    """The samples of each of a rank's micro-batches, in the step that starts at sample ``consumed``."""
    accumulation = global_batch // (micro_batch * ranks)
    firsts = [consumed + (turn * ranks + rank) * micro_batch for turn in range(accumulation)]
    return [range(first, first + micro_batch) for first in firsts]


def open_sources(
    manifest: ShardsManifest,
    split: str,
    length: int,
    seed: int | str,
    *,
    hashes: bool = False,
    packing: str = CONCATENATE,
    pools: Sequence[Pool] = (),
) -> dict[str, Source]:
    """The sources of a split by language, in alphabetical order; and ``pools`` that are parts of one, by name.

    Raises:
        HanseError: a file is not the one that was described; or there is no plan to pack by.
    """
    if packing != CONCATENATE:
        from train.packed import open_packed

        return open_packed(manifest, length, seed, hashes=hashes, pools=pools)
    languages = sorted({entry.language for entry in manifest.of(split)})
    found = {
        language: Source(
            language,
            [manifest.open(entry, hashes=hashes) for entry in manifest.of(split) if entry.language == language],
            length,
            seed,
        )
        for language in languages
    }
    for pool in pools:
        spans = spans_by_pool(manifest, pool, length, packing)
        found[pool.name] = Source(pool.name, found[pool.language].shards, length, seed, spans)
    return found
