"""What a checkpoint costs the training: stall beside the synchronous way, and bandwidth beside the disk's.

    python -m benchmarks.checkpoint FOLDER [--megabytes 300] [--rounds 3]

One rank; the state is that of an AdamW run: fp32 weights and two moments. The disk's limit is the same number of bytes
written to one file and flushed, without hashing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from train.checkpoint_writer import Writer
from train.config import CheckpointConfig
from train.optimizers import MOMENTS
from train.ranks import Place
from train.shares import Fragment

TENSORS = 24


class State:
    """Of an engine, what a checkpoint is written from."""

    def __init__(self, megabytes: int):
        size = megabytes * 1_000_000 // (4 * 3 * TENSORS)
        self.shapes = {f"layers.{number}.weight": (size,) for number in range(TENSORS)}
        self.owned = [Fragment(name, 0, size, 0, 0, torch.randn(size), {key: torch.randn(size) for key in MOMENTS})
                      for name in self.shapes]  # fmt: skip

    def fragments(self):
        return iter(self.owned)


def disk_seconds(folder: Path, size: int) -> float:
    block, path = os.urandom(1 << 24), folder / "limit"
    begun = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds / (size // len(block) * len(block)) * size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    state = State(arguments.megabytes)
    folder = arguments.folder / "benchmark-checkpoints"
    folder.mkdir(parents=True)
    try:
        writer = Writer(folder, Place(0, 1), CheckpointConfig(every_steps=1, keep_last=1))
        rows = []
        for step in range(1, arguments.rounds + 2):  # the first one allocates the buffers
            writer.begin(state, {"step": step})  # type: ignore[arg-type]
            written = writer.wait()
            assert written
            rows.append((written.stall_seconds, written.write_seconds, disk_seconds(folder, written.bytes)))
        print(f"first stall, with the buffers' allocation: {1000 * rows[0][0]:.0f} ms")
        stall, whole, limit = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        size = written.bytes / 1e6
        print(f"{size:.0f} MB: stall {1000 * stall:.0f} ms; the synchronous way {1000 * whole:.0f} ms")
        print(f"written and hashed at {size / (whole - stall):.0f} MB/s; the disk alone {size / limit:.0f} MB/s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
