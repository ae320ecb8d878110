"""How much a text repeats itself, for a whole batch at once: lines, paragraphs and runs of n words.

After Rae et al. 2021, Scaling Language Models (Gopher), arXiv 2112.11446, table A1. Shares of n-grams are in characters
of words, without the spaces and the punctuation between them. Equal means: the same words in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipelines.annotate.text_arrays import OF_WORDS, Bools, Hashes, Integers, TextArrays

TOP = (2, 3, 4)
DUPLICATED = (5, 6, 7, 8, 9, 10)
MIX = np.uint64(0xFF51AFD7ED558CCD)
SHIFT = np.uint64(32)


def repetition(arrays: TextArrays) -> dict[str, NDArray[np.float64]]:
    """Shares (0 to 1), one a text: ``duplicate_lines``, ``duplicate_line_characters``, the same of paragraphs,
    ``top_N_gram`` for N of 2 to 4 and ``duplicate_N_grams`` for N of 5 to 10.
    """  # fmt: skip
    lines = _parts(arrays, "line", arrays.line_starts, arrays.line_ends)
    return lines | _parts(arrays, "paragraph", *_paragraphs(arrays)) | _n_grams(arrays)


def _parts(arrays: TextArrays, name: str, starts: Integers, ends: Integers) -> dict[str, NDArray[np.float64]]:
    """Share of lines or paragraphs that repeat an earlier one, by number and by characters (without white space)."""
    first, last = np.searchsorted(arrays.word_starts, starts), np.searchsorted(arrays.word_starts, ends)
    text = np.searchsorted(arrays.bounds, starts, side="right") - 1
    keys = _apart(OF_WORDS.ranges(arrays.word_hashes, first, last), text)
    _, again = _groups(keys)
    ink = arrays.ink_before[ends] - arrays.ink_before[starts]
    return {
        f"duplicate_{name}s": share(_sum(again, text, arrays.texts), np.bincount(text, minlength=arrays.texts)),
        f"duplicate_{name}_characters": share(_sum(ink * again, text, arrays.texts), _sum(ink, text, arrays.texts)),
    }


def _paragraphs(arrays: TextArrays) -> tuple[Integers, Integers]:
    """(starts, ends): lines with ink that follow each other without an empty one between."""
    starts, ends = arrays.line_starts, arrays.line_ends
    opens = np.ones(len(starts), bool)
    opens[1:] = starts[1:] != ends[:-1] + 1
    opens[arrays.line_bounds[arrays.line_bounds < len(starts)]] = True
    return starts[opens], ends[np.append(opens[1:], True)[: len(ends)]]


def _n_grams(arrays: TextArrays) -> dict[str, NDArray[np.float64]]:
    words, texts, text = arrays.word_hashes, arrays.texts, arrays.word_text
    letters_before = np.concatenate([[0], np.cumsum(arrays.word_lengths)])
    total = np.diff(letters_before[arrays.word_bounds])
    left = arrays.word_bounds[text + 1] - np.arange(len(words))  # words from each one to the end of its text
    shares = {}
    places, hashes = np.flatnonzero(left >= 2), words[left >= 2]
    for n in range(2, max(DUPLICATED) + 1):
        if n > 2:
            # An n-gram can occur twice only where both (n-1)-grams in it do, so that ever fewer places are looked at.
            repeated = np.zeros(len(words) + 1, bool)
            repeated[places] = True
            keep = repeated[places + 1] & (left[places] >= n)
            places, hashes = places[keep], hashes[keep]
        hashes = hashes * np.uint64(OF_WORDS.base) + words[places + n - 1]
        keys = _apart(hashes, text[places])
        shared = _perhaps_twice(keys)
        places, hashes, keys = places[shared], hashes[shared], keys[shared]
        count, again = _groups(keys)
        twice = count > 1
        places, hashes, count, again = places[twice], hashes[twice], count[twice], again[twice]
        if n in TOP:
            length = letters_before[places + n] - letters_before[places]
            shares[f"top_{n}_gram"] = _top(count, length, text[places], total)
        if n in DUPLICATED:
            starts = places[again]
            free = starts.copy()  # the first word of each n-gram that the one before it does not cover
            free[1:] = np.maximum(starts[1:], starts[:-1] + n)
            covered = letters_before[starts + n] - letters_before[free]
            shares[f"duplicate_{n}_grams"] = share(_sum(covered, text[starts], texts), total)
    return shares


def _top(count: Integers, length: Integers, text: Integers, total: Integers) -> NDArray[np.float64]:
    """Share of the characters in the most frequent n-gram; of several equally frequent ones, in the longest.

    Occurrences that overlap are all counted, up to the whole text. An n-gram that occurs once is no repetition.
    """
    top = np.zeros(len(total), np.int64)
    if len(text):
        first = np.flatnonzero(np.append(True, text[1:] != text[:-1]))
        best = np.maximum.reduceat(count << 32 | length, first)
        top[text[first]] = (best >> 32) * (best & 0xFFFFFFFF)
    return share(np.minimum(top, total), total)


def _perhaps_twice(keys: Hashes) -> Bools:
    """False for keys that are surely unique, by counting their leading bits: cheaper than sorting them."""
    bits = max(8, len(keys).bit_length() + 2)
    bucket = (keys >> np.uint64(64 - bits)).astype(np.intp)
    return np.bincount(bucket, minlength=1 << bits)[bucket] > 1


def _apart(hashes: Hashes, text: Integers) -> Hashes:
    """Hashes that are equal only within a text, with all bits mixed."""
    keys = (hashes ^ (hashes >> SHIFT)) * MIX + (text + 1).astype(np.uint64) * MIX * MIX
    return keys ^ (keys >> SHIFT)


def _groups(keys: Hashes) -> tuple[Integers, Bools]:
    """(count, again): how many keys are equal to each, itself included, and whether one of them stands before it."""
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    count = np.empty(len(keys), np.int64)
    count[order] = np.repeat(sizes, sizes)
    again = np.ones(len(keys), bool)
    again[np.minimum.reduceat(order, starts)] = False
    return count, again


def _sum(values: NDArray[np.generic], text: Integers, texts: int) -> Integers:
    return np.bincount(text, weights=values, minlength=texts).astype(np.int64)


def share(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """``part / whole``, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=np.asarray(whole) != 0)
