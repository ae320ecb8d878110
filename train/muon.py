"""Muon's matrices under ZeRO: whole again for the one product that needs them whole, whatever the stage cut.

ZeRO cuts parameters wherever its shares end. Muon's update of a matrix is the nearest orthogonal one, which no part of
it tells. So each matrix has one rank that makes it orthogonal: the others send it what they own, and get theirs back.
The matrices are dealt out so that every rank has about the same work; what travels is one copy of the update there and
one back, what is held beside the states is ``ROUND`` elements. (DeepSpeed 0.19 has a Muon of its own: it gathers every
matrix on every rank, and takes the gradient norm of the orthogonal update, which a guard cannot judge.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: the steepest start that ends between 0.7 and 1.2
ITERATIONS = 5
ROUND = 1 << 26  # elements that are brought together at once


@dataclass(frozen=True)
class Piece:
    """Elements ``start..stop`` of a matrix that a rank owns, at ``offset`` of its flat tensor."""

    start: int
    stop: int
    offset: int


Pieces = Mapping[str, Piece]  # {matrix: what a rank owns of it}; nothing of some


class Matrices:
    """The matrices of one flat tensor. Called by all ranks together.

    Args:
        shapes: {matrix: its two lengths}, in an order that all ranks share.
        pieces: of every rank, by rank.
        rank: this one.
        dtype: that products are computed in.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], pieces: Sequence[Pieces], rank: int, dtype: torch.dtype):
        self.shapes, self.pieces, self.rank, self.dtype = shapes, pieces, rank, dtype
        self.makers = dealt(shapes, len(pieces))
        self.rounds = list(_rounds(shapes))

    def __call__(self, update: Tensor) -> Tensor:
        """The update of this rank's share, from the mean of the gradient of its share; both flat, 0 where no matrix is.

        Each matrix is scaled by ``0.2 sqrt(longer side)``: as large a step as AdamW's (arXiv 2502.16982, section 2.2).
        """
        out = torch.zeros_like(update)
        for names in self.rounds:
            sent = [[self._mine(update, name) for name in self._between(names, self.rank, maker)]
                    for maker in range(len(self.pieces))]  # fmt: skip
            sizes = [sum(self._size(owner, name) for name in self._between(names, owner, self.rank))
                     for owner in range(len(self.pieces))]  # fmt: skip
            received = _exchange([_joined(parts, update) for parts in sent], sizes)
            whole = {name: update.new_empty(math.prod(self.shapes[name])) for name in names
                     if self.makers[name] == self.rank}  # fmt: skip
            for name, owner, part in self._cut(names, received):
                piece = self.pieces[owner][name]
                whole[name][piece.start : piece.stop] = part
            made = {name: self._orthogonal(name, values) for name, values in whole.items()}
            back = [_joined([made[name][(piece := self.pieces[owner][name]).start : piece.stop]
                             for name in self._between(names, owner, self.rank)], update)
                    for owner in range(len(self.pieces))]  # fmt: skip
            for maker, values in enumerate(_exchange(back, [sum(len(part) for part in parts) for parts in sent])):
                at = 0
                for name in self._between(names, self.rank, maker):
                    mine = self._mine(out, name)
                    mine.copy_(values[at : at + len(mine)])
                    at += len(mine)
        return out

    def _orthogonal(self, name: str, values: Tensor) -> Tensor:
        shape = self.shapes[name]
        return orthogonal(values.view(shape), self.dtype).float().mul_(0.2 * math.sqrt(max(shape))).flatten()

    def _between(self, names: Sequence[str], owner: int, maker: int) -> Iterator[str]:
        """Matrices of which one rank owns a part and that another makes orthogonal."""
        return (name for name in names if self.makers[name] == maker and name in self.pieces[owner])

    def _cut(self, names: Sequence[str], received: Sequence[Tensor]) -> Iterator[tuple[str, int, Tensor]]:
        for owner, message in enumerate(received):
            at = 0
            for name in self._between(names, owner, self.rank):
                yield name, owner, message[at : at + self._size(owner, name)]
                at += self._size(owner, name)

    def _size(self, owner: int, name: str) -> int:
        piece = self.pieces[owner][name]
        return piece.stop - piece.start

    def _mine(self, flat: Tensor, name: str) -> Tensor:
        piece = self.pieces[self.rank][name]
        return flat[piece.offset : piece.offset + piece.stop - piece.start]


def dealt(shapes: Mapping[str, tuple[int, ...]], ranks: int) -> dict[str, int]:
    """{matrix: the rank that makes it orthogonal}: the dearest first, each to the rank that has least to do."""
    costs = {name: math.prod(shape) * min(shape) for name, shape in shapes.items()}
    work, makers = [0] * ranks, {}
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        makers[name] = min(range(ranks), key=work.__getitem__)
        work[makers[name]] += costs[name]
    return makers


def _rounds(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + math.prod(shape) > ROUND:
            yield names
            names, size = [], 0
        names.append(name)
        size += math.prod(shape)
    if names:
        yield names


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)) if parts else like.new_empty(0)


def _exchange(outgoing: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Give every rank its message, and get one of so many elements from each; by rank."""
    if len(outgoing) == 1:
        return list(outgoing)
    joined = torch.cat(list(outgoing))
    received = joined.new_empty(sum(sizes))
    dist.all_to_all_single(received, joined, list(sizes), [len(one) for one in outgoing])
    return list(received.split(list(sizes)))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of a matrix U S V^T: singular values become about 1 (Jordan et al.; Newton-Schulz of degree five)."""
    a, b, c = COEFFICIENTS
    wide = matrix.to(dtype, copy=True)
    if matrix.shape[0] > matrix.shape[1]:
        wide = wide.t()
    wide /= wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.t()
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.t() if matrix.shape[0] > matrix.shape[1] else wide
