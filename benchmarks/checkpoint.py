"""What a checkpoint costs the training, and how that grows with the model.

    python -m benchmarks.checkpoint FOLDER [--megabytes 100 300 900 2400] [--rounds 3]

One rank; the state is that of an AdamW run: fp32 weights and two moments, so 12 bytes a parameter. For every size two
limits are measured beside it, in the same rounds: a plain copy of as many bytes in memory, which a stall cannot beat,
and as many bytes written to one file and flushed, without hashing, which no checkpoint is written faster than.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from common.terminal import table
from train.checkpoint_writer import Writer
from train.config import CheckpointConfig
from train.optimizers import MOMENTS
from train.ranks import Place
from train.shares import Fragment

TENSORS = 24


class State:
    """Of an engine, what a checkpoint is written from."""

    swapped = False

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


def copy_seconds(state: State, room: list[torch.Tensor]) -> float:
    """A copy of all values to memory that was touched before."""
    begun = time.perf_counter()
    for into, (_, _, values) in zip(room, (one for part in state.owned for one in part.tensors()), strict=True):
        into.copy_(values)
    return time.perf_counter() - begun


def measure(folder: Path, megabytes: int, rounds: int) -> list[str]:
    """A line of the table: medians over the rounds, the first one left out, which allocates."""
    state = State(megabytes)
    room = [torch.zeros_like(values) for part in state.owned for _, _, values in part.tensors()]
    writer = Writer(folder, Place(0, 1), CheckpointConfig(every_steps=1, keep_last=1))
    rows = []
    for step in range(1, rounds + 2):
        copied = copy_seconds(state, room)
        writer.begin(state, {"step": step})  # type: ignore[arg-type]
        written = writer.wait()
        assert written
        disk = disk_seconds(folder, written.bytes)
        rows.append((written.stall_seconds, copied, written.write_seconds - written.stall_seconds, disk))
    stall, copied, writing, disk = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    size = written.bytes / 1e6
    return [f"{size / 12:,.0f} M", f"{size:,.0f}", f"{1000 * stall:,.0f}", f"{stall / copied:.2f}",
            f"{1000 * rows[0][0]:,.0f}", f"{(stall + writing) / stall:.0f}",
            f"{size / writing:,.0f}", f"{size / disk:,.0f}", f"{disk / writing:.2f}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 300, 900, 2400])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folder / "benchmark-checkpoints"
    rows = []
    for megabytes in arguments.megabytes:
        folder.mkdir(parents=True)
        try:
            rows.append(measure(folder, megabytes, arguments.rounds))
        finally:
            shutil.rmtree(folder)
    columns = ["parameters", "MB", "stall ms", "of a copy", "first ms", "synchronous / stall",
               "MB/s", "disk MB/s", "of the disk"]  # fmt: skip
    table(f"medians of {arguments.rounds}, one rank", columns, rows)


if __name__ == "__main__":
    main()
