"""Where a run begins: with fresh weights, or with those of another, which its checkpoints then call their parent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from common.errors import HanseError
from train.agreement import disagreements
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.model import shape_of_model
from train.ranks import Place, gathered, together
from train.vocabulary import adapted
from train.weights import Weights, open_weights

OTHERWISE = "set model=from_checkpoint, or model=... to the one they belong to"


def open_initial(
    config: TrainConfig, resumed: Checkpoint | None, model: PretrainedConfig, tokenizer_sha256: str, place: Place
) -> tuple[Weights | None, list[dict[str, Any]]]:
    """The weights to begin with (None: fresh ones, or the run goes on), and the parents of its checkpoints. Collective.

    Raises:
        HanseError: the weights are damaged or of another model or tokenizer, or the run began with others.
    """
    before: list[dict[str, Any]] = resumed.parents if resumed else []
    if config.init_from is None or (resumed and not Path(config.init_from).exists()):
        return None, before
    with together(place):
        if not Path(config.init_from).is_dir():
            raise HanseError(f"init_from={config.init_from}: no folder here")
        weights, origin = open_weights(Path(config.init_from)), {"role": "init"}
        if config.init_tokenizer:
            weights, old = adapted(
                weights, config.init_tokenizer, Path(config.data.tokenizer) / "tokenizer.json", model,
                config.init_embeddings,
            )  # fmt: skip
            origin |= {"embeddings": config.init_embeddings, "tokenizer_sha256": old}
        if resumed is None:
            check(weights, model, tokenizer_sha256, config.init_changes)
        hashes = weights.verify(place.rank, place.ranks)
    shares = gathered(place, hashes)
    with together(place):
        sha256 = weights.identity({name: digest for share in shares for name, digest in share.items()})
        parents = [{"manifest_sha256": sha256, **origin}]
        if resumed and parents != before:
            began = "other" if before else "fresh"
            raise HanseError(f"init_from={config.init_from}: {config.run} goes on from {resumed.folder.name}, and "
                             f"began with {began} weights; leave init_from out, or name another run=...")  # fmt: skip
    return (None if resumed else weights), parents


def check(
    weights: Weights, model: PretrainedConfig, tokenizer_sha256: str | None, changes: Collection[str] = ()
) -> None:
    """Refuse weights that are not those of this model, or speak another tokenizer's numbers.

    ``changes``: settings that may differ.

    Raises:
        HanseError: naming the first tensor that differs, or all settings that do.
    """
    built = shape_of_model(model)
    shapes = {name: tuple(one.shape) for name, one in built.named_parameters()}
    tied = {name: tuple(one.shape) for name, one in built.named_parameters(remove_duplicate=False)}
    for name in [*shapes, *weights.shapes]:
        there, here = weights.shapes.get(name), tied.get(name)
        if there != here:
            told, asked = (list(shape) if shape else "absent" for shape in (there, here))
            raise HanseError(f"init_from={weights.folder}: weights of another model: {name} is {told} there and "
                             f"{asked} in this configuration; {OTHERWISE}")  # fmt: skip
    unknown = weights.constants.keys() - dict(built.named_buffers()).keys()
    if unknown:
        raise HanseError(f"init_from={weights.folder}: weights of another model: {min(unknown)} is unknown in this "
                         f"configuration; {OTHERWISE}")  # fmt: skip
    _check_settings(weights, model.to_dict(), changes)
    if weights.tokenizer_sha256 not in (None, tokenizer_sha256):
        raise HanseError(f"init_from={weights.folder}: its weights belong to another tokenizer than data.tokenizer "
                         "(their sha256 differ), so its tokens would mean other words; tokenize the data with its "
                         "tokenizer, or name it to make the embeddings anew: init_tokenizer=...")  # fmt: skip


def _check_settings(weights: Weights, here: Mapping[str, Any], changes: Collection[str]) -> None:
    """Refuse settings by which these weights would compute something else, but for those meant to be changed."""
    try:
        found = disagreements(weights.settings, here)
    except HanseError as error:
        raise HanseError(f"init_from={weights.folder}: its configuration is {error}") from None
    wrong = {key: both for key, both in found.items() if key.partition(".")[0] not in changes}
    if wrong:
        told = ", ".join(f"{key} is {there} there and {ours} in this configuration"
                         for key, (there, ours) in wrong.items())  # fmt: skip
        named = ",".join(dict.fromkeys(key.partition(".")[0] for key in wrong))
        raise HanseError(f"init_from={weights.folder}: weights of another model: {told}; {OTHERWISE}, or "
                         f"say what is to be changed: init_changes=[{named}]")  # fmt: skip
