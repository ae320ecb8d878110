"""The order of data of a whole run: one piece after another, each the order of one mixture of windows of one length.

A piece (:meth:`train.stages.Timeline.pieces`) begins its mixture anew. The windows of a source of one length come in
one order that has no end; a piece takes up where the last one of that length stopped, so that no window comes a second
time before all have come. Windows of another length have another order. See ``docs/how/order-of-data.md``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from common.errors import HanseError
from data_pipelines.shards import ShardsManifest
from train.config import TrainConfig
from train.mixture import Mixture, weights_of
from train.pools import Pool, check_mixtures, language_of, parts_of_languages
from train.stages import Ranges, Stage, Timeline
from train.stream import MicroBatch, Source, Stream, open_sources, rank_samples, windows_by_language

WindowsAt = Callable[[int], Mapping[str, int]]  # sequence length -> {language, or other pool: windows of that length}


class RunStream:
    """All training data of a run in its global order: samples and steps are counted from the run's beginning.

    Attributes:
        sources: of the first piece; those of the others have the same names and numbers; ``languages``: of these.
        skipped: ranges of samples that the run went past (:meth:`skip`).
    """

    def __init__(self, timeline: Timeline, streams: Sequence[Stream], skipped: Ranges = ()):
        self.timeline, self.streams, self.sources = timeline, streams, streams[0].sources
        self.languages = streams[0].languages
        self.skip(skipped)

    def skip(self, ranges: Ranges) -> None:
        """Go past these ranges of samples."""
        self.skipped = list(ranges)
        self._begins, befores = self._layout(ranges)
        for stream, before in zip(self.streams, befores, strict=True):
            stream.before = before

    def _layout(self, skipped: Ranges) -> tuple[list[int], list[list[int]]]:
        """Of each piece, its first sample, and the draws of each source before it from windows of its length."""
        begins = [self.timeline.begin(piece, skipped) for piece in self.timeline.pieces()]
        befores, drawn = [], dict[int, list[int]]()
        for stream, begin, end in zip(self.streams, begins, [*begins[1:], begins[-1]], strict=True):
            befores.append(drawn.get(stream.length, [0] * len(self.sources)))
            drawn[stream.length] = _sums(befores[-1], stream.mixture.drawn(end - begin))
        return begins, befores

    def go_back(self, step: int, back: int, kept: Ranges) -> list[tuple[int, int]]:
        """Go back from ``step`` to ``back``, and on past all windows that were drawn since; the ranges skipped for it.

        One range in each piece of the order that lies in between, as far as it is needed: the run comes to the later
        pieces again.

        Args:
            kept: ranges skipped as the checkpoint of ``back`` tells.
        """
        reached = max([self.span(step - 1).stop, *(stop for _, stop in self.skipped)])
        seen, first = dict[int, list[int]](), self.timeline.first_sample(back, kept)
        for stream, begin, end in zip(self.streams, self._begins, [*self._begins[1:], reached], strict=True):
            if begin < reached:
                seen[stream.length] = _sums(stream.before, stream.mixture.drawn(min(end, reached) - begin))
        before = [one for one in kept if one[0] < first]
        found, pieces = before.copy(), zip(self.timeline.pieces(), self.streams, self._begins, strict=True)
        for number, (piece, stream, begin) in enumerate(pieces):
            if piece[-1].stop_step > back and begin < reached:
                begins, befores = self._layout(found)
                stop = begins[number] + _until(stream.mixture, befores[number], seen[stream.length])
                if stop > max(first, begins[number]):
                    found.append((max(first, begins[number]), stop))
        self.skip(found)
        return found[len(before) :]

    def piece(self, sample: int) -> tuple[Stream, int]:
        """The piece that a sample belongs to, and its number there."""
        number = max(bisect_right(self._begins, sample) - 1, 0)
        return self.streams[number], sample - self._begins[number]

    def sample(self, number: int) -> tuple[Source, int]:
        """(source, window) of a sample."""
        stream, local = self.piece(number)
        source, window = stream.sample(local)
        return stream.sources[source], window

    def span(self, step: int) -> range:
        """The samples of the step after ``step`` steps."""
        return self.timeline.span(step, self.skipped)

    def step(self, step: int, *, rank: int, ranks: int) -> list[MicroBatch]:
        """One rank's micro-batches of the step after ``step`` steps, in the order they are run."""
        return [self.micro_batch(samples) for samples in self.rank_samples(step, rank, ranks)]

    def rank_samples(self, step: int, rank: int, ranks: int) -> list[range]:
        """The samples of each of a rank's micro-batches in the step after ``step`` steps."""
        batch = self.timeline.at(step).batch
        return rank_samples(self.span(step).start, global_batch=batch.global_batch_size,
                            micro_batch=batch.micro_batch_size, rank=rank, ranks=ranks)  # fmt: skip

    def micro_batch(self, samples: range) -> MicroBatch:
        """The micro-batch of these samples, which are of one piece, as below."""
        stream, local = self._here(samples)
        return stream.micro_batch(local)

    def targets(self, samples: range) -> int:
        """Labels that count in these samples; every rank can tell for the whole step, without asking the others."""
        stream, local = self._here(samples)
        return stream.targets(local)

    def fingerprint(self, samples: range) -> str:
        """SHA-256 of the ids and document borders of these samples: the same for all who draw them."""
        stream, local = self._here(samples)
        return stream.fingerprint(local)

    def _here(self, samples: range) -> tuple[Stream, range]:
        stream, local = self.piece(samples.start)
        return stream, range(local, local + len(samples))

    def holding(self, source: int, prefix: Path, start: int, stop: int, below: int) -> np.ndarray:
        """The samples under ``below`` that hold any of a shard's tokens ``start..stop``, ascending."""
        found = [np.empty(0, dtype=np.int64)]
        for stream, begin, end in zip(self.streams, self._begins, [*self._begins[1:], below], strict=True):
            if begin < below and stream.mixture.weights[source]:
                windows = stream.sources[source].windows_of(prefix, start, stop)
                found.append(begin + stream.samples_of(source, windows, min(end, below) - begin))
        return np.concatenate(found)


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [sum(pair) for pair in zip(one, other, strict=True)]


def _until(mixture: Mixture, before: Sequence[int], seen: Sequence[int]) -> int:
    """Samples of a mixture until each of its sources, ``before`` draws of it being done, was drawn ``seen`` times."""
    last = [mixture.sample(source, most - done - 1) for source, (done, most) in
            enumerate(zip(before, seen, strict=True)) if most > done and mixture.weights[source]]  # fmt: skip
    return max(last, default=-1) + 1


@dataclass(frozen=True)
class Piece:
    """A piece of the order without its windows: ``weights`` of what is drawn from, by name (:mod:`train.pools`)."""

    stages: tuple[Stage, ...]
    weights: dict[str, float]
    mixture: Mixture


def pieces_of(config: TrainConfig, windows_at: WindowsAt) -> list[Piece]:
    """The pieces of a run's order.

    Raises:
        HanseError: UniMax, and the text does not suffice.
    """
    pieces, taken = [], Counter[str]()  # tokens
    for stages in config.timeline.pieces():
        length, samples = stages[0].length, sum(stage.samples for stage in stages)
        before = {language: tokens / length for language, tokens in taken.items()}
        try:
            weights = weights_of(stages[0].data, windows_at(length), samples, before)
        except HanseError as error:
            raise HanseError(f"{stages[0].where}{error}") from None
        pieces.append(Piece(stages, weights, Mixture(list(weights.values()) or [1])))
        for name, drawn in zip(weights, pieces[-1].mixture.drawn(samples), strict=False):
            taken[language_of(name)] += drawn * length
    return pieces


def stage_draws(
    config: TrainConfig, windows_at: WindowsAt, steps: int, skipped: Ranges = ()
) -> list[tuple[Stage, Piece, dict[str, int]]]:
    """For each stage its piece, and {pool: sequences} that its steps, of the run's first ``steps``, learn from.

    Args:
        config: of the run.
        windows_at: windows of each language for one epoch, by their length.
        steps: optimizer steps.
        skipped: ranges of samples that the run went past.
    """
    line, found = config.timeline, []
    for piece in pieces_of(config, windows_at):
        begin = line.begin(piece.stages, skipped)

        def drawn(start: int, stop: int, mixture: Mixture = piece.mixture, begin: int = begin) -> np.ndarray:
            return np.array(mixture.drawn(stop - begin)) - np.array(mixture.drawn(start - begin))

        for stage in piece.stages:
            counts, last = np.zeros(len(piece.mixture.weights), dtype=np.int64), min(stage.stop_step, steps)
            if last > stage.first_step and piece.weights:
                first, end = line.first_sample(stage.first_step, skipped), line.end(last, skipped)
                counts = drawn(first, end) - sum(drawn(*one) for one in skipped if first <= one[0] < end)
            found.append((stage, piece, dict(zip(piece.weights, counts.tolist(), strict=False))))
    return found


@dataclass(frozen=True)
class Drawn:
    """What a run draws of a language in some of its steps; ``epochs`` None: not known how much there is."""

    samples: int
    tokens: int
    epochs: float | None


def drawn_in(config: TrainConfig, windows_at: WindowsAt, steps: int, skipped: Ranges = ()) -> dict[str, Drawn]:
    """What the first ``steps`` steps of a run take of each language that is drawn from (:func:`stage_draws`)."""
    found: dict[str, Drawn] = {}
    for stage, _, draws in stage_draws(config, windows_at, steps, skipped):
        for name, samples in draws.items():
            language = language_of(name)
            one, windows = found.get(language, Drawn(0, 0, 0.0)), windows_at(stage.length)[language]
            epochs = None if not windows or one.epochs is None else one.epochs + samples / windows
            found[language] = Drawn(one.samples + samples, one.tokens + samples * stage.length, epochs)
    return found


def windows_of(manifest: ShardsManifest, packing: str, pools: Sequence[Pool] = ()) -> WindowsAt:
    """:func:`train.stream.windows_by_language` of some shards as a function of the length alone."""
    return cache(lambda length: windows_by_language(manifest, length, packing, pools))


def open_stream(
    manifest: ShardsManifest, config: TrainConfig, *, hashes: bool = False, skipped: Ranges = ()
) -> RunStream:
    """The training data of a run in its order, out of a shards folder.

    Raises:
        HanseError: a mixture names what is not there, or has less than a window of text.
    """
    check_mixtures(config, manifest)
    usual, pools = config.data.sequence_length, parts_of_languages(config)
    sources: dict[int, dict[str, Source]] = {}
    for length in dict.fromkeys(stage.length for stage in config.timeline):
        seed = config.seed if length == usual else f"{config.seed}/{length}"  # each length has an order of its own
        sources[length] = open_sources(manifest, "train", length, seed, hashes=hashes and not sources,
                                       packing=config.data.packing, pools=pools)  # fmt: skip
    names = sorted(next(iter(sources.values())))
    windows = {length: {name: source.windows for name, source in held.items()} for length, held in sources.items()}
    if not names:
        raise HanseError(f"{manifest.folder}: no training shards; write them with 'hanse tokenize'")
    pieces = pieces_of(config, windows.__getitem__)
    for piece in pieces:
        stage = piece.stages[0]
        for name, count in windows[stage.length].items():
            if count == 0 and (name in piece.weights or (not stage.data.mixture and language_of(name) == name)):
                raise HanseError(f"{stage.where}data.sequence_length={stage.length}: '{name}' in {manifest.folder} has "
                                 "fewer tokens than that; leave it out with data.mixture={...}, or take shorter "
                                 "sequences")  # fmt: skip
    used = [name for name in names if any(name in piece.weights for piece in pieces)]
    streams = [Stream([sources[piece.stages[0].length][name] for name in used],
                      [piece.weights.get(name, 0) for name in used]) for piece in pieces]  # fmt: skip
    return RunStream(config.timeline, streams, skipped)
