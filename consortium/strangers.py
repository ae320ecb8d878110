"""Small files that a stranger may have written: read whole, bounded, and only if they are exactly what they must be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from common.errors import HanseError


def read_regular(path: Path, largest: int, what: str) -> bytes:
    """The bytes of a regular file of ``largest`` bytes or fewer; links are not followed, pipes not waited for.

    Raises:
        HanseError: there is no such file.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise HanseError(f"{path}: not a regular file")
            content = file.read(largest + 1)
    except HanseError:
        raise
    except (OSError, ValueError) as error:  # no file, a NUL in its name ...
        if path.is_symlink():
            raise HanseError(f"{path}: is a link; name the {what} itself") from None
        raise HanseError(f"{path}: no readable {what} ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > largest:
        raise HanseError(f"{path}: more than {largest} bytes, which no {what} takes")
    return content


def strict_json(text: bytes, where: str) -> Any:
    """JSON in which every key stands once, every number is one, and every string is Unicode.

    Raises:
        HanseError: it is anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # "\ud800" is JSON, but half a character
        return value
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deep, a number of 5,000 digits
        what = "nested too deep" if isinstance(error, RecursionError) else error
        raise HanseError(f"{where}: not readable as JSON ({what})") from None


def fields(value: Any, where: str, *needed: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """``value``, if it is an object with these keys and no others.

    Raises:
        HanseError: it is anything else.
    """
    keys = set(value) if isinstance(value, dict) else set()
    if not isinstance(value, dict) or not set(needed) <= keys <= {*needed, *optional}:
        raise HanseError(f"{where}: no object with {', '.join(needed)} and nothing else where one must be")
    return value
