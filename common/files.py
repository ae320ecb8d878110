"""Files as the whole house writes them: atomically, hashed, and read back without trust."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from common.errors import HanseError

PARTIAL = ".partial"  # ending of files and folders that are still being written; swept at the next start

Made = TypeVar("Made")


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (a rename is lost in a power cut without it)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Make a full disk (or a used-up quota) a :class:`HanseError` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HanseError(f"{path}: {error.strerror}; make room and run the same command again") from None


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to; on success it takes the place of ``path``, on an error nothing is left behind.

    ``shared``: other processes, here or on other machines, may be writing the same file.

    Raises:
        HanseError: the disk is full, or there can be no such folder.
    """
    own = f".{socket.gethostname()}-{os.getpid()}" if shared else ""
    partial = path.with_name(path.name + own + PARTIAL)
    with room_for(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # /proc takes no folders, and says so in this way
            raise HanseError(f"{path.parent}: cannot be created; name another folder") from None
        try:
            yield partial
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
            partial.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; keys keep their order, floats are written so that they read back equal."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file of ours; a missing or broken one is a :class:`HanseError` that calls it ``what``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HanseError(f"{path}: no {what} here") from None
    except (OSError, ValueError, RecursionError) as error:  # not a file, not UTF-8, not JSON, nested too deep
        raise HanseError(f"{path}: not a readable {what} ({error})") from None


def from_json(kind: type[Made], value: Any) -> Made:
    """A dataclass instance from a JSON object that holds its fields, of their types; no number is negative.

    Raises:
        TypeError: a field is missing, unknown, or of another type.
    """
    built = kind(**value)
    for name, hint in get_type_hints(kind).items():
        found, inner = getattr(built, name), [held for held in get_args(hint)[-1:] if held is not Any]
        pairs = [(found, get_origin(hint) or hint)]
        if inner and isinstance(found, dict | list):
            pairs += [(one, inner[0]) for one in (found.values() if isinstance(found, dict) else found)]
        for one, right in pairs:
            if not isinstance(one, right) or isinstance(one, bool) or (isinstance(one, int) and one < 0):
                raise TypeError(f"{name} holds {one!r}")
    return built


def is_plain(name: Any) -> bool:
    """Whether this is a plain relative path: no empty part, no ``.`` or ``..``, no backslash, nothing unprintable."""
    return (isinstance(name, str) and name.isprintable() and "\\" not in name
            and not {"", ".", ".."} & set(name.split("/")))  # fmt: skip


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, for names that come out of a file we did not write.

    Raises:
        HanseError: it is not a plain relative path, or leads out of the folder, if only through a link.
    """
    if not is_plain(name) or not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder)):
        raise HanseError(f"{folder}: {name!r} is not the name of a file in this folder; do not trust what names it")
    return folder / name


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each of these files; side by side on all cores, the largest first."""
    listed = list(paths)
    order = sorted(range(len(listed)), key=lambda number: -listed[number].stat().st_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter's lock
        found = dict(zip(order, pool.map(sha256_file, (listed[number] for number in order)), strict=True))
    return [found[number] for number in range(len(listed))]


def merkle_root(leaves: dict[str, str]) -> str:
    """Root of the RFC 6962 Merkle tree over ``{name: sha256}``, leaves sorted by name; hexadecimal.

    A leaf's data is ``name NUL sha256``, so that two files cannot change places unnoticed.
    """

    def root(hashes: list[bytes]) -> bytes:
        if len(hashes) == 1:
            return hashes[0]
        split = 1 << ((len(hashes) - 1).bit_length() - 1)  # largest power of two below the number of leaves
        return hashlib.sha256(b"\x01" + root(hashes[:split]) + root(hashes[split:])).digest()

    hashes = [
        hashlib.sha256(b"\x00" + f"{name}\0{digest}".encode()).digest() for name, digest in sorted(leaves.items())
    ]
    return (root(hashes) if hashes else hashlib.sha256(b"").digest()).hex()


def sweep_partial(folder: Path) -> list[Path]:
    """Remove what an interrupted writer left in ``folder`` (not deeper); the paths removed."""
    swept = sorted(folder.glob(f"*{PARTIAL}")) if folder.is_dir() else []
    for path in swept:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return swept
