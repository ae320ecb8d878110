"""How fast a checkpoint is sealed, its seal checked, the checkpoint verified, beside SHA-256 alone; and memory.

    python -m benchmarks.seal FOLDER [--gigabytes 0.1 0.5 1 2] [--rounds 3]

Checkpoints as four ranks write them, eight files. Medians of interleaved rounds after one that is not counted, without
the time in which Python and torch start; the memory is the most by which a task's resident memory rose. Everything is
in the page cache. The limits are ``hashlib``'s SHA-256 over 64 MB in memory, on one thread and on as many as there are
cores, and reading the same files without hashing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from common.files import sha256_file
from consortium import bundle, keys, seal, verify
from train.checkpoint_writer import finish, write_share
from train.config import TrainConfig
from train.optimizers import MOMENTS
from train.run_folder import RunFolder, folder_of

TENSORS, RANKS = 24, 4
BUFFER = 64 << 20


def write_checkpoint(run: Path, gigabytes: float) -> Path:
    """A checkpoint of about this size in fp32: weights and two moments of AdamW."""
    share = int(gigabytes * 1e9) // (4 * 3 * TENSORS * RANKS)
    final, files = folder_of(run / "checkpoints", 1), {}
    partial = final.with_name(final.name + ".partial")
    for rank in range(RANKS):
        values = {f"layers.{number}.weight": torch.randn(share) for number in range(TENSORS)}
        span = f"[{rank * share}:{(rank + 1) * share}]"
        moments = {f"{name}.{key}{span}": one for name, one in values.items() for key in MOMENTS}
        model = {f"{name}{span}": one for name, one in values.items()}
        files |= write_share({"model": model, "optimizer": moments}, partial, rank)
    zeros = {"step": 1, "consumed_samples": 0, "data_merkle_root": "", "tokenizer_sha256": "", "model": {},
             "precision": "fp32", "wall_seconds": 0}  # fmt: skip
    finish(partial, final, files, {f"layers.{number}.weight": (RANKS * share,) for number in range(TENSORS)}, zeros)
    return final


def limits() -> tuple[float, float]:
    """GB/s of SHA-256 in memory, on one thread and on all cores."""
    cores, buffer = os.cpu_count() or 1, bytes(BUFFER)

    def speed(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            begun = time.perf_counter()
            list(pool.map(lambda _: hashlib.sha256(buffer).digest(), range(2 * threads)))
            return 2 * threads * BUFFER / (time.perf_counter() - begun) / 1e9

    return speed(1), speed(cores)


def reading(folder: Path) -> None:
    """Read every file, on all cores, and do nothing with it."""

    def read(path: Path) -> None:
        block = bytearray(1 << 18)
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, (path for path in folder.rglob("*") if path.is_file())))


def one_thread(folder: Path) -> None:
    """Hash every file, one after the other."""
    for path in folder.rglob("*"):
        if path.is_file():
            sha256_file(path)


def work(run: Path) -> dict[str, Callable[[], object]]:
    """What is measured, on a run folder with a checkpoint, ``seal.sig`` and ``key``."""
    folder = folder_of(run / "checkpoints", 1)
    private = keys.load_private(run / "key")
    trusted: bundle.Trusted = {keys.fingerprint(private.public_key()): private.public_key()}
    evidence = verify.Evidence(RunFolder(run), TrainConfig(), run, [], {}, 0, [], trusted)
    return {
        "read": lambda: reading(folder),
        "hash, one thread": lambda: one_thread(folder),
        "seal": lambda: seal.make(folder, private, "checkpoint"),
        "check": lambda: seal.check(folder, run / "seal.sig", trusted),
        "verify": lambda: verify.checkpoints(evidence),
    }


def measure(task: Callable[[], object]) -> tuple[float, float]:
    """(seconds, MB by which resident memory rose above what it was)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak starts again from here
    before = _megabytes("VmRSS")
    begun = time.perf_counter()
    task()
    return time.perf_counter() - begun, _megabytes("VmHWM") - before


def _megabytes(key: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{key}:")[1].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 0.5, 1.0, 2.0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run = options.folder / "benchmark-seal"
    run.mkdir(parents=True)
    print(
        "| checkpoint | SHA-256 in memory, 1 / all cores | read | hash, one thread | seal | check | verify | memory |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    try:
        keys.new_key(run / "key")
        for gigabytes in options.gigabytes:
            folder = write_checkpoint(run, gigabytes)
            (run / "seal.sig").write_bytes(seal.make(folder, keys.load_private(run / "key"), "checkpoint"))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
            tasks = work(run)
            rounds = [({name: measure(task) for name, task in tasks.items()}, limits())
                      for _ in range(options.rounds + 1)][1:]  # fmt: skip
            one, every = (statistics.median(limit[at] for _, limit in rounds) for at in (0, 1))
            seconds = {name: statistics.median(told[name][0] for told, _ in rounds) for name in tasks}
            memory = max(told[name][1] for told, _ in rounds for name in ("seal", "check", "verify"))
            speeds = " | ".join(f"{size / spent:.2f} GB/s ({spent:.2f} s)" for spent in seconds.values())
            print(f"| {size:.2f} GB | {one:.2f} / {every:.2f} GB/s | {speeds} | {memory:.1f} MB |", flush=True)
            shutil.rmtree(run / "checkpoints")
    finally:
        shutil.rmtree(run)


if __name__ == "__main__":
    main()
