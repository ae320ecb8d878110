"""DeepSpeed's parts in C++, which are compiled where they run, the first time."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from torch.utils.cpp_extension import _get_build_directory

from common.errors import HanseError
from common.terminal import say

COMMUNICATION, SWAPPING, PINNING = "ShareMemCommBuilder", "AsyncIOBuilder", "PinMemoryBuilder"


def compile_op(builder_name: str) -> bool:
    """Compile a part where that has not been done, one process at a time; whether it is there now.

    DeepSpeed would do it when it needs it, but behind a lock file that outlives a killed compilation: every later start
    then waits for it without a word. Whoever holds our lock, which dies with its holder, may remove that file.
    """
    from deepspeed.accelerator import get_accelerator  # train/engine.py says first which one it is to be

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja is there
    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible(verbose=False):
        return False
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "hanse.lock").open("w") as lock:
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
    return True


def prepare_swapping() -> None:
    """Compile what reads and writes states on a disk (Rajbhandari et al., ZeRO-Infinity, arXiv 2104.07857).

    Raises:
        HanseError: it cannot be.
    """
    if not (Path(_get_build_directory("async_io", verbose=False)) / "async_io.so").is_file():
        say("compiling DeepSpeed's async_io, which takes some minutes, this once")
    compile_op(PINNING)  # the other loads it
    if not compile_op(SWAPPING):
        raise HanseError("engine.offload_optimizer=nvme: DeepSpeed's async_io cannot be compiled here: it wants a C++ "
                         "compiler and the headers of libaio (package libaio-dev or libaio-devel); or take "
                         "engine.offload_optimizer=cpu")  # fmt: skip
