"""Small models as checkpoints, written without a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint_writer import finish, write_share

STATE = {"step": 12, "consumed_samples": 96, "consumed_tokens": 6144, "data_merkle_root": "d", "tokenizer_sha256": "t",
         "model": {"model_type": "llama"}, "precision": "fp32", "wall_seconds": 1.5}  # fmt: skip


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], ranks: int = 2, origin: Mapping[str, Any] | None = None, **state: Any
) -> Path:
    """A checkpoint of these weights, each tensor cut evenly between the ranks, without the state of an optimizer.

    ``origin``: ``parents`` and ``method`` of its manifest; ``state``: what differs from STATE.
    """
    files: dict[str, Any] = {}
    partial = folder.with_name(folder.name + ".partial")
    for rank in range(ranks):
        part = {}
        for name, one in tensors.items():
            share = math.ceil(one.numel() / ranks)
            start, stop = min(rank * share, one.numel()), min((rank + 1) * share, one.numel())
            part[f"{name}[{start}:{stop}]"] = one.detach().reshape(-1)[start:stop].clone()
        files |= write_share({"model": part}, partial, rank)
    finish(partial, folder, files, {name: tuple(one.shape) for name, one in tensors.items()}, {**STATE, **state},
           origin=origin)  # fmt: skip
    return folder
