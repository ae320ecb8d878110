"""Writing checkpoints beside the training: the loop waits for a copy to host memory, threads do the rest.

    begin    every rank copies its share to host memory; the loop stalls for this and no more
    (1)      a thread of every rank writes its files, hashing what it writes, and flushes them
    (2)      when all have, the hashes are gathered; a thread of rank 0 writes the manifest, flushes the folders, gives
             the folder its final name, and deletes what the retention policy does not keep

That all have is told by the sum which the loop makes every step anyway, so nothing waits for a disk; and because every
rank reads the same sum, all of them take the step from (1) to (2) and from (2) to the end at the same place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from common.errors import HanseError
from common.files import PARTIAL, fsync_folder, sha256_file, write_json
from train.checkpoint import FORMAT, root_of
from train.config import CheckpointConfig
from train.ranks import Place, gathered, together
from train.retention import prune
from train.run_folder import folder_of

if TYPE_CHECKING:  # papers are written without DeepSpeed
    from train.engine import Engine
    from train.shares import Fragment

Parts = Mapping[str, Mapping[str, Tensor]]  # {part of the checkpoint: {key: values}}


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete now.

    Attributes:
        step: of the run when its state was copied; ``stall_seconds``: the loop's wait for this rank's copy.
        write_seconds: from the copy to the final name; ``bytes``: of all files of all ranks.
        merkle_root: of its manifest, on rank 0, which wrote it.
        not_deleted: there also, {folder that the retention policy does not keep and that is still there: why}, where
            it was not told before.
    """

    folder: Path
    step: int
    stall_seconds: float
    write_seconds: float
    bytes: int
    merkle_root: str | None
    not_deleted: Mapping[str, str] = field(default_factory=dict)


class Writer:
    """Writes the checkpoints of a run, one at a time. ``begin``, ``advance`` and ``wait`` are collective."""

    def __init__(
        self, checkpoints: Path, place: Place, policy: CheckpointConfig, origin: Mapping[str, Any] | None = None
    ):
        self.checkpoints, self.place, self.policy, self.origin = checkpoints, place, policy, origin
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._host: dict[str, Tensor] = {}  # kept from one checkpoint to the next: fresh memory is slow to touch
        self._work: Future[Any] | None = None
        self._gathered = False
        self._state: dict[str, Any] = {}
        self._shapes: Mapping[str, tuple[int, ...]] = {}
        self._begun = self._stall = 0.0
        self._bytes = 0
        self._told: set[str] = set()  # folders that could not be deleted

    def done_here(self) -> bool:
        """Whether this rank has no work in hand that another would have to wait for."""
        return self._work is None or self._work.done()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written; the same on every rank."""
        return self._work is not None

    def begin(self, engine: Engine, state: Mapping[str, Any]) -> None:
        """Copy this rank's share of ``state["step"]`` and let a thread write it. Nothing may be in hand."""
        assert not self.busy, "one checkpoint at a time"
        self._begun, self._gathered = time.perf_counter(), False
        self._state, self._shapes = dict(state), engine.shapes
        if engine.swapped:  # to a disk, as host memory does not hold them: the loop waits until all is written
            self._work = _now(write_swapped, engine, self._partial, self.place.rank)
        else:
            parts = self._copy(engine.fragments())
            self._work = self._thread.submit(write_share, parts, self._partial, self.place.rank)
        self._stall = time.perf_counter() - self._begun

    def advance(self) -> Written | None:
        """Go one stage on; to be called on all ranks when the work of all is done. The checkpoint, if that was all.

        Raises:
            HanseError: on every rank, if any could not write (disk full ...); earlier checkpoints are untouched.
        """
        if self._work is None:
            return None
        try:
            with together(self.place):
                result = self._work.result()
            if not self._gathered:
                self._gather(result)
                return None
        except HanseError:
            self._work = None
            if self.place.first:
                shutil.rmtree(self._partial, ignore_errors=True)
            raise
        self._work = None
        root, left = result or (None, {})
        fresh = {folder: why for folder, why in left.items() if folder not in self._told}
        self._told |= fresh.keys()
        return Written(folder_of(self.checkpoints, self._state["step"]), self._state["step"], self._stall,
                       time.perf_counter() - self._begun, self._bytes, root, fresh)  # fmt: skip

    def wait(self) -> Written | None:
        """Until nothing is in hand; the checkpoint that was."""
        written = None
        while self._work is not None:
            wait([self._work])
            written = self.advance()
        return written

    @property
    def _partial(self) -> Path:
        final = folder_of(self.checkpoints, self._state["step"])
        return final.with_name(final.name + PARTIAL)

    def _copy(self, fragments: Iterable[Fragment]) -> Parts:
        """Flat copies in host memory (page-locked beside a GPU), by part and key."""
        parts: dict[str, dict[str, Tensor]] = {}
        for fragment in fragments:
            for part, ending, values in fragment.tensors():
                key = f"{fragment.name}{ending}[{fragment.start}:{fragment.stop}]"
                parts.setdefault(part, {})[key] = self._buffer(f"{part}/{key}", values).copy_(values, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return parts

    def _buffer(self, key: str, like: Tensor) -> Tensor:
        if key not in self._host:
            self._host[key] = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return self._host[key]

    def _gather(self, mine: dict[str, Any]) -> None:
        shares = gathered(self.place, mine)
        files = {name: entry for share in shares for name, entry in share.items()}
        self._gathered, self._bytes = True, sum(entry["bytes"] for entry in files.values())
        self._work = self._thread.submit(self._complete, files) if self.place.first else _now(lambda: None)

    def _complete(self, files: dict[str, Any]) -> tuple[str, dict[str, str]]:
        final = folder_of(self.checkpoints, self._state["step"])
        root = finish(self._partial, final, files, self._shapes, self._state, origin=self.origin)
        return root, prune(self.checkpoints, self.policy)[1]


def _now(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """What a thread would have done, done here."""
    done: Future[Any] = Future()
    try:
        done.set_result(work(*arguments))
    except Exception as error:  # told when the others are asked, too
        done.set_exception(error)
    return done


def write_share(parts: Parts, partial: Path, rank: int) -> dict[str, Any]:
    """Write one rank's files; {path: {bytes, sha256}}.

    Raises:
        HanseError: there is no room, or the disk fails.
    """
    hashes: dict[str, Any] = {}
    for part, tensors in parts.items():
        hashes |= _write_part(partial, part, rank, functools.partial(write_tensors, tensors=tensors))
    return hashes


def write_swapped(engine: Engine, partial: Path, rank: int) -> dict[str, Any]:
    """The same of states that lie on a disk, some of them in memory at a time; they are read once for each part.

    Raises:
        HanseError: there is no room, or the disk fails.
    """
    hashes, spans = dict[str, Any](), list(engine.shares.spans())
    for part in ("model", "optimizer"):
        sizes = {f"{name}{ending}[{start}:{stop}]": stop - start for name, start, stop in spans
                 for ending in ([""] if part == "model" else [f".{key}" for key in engine.moments[name]])}  # fmt: skip
        values = (one for fragment in engine.fragments() for place, _, one in fragment.tensors() if place == part)
        if sizes:
            hashes |= _write_part(partial, part, rank, functools.partial(write_stream, sizes=sizes, values=values))
    return hashes


def _write_part(partial: Path, part: str, rank: int, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    name = f"{part}/rank-{rank:05d}.safetensors"
    try:
        (partial / part).mkdir(parents=True, exist_ok=True)
        return {name: write(partial / name)}
    except OSError as error:
        raise _cannot_write(partial / name, error) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one-dimensional fp32 tensors as safetensors; see :func:`write_stream`."""
    return write_stream(path, {key: tensor.numel() for key, tensor in tensors.items()}, tensors.values())


def write_stream(path: Path, sizes: Mapping[str, int], values: Iterable[Tensor]) -> dict[str, Any]:
    """Write one-dimensional fp32 tensors as safetensors, flushed to the disk; ``{bytes, sha256}``.

    Args:
        sizes: {key: elements}, in the order of the file.
        values: all elements in that order, in pieces of any length; only one is held at a time.

    The hash is that of what was to be written, taken on the way: a disk that kept something else is found out by
    whoever compares. (The library's own writer takes another copy of everything, and reading a file back to hash it
    asks the page cache, not the disk.)
    """
    header, at = {}, 0
    for key, size in sizes.items():
        header[key] = {"dtype": "F32", "shape": [size], "data_offsets": [at, at + 4 * size]}
        at += 4 * size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest, written = hashlib.sha256(head), 0
    with path.open("wb") as file:
        file.write(head)
        for tensor in values:
            assert (tensor.dtype, tensor.dim(), tensor.is_contiguous()) == (torch.float32, 1, True)
            if tensor.numel():
                block = memoryview(cast(Any, tensor.numpy())).cast("B")
                digest.update(block)
                written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    assert written == at
    return {"bytes": len(head) + at, "sha256": digest.hexdigest()}


def finish(partial: Path, final: Path, files: dict[str, Any], shapes: Mapping[str, tuple[int, ...]],
           state: Mapping[str, Any], *, origin: Mapping[str, Any] | None = None) -> str:  # fmt: skip
    """Add the papers, flush the folders, and give the checkpoint its final name; its root."""
    try:
        root = write_papers(partial, files, shapes, state, origin=origin)
        before = final.with_name(f"{final.name}.replaced{PARTIAL}")
        if final.exists():  # a run that went back and came here again
            final.rename(before)
        partial.rename(final)
        shutil.rmtree(before, ignore_errors=True)
        fsync_folder(final.parent)
        return root
    except OSError as error:
        raise _cannot_write(partial, error) from None


def write_papers(partial: Path, files: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Any],
                 *, origin: Mapping[str, Any] | None = None, form: str = FORMAT) -> str:  # fmt: skip
    """Add ``state.json`` and ``manifest.json`` beside ``files``, and flush the folders; the Merkle root."""
    write_json(partial / "state.json", dict(state))
    path = partial / "state.json"
    files["state.json"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    root = root_of(shapes, files, origin)
    write_json(partial / "manifest.json", {
        "format": form,
        "merkle_root": root,
        **(origin or {}),
        "tensors": {name: list(shape) for name, shape in shapes.items()},
        "files": dict(sorted(files.items())),
    })  # fmt: skip
    for folder in (*(path for path in partial.iterdir() if path.is_dir()), partial):
        fsync_folder(folder)
    return root


def _cannot_write(path: Path, error: Exception) -> HanseError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return HanseError(f"{path}: cannot write the checkpoint ({reason}); earlier checkpoints are untouched: "
                      "free some space, then run the same command again")  # fmt: skip
