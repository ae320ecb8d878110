"""What it costs to find duplicates with Ray where one process could: the same documents, both engines, one machine.

    python -m benchmarks.dedup_engines --documents 200000 --files 8 --workers 2

Documents are given by their signatures alone (240 bytes each): a third are copies of one that came shortly before, with
some places altered. Both engines must find the same clusters. Told are seconds of wall time, those of Ray's start by
themselves, and CPU seconds of this process and, for Ray, of all processes that it waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines import dedup, dedup_ray
from data_pipelines.annotate.signature import BYTES, PLACES

SIMILARITY = 0.75


def write_files(folder: Path, documents: int, files: int, seed: int) -> list[Path]:
    """Files as annotating leaves them, of the two columns that matter."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 2**16, (documents, PLACES), dtype=np.uint16)
    for row in np.flatnonzero(rng.random(documents) < 1 / 3):
        places[row] = places[max(0, row - int(rng.integers(1, 1000)))]
        altered = rng.choice(PLACES, int(rng.integers(0, 40)), replace=False)
        places[row, altered] = rng.integers(0, 2**16, len(altered))
    contents = rng.integers(0, 2**63, (documents, 4)).astype(np.uint64)
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(documents), files)):
        data = [
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(one[rows].tobytes())])
            for one, width in ((contents, 32), (places.astype("<u2"), BYTES))
        ]
        paths.append(folder / f"{number:03d}.parquet")
        pq.write_table(pa.table(data, names=["content", "signature"]), paths[-1], compression="zstd")
    return paths


def spent(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a function returns, its wall seconds and the CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def children() -> float:
    """CPU seconds of ended processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, arguments.documents, arguments.files, arguments.seed)
        local, wall, cpu = spent(lambda: dedup.cluster(dedup.batches_of(files), SIMILARITY, folder))
        told = {
            "documents": arguments.documents, "duplicates": int((local.size > 1).sum()), "workers": arguments.workers,
            "local_seconds": wall, "local_cpu_seconds": cpu,
        }  # fmt: skip
        before, begun = children(), time.perf_counter()
        with dedup_ray.session(arguments.workers):
            told["ray_start_seconds"] = time.perf_counter() - begun
            for turn in ("first", "second"):  # the first one also waits for worker processes to start
                found, wall, cpu = spent(lambda: dedup_ray.cluster(files, SIMILARITY))
                assert np.array_equal(found.cluster, local.cluster)
                assert np.array_equal(found.size, local.size)
                told |= {f"ray_{turn}_seconds": wall, f"ray_{turn}_driver_cpu_seconds": cpu}
        told["ray_processes_cpu_seconds"] = children() - before
        print(json.dumps({key: round(value, 2) for key, value in told.items()}, indent=1))


if __name__ == "__main__":
    main()
