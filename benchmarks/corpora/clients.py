"""The ordinary clients of PyPI, Debian and npm, asked for files that are not there yet; what comes is checked."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.corpora.archives import Archive
from benchmarks.corpora.source import Package
from common.errors import HanseError
from common.files import PARTIAL, sha256_file
from common.terminal import say
from data_pipelines.packages import fetch
from data_pipelines.runner import locked, sweep
from data_pipelines.source_config import PackageConfig


def pip(packages: Sequence[Package], downloads: Path) -> dict[str, Archive]:
    """Wheels of PyPI, without what they depend on.

    Raises:
        HanseError: pip is missing, a wheel cannot be had, or is not the pinned one.
    """
    wheels = [PackageConfig(one.pinned, one.filename or "", one.sha256 or "", "") for one in packages]
    if importlib.util.find_spec("pip") is None and not all((downloads / one.filename).is_file() for one in wheels):
        raise HanseError("pip is not on this machine")
    return {one.name: Archive(one.name, fetch(wheel, downloads)) for one, wheel in zip(packages, wheels, strict=True)}


def apt(packages: Sequence[Package], downloads: Path) -> dict[str, Archive]:
    """Debian packages as the release has them now; apt-get compares them with the release's signed lists.

    Raises:
        HanseError: apt-get is missing, or a package cannot be had.
    """

    def there(package: Package) -> Path | None:
        files = sorted(downloads.glob(f"{package.name}_*.deb"), key=lambda file: file.stat().st_mtime_ns)
        return files[-1] if files else None

    missing = [one.name for one in packages if there(one) is None]
    if missing:
        _bring(["apt-get", "download", *missing], len(missing), downloads, "run apt-get update")
    found = {one.name: there(one) for one in packages}
    return {name: Archive(name, path) for name, path in found.items() if path}


def npm(packages: Sequence[Package], downloads: Path) -> dict[str, Archive]:
    """Tarballs of npm; no script of theirs is run.

    Raises:
        HanseError: npm is missing, a tarball cannot be had, or is not the pinned one.
    """
    missing = [one for one in packages if not (downloads / (one.filename or "")).is_file()]
    if missing:
        command = ["npm", "pack", "--silent", "--ignore-scripts", *(one.pinned for one in missing)]
        _bring(command, len(missing), downloads, "look at the message")
    for one in packages:
        path = downloads / (one.filename or "")
        if (got := sha256_file(path)) != one.sha256:
            raise HanseError(f"{path}: sha256 is {got}, but {one.sha256} is pinned; delete the file to have it anew")
    return {one.name: Archive(one.name, downloads / (one.filename or "")) for one in packages}


def _bring(command: list[str], number: int, downloads: Path, advice: str) -> None:
    """Run a client in a folder of its own; the files it leaves there, all of them, come to ``downloads``."""
    client = command[0]
    if shutil.which(client) is None:
        raise HanseError(f"{client} is not on this machine")
    say(f"downloading {number} packages with {client} (read as data, not installed)")
    downloads.mkdir(parents=True, exist_ok=True)
    sweep(downloads)
    with tempfile.TemporaryDirectory(dir=downloads, suffix=PARTIAL) as folder, locked(Path(folder)):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        came = [path for path in Path(folder).iterdir() if path.is_file()]
        if done.returncode or len(came) < number:
            lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("W:")]
            why = lines[-1].strip() if lines else f"{len(came)} of {number} files came"
            raise HanseError(f"{client} cannot download them ({why}); {advice}, or put the files into {downloads}/")
        for path in came:
            path.replace(downloads / path.name)
