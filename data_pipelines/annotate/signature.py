"""MinHash signatures: documents of which the words run alike have signatures that agree in as many places.

The similarity is Jaccard's, of the sets of five words in a row. A signature is a *fast similarity sketch* (Dahlgaard,
Knudsen, Thorup 2017, arXiv 1704.04370): each place is the least hash of the shingles thrown into it, and places that
stay empty are filled in further rounds. It costs a hash or two a shingle, where plain MinHash costs one a shingle and
place, and agrees with probability equal to the similarity all the same, for short texts too.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.annotate.text_arrays import OF_WORDS, Hashes, Integers, TextArrays

WORDS = 5  # in a row: a shingle
BANDS, ROWS = 20, 6  # two documents of similarity s share a band with probability 1 - (1 - s^6)^20: .998 for s = 0.8
PLACES = BANDS * ROWS
BYTES = 2 * PLACES
EMPTY = np.uint64(2**64 - 1)
LOW = np.uint64(2**32 - 1)
HALF = np.uint64(32)
ONE = np.uint64(1)
AT_ONCE = 1 << 14  # hashes that are drawn at once in the rounds for what stayed empty


def signatures(arrays: TextArrays) -> pa.Array:
    """The signature of each text, fixed-size binary of 240 bytes; none for texts of fewer than five words."""
    hashes, text = n_grams(arrays, WORDS)
    least = np.full(arrays.texts * PLACES, EMPTY)
    known = np.zeros(arrays.texts, bool)
    known[text] = True
    done = 0
    while len(hashes):
        # Several rounds at once when few hashes are left: a row each. From round PLACES on each place has a round of
        # its own, so that none stays empty.
        end = PLACES if done < PLACES else 2 * PLACES
        rounds = np.arange(done, min(done + max(AT_ONCE // len(hashes), 1), end), dtype=np.uint64)[:, None]
        drawn = mixed(hashes ^ mixed(rounds + ONE))
        place = (drawn >> HALF) * np.uint64(PLACES) >> HALF if done < PLACES else rounds - np.uint64(PLACES)
        # Later rounds weigh more than any hash of an earlier one: they fill what is empty and change nothing else.
        places = text * PLACES + place.astype(np.int64)
        np.minimum.at(least, places.ravel(), ((drawn & LOW) | rounds << HALF).ravel())
        unfilled = (least.reshape(-1, PLACES) == EMPTY).any(axis=1)[text]
        hashes, text = hashes[unfilled], text[unfilled]
        done += len(rounds)
    short = (mixed(least) >> np.uint64(48)).astype("<u2")  # 16 bits of each tell different hashes apart well enough
    values = pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), arrays.texts, [_bitmap(known), pa.py_buffer(short)])
    return values


def n_grams(arrays: TextArrays, words: int) -> tuple[Hashes, Integers]:
    """(hash, text) of every run of ``words`` words within a text."""
    count = max(len(arrays.word_hashes) - words + 1, 0)
    hashes = arrays.word_hashes[:count]
    for offset in range(1, words):
        hashes = hashes * np.uint64(OF_WORDS.base) + arrays.word_hashes[offset : offset + count]
    text = arrays.word_text[:count]
    within = arrays.word_text[words - 1 : words - 1 + count] == text
    return mixed(hashes[within]), text[within]


def mixed(values: Hashes) -> Hashes:
    """Every bit of a value spread over all bits (the finaliser of MurmurHash3, a bijection)."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def places_of(signatures: pa.Array) -> NDArray[np.uint16]:
    """Signatures (none missing) as numbers, of shape (texts, PLACES)."""
    start = signatures.offset * BYTES
    data = np.frombuffer(signatures.buffers()[1], np.uint8)[start : start + len(signatures) * BYTES]
    return data.view("<u2").reshape(-1, PLACES)


def _bitmap(valid: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))
