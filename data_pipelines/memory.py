"""Memory of this process: how much there is, and giving back what is not used any more."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pyarrow as pa


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
