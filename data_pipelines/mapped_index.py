"""Where documents start, looked up in a Megatron index where it lies: for folders too large to hold that in memory."""

from __future__ import annotations

import mmap
import resource
import struct
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any, overload

import numpy as np

from common.errors import HanseError

I64 = struct.Struct("<q")
OTHER_FILES = 256  # that a process may have open beside shards


class MappedStarts:
    """``document_starts`` of a shard (data_pipelines/shards.py) as a sequence in a file: nothing of it is read ahead.

    ``numpy.searchsorted`` works on it, a binary search in which some twenty-five places of the file are looked at. As
    an array (``numpy.asarray``) it is read whole.
    """

    def __init__(self, path: Path, *, offsets: int, documents: int, entries: int, token_bytes: int, tokens: int):
        """``offsets`` and ``documents``: at which byte of the file each array begins; ``entries``: of the second."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._path, self._token_bytes, self._tokens = path, token_bytes, tokens
        self._offsets, self._documents, self._entries = offsets, documents, entries

    def __len__(self) -> int:
        return self._entries

    @overload
    def __getitem__(self, which: int) -> int: ...
    @overload
    def __getitem__(self, which: slice) -> np.ndarray: ...

    def __getitem__(self, which: int | slice) -> int | np.ndarray:
        if isinstance(which, slice):
            return np.array([self[place] for place in range(*which.indices(self._entries))], dtype=np.int64)
        place = which + self._entries if which < 0 else which
        if not 0 <= place < self._entries:
            raise IndexError(which)
        if place == self._entries - 1:
            return self._tokens
        (sequence,) = I64.unpack_from(self._map, self._documents + 8 * place)
        try:
            start: int = I64.unpack_from(self._map, self._offsets + 8 * sequence)[0] // self._token_bytes
        except struct.error:
            start = -1
        if not 0 <= start <= self._tokens:
            raise HanseError(f"{self._path}: not an intact Megatron index (document {place}); write the shards again")
        return start

    def searchsorted(self, values: Any, side: str = "left", sorter: None = None) -> np.ndarray:
        """As of :meth:`numpy.ndarray.searchsorted`."""
        assert sorter is None, "sorted as it is"
        find = bisect_right if side == "right" else bisect_left
        return np.array([find(self, value) for value in np.atleast_1d(values).tolist()])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64)


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files so that so many more fit: a mapped file counts as an open one.

    Raises:
        HanseError: more than this machine allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise HanseError(f"{count:,} files of shards must be open at once, and a process here may open {hard:,} at "
                             "most; raise the limit (ulimit -n) or write fewer, larger shards")  # fmt: skip
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
