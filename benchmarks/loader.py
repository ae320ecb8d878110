"""Windows a second of the training stream beside the memory map's limit, and what a start costs at so many tokens.

    python -m benchmarks.loader FOLDER [--megabytes 1000] [--seconds 3] [--length 4096] [--tokens 1e9 1e11 1e13]

One process, one thread; seconds are those of its CPU, so that others on the machine matter less. A shard of so many
megabytes of 16-bit tokens (0: none), documents of 200 to 1,800 tokens, is written to FOLDER and read once, so that it
lies in the page cache. Measured on random windows of ``length + 1``: copies out of ``numpy.memmap`` and of the same map
as a plain array (the limits), then what a run does, each step with all before it: tokens and documents, the window's
place in the keyed order, packed micro-batches of four; once with the index in memory and once with it left in its file.

Then starts of ``open_stream`` on folders of shards of 2 G tokens, 4 M documents each, in which nothing is but sizes
(files with holes: a start reads no token); the last is that of 10 T tokens: 5,000 shards, 20 G documents. Of every
start a process of its own tells seconds and resident memory, over those of an empty one.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.shards import (
    BIN,
    CODES,
    HEADER,
    INDEX,
    MAGIC,
    ShardEntry,
    ShardsManifest,
    ShardWriter,
    TokenShard,
    beside,
)
from train.stream import Source, Stream

SHARD_TOKENS, SHARD_DOCUMENTS = 2_000_000_000, 4_000_000


def rate(draw, seconds):
    """Calls a second of CPU time."""
    draw()
    done, begun = 0, time.process_time()
    while (passed := time.process_time() - begun) < seconds:
        for _ in range(64):
            draw()
        done += 64
    return done / passed


def windows(arguments):
    prefix, length = arguments.folder / "windows", arguments.length
    generator = np.random.default_rng(0)
    if not beside(prefix, INDEX).is_file():
        with ShardWriter(prefix, np.dtype("<u2")) as writer:
            left = int(arguments.megabytes * 1e6 / 2)
            while left > 0:
                size = min(int(generator.integers(200, 1801)), left)
                writer.add(generator.integers(0, 60_000, size, dtype=np.uint16))
                left -= size
    held = TokenShard(prefix)
    int(held.tokens.sum())  # into the page cache
    count = (len(held.tokens) - 1) // length
    numbers = iter(generator.integers(0, count, 50_000_000).tolist())
    mapped = np.memmap(beside(prefix, BIN), dtype="<u2", mode="r")

    def copy(tokens):
        start = next(numbers) * length
        return tokens[start : start + length + 1].astype(np.int64)

    print(f"{len(held.tokens):,} tokens in {held.documents:,} documents, windows of {length + 1}; one core")
    limit = rate(lambda: copy(mapped), arguments.seconds)
    tell("numpy.memmap, copied to int64", limit, limit, length)
    tell("the same map as a plain array", rate(lambda: copy(held.tokens), arguments.seconds), limit, length)
    for kind, shard in (("", held), (", index left in its file", TokenShard(prefix, mapped=True))):
        source, samples = Source("x", [shard], length, seed=1), iter(range(10**9))
        stream = Stream([source], [1.0])
        ways = {
            "tokens and documents": (1, lambda source=source: source.window(next(numbers))),
            "... of the k-th draw": (1, lambda source=source, k=samples: source.window(source.drawn(next(k) % count))),
            "... packed by four": (4, lambda stream=stream, k=samples: four(stream, 4 * next(k))),
        }
        for what, (each, draw) in ways.items():
            tell(what + kind, each * rate(draw, arguments.seconds), limit, length)


def four(stream, first):
    return stream.micro_batch(range(first, first + 4))


def tell(what, windows_a_second, limit, length):
    print(f"{what:48s} {windows_a_second:10,.0f} windows/s {windows_a_second * length / 1e6:8,.0f} M tokens/s "
          f"{windows_a_second / limit:6.2f} of the map", flush=True)  # fmt: skip


def with_holes(folder, tokens):
    """A shards folder of so many tokens that takes no space: 24 languages, all sizes right and nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = max(1, round(tokens / SHARD_TOKENS))
    share = min(1.0, tokens / SHARD_TOKENS)
    each, documents = int(SHARD_TOKENS * share), int(SHARD_DOCUMENTS * share)
    header = HEADER.pack(MAGIC, 1, CODES[np.dtype("<i4")], documents, documents + 1)
    entries = []
    for number in range(shards):
        prefix = folder / f"train-{number:05d}"
        with beside(prefix, BIN).open("wb") as file:
            file.truncate(4 * each)
        with beside(prefix, INDEX).open("wb") as file:
            file.write(header)
            file.truncate(HEADER.size + 20 * documents + 8)
        entries.append(ShardEntry(prefix.name, "train", f"l{number % 24:02d}", documents, each, 4 * each, {INDEX: "0"}))
    ShardsManifest("0", 131_072, 0, "none", "0", entries, folder).write()


def start(folder):
    """What this process needs to open a stream on the folder: printed as JSON."""
    import psutil

    import data_pipelines.shards
    from train.config import BatchConfig, DataConfig, TrainConfig
    from train.order import open_stream

    data_pipelines.shards.MAPPED_FROM = 0
    config = replace(
        TrainConfig(), name="x", tokens=10**10, batch=BatchConfig(1024, 1),
        data=DataConfig(shards=str(folder), tokenizer="", sequence_length=4096),
    )  # fmt: skip
    process = psutil.Process()
    before, begun = process.memory_info().rss, time.process_time()
    manifest = ShardsManifest.read(folder)
    read = time.process_time() - begun
    stream = open_stream(manifest, config)
    seconds = time.process_time() - begun
    drawn = [(source.name, window) for source, window in map(stream.sample, (0, 1, 10**6))]
    print(json.dumps({"seconds": seconds, "manifest": read, "bytes": process.memory_info().rss - before,
                      "drawn": drawn, "files": process.num_fds()}))  # fmt: skip


def starts(arguments):
    print("\na start of the stream: seconds, of which to read the manifest; memory; open files")
    for tokens in arguments.tokens:
        folder = arguments.folder / f"holes-{tokens:.0e}"
        with_holes(folder, tokens)
        command = [sys.executable, "-m", "benchmarks.loader", str(folder), "--start"]
        best = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        shards = max(1, round(tokens / SHARD_TOKENS))
        print(f"{tokens:8.0e} tokens, {shards:6,} shards: {best['seconds']:6.2f} s ({best['manifest']:.2f} s)  "
              f"{best['bytes'] / 1e6:6.1f} MB  {best['files']:,} files", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tokens", type=float, nargs="*", default=[1e9, 1e11, 1e13])
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        return start(arguments.folder)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.megabytes:
        windows(arguments)
    starts(arguments)


if __name__ == "__main__":
    sys.exit(main())
