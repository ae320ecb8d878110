"""Packages as archives: read in memory, member by member. Nothing is installed, unpacked, run, or followed."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import Any

import zstandard

from common.errors import HanseError

LARGEST_BYTES = 1 << 28  # of a member: more is not text that anybody wrote
BROKEN = (tarfile.TarError, zipfile.BadZipFile, LZMAError, zstandard.ZstdError, EOFError, OSError)


@dataclass(frozen=True)
class Archive:
    """A wheel, an npm tarball or a Debian package. ``package``: its name, without a version."""

    package: str
    path: Path

    def members(self, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
        """(name, content) of the plain files whose name is wanted, in the archive's order; links are passed over.

        Raises:
            HanseError: the archive cannot be read, or has a member that would lie outside of where it is unpacked.
        """
        reader = {".whl": _zipped, ".deb": _debian}.get(self.path.suffix, _tarball)
        try:
            for name, size, read in reader(self.path):
                if name.startswith("/") or ".." in name.split("/"):
                    raise HanseError(f"{self.path}: holds '{name}', which leads out of it; do not trust this package")
                if wanted(name):
                    if size > LARGEST_BYTES:
                        raise HanseError(
                            f"{self.path}: {name} has {size:,} bytes; that is not the package of this name"
                        )
                    yield name, read()
        except BROKEN as error:
            raise HanseError(f"{self.path}: not a readable package ({error}); delete it to have it anew") from None

    def read(self, name: str) -> bytes:
        """The content of one member.

        Raises:
            HanseError: as above, or there is no such member.
        """
        for _, content in self.members(lambda member: member == name):
            return content
        raise HanseError(f"{self.path}: holds no {name}")


Member = tuple[str, int, Callable[[], bytes]]  # name, bytes, what reads it


def _zipped(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename, info.file_size, partial(archive.read, info)


def _tarball(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        yield from _tar(file)


def _tar(file: Any) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:  # packed with gzip, bzip2, xz, or not
        for member in archive:
            if member.isreg():
                held = archive.extractfile(member)
                assert held is not None  # a plain file's
                yield member.name.removeprefix("./"), member.size, held.read


def _debian(path: Path) -> Iterator[Member]:
    """The files of a .deb: an ar archive, whose member ``data.tar.*`` holds them (deb(5))."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise tarfile.ReadError("no ar archive")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
            if header[58:] != b"`\n" or not size.isdigit():
                raise tarfile.ReadError("a header of the ar archive is broken")
            if name.startswith("data.tar"):
                packed = io.BytesIO(file.read(int(size)))
                zstd = name.endswith(".zst")
                yield from _tar(zstandard.ZstdDecompressor().stream_reader(packed) if zstd else packed)
                return
            file.seek(int(size) + int(size) % 2, 1)
    raise tarfile.ReadError("no data.tar in it")
