"""Validation loss a language, in bits per byte, beside what a unigram model of the same tokens reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from train.engine import Engine
from train.ranks import Place
from train.stream import IGNORED, MicroBatch, Source, pack

UNIGRAM_TOKENS = 50_000_000  # a language's training tokens that the unigram model is counted on, at most


@dataclass(frozen=True)
class LanguageLoss:
    """Sums over the validation labels of one language.

    Bits per byte (Gao et al., arXiv 2101.00027): negative log-likelihood in bits over the UTF-8 bytes of the labels;
    it compares models with different tokenizers. The end-of-document label counts in the bits and has no bytes.
    """

    nll: float  # nats
    targets: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / max(self.bytes, 1)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / max(self.targets, 1)


class Evaluation:
    """The validation windows of every language, fixed once: the same at every step and any number of ranks."""

    def __init__(
        self, sources: Mapping[str, Source], tokens_per_language: int, micro_batch: int, token_bytes: np.ndarray
    ):
        self.micro_batch, self.token_bytes = micro_batch, token_bytes
        self.batches: list[tuple[int, MicroBatch]] = []
        self.languages = [name for name, source in sources.items() if source.windows]
        for number, name in enumerate(self.languages):
            source = sources[name]
            count = min(source.windows, -(-tokens_per_language // source.length))
            chosen = [index * source.windows // count for index in range(count)]  # evenly over all documents
            for first in range(0, count, micro_batch):
                windows = [source.window(window) for window in chosen[first : first + micro_batch]]
                windows += [windows[0]] * (micro_batch - len(windows))  # filled up; what fills is not counted
                self.batches.append((number, pack(windows, [number] * micro_batch)))
        self.counted = [min(micro_batch, count) for count in self._remaining(sources, tokens_per_language)]

    def _remaining(self, sources: Mapping[str, Source], tokens_per_language: int) -> list[int]:
        counts = []
        for name in self.languages:
            left = min(sources[name].windows, -(-tokens_per_language // sources[name].length))
            while left > 0:
                counts.append(left)
                left -= self.micro_batch
        return counts

    def labels(self, index: int) -> np.ndarray:
        """The labels that count in a batch, flat."""
        labels = self.batches[index][1].labels[: self.counted[index]]
        return labels[labels != IGNORED]

    def run(self, engine: Engine, place: Place) -> dict[str, LanguageLoss]:
        """Validation loss a language; collective."""
        sums = torch.zeros(len(self.languages), dtype=torch.float64)
        turns = -(-len(self.batches) // place.ranks)
        with engine.evaluating():
            for turn in range(turns):
                index = turn * place.ranks + place.rank
                language, batch = self.batches[min(index, len(self.batches) - 1)]
                _, nll = engine.forward(batch)
                if index < len(self.batches):  # under ZeRO-3 every rank must run as often as the others
                    sums[language] += nll[: self.counted[index]].double().sum().cpu()
        sums = all_reduce_sum(sums, engine)
        return self._losses(sums.tolist())

    def _losses(self, nll: list[float]) -> dict[str, LanguageLoss]:
        targets, sizes = [0] * len(nll), [0] * len(nll)
        for index, (language, _) in enumerate(self.batches):
            labels = self.labels(index)
            targets[language] += len(labels)
            sizes[language] += int(self.token_bytes[labels].sum())
        rows = zip(self.languages, nll, targets, sizes, strict=True)
        return {name: LanguageLoss(bits, labels, size) for name, bits, labels, size in rows}

    def unigram(self, training: Mapping[str, Source], vocabulary_size: int) -> dict[str, LanguageLoss]:
        """The loss of a unigram model on the same labels: frequencies of the language's training tokens, plus one."""
        nll = [0.0] * len(self.languages)
        log_probability = []
        for name in self.languages:
            counts = np.ones(vocabulary_size)
            for shard in training[name].shards if name in training else ():
                counts += np.bincount(shard.tokens[:UNIGRAM_TOKENS], minlength=vocabulary_size)
            log_probability.append(np.log(counts / counts.sum()))
        for index, (language, _) in enumerate(self.batches):
            nll[language] -= float(log_probability[language][self.labels(index)].sum())
        return self._losses(nll)


def all_reduce_sum(values: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Sum of a small host tensor over the ranks."""
    moved = values.to(engine.engine.device)
    dist.all_reduce(moved)
    return moved.cpu()
