"""Checkpoints that belong to no layout: safetensors and JSON, each tensor by parameter name and range of elements.

    checkpoints/step-00000100/
        manifest.json                    shapes of all tensors; size and sha256 of every file
        state.json                       step, samples and tokens consumed, precision, what data and model it belongs to
        model/rank-00000.safetensors     fp32 master weights:  "NAME[START:STOP]"
        optimizer/rank-00000.safetensors the optimizer's moments: "NAME.exp_avg[START:STOP]"
        ema/rank-00000.safetensors       average of the weights, where one is kept: "NAME.ema[START:STOP]"

One without ``optimizer`` holds weights only: an average, say. A run can begin with it, not go on from it.

Every rank writes the ranges it owns; nobody gathers the model. A reader takes the ranges it needs, whatever the number
of ranks and the ZeRO stage were. A checkpoint is a folder with its final name: it is written under another one, hashed,
flushed and renamed, so "the latest" is derived from what is complete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import HanseError
from common.files import inside, merkle_root, read_json, sha256_file
from data_pipelines.manifest import COUNTS, fingerprint
from train.optimizers import ALL_MOMENTS, MOMENTS

if TYPE_CHECKING:  # a checkpoint is read without DeepSpeed and transformers
    from train.engine import Engine

PARTS = ("model", "optimizer", "ema")
FORMAT = "hanse.checkpoint/1"
NEEDED = {"step": int, "consumed_samples": int, "data_merkle_root": str, "tokenizer_sha256": str, "model": dict,
          "precision": str, "wall_seconds": int | float}  # fmt: skip
DAMAGED = ".damaged"  # ending of a checkpoint that was set aside because its hashes are not those of its manifest
KEY = re.compile(r"(?P<name>.+)\[(?P<start>[0-9]{1,18}):(?P<stop>[0-9]{1,18})\]")


ORIGIN = ("parents", "method")  # keys of a manifest that say what weights were made from; absent for fresh ones
PARENT = re.compile(r"[0-9a-f]{64}")


def root_of(
    shapes: Mapping[str, Iterable[int]], files: Mapping[str, Mapping[str, Any]], origin: Mapping[str, Any] | None = None
) -> str:
    """One hash for all files and for what the manifest says of them; see :func:`common.files.merkle_root`."""
    facts = {"tensors": {name: list(shape) for name, shape in shapes.items()}, "files": files, **(origin or {})}
    return merkle_root({name: entry["sha256"] for name, entry in files.items()} | {COUNTS: fingerprint(facts)})


class Damaged(HanseError):  # noqa: N818
    """A checkpoint is not what was written: something before it may still be."""


class Older(HanseError):  # noqa: N818
    """A checkpoint from before the Merkle root covered what the manifest says: sound or not, nobody can tell."""


@dataclass(frozen=True)
class Slice:
    """Where a range of a tensor's elements lies."""

    start: int
    stop: int
    file: str
    key: str


class Checkpoint:
    """A complete checkpoint, opened for reading.

    Raises:
        Damaged: a file is missing, is a link, has another size, or is not readable as what it claims to be.
            ``verify`` compares the hashes.
        Older: it was written before the manifest was part of its Merkle root.
        HanseError: it is of another version of the format.
    """

    def __init__(self, folder: Path, form: str = FORMAT):
        self.folder = folder
        if (folder / "manifest.json").is_symlink():
            raise self._bad("manifest.json", "is a link")
        self.manifest = read_json(folder / "manifest.json", "checkpoint manifest")
        written = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if written != form and str(written).startswith(form.partition("/")[0] + "/"):
            raise HanseError(
                f"{folder / 'manifest.json'}: of format {written}, this hanse reads {form}; use the one that wrote it"
            )
        if written != form:
            raise self._bad("manifest.json", f"is not of format {form}")
        try:
            self.files: dict[str, dict[str, Any]] = self.manifest["files"]
            self.shapes = {name: tuple(shape) for name, shape in self.manifest["tensors"].items()}
            whole = all(type(size) is int for shape in self.shapes.values() for size in shape)
            whole = whole and "state.json" in self.files and all("bytes" in entry for entry in self.files.values())
            origin = {key: self.manifest[key] for key in ORIGIN if key in self.manifest}
            self.parents: list[dict[str, Any]] = origin.get("parents", [])
            whole = whole and all(PARENT.fullmatch(one["manifest_sha256"]) and one["role"] for one in self.parents)
            root = root_of(self.shapes, self.files, origin)
        except (KeyError, TypeError, AttributeError, ValueError):
            whole = False
        if not whole:
            raise self._bad("manifest.json", "is incomplete")
        if root != self.manifest.get("merkle_root"):
            if self.manifest.get("merkle_root") == merkle_root(
                {name: entry["sha256"] for name, entry in self.files.items()}
            ):
                raise Older(
                    f"{folder / 'manifest.json'}: of an older format, whose Merkle root covers the files but not "
                    "the shapes: cannot be checked; go on with the hanse that wrote it"
                )
            raise self._bad("manifest.json", "was edited: its Merkle root is not the one of what it says")
        for name, entry in self.files.items():
            path = inside(folder, name)
            if path.is_symlink():
                raise self._bad(name, "is a link")
            if not path.is_file():
                raise self._bad(name, "is missing")
            if path.stat().st_size != entry["bytes"]:
                raise self._bad(name, f"has {path.stat().st_size} bytes instead of {entry['bytes']}")
        self.state: dict[str, Any] = read_json(folder / "state.json", "checkpoint state")
        if not isinstance(self.state, dict) or not all(
            isinstance(self.state.get(key), kind) for key, kind in NEEDED.items()
        ):
            raise self._bad("state.json", "is incomplete")
        self.kind, self.moments = self._declared()

    def _declared(self) -> tuple[str, dict[str, set[str]]]:
        """(optimizer, {moment: parameters that it is kept of}); a checkpoint that says nothing is AdamW's."""
        try:
            told = self.state.get("engine", {}).get("optimizer")
            if told is None:
                return "adamw", {key: set(self.shapes) for key in MOMENTS}
            moments = {key: set(map(str, names)) for key, names in told["moments"].items()}
            if set(moments) <= set(ALL_MOMENTS) and all(names <= set(self.shapes) for names in moments.values()):
                return str(told["kind"]), moments
        except (KeyError, TypeError, AttributeError):
            pass
        raise self._bad("state.json", "does not tell what its optimizer keeps of which parameter")

    def _bad(self, name: str, what: str) -> Damaged:
        return Damaged(f"{self.folder / name}: {what}; delete {self.folder} to go on from the checkpoint before it")

    @property
    def weights_only(self) -> bool:
        """Whether it holds no state of an optimizer."""
        return not any(name.startswith("optimizer/") for name in self.files)

    def verify(self, rank: int = 0, ranks: int = 1, found: Mapping[str, str] | None = None) -> None:
        """Compare the sha256 of this rank's share of the files; ``found``: {path: sha256}, where they are known.

        Raises:
            HanseError: a file is not the one that was written.
        """
        for name in sorted(self.files)[rank::ranks]:
            sha256 = sha256_file(self.folder / name) if found is None else found[name]
            if sha256 != self.files[name]["sha256"]:
                raise self._bad(name, "is damaged: its sha256 is not the one in manifest.json")

    def strays(self) -> list[str]:
        """Paths in the folder, with /, that the manifest does not name: nothing reads them, nobody vouches for them.

        Links are among them, and whatever a pickle is called; folders are not.
        """
        found = (path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return sorted({path.relative_to(self.folder).as_posix() for path in found} - {*self.files, "manifest.json"})

    @property
    def averaged(self) -> bool:
        """Whether it holds an average of the weights."""
        return any(name.startswith("ema/") for name in self.files)

    def slices(self, part: str) -> dict[str, list[Slice]]:
        """{tensor name: its ranges in order} of one of ``PARTS``, or of another folder of tensors like the model's;
        nothing where a checkpoint has no optimizer's state or no average.

        Raises:
            HanseError: the ranges of a tensor do not lie side by side from its first element to its last.
        """
        if (part == "optimizer" and self.weights_only) or (part == "ema" and not self.averaged):
            return {}
        parts: dict[str, dict[str, Collection[str]]] = {
            "optimizer": {f".{key}": of for key, of in self.moments.items()},
            "ema": {".ema": self.shapes},
        }
        held = parts.get(part, {"": self.shapes})  # {ending: names that it is kept of}
        sizes = {name + ending: math.prod(shape) for name, shape in self.shapes.items()
                 for ending, of in held.items() if name in of}  # fmt: skip
        found: dict[str, list[Slice]] = {name: [] for name in sizes}
        for file in self.files:
            if not file.startswith(f"{part}/"):
                continue
            for span, name in self._spans(file):
                if name not in sizes:
                    raise self._bad(file, f"holds '{span.key}', but the manifest knows no such tensor")
                found[name].append(span)
        for name, spans in found.items():
            spans.sort(key=lambda span: (span.start, span.stop))
            edges = [0, *(span.stop for span in spans)]
            if [span.start for span in spans] != edges[:-1] or edges[-1] != sizes[name]:
                raise self._bad(part, f"does not hold every element of {name} once")
        return found

    def _spans(self, file: str) -> Iterator[tuple[Slice, str]]:
        """(range, tensor name) of everything in a file."""
        try:
            with safe_open(self.folder / file, framework="pt") as tensors:
                kinds = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 (no dictionary)
                held = {key: (kind.get_dtype(), kind.get_shape()) for key, kind in kinds.items()}
        except (SafetensorError, OSError):
            raise self._bad(file, "is not a safetensors file") from None
        for key, (dtype, shape) in held.items():
            match = KEY.fullmatch(key)
            start, stop = (int(match["start"]), int(match["stop"])) if match else (0, 0)
            if match is None or dtype != "F32" or shape != [stop - start]:
                raise self._bad(file, f"holds '{key}' ({dtype}, {shape}), which is no NAME[START:STOP] in fp32")
            yield Slice(start, stop, file, key), match["name"]

    def check_model(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            HanseError: naming the first tensor that is missing, foreign or of another shape.
        """
        for name in [*shapes, *self.shapes]:
            here, there = shapes.get(name), self.shapes.get(name)
            if here != there:
                found, asked = (list(shape) if shape else "absent" for shape in (there, here))
                raise HanseError(
                    f"{self.folder}: a checkpoint of another model: {name} is {found} there and {asked} in this "
                    "configuration; use another run=..."
                )

    def read(self, spans: list[Slice], start: int, stop: int, out: Tensor) -> None:
        """Copy elements ``start..stop`` of a flattened tensor into ``out``, of shape (stop - start,)."""
        for span in spans:
            first, end = max(start, span.start), min(stop, span.stop)
            if first < end:
                with safe_open(self.folder / span.file, framework="pt") as tensors:
                    values = tensors.get_slice(span.key)[first - span.start : end - span.start]
                out[first - start : end - start] = values

    def reader(self) -> Callable[[str, Tensor], None]:
        """What copies a whole tensor of the model into elements given to it, flat and in fp32."""
        spans = self.slices("model")
        return lambda name, out: self.read(spans[name], 0, out.numel(), out)

    def weights(self, part: str = "model") -> dict[str, Tensor]:
        """All fp32 weights by parameter name; of ``ema``, their average.

        Raises:
            HanseError: there is no average.
        """
        spans = self.slices(part)
        if not spans:
            raise HanseError(f"{self.folder}: holds no average of the weights; a run keeps one with e.g. "
                             "ema.decay=0.999")  # fmt: skip
        out, ending = {}, "" if part == "model" else f".{part}"
        for name, shape in self.shapes.items():
            out[name] = torch.empty(shape, dtype=torch.float32)
            self.read(spans[name + ending], 0, out[name].numel(), out[name].view(-1))
        return out

    def restore(self, engine: Engine) -> None:
        """Copy this rank's masters and moments into the engine, whose module must already hold the weights.

        (ZeRO builds the low-precision weights from the module once; masters set later reach them only at the next
        step, so both are needed.)
        """
        if self.weights_only:
            raise HanseError(f"{self.folder}: holds weights and no state of an optimizer; a run begins with it "
                             "(init_from=...), but cannot go on from it")  # fmt: skip
        if self.kind != engine.kind:
            raise HanseError(f"{self.folder}: holds the state of optimizer.kind={self.kind}, this configuration says "
                             f"{engine.kind}; begin a run with its weights (init_from=...)")  # fmt: skip
        spans = {part: self.slices(part) for part in PARTS}
        for fragment in engine.fragments(changed=True):
            for part, ending, values in fragment.tensors():
                found = spans[part].get(fragment.name + ending)
                if found is not None:
                    self.read(found, fragment.start, fragment.stop, values)
                elif part != "ema":  # an average may begin later than the run
                    raise self._bad(part, f"holds no {fragment.name}{ending}")
        engine.set_state(self.state["step"], self.state.get("engine", {}))
