"""Tensor files of a stranger: headers that are exactly what they must be, and numbers that are numbers.

The bytes are looked at here before any library is handed the file (https://github.com/huggingface/safetensors, format).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import HanseError
from consortium.strangers import fields, strict_json

LARGEST_HEADER = 32 << 20  # bytes; a name and its range take some 150
BLOCK = 4 << 20  # numbers looked at at a time


def check_tensor_file(path: Path, name: str) -> int:
    """Check header and numbers of a safetensors file; the numbers in it.

    Raises:
        HanseError: the header is no header, lies about the file, or a number is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise HanseError(f"{name}: claims a header of {length} bytes, in a file of {size}; at most "
                             f"{LARGEST_HEADER} are read")  # fmt: skip
        header = strict_json(file.read(length), f"{name}: header")
    if not isinstance(header, dict) or not header:
        raise HanseError(f"{name}: its header names no tensors")
    at = 0
    for key, entry in sorted(header.items(), key=_begin):
        at = _check_entry(key, entry, at, name)
    if 8 + length + at != size:
        raise HanseError(f"{name}: holds {size - 8 - length} bytes of numbers, its header describes {at}")
    _check_numbers(path, 8 + length, header, name)
    return at // 4


def _begin(item: tuple[str, Any]) -> int:
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    first = offsets[0] if isinstance(offsets, list) and offsets else -1
    return first if type(first) is int else -1


def _check_entry(key: str, entry: Any, at: int, name: str) -> int:
    told = fields(entry, f"{name}: '{key[:100]}'", "dtype", "shape", "data_offsets")
    shape, offsets = told["shape"], told["data_offsets"]
    if told["dtype"] != "F32":
        raise HanseError(f"{name}: '{key[:100]}' is of type {str(told['dtype'])[:20]!r}; all are F32 here")
    whole = isinstance(shape, list) and len(shape) == 1 and isinstance(offsets, list) and len(offsets) == 2
    if not whole or not all(type(one) is int and one >= 0 for one in [*shape, *offsets]):
        raise HanseError(f"{name}: '{key[:100]}' has no shape of one dimension, or no place in the file")
    if offsets[0] != at or offsets[1] != at + 4 * shape[0]:
        raise HanseError(f"{name}: '{key[:100]}' overlaps another, leaves a gap, or is not as long as its shape")
    return int(offsets[1])


def _check_numbers(path: Path, start: int, header: dict[str, Any], name: str) -> None:
    numbers = np.memmap(path, "<f4", "r", start) if path.stat().st_size > start else np.empty(0, "<f4")
    for key, entry in header.items():
        first, last = (offset // 4 for offset in entry["data_offsets"])
        for begin in range(first, last, BLOCK):
            block = numbers[begin : min(begin + BLOCK, last)]
            if not np.isfinite(block).all():
                raise HanseError(f"{name}: '{key[:100]}' holds NaN or an infinite number")
            if ".exp_avg_sq[" in key and (block < 0).any():
                raise HanseError(f"{name}: '{key[:100]}' holds a mean of squares below 0")
