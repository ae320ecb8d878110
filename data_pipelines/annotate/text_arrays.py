"""A batch of texts as flat NumPy arrays: characters, words, tokens and lines, each with the text that it belongs to.

Signals about text are sums over such arrays. Doing a whole batch at once leaves nothing for Python to loop over, and a
result that does not depend on how texts were batched, because no word, line or hash knows of the texts around it.

A *word* is a maximal run of letters, marks, digits and middle dots (``l'homme`` is two, Catalan ``col·legi`` one).
A *token* is a maximal run of characters other than white space. Words are hashed after simple case folding.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD, LETTER, UPPER, DIGIT, SPACE, STOP, CLOSER, BULLET = (np.uint8(1 << bit) for bit in range(8))
STOPS = ".!?…"  # end of a sentence
CLOSERS = "\"'”’“»›)"  # may stand between the end of a sentence and the end of a line (“ closes in German)
BULLETS = "•‣⁃◦∙·▪●○■□►*-"
CATEGORIES = {
    **dict.fromkeys(("Lu", "Lt"), WORD | LETTER | UPPER),
    **dict.fromkeys(("Ll", "Lm", "Lo", "Mn", "Mc", "Me"), WORD | LETTER),
    **dict.fromkeys(("Nd", "Nl", "No"), WORD | DIGIT),
}
KNOWN = 0x20000  # code points with an entry of their own; the planes above hold ideographs, all treated as letters

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@functools.cache
def _tables() -> tuple[NDArray[np.uint8], Hashes]:
    """(classes, values): what each code point is, and a random 64-bit value that ignores case."""
    characters = list(map(chr, range(KNOWN)))
    of_category = defaultdict(np.uint8, CATEGORIES)
    classes = np.fromiter(map(of_category.__getitem__, map(unicodedata.category, characters)), np.uint8, KNOWN)
    classes[[ord("·"), KNOWN - 1]] = WORD | LETTER
    classes[np.fromiter(map(str.isspace, characters), bool, KNOWN)] |= SPACE
    for some, bit in ((STOPS, STOP), (CLOSERS, CLOSER), (BULLETS, BULLET)):
        classes[list(map(ord, some))] |= bit
    folded = "".join(lower if len(lower := one.lower()) == 1 else one for one in characters)
    values = np.random.Generator(np.random.PCG64(0x7E57)).integers(2**64, size=KNOWN, dtype=np.uint64)
    return classes, values[np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), "<u4")]


class Powers:
    """Powers of an odd number and of its inverse modulo 2^64, for hashes of ranges by differences of prefix sums."""

    def __init__(self, base: int):
        self.base, self.inverse = base, pow(base, -1, 2**64)
        self._up, self._down = np.ones(1, np.uint64), np.ones(1, np.uint64)

    def ranges(self, values: Hashes, starts: Integers, ends: Integers) -> Hashes:
        """Hash of ``values[start:end]`` for every range: sum of ``value[i] base^(i - start)`` modulo 2^64."""
        if len(self._up) < len(values) + 1:
            count = len(values) + 1
            self._up = _powers(self.base, count)
            self._down = _powers(self.inverse, count)
        sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * self._up[: len(values)], out=sums[1:])
        return (sums[ends] - sums[starts]) * self._down[starts]


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


OF_CHARACTERS = Powers(0x9E3779B97F4A7C15)
OF_WORDS = Powers(0xD1342543DE82EF95)


@dataclass(frozen=True)
class TextArrays:
    """Texts joined, a line end after each. Bounds delimit them: text t is ``bounds[t]:bounds[t + 1]``."""

    codes: NDArray[np.uint32]  # a code point a character
    classes: NDArray[np.uint8]  # bits of what each character is
    bounds: Integers  # in characters
    letters_before: NDArray[np.int32]  # letters among the characters before each position
    ink_before: NDArray[np.int32]  # characters other than white space before each position
    word_starts: Integers
    word_ends: Integers
    word_hashes: Hashes
    word_bounds: Integers  # in words
    word_text: Integers  # the text of each word
    line_starts: Integers  # lines with ink only
    line_ends: Integers
    line_bounds: Integers

    @property
    def texts(self) -> int:
        """Number of texts."""
        return len(self.bounds) - 1

    @property
    def word_lengths(self) -> Integers:
        """Characters of each word."""
        return self.word_ends - self.word_starts

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextArrays:
        """The arrays of a batch."""
        # Lone surrogates cannot come from UTF-8; they are let through, so that bad input fails nowhere near here.
        joined = ("\n".join(texts) + "\n" * bool(texts)).encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(joined, "<u4")
        bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
        table, values = _tables()
        index = codes.astype(np.intp)
        if len(codes) and codes.max() >= KNOWN:
            np.minimum(index, KNOWN - 1, out=index)
        classes = table.take(index)
        starts, ends = _runs(classes & WORD)
        letters, ink = _before(classes & LETTER), _before(~classes & SPACE)
        word_bounds = np.searchsorted(starts, bounds)
        line_ends = np.flatnonzero(codes == ord("\n"))
        line_starts = np.concatenate([[0], line_ends[:-1] + 1]) if len(line_ends) else line_ends
        inked = ink[line_ends] > ink[line_starts]
        line_starts, line_ends = line_starts[inked], line_ends[inked]
        return cls(
            codes,
            classes,
            bounds,
            letters,
            ink,
            starts,
            ends,
            OF_CHARACTERS.ranges(values.take(index), starts, ends),
            word_bounds,
            np.repeat(np.arange(len(texts)), np.diff(word_bounds)),
            line_starts,
            line_ends,
            np.searchsorted(line_starts, bounds),
        )

    def tokens(self) -> tuple[Integers, Integers]:
        """(starts, ends) of the tokens."""
        return _runs(~self.classes & SPACE)

    def of_class(self, bits: np.uint8) -> Integers:
        """Where the characters of a class stand."""
        return np.flatnonzero(self.classes & bits != 0)  # eight times as quick with a mask as with numbers

    def last_ink(self, ends: Integers) -> Integers:
        """The last character before each of ``ends`` that is not white space (there must be one)."""
        return self._walk(ends - 1, -1)

    def first_ink(self, starts: Integers) -> Integers:
        """The first character from each of ``starts`` on that is not white space (there must be one)."""
        return self._walk(starts.copy(), 1)

    def _walk(self, places: Integers, step: int) -> Integers:
        blank = np.flatnonzero(self.classes[places] & SPACE)
        while len(blank):
            places[blank] += step
            blank = blank[(self.classes[places[blank]] & SPACE) != 0]
        return places


@functools.lru_cache(maxsize=1 << 10)
def word_hashes(text: str) -> Hashes:
    """Hashes of the words of a short text, to look for in :attr:`TextArrays.word_hashes`; kept: not to be changed."""
    return TextArrays.of([text]).word_hashes


def batches(texts: Sequence[str], characters: int, longest: int) -> Iterator[list[str]]:
    """``texts`` in order, each cut to ``longest`` characters, in lists of about ``characters`` characters."""
    batch: list[str] = []
    held = 0
    for text in texts:
        if batch and held + len(text) > characters:
            yield batch
            batch, held = [], 0
        batch.append(text[:longest])
        held += len(batch[-1])
    if batch:
        yield batch


def _runs(mask: NDArray[np.uint8]) -> tuple[Integers, Integers]:
    """(starts, ends) of the maximal runs of true values; the last value must be false."""
    true = mask != 0
    edges = np.flatnonzero(true[1:] != true[:-1]) + 1
    if len(true) and true[0]:
        edges = np.concatenate([[0], edges])
    return edges[::2], edges[1::2]


def _before(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How many values before each position are true."""
    sums = np.zeros(len(mask) + 1, np.int32)
    np.cumsum(mask != 0, out=sums[1:])
    return sums
