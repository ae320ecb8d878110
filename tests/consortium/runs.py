"""Run folders as ``hanse train`` leaves them, written in a second: real papers and a real model, but no training.

(What a trained run's folder looks like is tested on one that was trained: see the tests marked slow.)
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from common.files import write_json
from train.checkpoint import root_of
from train.checkpoint_writer import finish, write_tensors
from train.config import TrainConfig
from train.ledger import Ledger
from train.lock import FORMAT, code, config_sha256, installed
from train.model import build_model
from train.run_folder import RunFolder, folder_of
from train.setup import open_data

STEPS = 12


def write_run(path: Path, config: TrainConfig, *, seed: int = 0, parents: list[dict[str, Any]] = (), step: int = STEPS,
              scale: float = 1.0) -> Path:  # fmt: skip
    """A run of ``step`` steps whose weights are the initial ones of ``seed``, times ``scale``; its checkpoint."""
    data, folder = open_data(config), RunFolder(path)
    path.mkdir(parents=True)
    config.run, config.seed = str(path), 0
    folder.keep_config(config)
    state = {"step": step, "consumed_samples": step * 8, "consumed_tokens": config.timeline.tokens(step), "seed": 0,
             "precision": "fp32", "ranks": 1, "zero_stage": 1, "engine": {}, "wall_seconds": 1.0,
             "data_merkle_root": data.manifest.merkle_root, "tokenizer_sha256": data.manifest.tokenizer_sha256,
             "model": data.model.to_dict()}  # fmt: skip
    write_json(folder.lock, {
        "format": FORMAT, "code": code(), "distributions": installed(), "config_sha256": config_sha256(config),
        "seed": 0, "tokenizer_sha256": state["tokenizer_sha256"], "data_merkle_root": state["data_merkle_root"],
        "determinism": "D0", "precision": "fp32", **({"parents": parents} if parents else {}),
    })  # fmt: skip
    ledger = Ledger(folder.ledger)
    lock = hashlib.sha256(folder.lock.read_bytes()).hexdigest()
    ledger.write("start", {"step": 0, "lock": lock, "ranks": 1, "zero_stage": 1})
    for one in range(1, step + 1):
        samples = [(one - 1) * 8, one * 8]
        ledger.write("step", {"step": one, "samples": samples, "batch": data.stream.fingerprint(range(*samples)),
                              "learning_rate": 0.01, "loss": 7.0 - one / 10, "gradient_norm": 1.0})  # fmt: skip
    model = build_model(data.model, seed)
    weights = {name: one.detach() * scale for name, one in model.named_parameters()}
    final = write_checkpoint(folder_of(folder.checkpoints, step), weights, state, parents)
    root = json.loads((final / "manifest.json").read_text())["merkle_root"]
    ledger.write("checkpoint", {"step": step, "merkle_root": root})
    return final


def write_checkpoint(final: Path, weights: dict[str, torch.Tensor], state: dict[str, Any],
                     parents: list[dict[str, Any]] = (), *, optimizer: bool = True) -> Path:  # fmt: skip
    """A checkpoint of two tensor files a part."""
    partial = final.with_name(final.name + ".partial")
    files: dict[str, Any] = {}
    endings = {"model": [""], **({"optimizer": [".exp_avg", ".exp_avg_sq"]} if optimizer else {})}
    for part, kinds in endings.items():
        (partial / part).mkdir(parents=True)
        for rank in range(2):
            tensors = {}
            for name, values in weights.items():
                half, flat = math.prod(values.shape) // 2, values.reshape(-1)
                start, stop = (0, half) if rank == 0 else (half, flat.numel())
                for kind in kinds:
                    held = flat[start:stop] if part == "model" else flat[start:stop].abs() / 10
                    tensors[f"{name}{kind}[{start}:{stop}]"] = held.contiguous()
            name = f"{part}/rank-{rank:05d}.safetensors"
            files[name] = write_tensors(partial / name, tensors)
    shapes = {name: tuple(values.shape) for name, values in weights.items()}
    finish(partial, final, files, shapes, state)
    if parents:
        name_parents(final / "manifest.json", parents)
    return final


def name_parents(path: Path, parents: list[dict[str, Any]]) -> None:
    """Say in a manifest what the weights were made from."""
    manifest = json.loads(path.read_text())
    manifest["parents"] = parents
    with suppress(TypeError):  # a root that does not cover them
        manifest["merkle_root"] = root_of(manifest["tensors"], manifest["files"], {"parents": parents})
    write_json(path, manifest)
