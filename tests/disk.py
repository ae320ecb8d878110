"""Small disks, to be filled."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], object]]:
    """A disk of its own at ``folder``, of 64 kB; gives a function that sets its size in kB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    done = subprocess.run([*mount, "size=64k", "tmpfs", folder], check=False, capture_output=True)
    if os.geteuid() or done.returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        yield lambda size: subprocess.run([*mount, f"remount,size={size}k", "tmpfs", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free; the file that takes them."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
    return filler
