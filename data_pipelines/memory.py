"""Memory of this process: how much there is, giving back what is not used, reading without holding what was read."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def resident_bytes() -> int:
    """Memory that this process occupies now, without the pages of files; 0 where /proc does not say."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back() -> None:
    """Give back to the system what allocators keep after a batch: pyarrow's, and that of the C library (glibc), which
    numpy and the encoders take from. Both keep most of what was freed, of every thread, and so grow with a file though
    nothing that lives does.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def parquet_batches(file: pq.ParquetFile, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All rows of a file in their order, some ``rows`` at once (half as many more at most) and of one row group.

    A reader of pyarrow's that goes on from one row group to the next holds what it has read to its end (pyarrow 26: 90
    MB more after 250 MB of text). In this thread, because allocators keep what is freed where it was taken.
    """
    for number in range(file.num_row_groups):
        held = file.metadata.row_group(number).num_rows
        even = max(-(-held // max(round(held / rows), 1)), 1)  # no small rest of each
        yield from file.iter_batches(even, row_groups=[number], columns=columns, use_threads=False)
