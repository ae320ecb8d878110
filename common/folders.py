"""Output folders that are complete or absent."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import HanseError
from common.files import PARTIAL, fsync_folder, read_json, room_for

PREVIOUS = ".previous"  # a finished folder on its way out, for the instant between two renames


@contextmanager
def replaced_folder(folder: Path, kind: str, manifest: str = "manifest.json") -> Iterator[Path]:
    """Give an empty folder to write into; on success it takes the place of ``folder``, on an error nothing changes.

    What a killed run left in ``FOLDER.partial`` is cleared at the next start. ``kind`` is the ``format`` in the
    JSON file ``manifest`` that such a folder holds: one that holds anything else is not ours to replace.

    Raises:
        HanseError: the folder holds something else, another process is writing it, it cannot be created, or the disk
            is full.
    """
    folder = folder.resolve()  # where it is a link, what it points at is replaced, on the disk that was chosen for it
    partial = folder.with_name(folder.name + PARTIAL)
    if folder.exists() and not _replaceable(folder, kind, manifest):
        raise HanseError(f"{folder}: exists and was not written by this verb; move it away, or set another output")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HanseError(f"{partial}: cannot be created ({error.strerror}); set another output") from None
    with _locked(partial, folder), room_for(folder):
        _clear(partial)
        try:
            yield partial
            _exchange(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _replaceable(folder: Path, kind: str, manifest: str) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return read_json(folder / manifest, "manifest")["format"] == kind
    except (HanseError, KeyError, TypeError, OSError):
        return False


def restore(folder: Path) -> None:
    """Bring back a finished folder that a crash between two renames left under its interim name."""
    folder = folder.resolve()
    previous = folder.with_name(folder.name + PREVIOUS)
    if previous.is_dir() and not folder.exists():
        previous.rename(folder)


def _exchange(partial: Path, folder: Path) -> None:
    previous = folder.with_name(folder.name + PREVIOUS)
    restore(folder)
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself: the kernel lets go of it when the process dies, however it dies."""
    handle = os.open(partial, os.O_RDONLY)
    try:
        busy = HanseError(f"{folder}: another process is writing it; wait for that one, or set another output")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:  # a filesystem without locks: two writers at once are then not noticed
            pass
        if not partial.exists() or os.stat(partial).st_ino != os.fstat(handle).st_ino:
            raise busy  # the other one finished, and renamed the folder, between our two calls
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
