"""DeepSpeed's universal checkpoints, read and written a tensor at a time.

    FOLDER/latest_universal               the name of the folder below
    FOLDER/TAG/zero/NAME/fp32.pt          {"param": weights, "cat_dim": 0}, or the tensor itself, which may be flat
    FOLDER/TAG/zero/NAME/exp_avg.pt       Adam's moments, in the same form; exp_avg_sq.pt
    FOLDER/TAG/zero/NAME/step.pt          updates made (not written from ZeRO-3)
    FOLDER/TAG/zero/optimizer_state.pt    settings of the optimizer's groups
    FOLDER/TAG/*_model_states.pt          steps, samples, shapes; one for stages 1 and 2, or one a rank for stage 3

(deepspeed/checkpoint/ds_to_universal.py, runtime/base_optimizer.py and runtime/zero/stage3.py of 0.19.8.) All of it is
pickle. What is needed holds tensors and plain values alone, and is read by ``train/pickled.py``; ``optimizer_state.pt``
of DeepSpeed holds objects of its own, and is never opened here.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import HanseError
from common.files import inside, is_plain, read_json, sha256_file, write_json, write_text
from train.checkpoint import Checkpoint
from train.optimizers import MOMENTS
from train.pickled import load_pickled

FORMAT = "hanse.universal/1"
MANIFEST = "hanse.json"
LATEST = "latest_universal"
STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")  # stages 1 and 2; stage 3
PARTS = ("fp32", *MOMENTS)
GROUPS = 64  # of an optimizer, at most: DeepSpeed restores those groups only that it finds in the file
OURS = "hanse"  # key of the model states under which a checkpoint of ours keeps what DeepSpeed has no place for


def universal_folder(folder: Path) -> Path | None:
    """The folder that holds ``zero/``: this one, or the one that ``latest_universal`` names; None: there is none."""
    if (folder / "zero").is_dir():
        return folder
    try:
        tag = (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / tag if is_plain(tag) and (inside(folder, tag) / "zero").is_dir() else None


class Universal:
    """A universal checkpoint, opened for reading; no tensor is in memory.

    Attributes:
        shapes: {name: shape} of all tensors but tied ones; names are those of the module that DeepSpeed was given.
        states: what ``*_model_states.pt`` says, without its weights.
        ours: state and origin of the checkpoint of ours that it was made from; None where it was not.

    Raises:
        HanseError: something is missing, is a link, or holds more than tensors and plain values.
    """

    def __init__(self, folder: Path):
        found = universal_folder(folder)
        if found is None:
            raise HanseError(f"{folder}: no universal checkpoint of DeepSpeed (no zero/ in it); make one where it was "
                             "written: python -m deepspeed.checkpoint.ds_to_universal")  # fmt: skip
        self.folder = found
        there = [name for name in STATES if (found / name).is_file()]
        if not there:
            raise HanseError(f"{found}: holds no {' or '.join(STATES)}; get the folder again from where it came")
        self.states: dict[str, Any] = load_pickled(found / there[0])
        try:
            shapes = {str(name): tuple(map(int, shape)) for group in self.states["param_shapes"]
                      for name, shape in group.items()}  # fmt: skip
            tied = set(self.states.get("shared_params") or {})
            self.step, self.skipped = int(self.states["global_steps"]), int(self.states["skipped_steps"])
            self.samples = int(self.states["global_samples"])
            self.ours: dict[str, Any] | None = self.states.get(OURS)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise HanseError(f"{found / there[0]}: tells no shapes, steps and samples; written by a DeepSpeed other "
                             "than 0.19?") from None  # fmt: skip
        self.shapes = {name: shape for name, shape in shapes.items() if name not in tied}
        for name in self.shapes:
            for part in PARTS:
                self._file(name, part)

    @property
    def precision(self) -> str:
        """What the forward pass computed in: ``bf16``, ``fp16`` or ``fp32``."""
        for half in ("bf16", "fp16"):
            with suppress(KeyError, TypeError):
                if self.states["ds_config"][half]["enabled"]:
                    return half
        return "fp32"

    def prefix(self, name: str) -> str:
        """What stands before a parameter's name in ``transformers``, where DeepSpeed was given a module around it."""
        return next((one.removesuffix(name) for one in self.shapes if one == name or one.endswith(f".{name}")), "")

    def read(self, name: str, part: str) -> Tensor:
        """One of ``PARTS`` of a tensor: flat, fp32.

        Raises:
            HanseError: it is not what the shape says.
        """
        path = self._file(name, part)
        held = load_pickled(path)
        tensor = held.get("param") if isinstance(held, dict) else held
        if not isinstance(tensor, Tensor) or tensor.numel() != math.prod(self.shapes[name]):
            raise HanseError(f"{path}: does not hold a tensor of {math.prod(self.shapes[name])} elements")
        return tensor.detach().reshape(-1).float().contiguous()

    def verify(self) -> int:
        """Compare the hashes of all files with the manifest, where the folder is one that we wrote; how many.

        Raises:
            HanseError: a file is not the one that was written.
        """
        top = self.folder.parent
        if not (top / MANIFEST).is_file():
            return 0
        said = read_json(top / MANIFEST, "manifest of a universal checkpoint")
        files = said.get("files") if isinstance(said, dict) else None
        if not isinstance(files, dict):
            raise HanseError(f"{top / MANIFEST}: lists no files")
        for name, entry in files.items():
            path = inside(top, name)
            if not path.is_file() or not isinstance(entry, dict) or sha256_file(path) != entry.get("sha256"):
                raise HanseError(f"{path}: is damaged: its sha256 is not the one in {MANIFEST}")
        return len(files)

    def _file(self, name: str, part: str) -> Path:
        path = inside(self.folder, f"zero/{name}/{part}.pt")
        if path.is_symlink() or not path.is_file():
            told = "is a link" if path.is_symlink() else "is missing"
            raise HanseError(f"{path}: {told}; only AdamW's state is read, of parameters that were all trained")
        return path


def write_universal(checkpoint: Checkpoint, folder: Path, tell: Any = lambda done: None) -> None:
    """Write a checkpoint into an empty folder, for any number of ranks and ZeRO stage 1, 2 or 3.

    (One made by DeepSpeed from stage 1 cannot be loaded at stage 3, nor the other way round: each lacks what the other
    reads.) ``tell`` is told the elements written so far.

    Raises:
        HanseError: it holds no state of AdamW.
    """
    spans = checkpoint.slices("model") | checkpoint.slices("optimizer")
    wanted = {f"{name}{ending}" for name in checkpoint.shapes for ending in ("", *(f".{key}" for key in MOMENTS))}
    if set(spans) != wanted:
        raise HanseError(f"{checkpoint.folder}: DeepSpeed's universal layout is written from weights with AdamW's two "
                         "moments, and this one does not hold these; 'hanse export' writes weights alone")  # fmt: skip
    state, files = checkpoint.state, dict[str, dict[str, Any]]()
    skipped = int(state.get("engine", {}).get("skipped_updates", 0))
    updates, tag, done = torch.tensor(float(state["step"] - skipped)), checkpoint.folder.name, 0
    for name, shape in checkpoint.shapes.items():
        place = f"{tag}/zero/{name}"
        (folder / place).mkdir(parents=True)
        for part, ending in zip(PARTS, ("", *(f".{key}" for key in MOMENTS)), strict=True):
            out = torch.empty(shape, dtype=torch.float32)
            checkpoint.read(spans[name + ending], 0, out.numel(), out.view(-1))
            files[f"{place}/{part}.pt"] = _save(folder / place / f"{part}.pt", {"param": out, "cat_dim": 0})
            done += out.numel()
            tell(done)
        files[f"{place}/step.pt"] = _save(folder / place / "step.pt", updates)
    files[f"{tag}/zero/optimizer_state.pt"] = _save(folder / tag / "zero/optimizer_state.pt", _optimizer(updates))
    for name, values in _model_states(checkpoint, skipped):
        files[f"{tag}/{name}"] = _save(folder / tag / name, values)
    write_text(folder / LATEST, tag)
    files[LATEST] = {"bytes": len(tag), "sha256": sha256_file(folder / LATEST)}
    write_json(folder / MANIFEST, {"format": FORMAT, "step": state["step"],
                                   "checkpoint_merkle_root": checkpoint.manifest["merkle_root"],
                                   "files": dict(sorted(files.items()))})  # fmt: skip


def _optimizer(updates: Tensor) -> dict[str, Any]:
    """``optimizer_state.pt`` without a setting in it: those of the optimizer that loads it stay as they are."""
    nothing: list[dict[str, Any]] = [{"params": []} for _ in range(GROUPS)]
    return {
        "ds_version": _deepspeed_version(),
        "param_groups": nothing,  # stages 1 and 2
        "optimizer_state_dict": {"state": {0: {"step": updates}}, "param_groups": nothing},  # stage 3
    }


def _model_states(checkpoint: Checkpoint, skipped: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """``*_model_states.pt`` for the stages 1 and 2, and for stage 3; without weights, which lie in ``zero/``."""
    state = checkpoint.state
    origin = {key: checkpoint.manifest[key] for key in ("parents", "method") if key in checkpoint.manifest}
    values = {
        "module": {},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{name: torch.Size(shape) for name, shape in checkpoint.shapes.items()}],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "global_steps": state["step"],
        "skipped_steps": skipped,
        "global_samples": state["consumed_samples"],
        "dp_world_size": state.get("ranks", 1),
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": {half: {"enabled": state["precision"] == half} for half in ("bf16", "fp16")},
        "ds_version": _deepspeed_version(),
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.4},
        OURS: {"state": state, "origin": origin},
    }
    for name in STATES:
        yield name, values


def _deepspeed_version() -> str:
    from importlib.metadata import version

    return version("deepspeed")


def _save(path: Path, value: Any) -> dict[str, Any]:
    """``torch.save``, flushed to the disk; ``{bytes, sha256}``."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": sha256(data).hexdigest()}
