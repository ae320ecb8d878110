"""A second opinion on near relatives: Occitan, Asturian, Galician, Corsican, Romansh and Walloon.

The detectors' models saw little of these and take them for their large neighbours. This one knows nothing else: the
sequences of three letters of the Universal Declaration of Human Rights, in each language and each of its dialects there
is, in a naive Bayes classifier (letter sequences for this: Cavnar and Trenkle 1994). A dialect is a class of its own:
pooled, Occitan in its three spellings would be spread too thin beside the one Catalan. Weights are whole numbers in a
table beside this file, so that the answer is the same on all machines; ``python -m benchmarks.relatives`` makes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

TABLE = Path(__file__).with_name("relatives.txt")
VERSION = "1"  # of what is answered: stands in the names of annotated files
LARGE = frozenset("ca es fr it pt ro".split())  # noqa: SIM905 -- what the detectors answer instead
SMALL = frozenset("ast co gl oc rm wa".split())  # noqa: SIM905 -- what may be answered here
SCALE = 8  # weights are in eighths of a nat
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # how far a weight lies under the largest
LETTERS = " '·abcdefghijklmnopqrstuvwxyzàáâãäåæçèéêëìíîïñòóôõöùúûüœășțńć"
SAME = {"ş": "ș", "ţ": "ț", "ʼ": "'"}  # older or typographic forms of the same
BASE = 64
# How much has to speak for another language, in nats: EVIDENCE times the detector's own score, times the root of the
# number of trigrams, as if SILENT more of them had said nothing (a hundred letters are little). Set by hand, on texts
# of benchmarks/language.py.
EVIDENCE, SILENT = 1.1, 200
KNOWN = 0.6  # share of the trigrams that the table has: 0.75 to 0.97 in all its languages; 0.34 in rot13


def _symbols() -> np.ndarray:
    table = np.zeros(0x300, np.uint8)
    for number, letter in enumerate(LETTERS):
        table[ord(letter)] = number
    for other, letter in SAME.items():
        table[ord(other)] = LETTERS.index(letter)
    return table


SYMBOLS = _symbols()


def trigrams(text: str) -> np.ndarray:
    """A number for each three letters that follow one another, words parted by one space, [trigrams] int64."""
    folded = text.lower().replace("’", "'")
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    symbols = np.zeros(len(codes) + 2, np.int64)  # a space at both ends
    symbols[1:-1] = SYMBOLS[np.minimum(codes, len(SYMBOLS) - 1)]
    kept = np.ones(len(symbols), bool)
    kept[1:] = (symbols[1:] != 0) | (symbols[:-1] != 0)
    symbols = symbols[kept]
    return (symbols[:-2] * BASE + symbols[1:-1]) * BASE + symbols[2:]


def number_of(trigram: str) -> int:
    """The number of one trigram, as it is written in the table: ``_`` for a space."""
    first, second, third = (LETTERS.index(letter) for letter in trigram.replace("_", " "))
    return (first * BASE + second) * BASE + third


class Relatives:
    """The table, read once."""

    def __init__(self, table: Path = TABLE) -> None:
        lines = table.read_text(encoding="utf-8").splitlines()
        names = next(line for line in lines if line.startswith("classes ")).split()[1:]
        rows = [line.split("\t") for line in lines if "\t" in line]
        weights = np.array([[-DIGITS.index(digit) for digit in digits] for _, digits in rows], np.int8)
        self._weights = np.vstack([np.zeros(len(names), np.int8), weights])
        self._row = np.zeros(BASE**3, np.int16)  # 0: a trigram that the table has not, which says nothing
        self._row[[number_of(trigram) for trigram, _ in rows]] = np.arange(1, len(rows) + 1)
        languages = [name.split(":")[0] for name in names]
        self._classes = {one: [n for n, other in enumerate(languages) if other == one] for one in set(languages)}

    def __call__(self, text: str, language: str, score: float) -> tuple[str, float] | None:
        """Which small language a text is in rather than in ``language``, and how sure that is (0.5 to 1), or None.

        ``language``: a large one, the detector's answer. ``score``: how sure it is, 0 to 1; the surer, the more has to
        speak against it.
        """
        found = self._row[trigrams(text)]
        if np.count_nonzero(found) < KNOWN * len(found):
            return None
        seen = np.zeros(len(self._weights), bool)
        seen[found] = True
        seen[0] = False
        rows = np.flatnonzero(seen)  # each once: a name that comes again and again says no more about the language
        sums = self._weights[rows].sum(axis=0, dtype=np.int64).tolist()
        best = {one: max(sums[number] for number in numbers) for one, numbers in sorted(self._classes.items())}
        other = max(best, key=best.__getitem__)
        if other not in SMALL:
            return None
        squared = (best[other] - best[language]) ** 2
        asked = EVIDENCE * SCALE * score
        needed = asked * asked * (len(rows) + SILENT)  # no power or root of floats: they are not the same everywhere
        return (other, squared / (squared + needed)) if squared >= needed else None
