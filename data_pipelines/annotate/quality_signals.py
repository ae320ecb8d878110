"""Quality signals of a batch of texts: numbers that papers found to tell text from rubbish.

What each signal is, and who proposed it, stands in :data:`SIGNALS`. All are counts, or quotients of two counts. The
papers:

- Gopher: Rae et al. 2021, Scaling Language Models, arXiv 2112.11446, appendix A1.
- C4: Raffel et al. 2020, Exploring the Limits of Transfer Learning, arXiv 1910.10683, section 2.2.
- FineWeb: Penedo et al. 2024, arXiv 2406.17557, section 3.6; FineWeb2: Penedo et al. 2025, arXiv 2506.20920.
- CulturaX: Nguyen et al. 2023, arXiv 2309.09400, section 2.2.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.annotate.repetition import DUPLICATED, TOP, repetition, share
from data_pipelines.annotate.text_arrays import (
    BULLET,
    CLOSER,
    DIGIT,
    SPACE,
    STOP,
    UPPER,
    TextArrays,
    word_hashes,
)

PREFIX = "quality_"
SHORT_LINE = 30  # characters, FineWeb

SIGNALS: dict[str, tuple[pa.DataType, str]] = {
    "characters": (pa.int64(), "code points, line ends included"),
    "words": (pa.int32(), "words: runs of letters, marks, digits and middle dots (Gopher)"),
    "sentences": (pa.int32(), "full stops, question and exclamation marks before white space or a closing quote (C4)"),
    "lines": (pa.int32(), "lines that are not empty"),
    "mean_word_length": (pa.float32(), "characters of words / words (Gopher)"),
    "mean_line_length": (pa.float32(), "characters of lines without line ends / lines"),
    "symbol_ratio": (pa.float32(), "hash signs and ellipses ('...' or '…') / words (Gopher)"),
    "alphabetic_tokens": (pa.float32(), "share of white-space separated tokens with a letter (Gopher)"),
    "digits": (pa.float32(), "share of digits among the characters that are not white space"),
    "capitals": (pa.float32(), "share of upper-case letters among letters"),
    "capital_words": (pa.float32(), "share of words of two or more letters that are all capitals"),
    "stop_words": (pa.int32(), "different stop words of the language (Gopher asks for 2 of its 8)"),
    "stop_word_share": (pa.float32(), "share of words that are stop words (CulturaX)"),
    "bullet_lines": (pa.float32(), "share of lines that begin with a bullet (Gopher)"),
    "ellipsis_lines": (pa.float32(), "share of lines that end in an ellipsis (Gopher)"),
    "punctuated_lines": (pa.float32(), "share of lines that end in . ! ? … or a closing quote (C4, FineWeb)"),
    "short_lines": (pa.float32(), f"share of lines of at most {SHORT_LINE} characters (FineWeb)"),
    "line_ends_per_word": (pa.float32(), "line ends / words (FineWeb, list_ratio)"),
    "curly_brackets": (pa.int32(), "curly brackets, a sign of program text (C4)"),
    "javascript": (pa.int32(), "times the word 'javascript' (C4)"),
    "lorem_ipsum": (pa.int32(), "times 'lorem ipsum' (C4)"),
    "policy_phrases": (pa.int32(), "times the language's phrases about cookies, privacy, terms of use (C4)"),
    **{f"duplicate_{part}s": (pa.float32(), f"share of {part}s that repeat an earlier one (Gopher)")
       for part in ("line", "paragraph")},
    **{f"duplicate_{part}_characters": (pa.float32(), "the same, by characters other than white space (Gopher)")
       for part in ("line", "paragraph")},
    **{f"top_{n}_gram": (pa.float32(), f"share of characters in the most frequent {n} words in a row (Gopher)")
       for n in TOP},
    **{f"duplicate_{n}_grams": (pa.float32(), f"share of characters in {n} words in a row that came before (Gopher)")
       for n in DUPLICATED},
}  # fmt: skip
SCHEMA = pa.schema([pa.field(PREFIX + name, kind) for name, (kind, _) in SIGNALS.items()])


class Vocabulary:
    """Stop words and phrases as hashes of words."""

    def __init__(self, stop_words: tuple[str, ...], policy_phrases: tuple[str, ...]):
        self._hashes, self._numbers, self._multiplier, self._shift = _table_of(stop_words)
        self.count = int(self._numbers.max()) + 1
        self.policy = [word_hashes(phrase) for phrase in policy_phrases]

    def stop_word(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of the stop word with each hash, -1 where there is none."""
        place = hashes * self._multiplier >> self._shift
        return np.where(self._hashes[place] == hashes, self._numbers[place], -1)


@functools.cache
def _table_of(words: tuple[str, ...]) -> tuple[NDArray[np.uint64], NDArray[np.int64], np.uint64, np.uint64]:
    """A hash table without collisions: (hashes, numbers from 0, multiplier, shift); -1 where a place is empty."""
    hashes = np.unique(word_hashes(" ".join(words)))
    bits = max(8, 2 * len(hashes).bit_length())
    shift = np.uint64(64 - bits)
    multiplier = next(
        odd for odd in range(1, 2**32, 2) if len(np.unique(hashes * np.uint64(odd) >> shift)) == len(hashes)
    )
    place = hashes * np.uint64(multiplier) >> shift
    keys, numbers = np.zeros(1 << bits, np.uint64), np.full(1 << bits, -1)
    keys[place], numbers[place] = hashes, np.arange(len(hashes))
    return keys, numbers, np.uint64(multiplier), shift


def signals_of(arrays: TextArrays, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
    """Every signal of a batch; all are counts, or quotients of two counts."""
    return {
        "characters": np.diff(arrays.bounds) - 1,
        **_of_characters(arrays),
        **_of_words(arrays, vocabulary),
        **_of_lines(arrays),
        **repetition(arrays),
    }


def _of_characters(arrays: TextArrays) -> dict[str, NDArray[Any]]:
    codes, classes, bounds, words = arrays.codes, arrays.classes, arrays.bounds, np.diff(arrays.word_bounds)
    letters = np.diff(arrays.letters_before[bounds])
    ends = arrays.of_class(STOP)
    following = classes[np.minimum(ends + 1, len(classes) - 1)]
    symbols = _count(np.flatnonzero(codes == ord("#")), bounds) + _count(_ellipses(codes), bounds)
    return {
        "sentences": _count(ends[(following & (SPACE | CLOSER)) != 0], bounds),
        "symbol_ratio": share(symbols, words),
        "digits": share(_count(arrays.of_class(DIGIT), bounds), np.diff(arrays.ink_before[bounds])),
        "capitals": share(_count(arrays.of_class(UPPER), bounds), letters),
        "curly_brackets": _count(np.flatnonzero((codes == ord("{")) | (codes == ord("}"))), bounds),
        "line_ends_per_word": share(_count(np.flatnonzero(codes == ord("\n")), bounds) - 1, words),
    }


def _ellipses(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where '…' or a run of three or more full stops begins."""
    dots = np.flatnonzero(codes == ord("."))
    runs = dots[np.append(True, dots[1:] != dots[:-1] + 1)[: len(dots)]]
    runs = runs[runs + 2 < len(codes)]
    runs = runs[(codes[runs + 1] == ord(".")) & (codes[runs + 2] == ord("."))]
    return np.sort(np.concatenate([runs, np.flatnonzero(codes == ord("…"))]))


def _of_words(arrays: TextArrays, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
    bounds, text, texts = arrays.word_bounds, arrays.word_text, arrays.texts
    count, lengths = np.diff(bounds), arrays.word_lengths
    number = vocabulary.stop_word(arrays.word_hashes)
    stops = np.flatnonzero(number >= 0)
    seen = np.bincount(text[stops] * vocabulary.count + number[stops], minlength=texts * vocabulary.count) > 0
    upper = np.searchsorted(arrays.word_starts, arrays.of_class(UPPER), side="right") - 1
    shouted = (np.bincount(upper[upper >= 0], minlength=len(text)) == lengths) & (lengths > 1)
    starts, ends = arrays.tokens()
    lettered = arrays.letters_before[ends] > arrays.letters_before[starts]
    tokens = _count(starts, arrays.bounds)
    policy = np.concatenate([np.zeros(0, np.int64), *(_phrase(arrays, phrase) for phrase in vocabulary.policy)])
    return {
        "words": count,
        "mean_word_length": share(np.bincount(text, lengths, minlength=texts), count),
        "alphabetic_tokens": share(_count(starts[lettered], arrays.bounds), tokens),
        "capital_words": share(_count(np.flatnonzero(shouted), bounds), count),
        "stop_words": seen.reshape(texts, vocabulary.count).sum(axis=1),
        "stop_word_share": share(_count(stops, bounds), count),
        "javascript": _count(_phrase(arrays, word_hashes("javascript")), bounds),
        "lorem_ipsum": _count(_phrase(arrays, word_hashes("lorem ipsum")), bounds),
        "policy_phrases": _count(np.sort(policy), bounds),
    }


def _phrase(arrays: TextArrays, phrase: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the words of a phrase follow each other within a text: the place of its first word."""
    places = np.flatnonzero(arrays.word_hashes == phrase[0])
    places = places[arrays.word_bounds[arrays.word_text[places] + 1] - places >= len(phrase)]
    for offset in range(1, len(phrase)):
        places = places[arrays.word_hashes[places + offset] == phrase[offset]]
    return places


def _of_lines(arrays: TextArrays) -> dict[str, NDArray[Any]]:
    starts, ends, bounds = arrays.line_starts, arrays.line_ends, arrays.line_bounds
    count = np.diff(bounds)
    codes, classes = arrays.codes, arrays.classes
    first, last = arrays.first_ink(starts), arrays.last_ink(ends)
    bullets = classes[first] & BULLET != 0
    # A hyphen or an asterisk is a bullet only before a space: "- item", but not "-5" or "*bold*".
    weak = (codes[first] == ord("-")) | (codes[first] == ord("*"))
    bullets &= ~weak | ((classes[first + 1] & SPACE != 0) & (first < last))
    dotted = last - starts >= 2
    for back in range(3):
        dotted &= codes[last - back] == ord(".")
    length = ends - starts
    lines = {
        "bullet_lines": bullets,
        "ellipsis_lines": dotted | (codes[last] == ord("…")),
        "punctuated_lines": classes[last] & (STOP | CLOSER) != 0,
        "short_lines": length <= SHORT_LINE,
    }
    text = np.repeat(np.arange(arrays.texts), count)
    return {
        "lines": count,
        "mean_line_length": share(np.bincount(text, length, minlength=arrays.texts), count),
        **{name: share(_count(np.flatnonzero(which), bounds), count) for name, which in lines.items()},
    }


def _count(places: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the ascending ``places`` lie in each text."""
    return np.diff(np.searchsorted(places, bounds))
