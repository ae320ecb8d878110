"""Checkpoints of Megatron become ones of ours, and ours become theirs: weights alone, a tensor at a time.

What is written is ``torch_dist``, which Megatron loads at any tensor and pipeline parallelism, and whose names are the
same with Transformer Engine's layers and without; the older format would have to know both.
(megatron/core/dist_checkpointing/strategies/torch.py of megatron-core 0.16.1.)
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from common.errors import HanseError
from common.files import fsync_folder, inside, merkle_root, read_json, sha256_file, write_json, write_text
from common.folders import replaced_folder
from data_pipelines.shards import ShardsManifest
from train import megatron_model
from train.agreement import disagreements
from train.checkpoint import FORMAT as OURS_FORMAT
from train.checkpoint_config import CheckpointVerbConfig
from train.checkpoint_writer import write_papers, write_stream
from train.convert import carried
from train.megatron_files import LATEST, LAYER, MegatronFiles
from train.megatron_model import EMBEDDING, HEAD
from train.model import shape_of_model
from train.trained import configuration_in
from train.weights import CheckpointWeights, Weights

FORMAT = "hanse.megatron/1"
MANIFEST = "hanse.json"
OURS = "hanse"  # key of common.pt under which a checkpoint of ours keeps what Megatron has no place for
DESCRIPTION = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
               "common_backend_version": 1}  # fmt: skip
# Modules of which Megatron wants an extra state: nothing, unless FP8 was trained. The first four have one in any layer
# of its, the others where Transformer Engine makes them; what is there and not asked for is let be.
EXTRA = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2",
         "self_attention.core_attention", "self_attention.q_layernorm", "self_attention.k_layernorm")  # fmt: skip


# --- from Megatron --------------------------------------------------------------------------------------------------


def from_megatron(source: MegatronFiles, output: Path, config: CheckpointVerbConfig) -> dict[str, Any]:
    """Write ``output``, a checkpoint of ours without the state of an optimizer; its state.

    Raises:
        HanseError: it is damaged, of another model than it says, or of a kind that is not read.
        ConfigError: something has to be said about it.
    """
    hashes = verify(source)
    record = source.common.get(OURS)
    if record is not None:
        state, origin, model = carried(record, source.folder)
        megatron_model.check_written(model)
    else:
        state, origin, model = _theirs(source, config, hashes)
    named = megatron_model.names(model)
    shapes = {name: tuple(one.shape) for name, one in shape_of_model(model).named_parameters()}
    _check_shapes(source, model, named, shapes)
    with replaced_folder(output, OURS_FORMAT) as partial:
        (partial / "model").mkdir()
        path = "model/rank-00000.safetensors"
        every = [one for ours in named.values() for one in ours]
        sizes = {f"{one}[0:{math.prod(shapes[one])}]": math.prod(shapes[one]) for one in every}
        files = {path: write_stream(partial / path, sizes, _values(source, named, model))}
        write_papers(partial, files, shapes, state, origin=origin)
    return state


def _values(source: MegatronFiles, named: Mapping[str, Any], model: PretrainedConfig) -> Iterator[Tensor]:
    for name in named:
        for part in megatron_model.split(name, source.read(name), model):
            yield part.reshape(-1).contiguous()


def verify(source: MegatronFiles) -> dict[str, str]:
    """{file: sha256}, compared with the manifest where the folder is one that we wrote.

    Raises:
        HanseError: a file is not the one that was written.
    """
    hashes = {name: sha256_file(inside(source.folder, name)) for name in source.files}
    if told_by_us(source):
        said = read_json(source.folder.parent / MANIFEST, "manifest of a Megatron checkpoint")
        files = said.get("files") if isinstance(said, dict) else None
        for name, sha256 in hashes.items():
            if not isinstance(files, dict) or files.get(f"{source.folder.name}/{name}") != sha256:
                raise HanseError(f"{source.folder / name}: is damaged: its sha256 is not the one in {MANIFEST}")
    return hashes


def told_by_us(source: MegatronFiles) -> bool:
    """Whether a manifest of ours lies beside it."""
    return (source.folder.parent / MANIFEST).is_file()


def _theirs(source: MegatronFiles, config: CheckpointVerbConfig, hashes: Mapping[str, str]
            ) -> tuple[dict[str, Any], dict[str, Any], PretrainedConfig]:  # fmt: skip
    """(state, origin, configuration) of one that Megatron trained."""
    args = source.args
    shards = ShardsManifest.read(Path(config.shards)) if config.shards else None
    count_of = functools.partial(megatron_model.count_of, args)
    samples = count_of("consumed_train_samples") or source.iteration * count_of("global_batch_size")
    model = model_of(source, config.model_folder)
    if shards and config.model_folder is None:
        model.eos_token_id = shards.end_of_document_id
    state = {
        "step": source.iteration,
        "consumed_samples": samples,
        "consumed_tokens": samples * (config.sequence_length or count_of("seq_length")),
        "precision": megatron_model.precision_of(args),
        "engine": {},
        "data_merkle_root": shards.merkle_root if shards else "",
        "tokenizer_sha256": shards.tokenizer_sha256 if shards else "",
        "model": model.to_dict(),
        "wall_seconds": 0.0,
    }
    return state, {"parents": [{"manifest_sha256": merkle_root(dict(hashes)), "role": "converted"}]}, model


def model_of(source: MegatronFiles, folder: str | None) -> PretrainedConfig:
    """The configuration of its model: what its arguments tell, or what ``config.json`` in ``folder`` does.

    Raises:
        HanseError: it is of a kind that is not read, or the two disagree.
        ConfigError: neither tells it.
    """
    given = None
    if folder is not None:
        file = Path(folder) / "config.json"
        given = configuration_in(read_json(file, "configuration of a model"), file)
        megatron_model.check_written(given)
        if not source.args:
            return given
    told = megatron_model.settings_of(source.args, given.model_type if given else None)
    if given is None:
        rows = source.tensors.get(EMBEDDING, (0,))[0]
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return configuration_in({**told, **ends, "vocab_size": rows}, source.folder)
    wrong = disagreements(told, given.to_dict())
    if wrong:
        key, (there, here) = next(iter(wrong.items()))
        raise HanseError(f"{source.folder}: of another model than {folder}: {key} is {there} there and {here} "
                         "in config.json; set model_folder=... to the folder of its own, or leave it out")  # fmt: skip
    return given


def _check_shapes(source: MegatronFiles, model: PretrainedConfig, named: Mapping[str, tuple[str, ...]],
                  shapes: Mapping[str, tuple[int, ...]]) -> None:  # fmt: skip
    """Refuse a model whose tensors are not these.

    Raises:
        HanseError: naming the first that is missing, foreign or of another shape.
    """
    there = dict(source.tensors)
    if model.tie_word_embeddings:
        there.pop(HEAD, None)  # the copy of a pipeline's last stage
    for name in [*named, *there]:
        parts = [shapes[one] for one in named.get(name, ())]
        here = (sum(part[0] for part in parts), *parts[0][1:]) if parts else None
        found = there.get(name)
        if name in (EMBEDDING, HEAD) and found and here and found[0] >= here[0]:
            found = (here[0], *found[1:])  # rows that only fill up
        if found != here:
            told, asked = (list(shape) if shape else "absent" for shape in (there.get(name), here))
            raise HanseError(f"{source.folder}: of another model: {name} is {told} there and {asked} in its "
                             "configuration; set model_folder=... to the folder of the one it belongs to")  # fmt: skip


# --- to Megatron ----------------------------------------------------------------------------------------------------


def to_megatron(weights: Weights, folder: Path, tell: Callable[[int], Any] = lambda done: None) -> int:
    """Write weights into an empty folder, as Megatron's ``--load`` reads it; the iteration.

    Raises:
        HanseError: they are of a model that is not written.
    """
    model = configuration_in(weights.settings, weights.folder)
    megatron_model.check_written(model)
    named, facts = megatron_model.names(model), weights.facts
    needed = {one for ours in named.values() for one in ours}
    if not needed <= set(weights.shapes) <= needed | {"lm_head.weight"}:  # a tied one may be stored, too
        raise HanseError(f"{weights.folder}: its tensors are not those of the {model.model_type} that it says it is")
    step = int(facts.get("step") or 0)
    place = folder / f"iter_{step:07d}"
    place.mkdir()
    writer = Writer(place, model.num_hidden_layers)
    done = 0
    for name, ours in named.items():
        parts = [torch.empty(weights.shapes[one]) for one in ours]
        for one, part in zip(ours, parts, strict=True):
            weights.read_whole(one, part.view(-1))
        writer.add(name, megatron_model.joined(name, parts, model))
        done += sum(part.numel() for part in parts)
        tell(done)
    common: dict[str, Any] = {
        "args": megatron_model.arguments(model, str(facts.get("precision", "fp32")), facts),
        "checkpoint_version": 3.0, "iteration": step, "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }  # fmt: skip
    manifest: dict[str, Any] = {"format": FORMAT, "step": step}
    if isinstance(weights, CheckpointWeights):
        said = weights.checkpoint.manifest
        origin = {key: said[key] for key in ("parents", "method") if key in said}
        common[OURS] = {"state": weights.checkpoint.state, "origin": origin}
        manifest["checkpoint_merkle_root"] = said["merkle_root"]
    writer.finish(common)
    write_text(folder / LATEST, str(step))
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(place.iterdir())}
    write_json(folder / MANIFEST, {**manifest, "files": files})
    return step


class Writer:
    """Writes tensors as ``torch_dist``, one at a time, a file of each layer and one of the rest."""

    def __init__(self, folder: Path, layers: int):
        from torch.distributed.checkpoint.metadata import MetadataIndex

        self.folder, self.layers = folder, layers
        self._stored: dict[str, Any] = {}
        self._lies: dict[MetadataIndex, Any] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """One of Megatron's, with its layer in its name."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

        match = LAYER.fullmatch(name)
        layer = int(match[1]) if match else None
        key = f"decoder.layers.{match[2]}" if match else name
        whole = torch.Size((self.layers, *tensor.shape) if match else tensor.shape)
        block = tensor[None] if match else tensor
        at = torch.Size([layer or 0, *[0] * (len(whole) - 1)])
        if key not in self._stored:
            properties = TensorProperties(dtype=tensor.dtype)
            self._stored[key] = TensorStorageMetadata(properties=properties, size=whole, chunks=[])
        self._stored[key].chunks.append(ChunkStorageMetadata(offsets=at, sizes=block.shape))
        self._append(key, at, block.contiguous(), layer)

    def finish(self, common: Mapping[str, Any]) -> None:
        """Write what is not a tensor, and where everything lies; flush all of it."""
        from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

        extra = {f"decoder.layers.{name}._extra_state/shard_{layer}_{self.layers}": layer
                 for layer in range(self.layers) for name in EXTRA}  # fmt: skip
        for key, layer in {**extra, "decoder.final_layernorm._extra_state/shard_0_1": None}.items():
            self._stored[key] = BytesStorageMetadata()
            self._append(key, None, [None], layer)
        torch.save(dict(common), self.folder / "common.pt")
        with (self.folder / ".metadata").open("wb") as file:
            pickle.dump(Metadata(state_dict_metadata=self._stored, storage_data=self._lies), file)
        write_json(self.folder / "metadata.json", DESCRIPTION)
        for path in self.folder.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        fsync_folder(self.folder)

    def _append(self, key: str, at: torch.Size | None, value: Any, layer: int | None) -> None:
        from torch.distributed.checkpoint.filesystem import _StorageInfo
        from torch.distributed.checkpoint.metadata import MetadataIndex

        buffer = io.BytesIO()
        torch.save(value, buffer)
        name = f"__{0 if layer is None else layer + 1}_0.distcp"
        with (self.folder / name).open("ab") as file:
            start = file.tell()
            file.write(buffer.getbuffer())
        self._lies[MetadataIndex(key, at)] = _StorageInfo(name, start, buffer.tell())
