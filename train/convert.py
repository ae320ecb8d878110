"""A universal checkpoint of DeepSpeed becomes one of ours, from which a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from common.errors import ConfigError, HanseError
from common.files import merkle_root, read_json, sha256_file
from common.folders import replaced_folder
from data_pipelines.shards import ShardsManifest
from train.checkpoint import FORMAT
from train.checkpoint_config import CheckpointVerbConfig
from train.checkpoint_writer import write_papers, write_stream
from train.model import shape_of_model
from train.optimizers import MOMENTS
from train.trained import configuration_in
from train.universal import Universal


def from_universal(source: Universal, output: Path, config: CheckpointVerbConfig) -> int:
    """Write ``output``, a checkpoint of ours; its step.

    One that was made from ours knows where the run stood. Of another, the weights, moments and counters are taken, and
    the order of data is that of a hanse run which has drawn as many samples.

    Raises:
        HanseError: the folder is damaged, of another model, or something has to be said about it.
    """
    source.verify()
    state, origin, model = carried(source.ours, source.folder) if source.ours is not None else _theirs(source, config)
    shapes = {name: tuple(one.shape) for name, one in shape_of_model(model).named_parameters()}
    prefix = source.prefix(next(iter(shapes)))
    there = {name.removeprefix(prefix): shape for name, shape in source.shapes.items() if name.startswith(prefix)}
    for name in [*shapes, *there]:
        if shapes.get(name) != there.get(name):
            told, asked = (list(shape) if shape else "absent" for shape in (there.get(name), shapes.get(name)))
            raise HanseError(f"{source.folder}: of another model: {name} is {told} there and {asked} in its "
                             "configuration; set model_folder=... to the folder of the one it belongs to")  # fmt: skip
    names = {name: prefix + name for name in shapes}
    with replaced_folder(output, FORMAT) as partial:
        files = {}
        for part, keys in (("model", ("fp32",)), ("optimizer", MOMENTS)):
            (partial / part).mkdir()
            path = f"{part}/rank-00000.safetensors"
            sizes = {_key(name, key, shape): math.prod(shape) for name, shape in shapes.items() for key in keys}
            files[path] = write_stream(partial / path, sizes, _values(source, names, keys))
        write_papers(partial, files, shapes, state, origin=origin)
    return int(state["step"])


def _key(name: str, key: str, shape: tuple[int, ...]) -> str:
    return f"{name}{'' if key == 'fp32' else f'.{key}'}[0:{math.prod(shape)}]"


def _values(source: Universal, names: dict[str, str], keys: tuple[str, ...]) -> Iterator[Tensor]:
    for there in names.values():
        for key in keys:
            yield source.read(there, key)


def carried(record: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None, PretrainedConfig]:
    """(state, origin, configuration) of the checkpoint of ours that one of another layout was made from.

    Args:
        record: what that layout carries of it: ``state`` and ``origin``; ``folder``: where, for the error.

    Raises:
        HanseError: not all of it is there.
    """
    try:
        state, origin = dict(record["state"]), dict(record["origin"])
        return state, origin or None, configuration_in(state["model"], folder)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, HanseError):
            raise
        raise HanseError(f"{folder}: what it says of the checkpoint it was made from is incomplete") from None


def _theirs(source: Universal, config: CheckpointVerbConfig) -> tuple[dict[str, Any], dict[str, Any], PretrainedConfig]:
    """The same for a universal checkpoint of DeepSpeed's own.

    Raises:
        ConfigError: keys that are needed are not set.
    """
    unset = [key for key in ("model_folder", "shards", "sequence_length") if getattr(config, key) is None]
    if unset:
        raise ConfigError([f"{key}: must be set ({key}=...): a checkpoint of DeepSpeed does not tell" for key in unset])
    assert config.model_folder is not None
    assert config.shards is not None
    assert config.sequence_length is not None
    file = Path(config.model_folder) / "config.json"
    model = configuration_in(read_json(file, "configuration of a model"), file)
    shards = ShardsManifest.read(Path(config.shards))
    files = {f"{path.parent.name}/{path.name}": sha256_file(path) for path in sorted(source.folder.glob("zero/*/*.pt"))}
    state = {
        "step": source.step,
        "consumed_samples": source.samples,
        "consumed_tokens": source.samples * config.sequence_length,
        "precision": source.precision,
        "engine": {"skipped_updates": source.skipped} if source.skipped else {},
        "data_merkle_root": shards.merkle_root,
        "tokenizer_sha256": shards.tokenizer_sha256,
        "model": model.to_dict(),
        "wall_seconds": 0.0,
    }
    return state, {"parents": [{"manifest_sha256": merkle_root(files), "role": "converted"}]}, model
