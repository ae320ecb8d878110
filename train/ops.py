"""What is compiled where it runs, the first time: DeepSpeed's parts in C++, and kernels of torch's compiler."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import _get_build_directory

from common.errors import HanseError
from common.terminal import say
from train.engine_config import EngineConfig

COMMUNICATION, SWAPPING, PINNING = "ShareMemCommBuilder", "AsyncIOBuilder", "PinMemoryBuilder"
QUANTIZING, HOST_ADAM = "QuantizerBuilder", "CPUAdamBuilder"


def compile_op(builder_name: str) -> bool:
    """Compile a part where that has not been done, one process at a time; whether it is there now.

    DeepSpeed would do it when it needs it, but behind a lock file that outlives a killed compilation: every later start
    then waits for it without a word. Whoever holds our lock, which dies with its holder, may remove that file.
    """
    from deepspeed.accelerator import get_accelerator  # train/engine.py says first which one it is to be

    ours, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")  # ninja is there
    if ours not in path.split(os.pathsep):
        os.environ["PATH"] = f"{ours}{os.pathsep}{path}"
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


def compiled(builder_name: str) -> bool:
    """Whether a part has been compiled here."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder(builder_name)
    return builder is not None and _library(builder).is_file()


def _library(builder: Any) -> Path:
    return Path(_get_build_directory(builder.name, verbose=False)) / f"{builder.name}.so"


def prepare(engine: EngineConfig) -> None:
    """Compile what a configuration needs of DeepSpeed, before DeepSpeed does.

    Raises:
        HanseError: it cannot be.
    """
    if engine.offload_optimizer == "nvme" or engine.offload_parameters == "nvme":
        prepare_swapping()
    if engine.offload_adamw == "deepspeed":
        prepare_host_adam()
    if engine.quantized_weights or engine.quantized_gradients:
        _prepare(QUANTIZING, "engine.quantized_weights, quantized_gradients",
                 "the nvcc of torch's CUDA, whose architectures TORCH_CUDA_ARCH_LIST may name as 9.0, not 9.0a",
                 "leave them out")  # fmt: skip


def prepare_swapping() -> None:
    """Compile what reads and writes states on a disk (Rajbhandari et al., ZeRO-Infinity, arXiv 2104.07857)."""
    with suppress(Exception):  # the other loads it, and fails in words
        compile_op(PINNING)
    _prepare(SWAPPING, "engine.offload_optimizer=nvme, offload_parameters=nvme",
             "a C++ compiler and the headers of libaio (package libaio-dev or libaio-devel)", "take cpu")  # fmt: skip


def prepare_host_adam() -> None:
    """Compile DeepSpeed's update of AdamW in host memory (Ren et al., ZeRO-Offload, arXiv 2101.06840)."""
    _prepare(HOST_ADAM, "engine.offload_adamw=deepspeed", "a C++ compiler", "take torch")


def _prepare(builder_name: str, keys: str, wants: str, instead: str) -> None:
    from deepspeed.accelerator import get_accelerator

    builder, reason = get_accelerator().create_op_builder(builder_name), ""
    if builder is not None:
        if not _library(builder).is_file() and os.environ.get("RANK", "0") == "0":
            say(f"compiling DeepSpeed's {builder.name}, which takes some minutes, this once")
        try:
            if compile_op(builder_name):
                return
        except Exception as error:  # of many types: the builder's, a compiler's, the loader's
            reason = f" ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    raise HanseError(
        f"{keys}: what DeepSpeed needs for it cannot be compiled here{reason}: it wants {wants}; or {instead}"
    )


@cache
def can_compile(device: torch.device) -> bool:
    """Whether torch's compiler makes kernels for this device, a GPU, here: it wants Triton and a C compiler."""
    if device.type != "cuda":
        return False
    try:
        torch.compile(torch.neg, dynamic=False)(torch.ones(8, device=device))
    except Exception:  # of many types: no Triton, no compiler, nowhere to write
        return False
    return True
