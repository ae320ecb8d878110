"""A trained model as it lies in a run folder: its configuration, a checkpoint, and the data it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from common.errors import HanseError
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import tokenizer_sha256
from train.attention_config import for_reading
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.model import build_model
from train.run_folder import RunFolder
from train.validation_text import ValidationText


@dataclass(frozen=True, kw_only=True)
class Trained(ValidationText):
    """A checkpoint whose hashes were checked, with the shards and the tokenizer that belong to it.

    ``weights``: which of its are asked for: ``master``, those that are trained, or ``ema``, their average.
    """

    folder: RunFolder
    config: TrainConfig
    checkpoint: Checkpoint
    weights: str = "master"

    @property
    def step(self) -> int:
        return int(self.checkpoint.state["step"])

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
    return Trained(manifest, tokenizer_folder, corpus, folder=folder, config=config, checkpoint=checkpoint,
                   weights=weights)  # fmt: skip


def _there(folder: str, key: str) -> Path:
    if not Path(folder).is_dir():
        raise HanseError(f"{folder}: no such folder; run this where 'hanse train' was run, or set {key}=... to where "
                         f"the run's {key} {'is' if key == 'tokenizer' else 'are'} now")  # fmt: skip
    return Path(folder)
