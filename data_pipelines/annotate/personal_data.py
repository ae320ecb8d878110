"""Personal data: found by checksum, replaced by a placeholder of its kind, counted. Values are neither kept nor logged.

An e-mail address becomes ``<EMAIL>``, a French social security number ``<FR_NIR>``, and so on for every kind of
:data:`~data_pipelines.annotate.identifiers.KINDS`. The kind is kept, so that a model learns where such a thing stands
in a text, and never whose it was. Redacting twice changes nothing more.

The search is cheap where there is nothing to find: NumPy marks the places of a batch that could hold something (an
``@``, seven digits close together, colons close together, a word for an identity card), and only there do patterns run.

Not found: names and addresses (they need a model), numbers in words, e-mail addresses written with "at", national tax
numbers without a checksum, digits outside ASCII.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipelines.annotate.identifiers import BLANKED, KINDS, Kind

PREFIX = "personal_data_"
SCHEMA = pa.schema([pa.field(PREFIX + kind.name, pa.int32()) for kind in KINDS])
DIGITS, DIGIT_GAP = 7, 6  # so many digits, each at most so many bytes behind the one before it
COLON_GAP = 5
CUES = (b"usweis", b"AUSWEIS", b"denti", b"DENTI", b"IDD<<", b"assport", b"okument")  # as in identifiers.ID_CARD_CUE
NEAR = {near: [kind for kind in KINDS if kind.near == near] for near in ("digits", "at", "colons", "cue")}
RANK = {kind: rank for rank, kind in enumerate(KINDS)}
CONTEXT = 64  # bytes around a window that patterns and cues may see


@dataclass(frozen=True)
class Redacted:
    """Texts with placeholders, and how many of each kind were replaced: a row a text, the columns of :data:`SCHEMA`."""

    texts: pa.Array
    counts: pa.RecordBatch


@dataclass(frozen=True)
class Window:
    """A part of a text, in bytes, that could hold what stands near an at sign, near digits, colons or a cue."""

    start: int
    end: int
    near: str
    size: int  # digits, at signs, colons or cues in it


@dataclass(frozen=True)
class Found:
    """A place in a text, in bytes of UTF-8."""

    start: int
    end: int
    kind: Kind


def redact(texts: Sequence[str | None] | pa.Array | pa.ChunkedArray, language: str = "") -> Redacted:
    """Replace personal data by placeholders.

    Args:
        texts: Unicode texts; a missing one stays missing.
        language: ISO 639 code. Decides only whose phone numbers are known without a country code.
    """
    given = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    given = given if isinstance(given, pa.Array) else pa.array(given, pa.string())
    array = given.cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2].to_pybytes() if array.buffers()[2] else b""
    rows, counts = list(range(len(array))), np.zeros((len(KINDS), len(array)), np.int32)
    changed: dict[int, bytes] = {}
    # What is left between two placeholders may look like something only now: go on until nothing is found.
    while rows:
        again: dict[int, bytes] = {}
        for place, suspects in windows(data, offsets).items():
            row, text = rows[place], data[offsets[place] : offsets[place + 1]]
            found = find(text, language, suspects)
            if found:
                again[row] = replaced(text, found)
            for item in found:
                counts[RANK[item.kind], row] += 1
        changed |= again
        rows, data = list(again), b"".join(again.values())
        offsets = np.cumsum([0, *map(len, again.values())])
    columns = [pa.array(row) for row in counts]
    return Redacted(_with(array, changed).cast(given.type), pa.RecordBatch.from_arrays(columns, schema=SCHEMA))


def find(text: bytes, language: str = "", suspects: list[Window] | None = None) -> list[Found]:
    """The personal data in a text (bytes of UTF-8), in order; where two overlap, the earlier of ``KINDS`` stays."""
    if suspects is None:
        suspects = windows(text, np.array([0, len(text)])).get(0, [])
    found: list[Found] = []
    for window in suspects:
        before = max(0, window.start - CONTEXT)
        part = text[before : window.end + CONTEXT]
        if not part.isascii():
            part = BLANKED.sub(lambda blank: b" " * len(blank.group()), part)
        for kind in NEAR[window.near]:
            if kind.digits <= window.size:
                for match in kind.pattern.finditer(part, window.start - before, window.end - before):
                    stop = kind.check(match, language)
                    if stop is not None:
                        found.append(Found(match.start() + before, stop + before, kind))
    return _apart(found)


def _apart(found: list[Found]) -> list[Found]:
    """Of places that overlap, those of the earlier kind; of one kind, the earlier place. In the order of the text."""
    kept: list[Found] = []  # no two overlap, so that only the neighbours need be looked at
    for place in sorted(found, key=lambda place: (RANK[place.kind], place.start, -place.end)):
        at = bisect.bisect_left(kept, place.start, key=lambda other: other.start)
        if (at == 0 or kept[at - 1].end <= place.start) and (at == len(kept) or place.end <= kept[at].start):
            kept.insert(at, place)
    return kept


def replaced(text: bytes, found: Iterable[Found]) -> bytes:
    """The text with the placeholder of each place's kind instead of its content."""
    parts, end = [], 0
    for place in found:
        parts += [text[end : place.start], place.kind.placeholder.encode()]
        end = place.end
    return b"".join([*parts, text[end:]])


def windows(data: bytes, offsets: NDArray[np.int64]) -> dict[int, list[Window]]:
    """Where personal data could be in texts that lie end to end: text t is ``data[offsets[t]:offsets[t + 1]]``.

    Returns:
        {text: windows, in bytes from its start}; texts without any are left out.
    """
    codes = np.frombuffer(data, np.uint8)[: offsets[-1]]
    found: dict[int, list[Window]] = {}
    # (near, clusters, fewest, bytes before the first, bytes behind the last)
    for near, clusters, least, left, right in (
        ("digits", _clusters(np.flatnonzero(codes - np.uint8(ord("0")) < 10), DIGIT_GAP, offsets), DIGITS, 24, 40),
        ("at", _clusters(np.flatnonzero(codes == ord("@")), 65 + 260, offsets), 1, 65, 260),
        ("colons", _clusters(np.flatnonzero(codes == ord(":")), COLON_GAP, offsets), 2, 5, 5),
        ("cue", _clusters(_cues(data), 0, offsets), 1, 0, 64),
    ):
        for text, first, last, size in clusters.T.tolist():
            if size >= least and text >= 0:
                start, end = int(offsets[text]), int(offsets[text + 1])
                window = Window(max(first - left - start, 0), min(last + 1 + right, end) - start, near, size)
                found.setdefault(text, []).append(window)
    return found


def _clusters(places: NDArray[np.int64], gap: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(text, first, last, size) of the runs of places of a text that are at most ``gap`` from the one before."""
    text = np.searchsorted(offsets, places, side="right") - 1
    apart = np.flatnonzero((places[1:] - places[:-1] > gap) | (text[1:] != text[:-1])) + 1
    first = np.concatenate([[0], apart]) if len(places) else places
    last = np.append(first[1:], len(places))[: len(first)] - 1
    return np.stack([text[first], places[first], places[last], last - first + 1])


def _cues(data: bytes) -> NDArray[np.int64]:
    """Where a word for an identity card begins."""
    places = []
    for cue in CUES:
        place = data.find(cue)
        while place >= 0:
            places.append(place)
            place = data.find(cue, place + 1)
    return np.array(sorted(places), np.int64)


def _with(array: pa.Array, changed: dict[int, bytes]) -> pa.Array:
    """The array with some of its values changed."""
    if not changed:
        return array
    rows = sorted(changed)
    mask = np.zeros(len(array), bool)
    mask[rows] = True
    return pc.replace_with_mask(array, pa.array(mask), pa.array([changed[row].decode() for row in rows], array.type))
