"""Byte-pair merges chosen so that no language pays more than it must: parity-aware BPE (arXiv 2508.04796).

Ordinary BPE merges the pair that is most frequent in all text together. Here every merge is the most frequent pair of
the language that the vocabulary so far serves worst, and then holds for all. With one language both are the same, which
a test holds against the ``tokenizers`` library.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Pair = tuple[int, int]


@dataclass
class Language:
    """One language while merges are learnt.

    Attributes:
        counts: {word: how often}, words being numbered over all languages.
        unit: what its text amounts to, in the same measure as the others' (bytes, documents of a parallel corpus ...).
        tokens: that its text takes now.
        pairs: {pair of neighbours: how often}; ``queue``: (-count, pair) with entries that are out of date.
    """

    counts: Mapping[int, int]
    unit: float
    tokens: int = 0
    pairs: dict[Pair, int] = field(default_factory=dict)
    queue: list[tuple[int, Pair]] = field(default_factory=list)

    def add(self, pair: Pair, change: int) -> None:
        """A pair is there so many times more, or fewer."""
        count = self.pairs.get(pair, 0) + change
        self.pairs[pair] = count
        if change > 0:
            heapq.heappush(self.queue, (-count, pair))

    def best(self, least: int) -> tuple[int, Pair] | None:
        """(count, pair) that is most frequent, the lowest of equals; None where none is seen ``least`` times."""
        while self.queue:
            count, pair = self.queue[0]
            now = self.pairs.get(pair, 0)
            if now == -count:
                return (now, pair) if now >= least else None
            heapq.heappop(self.queue)
            if now > 0:
                heapq.heappush(self.queue, (-now, pair))
        return None


def learn(
    words: Sequence[Sequence[int]], languages: Sequence[Language], alphabet: Sequence[str], size: int, *,
    least: int = 1, told: Callable[[int], None] = lambda done: None,
) -> tuple[list[str], list[tuple[str, str]]]:  # fmt: skip
    """(tokens by id, merges in order), of ``size`` tokens at most.

    Args:
        words: each as ids of the alphabet; no merge crosses a word's border.
        languages: what of them each language has; all are left changed.
        alphabet: tokens to begin with.
        size: of the vocabulary wanted, the alphabet included.
        least: pairs seen less often in the language whose turn it is are not merged.
        told: called with the number of tokens so far.
    """
    text = _Text(words, languages)
    tokens, merges = list(alphabet), list[tuple[str, str]]()
    numbers = {token: number for number, token in enumerate(tokens)}
    while len(tokens) < size:
        pair = _next_pair(languages, least)
        if pair is None:
            break
        left, right = tokens[pair[0]], tokens[pair[1]]
        merges.append((left, right))
        joined = numbers.setdefault(left + right, len(tokens))  # two ways may lead to the same token
        if joined == len(tokens):
            tokens.append(left + right)
            told(len(tokens))
        text.merge(pair, joined)
    return tokens, merges


def _next_pair(languages: Sequence[Language], least: int) -> Pair | None:
    """The best pair of the language that needs most tokens for its text, of those that have one left."""
    for language in sorted(languages, key=lambda one: one.tokens / one.unit, reverse=True):
        best = language.best(least)
        if best:
            return best[1]
    return None


class _Text:
    """All words as they are cut now, and the counts of their languages."""

    def __init__(self, words: Sequence[Sequence[int]], languages: Sequence[Language]):
        self.words, self.languages = [list(word) for word in words], languages
        self.where: dict[Pair, set[int]] = {}  # words in which a pair may stand
        for number, word in enumerate(self.words):
            for pair in pairwise(word):
                self.where.setdefault(pair, set()).add(number)
        self.owners: list[list[tuple[Language, int]]] = [[] for _ in words]
        for language in languages:
            language.tokens, language.pairs = 0, {}
            for number, count in language.counts.items():
                self.owners[number].append((language, count))
                language.tokens += count * len(self.words[number])
                for pair in pairwise(self.words[number]):
                    language.pairs[pair] = language.pairs.get(pair, 0) + count
            language.queue = [(-count, pair) for pair, count in language.pairs.items()]
            heapq.heapify(language.queue)

    def merge(self, pair: Pair, joined: int) -> None:
        """Merge a pair wherever it stands, from left to right."""
        for number in self.where.pop(pair, ()):
            before = self.words[number]
            after = _merged(before, pair, joined)
            changes: dict[Pair, int] = {}
            for one in pairwise(before):
                changes[one] = changes.get(one, 0) - 1
            for one in pairwise(after):
                changes[one] = changes.get(one, 0) + 1
                self.where.setdefault(one, set()).add(number)
            for language, count in self.owners[number]:
                language.tokens -= count * (len(before) - len(after))
                for one, change in changes.items():
                    if change:
                        language.add(one, change * count)
            self.words[number] = after


def _merged(word: list[int], pair: Pair, joined: int) -> list[int]:
    after, at = [], 0
    while at < len(word):
        if word[at] == pair[0] and at + 1 < len(word) and word[at + 1] == pair[1]:
            after.append(joined)
            at += 2
        else:
            after.append(word[at])
            at += 1
    return after
