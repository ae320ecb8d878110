"""State hashes: one Merkle root over all weights and moments, the same on any number of ranks and any ZeRO stage.

    block   ``BLOCK`` elements of a tensor, counted from its first one, wherever the ranks' shares begin; the last is
            shorter. SHA-256 of the elements as little-endian fp32.
    tensor  SHA-256 of its blocks' hashes, one after the other.
    state   Merkle root over {name of the tensor as in a checkpoint: its hash} (:func:`common.files.merkle_root`).

A block is hashed by the rank that holds its first element; what others hold of it is sent there meanwhile. So nothing
depends on the layout, nobody gathers the model, and whoever has a checkpoint can compute the root from its files.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from common.files import merkle_root, room_for
from train.checkpoint import PARTS, Checkpoint
from train.engine import Engine
from train.ranks import Place, gathered
from train.shares import Fragment

BLOCK = 1 << 16  # elements, 256 KiB: a rank sends at most that much a tensor, and SHA-256 runs at full speed
READ = 64  # blocks of a checkpoint in memory at once

Shares = Mapping[str, tuple[int, int]]  # {parameter: the range of its elements that a rank owns}


@dataclass(frozen=True)
class State:
    """The hash of a state: its root, and {name of a tensor: its hash}, weights before moments, in the model's order."""

    root: str
    tensors: dict[str, str]


@dataclass(frozen=True)
class Piece:
    """Elements ``start..stop`` of a parameter that rank ``source`` holds, of a block that rank ``target`` hashes."""

    source: int
    target: int
    name: str
    start: int
    stop: int


def pieces(shares: Sequence[Shares], names: Iterable[str], block: int = BLOCK) -> Iterator[Piece]:
    """What travels between the ranks, in an order all share: the beginnings of shares that begin inside a block."""
    for name in names:
        held = sorted((*share[name], rank) for rank, share in enumerate(shares) if name in share)
        begins = [start for start, _, _ in held]
        for start, stop, rank in held:
            first = start // block * block
            if first < start:
                _, _, owner = held[bisect_right(begins, first) - 1]
                yield Piece(rank, owner, name, start, min(stop, first + block))


def hashes_of(values: Sequence[Tensor], start: int, block: int = BLOCK) -> bytes:
    """The hashes of the blocks that begin in the first of some tensors, which lie one after the other.

    Args:
        values: 1-D fp32 on the host; the first begins at element ``start``, the others hold the rest of its last block.
    """
    first, *rest = values
    whole, found = memoryview(cast(Any, first.numpy())).cast("B"), []
    begins = range(-start % block, len(first), block)
    for begin in begins:
        digest = hashlib.sha256(whole[4 * begin : 4 * (begin + block)])
        if begin == begins[-1]:
            for more in rest:
                digest.update(memoryview(cast(Any, more.numpy())).cast("B"))
        found.append(digest.digest())
    return b"".join(found)


class StateHasher:
    """Takes the hashes of a run's states. ``take`` is collective."""

    def __init__(self, engine: Engine, place: Place):
        self.engine, self.place = engine, place
        mine = {part.name: (part.start, part.stop) for part in engine.fragments()}
        shares: list[Shares] = gathered(place, mine)
        self._out: dict[int, list[Piece]] = {}
        self._in: dict[int, list[Piece]] = {}
        for piece in pieces(shares, engine.shapes):
            if piece.source == place.rank and piece.target != place.rank:
                self._out.setdefault(piece.target, []).append(piece)
            if piece.target == place.rank and piece.source != place.rank:
                self._in.setdefault(piece.source, []).append(piece)
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), "state-hash")

    def take(self) -> State | None:
        """The hash of the state as it is now, on rank 0."""
        parts = {part.name: part for part in self.engine.fragments()}
        received, requests = self._exchange(parts)
        joined = {piece.name for batch in self._in.values() for piece in batch}
        work = {name: self._hash(part, {}) for name, part in parts.items() if name not in joined}
        for request in requests:
            request.wait()
        tails = self._sorted_out(received)
        work |= {name: self._hash(parts[name], tails) for name in joined}
        found = {name + ending: (parts[name].start, future.result()) for name, futures in work.items()
                 for ending, future in futures.items()}  # fmt: skip
        return self._together(found)

    def _exchange(self, parts: Mapping[str, Fragment]) -> tuple[dict[int, Tensor], list[Any]]:
        """Begin to send and receive: one message between two ranks; (what will be there by rank, to be waited for)."""
        operations, received = [], {}
        for target, batch in self._out.items():
            message = torch.cat([values[piece.start - parts[piece.name].start : piece.stop - parts[piece.name].start]
                                 for piece in batch for _, _, values in parts[piece.name].tensors()])  # fmt: skip
            operations.append(dist.P2POp(dist.isend, message, target))
        for source, batch in self._in.items():
            size = sum(len(self.engine.endings(piece.name)) * (piece.stop - piece.start) for piece in batch)
            received[source] = torch.empty(size, dtype=torch.float32, device=self.engine.engine.device)
            operations.append(dist.P2POp(dist.irecv, received[source], source))
        return received, dist.batch_isend_irecv(operations) if operations else []

    def _sorted_out(self, received: Mapping[int, Tensor]) -> dict[str, list[Tensor]]:
        """{tensor: what other ranks hold of the last block that is hashed here, in order}."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for source, batch in self._in.items():
            message, at = received[source].cpu(), 0
            for piece in batch:
                for ending in self.engine.endings(piece.name):
                    values = message[at : at + piece.stop - piece.start]
                    found.setdefault(piece.name + ending, []).append((piece.start, values))
                    at += piece.stop - piece.start
        return {key: [values for _, values in sorted(held, key=lambda one: one[0])] for key, held in found.items()}

    def _hash(self, part: Fragment, tails: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """{ending: its hashes, to come}; hashing lets go of the interpreter's lock."""
        return {ending: self._pool.submit(hashes_of, [values.detach().cpu(), *tails.get(part.name + ending, [])],
                                          part.start) for _, ending, values in part.tensors()}  # fmt: skip

    def _together(self, mine: dict[str, tuple[int, bytes]]) -> State | None:
        shares: list[dict[str, tuple[int, bytes]]] | None = [mine]
        if self.place.ranks > 1:
            shares = [{}] * self.place.ranks if self.place.first else None
            dist.gather_object(mine, shares, 0)
        if shares is None:
            return None
        return state_of({
            name + ending: b"".join(hashes for _, hashes in sorted(share[name + ending] for share in shares
                                                                   if name + ending in share))
            for name, ending in self._tensors()
        })  # fmt: skip

    def _tensors(self) -> list[tuple[str, str]]:
        """(parameter, ending of what is kept of it): all weights, then all of the first moment, and so on."""
        kept = [(number, name, ending) for name in self.engine.shapes
                for number, ending in enumerate(self.engine.endings(name))]  # fmt: skip
        return [(name, ending) for _, name, ending in sorted(kept, key=lambda one: one[0])]


def state_of(blocks: Mapping[str, bytes]) -> State:
    """The hash of a state from {tensor: its blocks' hashes, one after the other}."""
    tensors = {name: hashlib.sha256(hashes).hexdigest() for name, hashes in blocks.items()}
    return State(merkle_root(tensors), tensors)


def state_of_checkpoint(checkpoint: Checkpoint) -> State:
    """The same hash from a checkpoint's files, a few blocks at a time."""
    blocks = {}
    for part in PARTS:
        for name, spans in checkpoint.slices(part).items():
            size, found = max((span.stop for span in spans), default=0), []
            for start in range(0, size, READ * BLOCK):
                values = torch.empty(min(READ * BLOCK, size - start))
                checkpoint.read(spans, start, start + len(values), values)
                found.append(hashes_of([values], start))
            blocks[name] = b"".join(found)
    return state_of(blocks)


def append_state(path: Path, step: int, state: State) -> None:
    """Keep the hashes under a root, a line a state: they say which tensors differ where roots do."""
    with room_for(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "root": state.root, "tensors": state.tensors}) + "\n")


def tensors_under(path: Path, root: str) -> dict[str, str] | None:
    """{tensor: its hash} under a root, if the file has them and they make up that root."""
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                if record["root"] == root and merkle_root(record["tensors"]) == root:
                    return {str(name): str(sha256) for name, sha256 in record["tensors"].items()}
            except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
                continue  # cut short by a crash, or not ours: roots are in the ledger
    return None
