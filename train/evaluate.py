"""Validation a language and a source: bits per byte and accuracy, beside what a unigram model of the tokens reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from train.engine import Engine
from train.ranks import Place
from train.stream import IGNORED, MicroBatch, Source, pack
from train.tally import Origins, Score

UNIGRAM_TOKENS = 50_000_000  # a language's training tokens that the unigram model is counted on, at most


@dataclass(frozen=True)
class LanguageScore(Score):
    """Of the validation labels of one language; of each of its sources too where there are several."""

    sources: Mapping[str, Score] = field(default_factory=dict)


class Evaluation:
    """The validation windows of every language, fixed once: the same at every step and any number of ranks.

    Args:
        sources: validation text by language.
        tokens_per_language: to take of it, at most, evenly over all documents.
        micro_batch: windows that go through the model at once.
        token_bytes: UTF-8 bytes of every token.
        by_source: also tell the sources of a language apart, by the shards' sidecars where they are there.
    """

    def __init__(
        self, sources: Mapping[str, Source], tokens_per_language: int, micro_batch: int, token_bytes: np.ndarray,
        *, by_source: bool = False,
    ):  # fmt: skip
        self.token_bytes = token_bytes
        self.batches: list[tuple[int, MicroBatch]] = []
        self.windows: list[list[int]] = []  # of each batch; what fills it up is not among them
        self.languages = [name for name, source in sources.items() if source.windows]
        for number, name in enumerate(self.languages):
            source = sources[name]
            count = min(source.windows, -(-tokens_per_language // source.length))
            chosen = [index * source.windows // count for index in range(count)]  # evenly over all documents
            for first in range(0, count, micro_batch):
                windows = chosen[first : first + micro_batch]
                filled = windows + windows[:1] * (micro_batch - len(windows))
                self.windows.append(windows)
                self.batches.append((number, pack([source.window(one) for one in filled], [number] * micro_batch)))
        known = [name for name in self.languages if by_source and Origins.are_known(sources[name])]
        read = {self.languages.index(name): Origins.read(sources[name]) for name in known}
        self.origins = {number: one for number, one in read.items() if len(one.names) > 1}

    @property
    def counted(self) -> list[int]:
        """Sequences of each batch that count."""
        return [len(windows) for windows in self.windows]

    def labels(self, index: int) -> np.ndarray:
        """The labels that count in a batch, flat."""
        labels = self.batches[index][1].labels[: len(self.windows[index])]
        return labels[labels != IGNORED]

    def run(self, engine: Engine, place: Place, pause: Callable[[], None]) -> dict[str, LanguageScore]:
        """Scores of every language; collective, and the same at any number of ranks.

        Each rank fills in the rows of its batches; the others' are 0 there, so that the sum over the ranks is exact.
        ``pause``: see :func:`scored_in_turn`.
        """
        most = max((len(one.names) for one in self.origins.values()), default=0)
        rows = torch.zeros(len(self.batches), 1 + most, 4, dtype=torch.float64)
        for index, nll, first in scored_in_turn(
            engine, place, len(self.batches), lambda one: self.batches[one][1], pause
        ):
            for column, score in self._of_batch(index, nll, first).items():
                rows[index, column] = torch.tensor(astuple(score), dtype=torch.float64)
        return self._added(all_reduce_sum(rows, engine).numpy())

    def _of_batch(self, index: int, nll: torch.Tensor, first: torch.Tensor) -> dict[int, Score]:
        """{0: scores of a batch's labels, 1 + number of a source: of that source's}."""
        (language, batch), windows, labels = self.batches[index], self.windows[index], self.labels(index)
        count = len(windows)
        found = {0: Score(float(nll.sum(1)[:count].double().sum()), len(labels), int(first[:count].sum()),
                          int(self.token_bytes[labels].sum()))}  # fmt: skip
        if language in self.origins:
            parts = self.origins[language].split(
                windows, batch, nll.cpu().numpy(), first.cpu().numpy(), self.token_bytes
            )
            found |= {1 + number: score for number, score in parts.items()}
        return found

    def _added(self, rows: np.ndarray) -> dict[str, LanguageScore]:
        """(batches, columns of _of_batch, fields of a score) -> the scores of every language."""
        found = {}
        for number, name in enumerate(self.languages):
            mine = rows[self._batches_of(number)]
            names = self.origins[number].names if number in self.origins else []
            whole, *parts = (Score(math.fsum(one[:, 0]), *map(int, one[:, 1:].sum(0)))
                             for one in mine.transpose(1, 0, 2)[: 1 + len(names)])  # fmt: skip
            sources = {source: part for source, part in zip(names, parts, strict=True) if part.targets}
            found[name] = LanguageScore(**asdict(whole), sources=sources)
        return found

    def _batches_of(self, language: int) -> list[int]:
        return [index for index, (number, _) in enumerate(self.batches) if number == language]

    def unigram(self, training: Mapping[str, Source], vocabulary_size: int) -> dict[str, LanguageScore]:
        """The scores of a unigram model on the same labels: frequencies of the language's training tokens, plus one."""
        found = {}
        for number, name in enumerate(self.languages):
            counts = np.ones(vocabulary_size)
            for shard in training[name].shards if name in training else ():
                counts += np.bincount(shard.tokens[:UNIGRAM_TOKENS], minlength=vocabulary_size)
            log_probability, nll = np.log(counts / counts.sum()), 0.0
            held = [self.labels(index) for index in self._batches_of(number)]
            for labels in held:
                nll -= float(log_probability[labels].sum())
            labels = np.concatenate(held)
            right = int((labels == counts.argmax()).sum())
            found[name] = LanguageScore(nll, len(labels), right, int(self.token_bytes[labels].sum()))
        return found


def scored_in_turn(
    engine: Engine, place: Place, batches: int, batch: Callable[[int], MicroBatch], pause: Callable[[], None]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(number of a batch, its scores) of those that are this rank's to count (:meth:`Engine.scores`). Collective.

    Ranks take every n-th batch. At ZeRO 3 all must run as often as others: who has none left runs the last once more.
    Before each, all ranks ``pause``: what it raises, it raises on all of them.
    """
    sharing = engine.config.engine.sharing
    reader = place.data_parallel(sharing)
    with engine.evaluating():
        for turn in range(-(-batches // reader.ranks)):
            pause()
            index = turn * reader.ranks + reader.rank
            nll, first = engine.scores(batch(min(index, batches - 1)))
            if index < batches and place.rank % sharing == 0:
                yield index, nll, first


def all_reduce_sum(values: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Sum of a small host tensor over the ranks."""
    moved = values.to(engine.engine.device)
    dist.all_reduce(moved)
    return moved.cpu()
