"""Token shards: Megatron's ``.bin``/``.idx``, with a sidecar that says which document each token came from.

``.bin`` holds little-endian token ids, documents back to back, each closed by the end-of-document id. ``.idx`` is
Megatron-LM's MMapIndexedDataset, version 1 (``megatron/core/datasets/indexed_dataset.py``):

    9 bytes b"MMIDIDX\\0\\0" | u64 version = 1 | u8 dtype code | u64 sequences S | u64 D = documents + 1
    int32[S] sequence lengths in tokens | int64[S] sequence offsets in bytes | int64[D] first sequence of each document

A sequence is a document here (D = S + 1); a file that splits documents into several sequences is read just as well.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from common.errors import HanseError
from common.files import (
    PARTIAL,
    atomic_file,
    from_json,
    fsync_folder,
    inside,
    merkle_root,
    sha256_file,
    write_json,
)
from data_pipelines.manifest import COUNTS, fingerprint, read_manifest
from data_pipelines.mapped_index import MappedStarts, allow_open_files
from data_pipelines.source_runs import runs_in

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
FORMAT = "hanse.shards/1"
SPLITS = ("train", "validation")
PIECE = 1 << 17  # documents of an index written at once
MAPPED_FROM = 50_000_000  # documents in a folder: their places in memory would be 400 MB, read and hashed at each start
BIN, INDEX, SIDECAR = ENDINGS = (".bin", ".idx", ".docs.parquet")


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Megatron's rule: unsigned 16 bits for vocabularies below 65,500, else signed 32 bits."""
    return np.dtype("<u2") if vocabulary_size < 65_500 else np.dtype("<i4")


def beside(prefix: Path, ending: str) -> Path:
    """The file of a shard with this ending; dots in the prefix stay."""
    return prefix.with_name(prefix.name + ending)


class ShardWriter:
    """Writes ``PREFIX.bin`` and ``PREFIX.idx``; both take their final names only when closed without an error."""

    def __init__(self, prefix: Path, dtype: np.dtype):
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._partial = beside(prefix, BIN + PARTIAL)
        self._file = self._partial.open("wb")
        self._hash = hashlib.sha256()
        # Beside, and not in memory: 4 bytes a document.
        self._lengths_partial = beside(prefix, INDEX + ".lengths" + PARTIAL)
        self._lengths = self._lengths_partial.open("wb")

    def add(self, ids: np.ndarray) -> None:
        """Append one document: a 1-D array of ids, its end-of-document id included."""
        self.extend(ids, np.array([len(ids)]))

    def extend(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids back to back, and how many each has, its end-of-document id included."""
        assert not len(ids) or (ids.min() >= 0 and ids.max() <= np.iinfo(self.dtype).max), "ids beyond the dtype"
        data = np.ascontiguousarray(ids, dtype=self.dtype).data.cast("B")
        self._file.write(data)
        self._hash.update(data)
        self._lengths.write(lengths.astype("<i4").tobytes())

    @property
    def sha256(self) -> str:
        """Of the ``.bin`` so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lengths.close()
        if kind is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)
            self._lengths_partial.unlink(missing_ok=True)
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with atomic_file(beside(self.prefix, INDEX)) as partial, partial.open("wb") as index:
            empty = not self._lengths_partial.stat().st_size
            lengths = np.empty(0, "<i4") if empty else np.memmap(self._lengths_partial, "<i4", "r")
            index.writelines(index_pieces(lengths, self.dtype))
        self._lengths_partial.unlink()
        self._partial.replace(beside(self.prefix, BIN))
        fsync_folder(self.prefix.parent)


def index_pieces(lengths: Sequence[int] | np.ndarray, dtype: np.dtype) -> Iterator[bytes]:
    """The content of an ``.idx`` for documents of these lengths (tokens), one sequence a document; in pieces, so that
    memory does not grow with the documents.
    """
    sizes = np.asarray(lengths, dtype="<i4")
    yield HEADER.pack(MAGIC, 1, CODES[dtype], len(sizes), len(sizes) + 1)
    firsts = range(0, len(sizes), PIECE)
    for first in firsts:
        yield sizes[first : first + PIECE].tobytes()
    offset = 0
    for first in firsts:
        ends = offset + np.cumsum(sizes[first : first + PIECE], dtype="<i8") * dtype.itemsize
        yield np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes()
        offset = int(ends[-1])
    for first in range(0, len(sizes) + 1, PIECE):
        yield np.arange(first, min(first + PIECE, len(sizes) + 1), dtype="<i8").tobytes()


class TokenShard:
    """A ``.bin``/``.idx`` pair, memory-mapped.

    Attributes:
        tokens: all token ids, 1-D, read-only.
        document_starts: int64 of shape (documents + 1,), offsets into ``tokens``; the last is ``len(tokens)``. Of a
            ``mapped`` shard, a sequence that is looked up in the file: of its index only the sizes are checked.

    Raises:
        HanseError: a file is missing, is not in Megatron's format, or the two do not belong together.
    """

    def __init__(self, prefix: Path, *, mapped: bool = False):
        self.prefix = prefix
        index_path, bin_path = beside(prefix, INDEX), beside(prefix, BIN)
        for path in (index_path, bin_path):
            if not path.is_file():
                raise HanseError(f"{path}: missing; write the shards again with 'hanse tokenize'")
        found = bin_path.stat().st_size
        self.document_starts: np.ndarray | MappedStarts
        if mapped:
            dtype, self.document_starts = _map_index(index_path, found)
        else:
            dtype, self.document_starts = _read_index(index_path)
        expected = int(self.document_starts[-1]) * dtype.itemsize
        if found != expected:
            raise HanseError(
                f"{bin_path}: {found} bytes, but {index_path.name} describes {expected}; the file was truncated or "
                "replaced: write the shards again with 'hanse tokenize'"
            )
        self.tokens: np.ndarray = (
            np.memmap(bin_path, dtype=dtype, mode="r") if expected else np.empty(0, dtype=dtype)
        ).view(np.ndarray)

    @property
    def documents(self) -> int:
        return len(self.document_starts) - 1

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document."""
        return self.tokens[self.document_starts[number] : self.document_starts[number + 1]]


def _broken(path: Path) -> HanseError:
    return HanseError(f"{path}: not an intact Megatron index; write the shards again with 'hanse tokenize'")


def _read_header(path: Path, data: bytes, size: int) -> tuple[int, int, int]:
    """(dtype code, sequences, entries) out of the beginning of an index of ``size`` bytes."""
    if len(data) < HEADER.size:
        raise _broken(path)
    magic, version, code, sequences, entries = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1 or code not in DTYPES or entries < 1:
        raise _broken(path)
    body = size - HEADER.size - 12 * sequences - 8 * entries
    if body not in (0, sequences):  # an optional int8 mode a sequence ends the file
        raise _broken(path)
    return code, sequences, entries


def _map_index(path: Path, bin_bytes: int) -> tuple[np.dtype, MappedStarts]:
    with path.open("rb") as file:
        code, sequences, entries = _read_header(path, file.read(HEADER.size), path.stat().st_size)
    offsets, size = HEADER.size + 4 * sequences, DTYPES[code].itemsize
    return DTYPES[code], MappedStarts(path, offsets=offsets, documents=offsets + 8 * sequences, entries=entries,
                                       token_bytes=size, tokens=bin_bytes // size)  # fmt: skip


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray]:
    data = path.read_bytes()
    code, sequences, entries = _read_header(path, data, len(data))
    sizes = np.frombuffer(data, "<i4", sequences, HEADER.size)
    offsets = np.frombuffer(data, "<i8", sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(data, "<i8", entries, HEADER.size + 12 * sequences)
    starts = np.zeros(sequences + 1, dtype=np.int64)
    np.cumsum(sizes, dtype=np.int64, out=starts[1:])
    if (
        (sizes < 0).any()
        or not np.array_equal(offsets, starts[:-1] * DTYPES[code].itemsize)
        or documents[0] != 0
        or documents[-1] != sequences
        or (np.diff(documents) < 0).any()
    ):
        raise _broken(path)
    return DTYPES[code], starts[documents]


@dataclass(frozen=True)
class ShardEntry:
    """One ``.bin``/``.idx``/``.docs.parquet`` triple of a manifest; ``name`` is its path without ending.

    ``sources``: {source: tokens}, in the order in which their documents lie there (:mod:`data_pipelines.source_runs`);
    empty: not told. It follows from the sidecar, and is no part of the Merkle root.
    """

    name: str
    split: str
    language: str
    documents: int
    tokens: int
    bytes: int  # of UTF-8 text
    files: dict[str, str] = field(default_factory=dict)  # ending -> sha256
    sources: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardsManifest:
    """``manifest.json`` of a shards folder."""

    tokenizer_sha256: str
    vocabulary_size: int
    end_of_document_id: int
    encoder: str  # which library encoded, after parity with `tokenizers` was found
    corpus_merkle_root: str
    shards: list[ShardEntry]
    folder: Path = Path(".")

    @property
    def merkle_root(self) -> str:
        """One hash for all files of all shards, the counts, and the tokenizer; not for which library encoded."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("encoder", "folder")}
        for shard in facts["shards"]:
            del shard["sources"]
        return merkle_root(self.hashes | {COUNTS: fingerprint(facts)})

    @property
    def hashes(self) -> dict[str, str]:
        """{path in the folder: sha256} of all files of all shards."""
        return {f"{s.name}{ending}": digest for s in self.shards for ending, digest in s.files.items()}

    @cached_property
    def documents(self) -> int:
        """Of all shards."""
        return sum(shard.documents for shard in self.shards)

    def of(self, split: str) -> list[ShardEntry]:
        """The shards of one split (``train``, ``validation``), in the manifest's order."""
        return [shard for shard in self.shards if shard.split == split]

    def sources_of(self, entry: ShardEntry) -> dict[str, int]:
        """``sources`` of a shard; of one that was written before the manifest told them, as its sidecar has them."""
        return entry.sources or runs_in(beside(self.folder / entry.name, SIDECAR))

    def open(self, entry: ShardEntry, *, hashes: bool = False) -> TokenShard:
        """Open a shard after checking it against the manifest; ``hashes`` also reads and hashes all of its files.

        Where the folder has so many documents that their places (8 bytes each) would fill the memory of every rank,
        they are left in the files, and without ``hashes`` only sizes and counts are compared.

        Raises:
            HanseError: the files are not those the manifest describes.
        """
        prefix, mapped = self.folder / entry.name, self.documents > MAPPED_FROM
        if mapped:
            allow_open_files(2 * len(self.shards))
        shard = TokenShard(prefix, mapped=mapped)
        for ending in ENDINGS if hashes else () if mapped else (INDEX,):
            path = beside(prefix, ending)
            if not path.is_file() or sha256_file(path) != entry.files.get(ending):
                raise HanseError(
                    f"{path}: not the file that {self.folder / 'manifest.json'} describes (its sha256 differs); "
                    "write the shards again with 'hanse tokenize'"
                )
        if (shard.documents, len(shard.tokens)) != (entry.documents, entry.tokens):
            raise HanseError(f"{prefix}: its counts differ from {self.folder / 'manifest.json'}")
        if hashes and entry.sources and list(entry.sources.items()) != list(runs_in(beside(prefix, SIDECAR)).items()):
            raise HanseError(f"{prefix}: its sources differ from {self.folder / 'manifest.json'}")
        return shard

    def write(self) -> None:
        """Write ``manifest.json`` atomically."""
        value: dict[str, Any] = {"format": FORMAT, "merkle_root": self.merkle_root, **asdict(self)}
        del value["folder"]
        write_json(self.folder / "manifest.json", value)

    @classmethod
    def read(cls, folder: Path) -> ShardsManifest:
        """Read and check ``manifest.json`` of a shards folder."""

        def made(value: dict[str, Any]) -> ShardsManifest:
            value["shards"] = [from_json(ShardEntry, shard) for shard in value["shards"]]
            for shard in value["shards"]:
                if shard.sources and sum(shard.sources.values()) != shard.tokens:
                    raise TypeError(f"the sources of {shard.name} are not its tokens")
            return from_json(cls, {**value, "folder": folder})

        what = "shards manifest ('hanse tokenize' writes one)"
        manifest = read_manifest(folder / "manifest.json", what, FORMAT, made)
        for shard in manifest.shards:
            for ending in ("", *ENDINGS):
                inside(folder, shard.name + ending)
        return manifest
