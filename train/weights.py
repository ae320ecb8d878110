"""Weights in a folder, read by ranges of elements: a checkpoint, an average, or a Hugging Face folder of safetensors.

What comes out is fp32 under the parameter's name, whatever lay in the folder and however it was cut. Nothing is
unpickled, no link is followed, no code of the folder is run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import HanseError
from common.files import inside, is_plain, merkle_root, read_json, sha256_file
from train.checkpoint import Checkpoint, Damaged

if TYPE_CHECKING:  # which whoever reads weights from a file needs not
    from transformers import PreTrainedModel

    from train.engine import Engine

DTYPES = ("F32", "BF16", "F16")
EXPORT = "hanse.json"


class Weights(ABC):
    """Weights that were opened; nothing of them is in memory.

    Attributes:
        shapes: {name: shape} of all tensors.
        constants: {name: value} of scalars, which no training changes (those of Apertus' activation).
        facts: where they stood in training (``step``, ``consumed_tokens`` ...); empty where that is not known.
        settings: of the model, as ``transformers`` names them; may be empty.
        tokenizer_sha256: of the ``tokenizer.json`` they were trained with; None where that is not known.
        complete: whether every parameter is read; else some stay as they were drawn.
    """

    complete = True
    folder: Path
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, float]
    settings: dict[str, Any]
    facts: dict[str, Any]
    tokenizer_sha256: str | None

    @abstractmethod
    def read(self, name: str, start: int, stop: int, out: Tensor) -> None:
        """Copy elements ``start..stop`` of a flattened tensor into ``out``, of shape (stop - start,)."""

    @abstractmethod
    def verify(self, rank: int = 0, ranks: int = 1) -> dict[str, str]:
        """Hash this rank's share of the files, and compare with what the folder says of them; {file: sha256}.

        Raises:
            HanseError: a file is not the one that was written.
        """

    @abstractmethod
    def identity(self, hashes: dict[str, str]) -> str:
        """What a child calls these weights; ``hashes``: what :meth:`verify` gave on all ranks together."""

    def load(self, model: PreTrainedModel) -> None:
        """Copy all weights into a model, a tensor at a time; tied weights have one name."""
        for name, parameter in model.named_parameters():
            self.read_whole(name, parameter.data.view(-1))
        self.check_constants(model)

    def read_whole(self, name: str, out: Tensor) -> None:
        """Copy all elements of a tensor into ``out``, flat and in fp32."""
        self.read(name, 0, out.numel(), out)

    def check_constants(self, model: PreTrainedModel) -> None:
        """Refuse weights whose constants are not those of a model.

        Raises:
            HanseError: naming the first that differs.
        """
        buffers = dict(model.named_buffers())
        for name, value in self.constants.items():
            if not torch.isclose(buffers[name].float(), torch.tensor(value), rtol=2**-7):  # bf16 rounds so far
                raise HanseError(f"{self.folder}: weights of another model: {name} is {value:.4g} there and "
                                 f"{float(buffers[name]):.4g} in this configuration")  # fmt: skip

    def restore(self, engine: Engine) -> None:
        """Copy this rank's slices into the fp32 masters, which a module in bf16 has rounded on the way."""
        for part in engine.fragments(changed=True):
            self.read(part.name, part.start, part.stop, part.master)


class CheckpointWeights(Weights):
    """Those of a checkpoint, with or without the state of an optimizer. Its identity: the SHA-256 of its manifest."""

    def __init__(self, folder: Path):
        self.folder, self.constants = folder, {}
        with _said_of_a_model():
            self.checkpoint = Checkpoint(folder)
            self.shapes, self._spans = self.checkpoint.shapes, self.checkpoint.slices("model")
        self.settings = self.checkpoint.state["model"]
        self.facts = self.checkpoint.state
        self.tokenizer_sha256 = self.facts["tokenizer_sha256"] or None

    def read(self, name: str, start: int, stop: int, out: Tensor) -> None:
        self.checkpoint.read(self._spans[name], start, stop, out)

    def verify(self, rank: int = 0, ranks: int = 1) -> dict[str, str]:
        with _said_of_a_model():
            self.checkpoint.verify(rank, ranks)
        return {}

    def identity(self, hashes: dict[str, str]) -> str:
        return sha256_file(self.folder / "manifest.json")


@contextmanager
def _said_of_a_model() -> Iterator[None]:
    """Damage in words for somebody who has no earlier checkpoint to go on from."""
    try:
        yield
    except Damaged as error:
        raise HanseError(f"{str(error).partition('; delete ')[0]}; get the folder again from where it came") from None


class HubWeights(Weights):
    """Those of a Hugging Face folder. Its identity: the Merkle root over the SHA-256 of its safetensors files."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, safetensors_files(folder)
        self.settings = read_json(folder / "config.json", "configuration of a model")
        self.shapes, self.constants, self._file = {}, {}, dict[str, str]()
        for file in self.files:
            for name, shape in self._tensors(file).items():
                if name in self.shapes:
                    raise HanseError(f"{folder}: holds {name} twice, in {self._file[name]} and in {file}")
                self.shapes[name], self._file[name] = shape, file
        said = read_json(folder / EXPORT, "export manifest") if (folder / EXPORT).is_file() else {}
        if not (isinstance(self.settings, dict) and isinstance(said, dict)):
            raise HanseError(f"{folder}: config.json or {EXPORT} does not hold a JSON object")
        self.facts, self._said = said, said.get("files", {})
        tokenizer = folder / "tokenizer.json"
        known = sha256_file(tokenizer) if tokenizer.is_file() else None
        self.tokenizer_sha256 = said.get("tokenizer_sha256", known)

    def _tensors(self, file: str) -> dict[str, tuple[int, ...]]:
        try:
            with safe_open(self.folder / file, framework="pt") as tensors:
                kinds = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no dictionary)
                held = {name: (kind.get_dtype(), tuple(kind.get_shape())) for name, kind in kinds.items()}
        except (SafetensorError, OSError):
            raise HanseError(f"{self.folder / file}: not a safetensors file") from None
        for name, (dtype, shape) in held.items():
            if dtype not in DTYPES:
                raise HanseError(f"{self.folder / file}: holds {name} as {dtype} {list(shape)}; readable are tensors "
                                 f"of {', '.join(DTYPES)}, not quantised ones")  # fmt: skip
            if not shape:
                with safe_open(self.folder / file, framework="pt") as tensors:
                    self.constants[name] = float(tensors.get_tensor(name))
        return {name: shape for name, (_, shape) in held.items() if shape}

    def read(self, name: str, start: int, stop: int, out: Tensor) -> None:
        row = self._row(name)
        first = start // row
        with safe_open(self.folder / self._file[name], framework="pt") as tensors:
            rows = tensors.get_slice(name)[first : -(-stop // row)]
        out.copy_(rows.reshape(-1)[start - first * row : stop - first * row])

    def _row(self, name: str) -> int:
        """Elements in what one index of the first dimension holds."""
        size = 1
        for length in self.shapes[name][1:]:
            size *= length
        return max(size, 1)

    def verify(self, rank: int = 0, ranks: int = 1) -> dict[str, str]:
        found = {file: sha256_file(self.folder / file) for file in self.files[rank::ranks]}
        for file, sha256 in found.items():
            if file in self._said and self._said[file].get("sha256") != sha256:
                raise HanseError(f"{self.folder / file}: is damaged: its sha256 is not the one in {EXPORT}")
        return found

    def identity(self, hashes: dict[str, str]) -> str:
        return merkle_root(hashes)


def safetensors_files(folder: Path) -> list[str]:
    """The names of a Hugging Face folder's weight files, sorted.

    Raises:
        HanseError: there are none, or one is missing, a link, or elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = read_json(index, "index of safetensors files")
        names = set(listed["weight_map"].values()) if isinstance(listed, dict) and "weight_map" in listed else set()
        if not names or not all(is_plain(name) for name in names):
            raise HanseError(f"{index}: names no files of this folder")
    else:
        names = {"model.safetensors"}
    for name in sorted(names):
        if inside(folder, name).is_symlink():
            raise HanseError(f"{folder / name}: is a link; copy the folder with 'cp -rL', and name the copy")
        if not (folder / name).is_file():
            pickled = "; its .bin files are pickle, which is never read" if list(folder.glob("*.bin")) else ""
            raise HanseError(f"{folder / name}: is missing: no checkpoint, average or Hugging Face folder with "
                             f"safetensors here{pickled}")  # fmt: skip
    return sorted(names)


def open_weights(folder: Path) -> Weights:
    """Open weights, whatever kind of folder they lie in.

    Raises:
        HanseError: they are not readable, or there are none.
    """
    if not folder.is_dir():
        raise HanseError(f"{folder}: no such folder")
    if (folder / "checkpoints").is_dir():
        raise HanseError(f"{folder}: a run folder; name one of its checkpoints, {folder}/checkpoints/step-...")
    return CheckpointWeights(folder) if (folder / "manifest.json").is_file() else HubWeights(folder)
