"""Checkpoints of Megatron, as files: read a tensor at a time, whatever parallelism wrote them; written for any.

    FOLDER/latest_checkpointed_iteration.txt        the iteration below, or ``release``
    FOLDER/iter_0000100/mp_rank_TT/model_optim_rng.pt       format ``torch``: a file of each tensor-parallel rank, or
    FOLDER/iter_0000100/mp_rank_TT_PPP/model_optim_rng.pt   of each of a pipeline's stages as well
    FOLDER/iter_0000100/metadata.json, .metadata            format ``torch_dist``: where every piece of a tensor lies
    FOLDER/iter_0000100/common.pt, *.distcp                 arguments and counters; the pieces

(megatron/training/checkpointing.py of Megatron-LM, megatron/core/dist_checkpointing of megatron-core 0.16.1.) All of it
is pickle, and read by ``train/pickled.py`` alone.

In memory a tensor has one name in both formats, that of ``torch_dist`` with its layer in it, e.g.
``decoder.layers.3.mlp.linear_fc1.weight``.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import HanseError
from common.files import inside, is_plain, read_json
from train.pickled import MEGATRON, MetadataUnpickler, Stand, load_pickled

LATEST = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"
RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
STACKED = re.compile(r"decoder\.layers\.(\D.*)")  # torch_dist: all layers in one tensor
ROWS = ("linear_qkv.weight", "linear_fc1.weight", "word_embeddings.weight", "output_layer.weight")  # cut by tensor
COLUMNS = ("linear_proj.weight", "linear_fc2.weight")  # parallelism in this dimension; others are copies
# Without Transformer Engine and with it.
NORMS = {"input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
         "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight"}  # fmt: skip
GATED = "mlp.linear_fc1.weight"  # gate above up; of each tensor-parallel rank its own
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
STATE = ("optimizer.", "optimizer_", "rng_state", "rerun_state_machine", "chained_")  # what torch_dist keeps beside


class MegatronFiles(ABC):
    """A checkpoint of Megatron, opened for reading; no tensor is in memory.

    Attributes:
        folder: of its iteration; ``kind``: of the format, for people; ``files``: its names there, sorted.
        args: Megatron's arguments, those that are plain values; {} where it keeps none.
        common: what it says beside tensors: ``iteration`` ...
        tensors: {name: shape}, of the model, whole.
        left_out: what it holds of an optimizer's state: number of tensors or files.
    """

    kind: str

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files = folder, files
        for name in files:
            self._file(name)
        self.common: dict[str, Any] = {}
        self.tensors: dict[str, tuple[int, ...]] = {}
        self.left_out = 0

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor, whole and in fp32.

        Raises:
            HanseError: it is not all there, or no tensor of floating-point numbers.
        """

    @property
    def args(self) -> dict[str, Any]:
        """Megatron's arguments."""
        told = self.common.get("args")
        values = vars(told) if isinstance(told, Stand) else told if isinstance(told, dict) else {}
        return {str(key): value for key, value in values.items() if not isinstance(value, Stand)}

    @property
    def iteration(self) -> int:
        found = self.common.get("iteration", 0)
        return found if isinstance(found, int) and found >= 0 else 0

    def _parallel(self, key: str) -> int:
        found = self.args.get(f"{key}_model_parallel_size")
        return found if isinstance(found, int) and 0 < found < 10_000 else 1

    def _file(self, name: str) -> Path:
        path = inside(self.folder, name)
        if path.is_symlink() or not path.is_file():
            told = "is a link" if path.is_symlink() else "is missing"
            raise HanseError(f"{path}: {told}; get the folder again from where it came")
        return path

    def _floats(self, path: Path, name: str, tensor: Any) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise HanseError(f"{path}: holds {name} as {kind}; readable are tensors of fp32, bf16 and fp16")
        return tensor.detach()


def megatron_folder(folder: Path) -> Path | None:
    """The folder of an iteration: this one, or the one that Megatron's tracker names; None: there is none."""
    if (folder / LATEST).is_file():
        try:
            told = (folder / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        name = f"iter_{int(told):07d}" if re.fullmatch(r"\d{1,12}", told) else told
        folder = inside(folder, name) if is_plain(name) else folder
        if not folder.is_dir():
            raise HanseError(f"{folder}: is missing, and {LATEST} beside it names it; get the folder again from where "
                             "it came")  # fmt: skip
    distributed = (folder / "metadata.json").is_file() and (folder / ".metadata").exists()
    return folder if distributed or any(RANK.match(path.name) for path in folder.glob("mp_rank_*")) else None


def open_megatron(folder: Path) -> MegatronFiles:
    """Open the checkpoint in a folder that :func:`megatron_folder` found."""
    return Distributed(folder) if (folder / ".metadata").exists() else Classic(folder)


class Classic(MegatronFiles):
    """Format ``torch``: a file of each rank of tensor and pipeline parallelism."""

    def __init__(self, folder: Path):
        places = {}
        for path in sorted(folder.glob("mp_rank_*")):
            match = RANK.fullmatch(path.name)
            if not match:
                raise HanseError(f"{path}: of a mixture of experts, which is not read")
            places[int(match[1]), int(match[2] or 0)] = f"{path.name}/{RANK_FILE}"
        super().__init__(folder, sorted(places.values()))
        self._parts = {place: load_pickled(folder / name, MEGATRON) for place, name in places.items()}
        if not all(isinstance(part, dict) for part in self._parts.values()):
            raise HanseError(f"{folder}: its {RANK_FILE} hold no state of a training")
        self.common = next(iter(self._parts.values()))
        self._names = places
        tensor, pipeline = (max(place[axis] for place in places) + 1 for axis in (0, 1))
        tensor, pipeline = max(tensor, self._parallel("tensor")), max(pipeline, self._parallel("pipeline"))
        self.kind = f"torch, {tensor} tensor-parallel ranks" + (f", {pipeline} stages" if pipeline > 1 else "")
        for place in ((rank, stage) for rank in range(tensor) for stage in range(pipeline)):
            if place not in places:
                told = f"mp_rank_{place[0]:02d}" + (f"_{place[1]:03d}" if pipeline > 1 else "")
                raise HanseError(f"{folder / told}: is missing: it was written by {tensor} tensor-parallel ranks in "
                                 f"{pipeline} stages; get the folder again from where it came")  # fmt: skip
        self._found: dict[str, list[tuple[str, Any]]] = {}  # by name: (file, part) of each tensor-parallel rank
        for rank in range(tensor):
            self._add(rank, pipeline)
        for name, parts in self._found.items():
            shapes = [tuple(getattr(part, "shape", ())) for _, part in parts]
            if len(parts) != tensor or len(set(shapes)) > 1:
                raise HanseError(f"{folder}: {name} is not in the files of all {tensor} tensor-parallel ranks, in one "
                                 "shape; get the folder again from where it came")  # fmt: skip
            axis = _axis(name)
            size = [sum(found) if at == axis else found[0] for at, found in enumerate(zip(*shapes, strict=True))]
            self.tensors[name] = tuple(size)
        self.left_out = sum("optimizer" in part for part in self._parts.values())
        self.left_out += len(list(folder.glob("mp_rank_*/distrib_optim.pt")))

    def _add(self, rank: int, pipeline: int) -> None:
        """Name the tensors of one tensor-parallel rank: layers are counted from each stage's (or its chunk's) first."""
        chunks: dict[int, list[tuple[str, dict[str, Any]]]] = {}  # a stage of an interleaved pipeline has several
        for stage in range(pipeline):
            part, file = self._parts[rank, stage], self._names[rank, stage]
            models = [part["model"]] if "model" in part else []
            while f"model{len(models)}" in part:
                models.append(part[f"model{len(models)}"])
            if not models or not all(isinstance(one, dict) for one in models):
                raise HanseError(f"{self.folder / file}: holds no model")
            if any("language_model" in one for one in models):
                raise HanseError(f"{self.folder / file}: a model from before megatron-core, which is not read; "
                                 "Megatron-LM's tools/checkpoint/convert.py makes it one of core's")  # fmt: skip
            for turn, model in enumerate(models):
                chunks.setdefault(turn, []).append((file, model))
        first = 0
        for file, model in (one for turn in sorted(chunks) for one in chunks[turn]):
            layers = 0
            for name, tensor in model.items():
                if str(name).endswith("_extra_state"):
                    continue
                match = LAYER.fullmatch(str(name))
                if match:
                    layers = max(layers, int(match[1]) + 1)
                    name = f"decoder.layers.{first + int(match[1])}.{NORMS.get(match[2], match[2])}"  # noqa: PLW2901
                found = self._found.setdefault(str(name), [])
                if len(found) == rank:
                    found.append((file, tensor))
            first += layers

    def read(self, name: str) -> Tensor:
        parts = [self._floats(self.folder / file, name, part).float() for file, part in self._found[name]]
        return merged(name, parts)


def _axis(name: str) -> int | None:
    return 0 if name.endswith(ROWS) else 1 if name.endswith(COLUMNS) else None


def merged(name: str, parts: list[Tensor]) -> Tensor:
    """A tensor out of those of all tensor-parallel ranks."""
    axis = _axis(name)
    if name.endswith(GATED):
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[at] for at in (0, 1) for half in halves])
    return parts[0] if axis is None else torch.cat(parts, dim=axis)


@dataclass(frozen=True)
class Piece:
    """Where a block of a stored tensor lies: its first index and size in every dimension; file, offset, bytes."""

    at: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    offset: int
    length: int


class Distributed(MegatronFiles):
    """Format ``torch_dist``: blocks of whole tensors, most of them with a dimension of layers in front."""

    kind = "torch_dist"

    def __init__(self, folder: Path):
        told = read_json(folder / "metadata.json", "description of a distributed checkpoint")
        backend = told.get("sharded_backend") if isinstance(told, dict) else None
        if backend != "torch_dist":
            raise HanseError(f"{folder}: a distributed checkpoint of format {backend}; torch_dist is read")
        super().__init__(folder, ["common.pt", ".metadata"])
        self._stored: dict[str, tuple[tuple[int, ...], list[Piece]]] = {}
        self._places: dict[str, list[tuple[str, int | None]]] = {}  # by name: stored tensors, and which layer of each
        try:
            with (folder / ".metadata").open("rb") as file:
                self._index(MetadataUnpickler(folder / ".metadata", file).load())
            for key, (whole, _) in self._stored.items():
                self._name(key, whole)
        except HanseError:
            raise
        except Exception:  # of a broken pickle, almost any
            raise HanseError(f"{folder / '.metadata'}: not readable; it was truncated, or written by another torch "
                             "than 2.x") from None  # fmt: skip
        pieces = [piece for _, pieces in self._stored.values() for piece in pieces]
        for name in sorted({piece.file for piece in pieces}):
            self.files.append(name)
            size, needed = self._file(name).stat().st_size, max(p.offset + p.length for p in pieces if p.file == name)
            if size < needed:
                raise HanseError(f"{folder / name}: has {size} bytes instead of {needed} or more; get the folder again "
                                 "from where it came")  # fmt: skip
        common = load_pickled(folder / "common.pt", MEGATRON)
        self.common = common if isinstance(common, dict) else {}

    def _index(self, metadata: Any) -> None:
        found = {(entry.fqn, tuple(entry.offset)): info for entry, info in metadata.storage_data.items()
                 if getattr(entry, "offset", None) is not None}  # fmt: skip
        for key, entry in metadata.state_dict_metadata.items():
            if key.startswith(STATE):
                self.left_out += 1
            elif hasattr(entry, "chunks"):
                pieces = []
                for chunk in entry.chunks:
                    info = found[key, tuple(chunk.offsets)]
                    if getattr(info, "transform_descriptors", None):
                        raise HanseError(f"{self.folder}: its tensors are compressed, which is not read")
                    pieces.append(Piece(tuple(map(int, chunk.offsets)), tuple(map(int, chunk.sizes)),
                                        str(info.relative_path), int(info.offset), int(info.length)))  # fmt: skip
                size = tuple(map(int, entry.size))
                if min((0, *(piece.offset for piece in pieces))) < 0 or math.prod(size) > sum(p.length for p in pieces):
                    raise HanseError(f"{self.folder}: {key} is not all there; get the folder again from where it came")
                self._stored[str(key)] = size, pieces

    def _name(self, key: str, size: tuple[int, ...]) -> None:
        stacked = STACKED.fullmatch(key)
        layers: Sequence[int | None] = range(size[0]) if stacked else [None]
        for layer in layers:
            full = f"decoder.layers.{layer}.{stacked[1]}" if stacked else key
            name = full[:-2] if full.endswith((f"{GATED}_w", f"{GATED}_v")) else full  # gate and up stored apart
            shape = size[1:] if stacked else size
            places = self._places.setdefault(name, [])
            places.append((key, layer))
            places.sort(key=lambda place: place[0].endswith("_v"))
            self.tensors[name] = (shape[0] * len(places), *shape[1:])

    def read(self, name: str) -> Tensor:
        parts = [self._block(name, key, layer) for key, layer in self._places[name]]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _block(self, name: str, key: str, layer: int | None) -> Tensor:
        size, pieces = self._stored[key]
        first, shape = ((layer,), size[1:]) if layer is not None else ((), size)
        out, filled = torch.empty(shape), 0
        for piece in pieces:
            skip = [start - at for start, at in zip(first, piece.at[: len(first)], strict=True)]
            if any(not 0 <= one < length for one, length in zip(skip, piece.size, strict=False)):
                continue
            path, at, lengths = self.folder / piece.file, piece.at[len(first) :], piece.size[len(first) :]
            values = self._floats(path, name, self._blob(path, piece))
            if tuple(values.shape) != piece.size or any(a + n > s for a, n, s in zip(at, lengths, shape, strict=True)):
                raise HanseError(f"{path}: its piece of {name} is not of the shape that .metadata says")
            here = out[tuple(slice(a, a + n) for a, n in zip(at, lengths, strict=True))]
            here.copy_(values[tuple(skip)])
            filled += math.prod(lengths)
        if filled != out.numel():
            raise HanseError(f"{self.folder}: {name} is not all there: {filled:,} of {out.numel():,} elements")
        return out

    @staticmethod
    def _blob(path: Path, piece: Piece) -> Any:
        with path.open("rb") as file:
            file.seek(piece.offset)
            return load_pickled(path, MEGATRON, file.read(piece.length))
