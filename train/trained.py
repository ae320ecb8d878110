"""A trained model as it lies in a run folder: its configuration, a checkpoint, and the data it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from common.errors import HanseError
from data_pipelines.shards import SIDECAR, ShardsManifest, beside
from data_pipelines.tokenizer import tokenizer_sha256
from train.attention_config import for_reading
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data_table import corpus_of
from train.model import build_model
from train.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A checkpoint whose hashes were checked, with the shards and the tokenizer that belong to it.

    ``corpus`` is where the corpus of the shards is, if not beside them. ``weights``: which of its are asked for:
    ``master``, those that are trained, or ``ema``, their average.
    """

    folder: RunFolder
    config: TrainConfig
    checkpoint: Checkpoint
    shards: ShardsManifest
    tokenizer_folder: Path
    corpus: str | None = None
    weights: str = "master"

    @property
    def step(self) -> int:
        return int(self.checkpoint.state["step"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the shards were written with it."""
        return Tokenizer.from_file(str(self.tokenizer_folder / "tokenizer.json"))

    @property
    def model_config(self) -> PretrainedConfig:
        """The ``transformers`` configuration that the checkpoint was trained with."""
        return configuration_of(self.checkpoint)

    def model(self) -> PreTrainedModel:
        """The model with its fp32 weights, ready to be asked.

        Raises:
            HanseError: the checkpoint's tensors are not those of its model, or it holds no average and should.
        """
        part = "model" if self.weights == "master" else self.weights
        return model_of(self.checkpoint, for_reading(self.config.model.attention), part)

    def validation_document(self, language: str, number: int = 0) -> np.ndarray:
        """The ids of a validation document of a language, 1-D int64, without the one that ends it."""
        entry = next(entry for entry in self.shards.of("validation") if entry.language == language)
        shard = self.shards.open(entry)
        ids = shard.document(number % shard.documents).astype(np.int64)
        return ids[:-1] if len(ids) and ids[-1] == self.shards.end_of_document_id else ids

    def validation_titles(self, language: str) -> dict[int, str]:
        """{number of a validation document: its title}; empty where the corpus is not here, or says none."""
        corpus = corpus_of(self.shards, Path(self.corpus) if self.corpus else None)
        if corpus is None:
            return {}
        entry = next(entry for entry in self.shards.of("validation") if entry.language == language)
        ids = pq.read_table(beside(self.shards.folder / entry.name, SIDECAR), columns=["id"])["id"].to_pylist()
        rows = pq.read_table(corpus.documents(language), columns=["id", "title"]).to_pydict()
        titles = dict(zip(rows["id"], rows["title"], strict=True))
        return {number: title for number, one in enumerate(ids) if (title := titles.get(one))}

    @property
    def validation_languages(self) -> list[str]:
        """Languages with validation documents."""
        return sorted({entry.language for entry in self.shards.of("validation") if entry.documents})


def configuration_of(checkpoint: Checkpoint) -> PretrainedConfig:
    """The ``transformers`` configuration in a checkpoint's state.

    Raises:
        HanseError: it is none.
    """
    return configuration_in(checkpoint.state["model"], checkpoint.folder / "state.json")


def configuration_in(values: Any, path: Path) -> PretrainedConfig:
    """The ``transformers`` configuration that was read from ``path`` as JSON.

    Raises:
        HanseError: it is none.
    """
    try:
        settings = dict(values)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    except Exception as error:  # transformers validates with exceptions of many types
        raise HanseError(
            f"{path}: no model configuration that transformers knows ({' '.join(str(error).split())})"
        ) from None


def model_of(checkpoint: Checkpoint, attention: str = "sdpa", part: str = "model") -> PreTrainedModel:
    """The model with a checkpoint's fp32 weights (``part="ema"``: their average), ready to be asked.

    Raises:
        HanseError: the checkpoint's tensors are not those of its model.
    """
    model = build_model(configuration_of(checkpoint), seed=0, attention=attention)
    checkpoint.check_model({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    model.load_state_dict(checkpoint.weights(part), strict=False)  # tied weights have one name
    return model.eval()


def open_trained(
    run: str, step: int | None, shards: str | None, tokenizer: str | None, *,
    corpus: str | None = None, weights: str = "master",
) -> Trained:  # fmt: skip
    """Open a run's checkpoint of ``step`` (None: the latest) with its data; ``shards``, ``tokenizer`` and ``corpus``
    say where those are now, if they were moved.

    Raises:
        HanseError: there is no such checkpoint, it is damaged, or the data is missing or not what it was trained on.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    found = folder.find_checkpoints()
    steps = list(found)
    if not steps:
        raise HanseError(f"{folder.checkpoints}: no complete checkpoint here; 'hanse train' writes one")
    if step is not None and step not in steps:
        raise HanseError(f"step={step}: no checkpoint of that step in {folder.checkpoints}; "
                         f"there {'are' if len(steps) > 1 else 'is'} {', '.join(map(str, steps))}")  # fmt: skip
    checkpoint = Checkpoint(found[steps[-1] if step is None else step])
    checkpoint.verify()
    manifest = ShardsManifest.read(_there(shards or config.data.shards, "shards"))
    if manifest.merkle_root != checkpoint.state["data_merkle_root"]:
        raise HanseError(f"{manifest.folder}: not the shards that {checkpoint.folder} was trained on (their Merkle "
                         "roots differ); set shards=... to those")  # fmt: skip
    tokenizer_folder = _there(tokenizer or config.data.tokenizer, "tokenizer")
    if tokenizer_sha256(tokenizer_folder / "tokenizer.json") != checkpoint.state["tokenizer_sha256"]:
        raise HanseError(f"{tokenizer_folder}: not the tokenizer of {checkpoint.folder} (its sha256 differs); set "
                         "tokenizer=... to that one")  # fmt: skip
    return Trained(folder, config, checkpoint, manifest, tokenizer_folder, corpus, weights)


def _there(folder: str, key: str) -> Path:
    if not Path(folder).is_dir():
        raise HanseError(f"{folder}: no such folder; run this where 'hanse train' was run, or set {key}=... to where "
                         f"the run's {key} {'is' if key == 'tokenizer' else 'are'} now")  # fmt: skip
    return Path(folder)
