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

Shares = Mapping[str, Sequence[tuple[int, int]]]  # {parameter: the ranges of its elements that a rank owns}
Key = tuple[str, int]  # of a range: parameter, first element


@dataclass(frozen=True)
class State:
    """The hash of a state: its root, and {name of a tensor: its hash}, weights before moments, in the model's order."""

    root: str
    tensors: dict[str, str]


@dataclass(frozen=True)
class Piece:
    """Elements ``start..stop`` of a parameter, which begin a range of rank ``source``, of a block that rank ``target``
    hashes: it begins in the range there that begins at ``owner``."""

    source: int
    target: int
    name: str
    start: int
    stop: int
    owner: int


def pieces(shares: Sequence[Shares], names: Iterable[str], block: int = BLOCK) -> Iterator[Piece]:
    """What travels between the ranks, in an order all share: the beginnings of shares that begin inside a block."""
    for name in names:
        held = sorted((*span, rank) for rank, share in enumerate(shares) for span in share.get(name, ()))
        begins = [start for start, _, _ in held]
        for start, stop, rank in held:
            first = start // block * block
            if first < start:
                owner, _, target = held[bisect_right(begins, first) - 1]
                yield Piece(rank, target, name, start, min(stop, first + block), owner)


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
        mine: dict[str, list[tuple[int, int]]] = {}
        for part in engine.fragments():
            mine.setdefault(part.name, []).append((part.start, part.stop))
        shares: list[Shares] = gathered(place, mine)
        self._out: dict[int, list[Piece]] = {}
        self._in: dict[int, list[Piece]] = {}
        self._own: list[Piece] = []
        for piece in pieces(shares, engine.shapes):
            if piece.source == piece.target == place.rank:
                self._own.append(piece)
            elif piece.source == place.rank:
                self._out.setdefault(piece.target, []).append(piece)
            elif piece.target == place.rank:
                self._in.setdefault(piece.source, []).append(piece)
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), "state-hash")

    def take(self) -> State | None:
        """The hash of the state as it is now, on rank 0."""
        parts = {(part.name, part.start): part for part in self.engine.fragments()}
        received, requests = self._exchange(parts)
        joined = {(piece.name, piece.owner) for batch in (*self._in.values(), self._own) for piece in batch}
        work = {key: self._hash(part, {}) for key, part in parts.items() if key not in joined}
        for request in requests:
            request.wait()
        tails = self._sorted_out(received, parts)
        work |= {key: self._hash(parts[key], tails) for key in joined}
        found: dict[str, list[tuple[int, bytes]]] = {}
        for (name, start), futures in work.items():
            for ending, future in futures.items():
                found.setdefault(name + ending, []).append((start, future.result()))
        return self._together(found)

    def _exchange(self, parts: Mapping[Key, Fragment]) -> tuple[dict[int, Tensor], list[Any]]:
        """Begin to send and receive: one message between two ranks; (what will be there by rank, to be waited for)."""
        operations, received = [], {}
        for target, batch in self._out.items():
            message = torch.cat([values[: piece.stop - piece.start] for piece in batch
                                 for _, _, values in parts[piece.name, piece.start].tensors()])  # fmt: skip
            operations.append(dist.P2POp(dist.isend, message, target))
        for source, batch in self._in.items():
            size = sum(len(self.engine.endings(piece.name)) * (piece.stop - piece.start) for piece in batch)
            received[source] = torch.empty(size, dtype=torch.float32, device=self.engine.engine.device)
            operations.append(dist.P2POp(dist.irecv, received[source], source))
        return received, dist.batch_isend_irecv(operations) if operations else []

    def _sorted_out(self, received: Mapping[int, Tensor], parts: Mapping[Key, Fragment]
                    ) -> dict[tuple[str, int, str], list[Tensor]]:  # fmt: skip
        """{parameter, first element of a range, ending: what lies elsewhere of its last block, in order}."""
        found: dict[tuple[str, int, str], list[tuple[int, Tensor]]] = {}
        for piece in self._own:
            for _, ending, held in parts[piece.name, piece.start].tensors():
                values = held[: piece.stop - piece.start].detach().cpu()
                found.setdefault((piece.name, piece.owner, ending), []).append((piece.start, values))
        for source, batch in self._in.items():
            message, at = received[source].cpu(), 0
            for piece in batch:
                for ending in self.engine.endings(piece.name):
                    values = message[at : at + piece.stop - piece.start]
                    found.setdefault((piece.name, piece.owner, ending), []).append((piece.start, values))
                    at += piece.stop - piece.start
        return {key: [values for _, values in sorted(held, key=lambda one: one[0])] for key, held in found.items()}

    def _hash(self, part: Fragment, tails: Mapping[tuple[str, int, str], list[Tensor]]) -> dict[str, Any]:
        """{ending: its hashes, to come}; hashing lets go of the interpreter's lock."""
        return {ending: self._pool.submit(
                    hashes_of, [values.detach().cpu(), *tails.get((part.name, part.start, ending), [])], part.start)
                for _, ending, values in part.tensors()}  # fmt: skip

    def _together(self, mine: dict[str, list[tuple[int, bytes]]]) -> State | None:
        shares: list[dict[str, list[tuple[int, bytes]]]] | None = [mine]
        if self.place.ranks > 1:
            shares = [{}] * self.place.ranks if self.place.first else None
            dist.gather_object(mine, shares, 0)
        if shares is None:
            return None
        return state_of({
            name + ending: b"".join(hashes for _, hashes in sorted(one for share in shares
                                                                   for one in share.get(name + ending, ())))
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
