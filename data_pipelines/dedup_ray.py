"""Duplicates found by Ray: the same signatures, bands and pairs as :mod:`~data_pipelines.dedup`, on many machines.

    read       a task a file       contents to whoever asked; signatures stay where they were read
    keys       a task a file       a key a band and document, sent to the partition of that key
    buckets    a task a partition  documents that share a key with another
    take       a task a file       signatures of those documents alone, put together for all
    pairs      a task a partition  those that agree

Whoever asked joins the pairs. It holds 24 bytes a document, and the signatures (240 bytes) of documents that share a
bucket, which are few; everything else lies in Ray's object store, spread over its machines, or spilled to their disks.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import HanseError
from common.terminal import say
from data_pipelines import dedup
from data_pipelines.annotate.signature import BANDS, PLACES, places_of
from data_pipelines.annotate.text_arrays import Bools, Hashes, Integers
from data_pipelines.dedup import Clusters
from data_pipelines.ray_node import ENVIRONMENT, PATIENCE_SECONDS, free_ports

Signed = tuple[Integers, NDArray[np.uint16]]  # (row in its file, signature) of documents that have a signature
Bands = list[tuple[Integers, Integers]]  # (row, bucket) of documents that share one, a band
PARTITIONS_A_CPU = 2


def require() -> None:
    """See whether Ray is installed.

    Raises:
        HanseError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise HanseError("dedup.engine=ray: Ray is not installed here; pip install 'hanse[ray]', or dedup.engine=local")


@contextmanager
def session(processes: int = 0) -> Iterator[None]:
    """Ray, for as long as this lasts: the cluster that ``RAY_ADDRESS`` names, else one on this machine alone.

    ``HANSE_RAY_NODES`` says how many machines the cluster is to have: they are waited for.

    Args:
        processes: of this machine that work at once; 0: one a core.

    Raises:
        HanseError: Ray is not installed, or does not answer.
    """
    require()
    before = dict(os.environ)
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with ExitStack() as stack:
            address, machines, node = os.environ.get("RAY_ADDRESS"), int(os.environ.get("HANSE_RAY_NODES", "1")), None
            if not address:
                address, node = stack.enter_context(_here(processes))
            _connect(address, machines, node)
            import ray

            stack.callback(ray.shutdown)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _here(processes: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster of this machine alone: its address, and the process that began it."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with tempfile.TemporaryDirectory(prefix="hanse-ray-", ignore_cleanup_errors=True) as folder:
        cpus = processes or len(os.sched_getaffinity(0))
        command = [sys.executable, "-m", "data_pipelines.ray_node", "head", f"--address={address}", f"--cpus={cpus}",
                   f"--folder={folder}"]  # fmt: skip
        search = os.pathsep.join(filter(None, sys.path))  # whatever made this module importable here
        with (Path(folder) / "start.log").open("w", encoding="utf-8") as log:
            node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                    start_new_session=True, env={**os.environ, "PYTHONPATH": search})  # fmt: skip
        try:
            yield address, node
        finally:
            node.terminate()
            try:
                node.wait(60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(node.pid, signal.SIGKILL)  # its parts are of its session


def _connect(address: str, machines: int, node: subprocess.Popen[bytes] | None) -> None:
    """Be a driver of the cluster at ``address``, as soon as so many machines are in it; ``node``: what began it.

    Raises:
        HanseError: it does not answer.
    """
    import ray

    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
            break
        except Exception as error:  # not there yet; Ray has no one type for it
            ray.shutdown()
            if time.monotonic() > end or (node and node.poll() is not None):
                raise HanseError(f"dedup.engine=ray: no Ray at {address} ({error})") from None
            time.sleep(1)
    while len(there := [node for node in ray.nodes() if node["Alive"]]) < machines and time.monotonic() < end:
        time.sleep(0.5)
    cpus = sum(node["Resources"].get("CPU", 0) for node in there)
    say(f"Ray: {len(there)} {'machine' if len(there) == 1 else 'machines'}, {cpus:.0f} CPUs")


def cluster(files: Sequence[Path], similarity: float | None, earlier: int = 0) -> Clusters:
    """As :func:`data_pipelines.dedup.cluster` of the documents in ``files``, within a :func:`session`: the same result,
    whatever machines there are.
    """
    import ray

    read, keys, buckets, take, pairs = (
        ray.remote(function) for function in (_read, _keys, _buckets, _take, _pairs)
    )  # fmt: skip
    contents, signed = [], []
    for path in files:
        one, other = read.options(num_returns=2).remote(path, similarity is not None)
        contents.append(one)
        signed.append(other)
    parts: list[Hashes] = ray.get(contents)
    begins = np.cumsum([0, *map(len, parts)])
    halves = np.concatenate([np.zeros((0, 2), np.uint64), *parts])
    root = np.arange(len(halves))
    dedup.join_equal(root, halves)
    if similarity is not None and len(root):
        first = root == np.arange(len(root))  # equal documents have equal signatures: one of them is enough
        partitions = max(1, int(ray.cluster_resources().get("CPU", 1)) * PARTITIONS_A_CPU)
        spread = [
            keys.options(num_returns=partitions).remote(one, first[begin:end], int(begin), partitions)
            for one, begin, end in zip(signed, begins[:-1], begins[1:], strict=True)
        ]
        spread = [[one] if partitions == 1 else one for one in spread]
        found = [buckets.options(num_returns=2).remote(*(one[part] for one in spread)) for part in range(partitions)]
        del spread
        wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *ray.get([rows for _, rows in found])]))
        cuts = np.searchsorted(wanted, begins)
        taken = [take.remote(one, wanted[cuts[place] : cuts[place + 1]] - begins[place])
                 for place, one in enumerate(signed)]  # fmt: skip
        places = ray.put(np.concatenate([np.zeros((0, PLACES), np.uint16), *ray.get(taken)]))
        rows, least = ray.put(wanted), dedup.least_places(similarity)
        for left, right in ray.get([pairs.remote(bands, rows, places, least) for bands, _ in found]):
            dedup.join(root, left, right)
    return dedup.clusters_of(root, halves, earlier)


def _read(path: Path, signatures: bool) -> tuple[Hashes, Signed]:
    """The halves of all contents of a file, and its signatures."""
    halves, known, places, rows = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)], [], 0
    for batch in dedup.batches_of([path]):
        halves.append(dedup.halves_of(batch.column("content")))
        there = batch.column("signature").is_valid().to_numpy(zero_copy_only=False)
        if signatures:
            places.append(places_of(batch.column("signature").filter(pa.array(there))))
            known.append(np.flatnonzero(there) + rows)
        rows += batch.num_rows
    return np.concatenate(halves), (np.concatenate(known), np.concatenate([np.zeros((0, PLACES), np.uint16), *places]))


def _keys(signed: Signed, first: Bools, begin: int, partitions: int) -> Any:
    """A partition each: (keys, rows in the whole) of every band; of documents that are the first of their equals."""
    known, places = signed
    kept = first[known]
    rows, places = known[kept] + begin, places[kept]
    parts: list[list[tuple[Hashes, Integers]]] = [[] for _ in range(partitions)]
    for band in range(BANDS):
        keys = dedup.band_keys(places, band)
        whose = keys % np.uint64(partitions)
        for part in range(partitions):
            parts[part].append((keys[whose == part], rows[whose == part]))
    return parts[0] if partitions == 1 else parts


def _buckets(*parts: list[tuple[Hashes, Integers]]) -> tuple[Bands, Integers]:
    """The shared buckets of a partition, a band each, and all rows in them; ``parts``: of each file, in order."""
    bands: Bands = []
    for band in range(BANDS):
        keys, rows = (np.concatenate([part[band][which] for part in parts]) for which in (0, 1))
        order, bucket = dedup.shared_buckets(keys)
        bands.append((rows[order], bucket))
    return bands, np.unique(np.concatenate([rows for rows, _ in bands]))


def _take(signed: Signed, rows: Integers) -> NDArray[np.uint16]:
    """Signatures of some rows of a file."""
    known, places = signed
    return places[np.searchsorted(known, rows)]


def _pairs(bands: Bands, wanted: Integers, places: NDArray[np.uint16], least: int) -> tuple[Integers, Integers]:
    """Pairs of rows that agree; ``places``: the signatures of the rows ``wanted``."""
    found = [dedup.alike_in(places, np.searchsorted(wanted, rows), bucket, least) for rows, bucket in bands]
    left, right = (wanted[np.concatenate([pair[side] for pair in found])] for side in (0, 1))
    return left, right
