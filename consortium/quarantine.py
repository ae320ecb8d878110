"""Files of a stranger, copied to where they can do no harm before anything in them is read.

What is judged is the copy: its owner can change the original at any time, also between two looks at it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import HanseError
from common.files import is_plain, room_for
from consortium.contribution import LARGEST, MOST_FILES, NEEDED, is_expected

BLOCK = 16 << 20  # bytes copied at a time
DEEPEST = 4  # folders in folders


@contextmanager
def quarantined(source: Path, place: Path, largest_bytes: int) -> Iterator[Path]:
    """A copy of a contribution in a folder of its own under ``place``, which is removed at the end.

    The copy holds only regular files with names that a contribution has, readable for nobody else, none executable.
    Nothing is written anywhere else, whatever the names and links in ``source`` are.

    Raises:
        HanseError: there is something else in the folder, something is missing, or it is too large.
    """
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="contribution-", dir=place))
    try:
        copy = folder / "contribution"
        copy.mkdir(mode=0o700)
        with room_for(copy):
            _Copier(source, copy, largest_bytes).run()
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Copier:
    """One copy. Everything is opened relative to a folder that is held open: no path is walked twice."""

    def __init__(self, source: Path, copy: Path, left: int):
        self.source, self.copy, self.left = source, copy, left
        self.files: list[str] = []

    def run(self) -> None:
        """Copy everything, as far as it may be.

        Raises:
            HanseError: something cannot be read or may not be copied, or what a contribution needs is missing.
        """
        try:
            handle = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise HanseError(f"{self.source}: cannot be read ({error.strerror})") from None
        try:
            self._folder(handle, "", 0)
        finally:
            os.close(handle)
        missing = [name for name in NEEDED if name not in self.files]
        if missing:
            raise HanseError(f"{self.source}: is no contribution: {', '.join(missing)} missing; 'hanse contribute' "
                             "writes one")  # fmt: skip

    def _folder(self, handle: int, prefix: str, depth: int) -> None:
        if depth > DEEPEST:
            raise self._refusal(prefix, "lies deeper than anything in a contribution")
        try:
            with os.scandir(handle) as entries:
                names = [entry.name for _, entry in zip(range(MOST_FILES + 1), entries, strict=False)]
        except OSError as error:
            raise self._refusal(prefix, f"cannot be read ({error.strerror})") from None
        for name in sorted(names):
            path = prefix + name
            if not is_plain(path):
                raise self._refusal(path, "has a name that could mislead")
            if len(self.files) >= MOST_FILES:
                raise self._refusal(prefix, f"holds more than {MOST_FILES} files")
            self._entry(handle, name, path, depth)

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        except OSError as error:
            is_link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            raise self._refusal(path, "is a link" if is_link else f"cannot be read ({error.strerror})") from None
        try:
            found = os.fstat(handle)
            if stat.S_ISDIR(found.st_mode):
                self._folder(handle, f"{path}/", depth + 1)
            elif not stat.S_ISREG(found.st_mode):
                raise self._refusal(path, "is no regular file")
            elif found.st_nlink > 1:
                raise self._refusal(path, "is a hard link: it has another name elsewhere")
            elif not is_expected(path):
                raise self._refusal(path, "is none of the files of a contribution (safetensors, JSON, and their names "
                                          "in docs/how/registry.md)")  # fmt: skip
            else:
                self._file(handle, path, found.st_size)
        finally:
            os.close(handle)

    def _file(self, handle: int, path: str, size: int) -> None:
        if size > LARGEST.get(path, size) or size > self.left:
            raise self._refusal(path, f"is larger than is read here ({size} bytes; all together are bounded by "
                                      "largest_gigabytes=...)")  # fmt: skip
        self.left -= size
        target = self.copy / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(handle, "rb", closefd=False) as source, open(out, "wb") as file:
            copied = 0
            while block := source.read(min(BLOCK, size - copied)):
                copied += file.write(block)
        if copied != size:
            raise self._refusal(path, "changed while it was read")
        self.files.append(path)

    def _refusal(self, path: str, what: str) -> HanseError:
        return HanseError(f"{self.source}: {path!r:.200} {what}")
