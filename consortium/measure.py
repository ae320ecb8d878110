"""What a model says on a fixed input, and how well it predicts validation text: to be measured again by others."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from common.errors import HanseError
from common.terminal import Progress
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths, tokenizer_sha256
from train.evaluate import Evaluation
from train.model import PackedLanguageModel, model_inputs
from train.stream import open_sources

SEQUENCES, LENGTH = 2, 32  # of the golden batch
KEPT = 8  # logits kept of each position, besides the hash of all


def golden_batch(vocabulary_size: int, longest: int) -> np.ndarray:
    """Token ids that nobody chose: int64 of shape (2, up to 32), the same for every model of a vocabulary."""
    length = min(LENGTH, longest)
    return _numbers("hanse golden batch", SEQUENCES * length, vocabulary_size).reshape(SEQUENCES, length)


def _numbers(what: str, count: int, below: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{what} {number}".encode()).digest()[:7] for number in range(count)]
    return np.array([int.from_bytes(digest, "big") % below for digest in digests], dtype=np.int64)


class NoText(HanseError):  # noqa: N818
    """There is no validation text here that the model could be measured on: says nothing about the model."""


@torch.no_grad()
def golden_logits(model: PreTrainedModel) -> dict[str, Any]:
    """Logits of the golden batch in fp32: {"sha256" of all; "kept": (2, L, 8) of them; "largest" absolute one}.

    Raises:
        HanseError: one of them is no number.
    """
    config = model.config
    batch = golden_batch(config.vocab_size, getattr(config, "max_position_embeddings", None) or LENGTH)
    ids = torch.from_numpy(batch)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    logits = model(**inputs).logits.float().numpy()
    if not np.isfinite(logits).all():
        raise HanseError("the model's logits on the golden batch are not all numbers")
    places = _numbers("hanse golden logits", KEPT, logits.shape[-1])
    return {
        "sha256": hashlib.sha256(np.ascontiguousarray(logits, dtype="<f4").tobytes()).hexdigest(),
        "kept": logits[:, :, places].astype(float).tolist(),
        "largest": float(np.abs(logits).max()),
    }


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel, shards: ShardsManifest, tokenizer: Path, *, length: int, tokens_per_language: int
) -> dict[str, float]:
    """Validation bits per byte a language, as ``hanse train`` reports them (:class:`train.tally.Score`).

    ``model`` may not be used for anything else afterwards.

    Raises:
        NoText: the shards were written with another tokenizer, or hold no validation text.
    """
    if tokenizer_sha256(tokenizer) != shards.tokenizer_sha256:
        raise NoText(f"{shards.folder}: written with another tokenizer than the model's; tokenize the validation "
                     "text with the contribution's")  # fmt: skip
    sizes = token_byte_lengths(tokenizer)
    sources = open_sources(shards, "validation", length, 0, hashes=True)
    evaluation = Evaluation(sources, tokens_per_language, 1, sizes)
    if not evaluation.languages:
        raise NoText(f"{shards.folder}: no validation text of {length} tokens in any language")
    module, device = PackedLanguageModel(model), torch.device("cpu")
    nats, count = dict.fromkeys(evaluation.languages, 0.0), dict.fromkeys(evaluation.languages, 0)
    progress = Progress("validation", len(evaluation.batches), "sequences")
    for number, (language, batch) in enumerate(evaluation.batches):
        name = evaluation.languages[language]
        _, losses = module(**model_inputs(batch, device))
        nats[name] += float(losses.double().sum())
        count[name] += int(sizes[evaluation.labels(number)].sum())
        progress.update(number + 1)
    return {name: nats[name] / math.log(2) / max(count[name], 1) for name in nats}
