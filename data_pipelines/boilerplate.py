"""Lines that stand in many documents of a site or source, menus or notices: found in one pass, removed in the next.

The first pass counts. Of each part it writes ``(line, documents)``: a 64-bit hash of a line together with its site, and
in how many documents of the part it stands. These counts are sorted, so that any number of parts can be added up
without holding more than a slice of them; what stands in enough documents becomes the list that the second pass, the
annotation, removes. Each file is made once, by whoever comes first, like all annotated files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.files import atomic_file
from data_pipelines.annotate.opt_out_snapshot import origin_of
from data_pipelines.documents import Document, normalise

COUNTS = pa.schema([("line", pa.uint64()), ("documents", pa.uint32())])
REMOVED = pa.schema(
    [("source", pa.string()), ("line", pa.string()), ("documents", pa.int64()), ("removed", pa.int64())]
)
HELD = 1 << 22  # line hashes in memory before they are counted and put on disk
SLICE = 1 << 22  # counts in memory while parts are added up
SAMPLES = 200  # removed lines of a part that are kept as examples
Lines = NDArray[np.uint64]
Numbers = NDArray[np.uint32]


def key_of(document: Document, by: str) -> bytes:
    """Within what a line repeats itself: the site of the document, or (``source``, or no address) the whole source."""
    site = origin_of(document.url) if by == "site" else None
    return (site or "").partition("://")[2].removeprefix("www.").encode()


def lines_of(text: str, key: bytes) -> list[int]:
    """The hash of each line of a text, within ``key``; 0 for one without a letter: a brace of code, a number of a table
    repeats itself and is no notice.
    """
    start = hashlib.blake2b(key + b"\0", digest_size=8)
    found = []
    for line in text.split("\n"):
        if not any(map(str.isalpha, line)):
            found.append(0)
            continue
        one = start.copy()
        one.update(line.encode("utf-8"))
        found.append(int.from_bytes(one.digest(), "little") or 1)
    return found


def count(documents: Iterable[Document], by: str, path: Path) -> None:
    """Write :data:`COUNTS` of documents, ascending by line; memory does not grow with them."""
    held = array("Q")
    with ExitStack() as open_files:
        runs: list[IO[bytes]] = []

        def put() -> None:
            lines, numbers = np.unique(np.frombuffer(held, np.uint64), return_counts=True)
            # Without a name: nothing is left of it when the process is killed.
            runs.append(open_files.enter_context(tempfile.TemporaryFile(dir=path.parent)))
            _write(runs[-1], [(lines, numbers.astype(np.uint32))])
            del held[:]

        for document in documents:
            held.extend(set(lines_of(document.text, key_of(document, by))) - {0})
            if len(held) >= HELD:
                put()
        put()
        _write(path, _added(runs))


def frequent(files: Sequence[Path], least: int, path: Path) -> None:
    """Add up the counts of parts and write those of at least ``least`` documents."""
    found = [(lines[numbers >= least], numbers[numbers >= least]) for lines, numbers in _added(files)]
    with atomic_file(path, shared=True) as partial:
        _write(partial, found)


def _added(files: Sequence[Path | IO[bytes]]) -> Iterator[tuple[Lines, Numbers]]:
    """The sums of sorted counts, a slice of the hashes after another, so that a slice is about :data:`SLICE` counts."""
    total = sum(pq.read_metadata(file).num_rows for file in files)
    slices = max(1, -(-total // SLICE))
    edges = [number * 2**64 // slices for number in range(slices)] + [2**64 - 1]
    readers = [_Reader(file) for file in files]
    for edge in edges[1:]:
        parts = [reader.until(edge) for reader in readers]
        lines, places = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
        numbers = np.bincount(places, np.concatenate([part[1] for part in parts]), len(lines)).astype(np.uint32)
        if len(lines):
            yield lines, numbers


class _Reader:
    """Reads sorted counts up to a hash, then up to the next, a row group at a time."""

    def __init__(self, source: Path | IO[bytes]):
        self.source, self.group = source, 0
        self.groups = pq.read_metadata(source).num_row_groups
        self.lines, self.numbers = np.zeros(0, np.uint64), np.zeros(0, np.uint32)

    def until(self, edge: int) -> tuple[Lines, Numbers]:
        """Counts of the hashes after those read before, up to ``edge`` itself."""
        while self.group < self.groups and not (len(self.lines) and self.lines[-1] > edge):
            with pq.ParquetFile(self.source) as file:  # opened again: a thousand parts need no thousand open files
                table = file.read_row_group(self.group)
            self.group += 1
            self.lines = np.concatenate([self.lines, table["line"].to_numpy()])
            self.numbers = np.concatenate([self.numbers, table["documents"].to_numpy()])
        place = int(np.searchsorted(self.lines, np.uint64(edge), "right"))
        found = self.lines[:place], self.numbers[:place]
        self.lines, self.numbers = self.lines[place:], self.numbers[place:]
        return found


def _write(sink: Path | IO[bytes], parts: Iterable[tuple[Lines, Numbers]]) -> None:
    with pq.ParquetWriter(sink, COUNTS, compression="zstd", use_dictionary=False) as writer:
        for lines, numbers in parts:
            writer.write_table(pa.table([lines, numbers], schema=COUNTS), row_group_size=1 << 17)


@dataclass
class Removed:
    """What was removed of a part: lines and their bytes; documents that lost some, and all; examples of lines."""

    lines: int = 0
    bytes: int = 0
    documents: int = 0
    emptied: int = 0
    examples: dict[str, tuple[int, int]] = field(default_factory=dict)  # line -> (documents that have it, removed here)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what another part's metadata say."""
        for name in ("lines", "bytes", "documents", "emptied"):
            setattr(self, name, getattr(self, name) + other[name])
        for line, (documents, times) in other["examples"].items():
            self.examples[line] = documents, times + self.examples.get(line, (0, 0))[1]


def write_removed(removed: Mapping[str, Removed], path: Path) -> int:
    """Write what was removed of each source: a row an example, the sums in the metadata; how many rows."""
    rows = [
        {"source": source, "line": line, "documents": documents, "removed": times}
        for source, one in removed.items()
        for line, (documents, times) in sorted(one.examples.items(), key=lambda item: (-item[1][1], item[0]))
    ]
    sums = {source: {name: number for name, number in vars(one).items() if name != "examples"}
            for source, one in removed.items()}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, REMOVED).replace_schema_metadata({"hanse.boilerplate": json.dumps(sums)})
    pq.write_table(table, path, compression="zstd")
    return len(rows)


class Boilerplate:
    """Removes the lines that a list names. Sent to other processes by its path."""

    def __init__(self, path: Path, by: str):
        self.path, self.by = path, by
        table = pq.read_table(path)
        self._lines, self._numbers = table["line"].to_numpy(), table["documents"].to_numpy()

    def __reduce__(self) -> tuple[type[Boilerplate], tuple[Path, str]]:
        return Boilerplate, (self.path, self.by)

    def __call__(self, document: Document, removed: Removed) -> Document:
        """The document without the lines; what was removed is added to ``removed``."""
        if not len(self._lines) or not document.text:
            return document
        lines = document.text.split("\n")
        hashes = np.array(lines_of(document.text, key_of(document, self.by)), np.uint64)
        places = np.minimum(np.searchsorted(self._lines, hashes), len(self._lines) - 1)
        hit = (self._lines[places] == hashes) & (hashes != 0)
        if not hit.any():
            return document
        for number in np.flatnonzero(hit).tolist():
            line = lines[number]
            removed.lines += 1
            removed.bytes += len(line.encode("utf-8")) + 1
            if line in removed.examples or len(removed.examples) < SAMPLES:
                documents, times = removed.examples.get(line, (int(self._numbers[places[number]]), 0))
                removed.examples[line] = documents, times + 1
        kept = normalise("\n".join(line for line, gone in zip(lines, hit.tolist(), strict=True) if not gone))
        removed.documents += 1
        removed.emptied += not kept
        if kept:
            return replace(document, text=kept)
        return replace(document, text="", reason="empty", detail="nothing but lines that stand in many documents")
