"""Texts of evaluation sets inside training documents: runs of equal words, whatever their case and punctuation.

A run of 13 words is what GPT-3 looked for (Brown et al. 2020, arXiv 2005.14165, appendix C). Texts of evaluation sets
are often shorter than that: those of five words and more are looked for as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.annotate.signature import n_grams
from data_pipelines.annotate.text_arrays import Hashes, Integers, TextArrays

SCHEMA = pa.schema([("evaluation_matches", pa.int32()), ("evaluation_set", pa.string())])
FEWEST_WORDS = 5
SIEVE_BITS = 4  # more than the number of runs has: a table that says no to most before anything is searched


class EvaluationSets:
    """The runs of words of evaluation sets."""

    def __init__(self, sets: Mapping[str, Iterable[str]], words: int):
        """Read the sets: ``{name: texts}``; runs of ``words`` words, shorter texts whole."""
        self.names = list(sets)
        found: dict[int, list[tuple[Hashes, int]]] = {}
        for number, texts in enumerate(sets.values()):
            for text in texts:
                for length, hashes in _runs(TextArrays.of([text]), words):
                    found.setdefault(length, []).append((hashes, number))
        self._runs = {length: _sorted(pairs) for length, pairs in sorted(found.items())}

    def matches(self, arrays: TextArrays) -> tuple[Integers, Integers]:
        """(runs of words of each text that are in a set, number of the first such set or -1)."""
        count, first = np.zeros(arrays.texts, np.int64), np.full(arrays.texts, len(self.names))
        for length, (known, number, sieve) in self._runs.items():
            hashes, text = n_grams(arrays, length)
            perhaps = np.flatnonzero(sieve[_leading(hashes, sieve)])
            place = np.searchsorted(known, hashes[perhaps])
            equal = known[np.minimum(place, len(known) - 1)] == hashes[perhaps]
            perhaps, place = perhaps[equal], place[equal]
            count += np.bincount(text[perhaps], minlength=arrays.texts)
            np.minimum.at(first, text[perhaps], number[place])
        return count, np.where(first < len(self.names), first, -1)

    def columns(self, count: Integers, first: Integers) -> pa.RecordBatch:
        """What :meth:`matches` gave, as the columns of :data:`SCHEMA`."""
        names = [self.names[number] if number >= 0 else None for number in first.tolist()]
        return pa.RecordBatch.from_arrays([pa.array(count, pa.int32()), pa.array(names, pa.string())], schema=SCHEMA)


def _runs(arrays: TextArrays, words: int) -> Iterator[tuple[int, Hashes]]:
    """(length, hashes) of the runs of words of one text."""
    length = min(words, len(arrays.word_hashes))
    if length >= FEWEST_WORDS:
        yield length, n_grams(arrays, length)[0]


def _sorted(pairs: list[tuple[Hashes, int]]) -> tuple[Hashes, Integers, NDArray[np.bool_]]:
    """(hashes ascending, each once; the first set that has it; which leading bits occur)."""
    hashes = np.concatenate([hashes for hashes, _ in pairs])
    numbers = np.repeat([number for _, number in pairs], [len(hashes) for hashes, _ in pairs])
    known, place = np.unique(hashes, return_index=True)  # the first occurrence, and sets come in order
    sieve = np.zeros(1 << len(known).bit_length() + SIEVE_BITS, bool)
    sieve[_leading(known, sieve)] = True
    return known, numbers[place], sieve


def _leading(hashes: Hashes, sieve: NDArray[np.bool_]) -> Integers:
    return (hashes >> np.uint64(65 - len(sieve).bit_length())).astype(np.int64)
