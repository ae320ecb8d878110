"""Pickles of strangers, as checkpoints of DeepSpeed and Megatron are: read without importing or calling what they name.

``torch.save``'s files go through ``torch.load(weights_only=True)``, ``.metadata`` of a distributed one of Megatron
through an unpickler of our own. For every class that a file names and that is on a list, both build a stand-in that
keeps what it is given; a file that names any other is refused.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from common.errors import HanseError

GETATTR = "builtins.getattr"  # only as what _member() does
MEGATRON = re.compile(r"argparse\.Namespace|types\.SimpleNamespace|_io\.BytesIO|pathlib\.(_local\.)?(Pure)?PosixPath"
                      r"|builtins\.getattr|collections\.defaultdict"
                      r"|(megatron|transformer_engine|numpy)\.[\w.]+")  # fmt: skip
DCP = "torch.distributed.checkpoint."
METADATA = {
    GETATTR,
    *(f"{DCP}metadata.{name}" for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *(f"{DCP}planner.{name}" for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    f"{DCP}filesystem._StorageInfo", "torch.serialization._get_layout",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
}  # fmt: skip


class Stand:
    """What is built for a class that a file names: it keeps what it is given, and does nothing."""

    def __init__(self, *values: Any):
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _member(owner: Any, name: Any) -> Stand:
    """In place of ``getattr``, by which some Python 3.11 (3.11.2 is one) pickles a member of an enumeration."""
    if owner is not Stand or not isinstance(name, str):
        raise pickle.UnpicklingError("getattr of what is no listed class")
    return Stand(name)


def _stand_in(name: str) -> Any:
    """What is called in place of a listed name."""
    return _member if name == GETATTR else Stand


def _refused(path: Path, what: str) -> HanseError:
    return HanseError(f"{path}: holds {what}, which is never read: unpickling it could run code")


def load_pickled(path: Path, known: re.Pattern[str] | None = None, data: bytes | None = None) -> Any:
    """What ``torch.save`` wrote into a file; tensors stay on the disk until they are used.

    Args:
        known: classes that it may name, beside tensors and plain values.
        data: read this instead, a part of the file.

    Raises:
        HanseError: it holds more, which could run code, or is no such file.
    """
    where: Any = path if data is None else io.BytesIO(data)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(where)
        strange = sorted(name for name in named if not (known and known.fullmatch(name)))
        if strange:
            raise _refused(path, strange[0])
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in named]):
            if data is not None:
                where.seek(0)
            return torch.load(where, map_location="cpu", weights_only=True, mmap=True if data is None else None)
    except HanseError:
        raise
    except pickle.UnpicklingError:
        raise _refused(path, "more than tensors and plain values") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError):
        raise HanseError(f"{path}: not a readable file of torch.save; it was truncated, or written by a torch before "
                         "1.6") from None  # fmt: skip


class MetadataUnpickler(pickle.Unpickler):
    """Of ``.metadata``, which is no file of ``torch.save``.

    Raises:
        HanseError: it names what is not on the list.
    """

    def __init__(self, path: Path, file: Any):
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in METADATA:
            return _stand_in(f"{module}.{name}")
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise _refused(self.path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _refused(self.path, "a reference")
