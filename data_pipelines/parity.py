"""Are the ids that were written those of ``tokenizers``? Looked at while a file is encoded, on the ids themselves.

Encoding every text twice would cost thirty times what the fast encoder takes, so it is a sample:

- documents chosen by the hash of their ids, ``parity_documents`` of a file: the ids written of short ones, a stretch at
  a place chosen likewise of long ones. A fault that strikes a share p of such stretches goes unseen with probability
  (1 - p) ^ parity_documents.
- the first places of every block of 64 code points that the file holds, with some text around: what strikes only a
  rare script, sign or emoji is seen however rare it is, unless it needs a certain neighbour.
- random strings over the characters of the first documents chosen.

The encoder has already been compared on texts where encoders are known to differ (:func:`encoders.choose`), and that
tokens stand for exactly the bytes of the text is checked on every document.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data_pipelines.encoders import Encoder, difference, mixed, text_bytes

BLOCK_BITS = 6
SHORT_BYTES, STRETCH_BYTES = 1500, 1000  # what is a short document; how much is looked at of others
AROUND_BYTES = 50  # on either side of a character of a block that is new
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, of no pattern: 2^64 / golden ratio


class OtherIdsError(Exception):
    """An encoder's ids are not those of ``tokenizers``; says on which texts."""


class Parity:
    """The comparison of one file's ids; ``reference`` is ``tokenizers``, ``rows`` the documents of the file."""

    def __init__(self, reference: Encoder, documents: int, rows: int):
        self.reference, self.chosen = reference, 0
        self._below = np.uint64(min(documents / max(rows, 1), 1.0) * (2**64 - 2**11))
        self._seen = np.zeros((0x110000 >> BLOCK_BITS) + 1, dtype=bool)

    def check(self, names: pa.Array, texts: pa.Array, ids: np.ndarray, ends: np.ndarray, encoder: Encoder) -> None:
        """Compare what ``encoder`` made of the next documents.

        Args:
            names: their ids, B strings; ``texts``: B strings.
            ids: their tokens, back to back; ``ends``: int64 (B,), where in ``ids`` each ends.

        Raises:
            OtherIdsError: something differs.
        """
        if encoder.name == self.reference.name:
            return
        drawn, (offsets, data) = hashes(names), text_bytes(texts)
        places = np.flatnonzero(drawn < self._below)
        if not self.chosen and not len(places):
            places = np.arange(min(1, len(names)))
        sizes = np.diff(offsets)[places]
        whole = places[sizes <= SHORT_BYTES]
        if len(whole):
            parts = [ids[(ends[place - 1] if place else 0) : ends[place]] for place in whole]
            found = np.concatenate(parts), np.array([len(part) for part in parts])
            self._compare(texts.take(pa.array(whole)).to_pylist(), found)
        pieces = self._rare(offsets, data)
        for place in places[sizes > SHORT_BYTES].tolist():
            begin = int(offsets[place] + drawn[place] % np.uint64(offsets[place + 1] - offsets[place] - STRETCH_BYTES))
            pieces.append(_decoded(data[begin : begin + STRETCH_BYTES]))
        if len(places) and not self.chosen:
            pieces += mixed([*pieces, *texts.take(pa.array(whole)).to_pylist()])
        self.chosen += len(places)
        if pieces:
            self._compare(pieces, encoder.encode(pieces))

    def _compare(self, texts: list[str], found: tuple[np.ndarray, np.ndarray]) -> None:
        told = difference(self.reference.encode(texts), found, texts)
        if told:
            raise OtherIdsError(told)

    def _rare(self, offsets: np.ndarray, data: np.ndarray) -> list[str]:
        """Text around the first and the last character here of every block that came before in no batch."""
        starts = np.flatnonzero(data >= 0xC2)  # of characters beyond ASCII
        if not len(starts):
            return []
        blocks = _blocks(data, starts)
        new = np.flatnonzero(~self._seen[blocks])
        if not len(new):
            return []
        self._seen[blocks[new]] = True
        rims = np.full((2, len(self._seen)), -1)  # of what is written twice, the later stays
        rims[0, blocks[new][::-1]], rims[1, blocks[new]] = starts[new][::-1], starts[new]
        found = []
        for place in np.unique(rims[rims >= 0]).tolist():
            document = int(np.searchsorted(offsets, place, side="right")) - 1
            begin = max(place - AROUND_BYTES, int(offsets[document]))
            end = min(place + AROUND_BYTES, int(offsets[document + 1]))
            found.append(_decoded(data[begin:end]))
        return found


def _decoded(data: np.ndarray) -> str:
    """The text of some bytes; characters cut at the rims are left out."""
    return data.tobytes().decode("utf-8", "ignore")


def _blocks(data: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Number of the block (code point / 64) of the characters that begin at ``starts``; ``data`` is UTF-8."""
    lead, second = data[starts].astype(np.int32), data[starts + 1].astype(np.int32) & 0x3F
    blocks = np.where(lead < 0xE0, lead & 0x1F, (lead & 0x0F) << 6 | second)
    wide = np.flatnonzero(lead >= 0xF0)  # four bytes
    third = data[starts[wide] + 2].astype(np.int32) & 0x3F
    blocks[wide] = (lead[wide] & 0x07) << 12 | second[wide] << 6 | third
    return blocks


def hashes(names: pa.Array) -> np.ndarray:
    """uint64 of each string, of its last eight bytes: an id ends with a hash of the text."""
    offsets, data = text_bytes(names)
    padded = np.concatenate([np.zeros(8, dtype=np.uint8), data])
    tails = np.lib.stride_tricks.sliding_window_view(padded, 8)[offsets[1:]]
    keys = np.ascontiguousarray(tails).view("<u8").ravel()
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(32))) * MIX
        return (keys ^ (keys >> np.uint64(29))) * MIX
