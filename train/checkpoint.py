"""Checkpoints that belong to no layout: safetensors and JSON, each tensor by parameter name and range of elements.

    checkpoints/step-00000100/
        manifest.json                    shapes of all tensors; size and sha256 of every file
        state.json                       step, samples and tokens consumed, precision, what data and model it belongs to
        model/rank-00000.safetensors     fp32 master weights:  "NAME[START:STOP]"
        optimizer/rank-00000.safetensors Adam's moments:       "NAME.exp_avg[START:STOP]"

Every rank writes the ranges it owns; nobody gathers the model. A reader takes the ranges it needs, whatever the number
of ranks and the ZeRO stage were. A checkpoint is a folder with its final name: it is written under another one, hashed,
flushed and renamed, so "the latest" is derived from what is complete.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import HanseError
from common.files import PARTIAL, fsync_folder, inside, merkle_root, read_json, sha256_file, sweep_partial, write_json
from train.engine import MOMENTS, Engine, Fragment
from train.ranks import Place, together

FORMAT = "hanse.checkpoint/1"
NEEDED = {"step", "consumed_samples", "data_merkle_root", "tokenizer_sha256", "model", "precision", "wall_seconds"}
KEY = re.compile(r"(?P<name>.+)\[(?P<start>\d+):(?P<stop>\d+)\]")


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending."""
    return sorted(int(path.parent.name[5:]) for path in checkpoints.glob("step-" + "[0-9]" * 8 + "/manifest.json"))


def save(engine: Engine, checkpoints: Path, state: Mapping[str, Any], place: Place) -> Path:
    """Write a checkpoint of ``state["step"]``; collective. The folder that it now has.

    Raises:
        HanseError: on every rank, if any rank could not write (disk full ...); what was there before is untouched.
    """
    final = folder_of(checkpoints, state["step"])
    partial = final.with_name(final.name + PARTIAL)
    hashes: dict[str, Any] = {}
    try:
        with together(place):
            if place.first:
                _make_folders(partial)
        with together(place):
            hashes = _write_share(engine.fragments(), partial, place.rank)
        gathered: list[dict[str, Any]] = [{}] * place.ranks
        dist.all_gather_object(gathered, hashes)
        with together(place):
            if place.first:
                files = {name: entry for share in gathered for name, entry in share.items()}
                _finish(partial, final, files, engine.shapes, state)
    except HanseError:
        if place.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _make_folders(partial: Path) -> None:
    try:
        sweep_partial(partial.parent)
        for part in ("model", "optimizer"):
            (partial / part).mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(partial, error) from None


def _write_share(fragments: Iterable[Fragment], partial: Path, rank: int) -> dict[str, Any]:
    """Write one rank's files; {path: {bytes, sha256}}."""
    model: dict[str, Tensor] = {}
    optimizer: dict[str, Tensor] = {}
    for fragment in fragments:
        span = f"[{fragment.start}:{fragment.stop}]"
        model[fragment.name + span] = fragment.master.cpu()
        optimizer |= {f"{fragment.name}.{key}{span}": value.cpu() for key, value in fragment.moments.items()}
    hashes = {}
    for part, tensors in (("model", model), ("optimizer", optimizer)):
        name = f"{part}/rank-{rank:05d}.safetensors"
        try:
            # Views of one flat tensor share its storage, which safetensors refuses: copies it is.
            save_file({key: tensor.clone() for key, tensor in tensors.items()}, partial / name)
            with (partial / name).open("rb+") as file:
                os.fsync(file.fileno())
            (partial / name).chmod(partial.stat().st_mode & 0o666)  # safetensors lets only the owner read its files
            hashes[name] = {"bytes": (partial / name).stat().st_size, "sha256": sha256_file(partial / name)}
        except (OSError, SafetensorError) as error:
            raise _cannot_write(partial / name, error) from None
    return hashes


def _finish(partial: Path, final: Path, files: dict[str, Any], shapes: Mapping[str, tuple[int, ...]],
            state: Mapping[str, Any]) -> None:  # fmt: skip
    try:
        write_json(partial / "state.json", dict(state))
        path = partial / "state.json"
        files["state.json"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(partial / "manifest.json", {
            "format": FORMAT,
            "merkle_root": merkle_root({name: entry["sha256"] for name, entry in files.items()}),
            "tensors": {name: list(shape) for name, shape in shapes.items()},
            "files": dict(sorted(files.items())),
        })  # fmt: skip
        for folder in (partial / "model", partial / "optimizer", partial):
            fsync_folder(folder)
        if final.exists():  # a run that went back and came here again
            shutil.rmtree(final)
        partial.rename(final)
        fsync_folder(final.parent)
    except OSError as error:
        raise _cannot_write(partial, error) from None


def _cannot_write(path: Path, error: Exception) -> HanseError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return HanseError(f"{path}: cannot write the checkpoint ({reason}); earlier checkpoints are untouched: "
                      "free some space, then run the same command again")  # fmt: skip


def prune(checkpoints: Path, keep_last: int, keep_every_steps: int) -> list[int]:
    """Delete checkpoints that the retention policy does not keep; the steps deleted."""
    steps = complete_steps(checkpoints)
    kept = set(steps[-keep_last:]) | {step for step in steps if keep_every_steps and step % keep_every_steps == 0}
    deleted = [step for step in steps if step not in kept]
    for step in deleted:
        folder = folder_of(checkpoints, step)
        doomed = folder.rename(folder.with_name(folder.name + PARTIAL))  # never a half-deleted one under a good name
        shutil.rmtree(doomed)
    return deleted


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
        HanseError: a file is missing, has another size, or is not readable as what it claims to be; ranges that do
            not cover a tensor exactly. ``verify`` compares the hashes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_json(folder / "manifest.json", "checkpoint manifest")
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise self._bad("manifest.json", f"is not of format {FORMAT}")
        try:
            self.files: dict[str, dict[str, Any]] = self.manifest["files"]
            self.shapes = {name: tuple(shape) for name, shape in self.manifest["tensors"].items()}
            root = merkle_root({name: entry["sha256"] for name, entry in self.files.items()})
            sizes = {name: int(entry["bytes"]) for name, entry in self.files.items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self._bad("manifest.json", "is incomplete") from None
        if root != self.manifest.get("merkle_root"):
            raise self._bad("manifest.json", "was edited: its Merkle root does not match its hashes")
        for name, size in sizes.items():
            path = inside(folder, name)
            if path.is_symlink() or not path.is_file():
                raise self._bad(name, "is missing")
            if path.stat().st_size != size:
                raise self._bad(name, f"has {path.stat().st_size} bytes instead of {size}")
        self.state: dict[str, Any] = read_json(folder / "state.json", "checkpoint state")
        if not isinstance(self.state, dict) or not self.state.keys() >= NEEDED:
            raise self._bad("state.json", "is incomplete")

    def _bad(self, name: str, what: str) -> HanseError:
        return HanseError(f"{self.folder / name}: {what}; delete {self.folder} to go on from the checkpoint before it")

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Compare the sha256 of this rank's share of the files.

        Raises:
            HanseError: a file is not the one that was written.
        """
        for name in sorted(self.files)[rank::ranks]:
            if sha256_file(self.folder / name) != self.files[name]["sha256"]:
                raise self._bad(name, "is damaged: its sha256 is not the one in manifest.json")

    def slices(self, part: str) -> dict[str, list[Slice]]:
        """{tensor name: its ranges in order} of ``model`` or ``optimizer``."""
        found: dict[str, list[Slice]] = {}
        for file in self.files:
            if not file.startswith(f"{part}/"):
                continue
            try:
                with safe_open(self.folder / file, framework="pt") as tensors:
                    keys = list(tensors.keys())
            except (SafetensorError, OSError):
                raise self._bad(file, "is not a safetensors file") from None
            for key in keys:
                match = KEY.fullmatch(key)
                if match is None:
                    raise self._bad(file, f"holds a tensor named '{key}', which is no NAME[START:STOP]")
                span = Slice(int(match["start"]), int(match["stop"]), file, key)
                found.setdefault(match["name"], []).append(span)
        return {name: sorted(spans, key=lambda span: span.start) for name, spans in found.items()}

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
        at = start
        for span in spans:
            if span.stop <= at or span.start >= stop:
                continue
            if span.start > at:
                break
            end = min(span.stop, stop)
            with safe_open(self.folder / span.file, framework="pt") as tensors:
                out[at - start : end - start] = tensors.get_slice(span.key)[at - span.start : end - span.start]
            at = end
        if at != stop:
            raise self._bad("manifest.json", f"lists files that miss elements {at}..{stop} of a tensor")

    def weights(self) -> dict[str, Tensor]:
        """All fp32 weights by parameter name."""
        spans = self.slices("model")
        out = {}
        for name, shape in self.shapes.items():
            out[name] = torch.empty(shape, dtype=torch.float32)
            self.read(spans.get(name, []), 0, out[name].numel(), out[name].view(-1))
        return out

    def restore(self, engine: Engine) -> None:
        """Copy this rank's masters and moments into the engine, whose module must already hold the weights.

        (ZeRO builds the low-precision weights from the module once; masters set later reach them only at the next
        step, so both are needed.)
        """
        model, optimizer = self.slices("model"), self.slices("optimizer")
        for fragment in engine.fragments():
            self.read(model.get(fragment.name, []), fragment.start, fragment.stop, fragment.master)
            for key in MOMENTS:
                spans = optimizer.get(f"{fragment.name}.{key}", [])
                self.read(spans, fragment.start, fragment.stop, fragment.moments[key])
        engine.set_optimizer_step(self.state["step"])
