"""Which kernel computes attention, and how each is told where documents end: it must not look across a border.

Resetting positions alone does not separate documents: rotary embeddings are relative, so tokens would still attend
across. ``sdpa`` and ``eager`` add a mask to the scores, ``flex`` skips blocks of it that are empty, FlashAttention and
``varlen`` are given every document as a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.errors import ConfigError
from train.attention_config import FLASH, PLAIN, VARLEN, flash_problems, head_size
from train.compiling import compiled
from train.config import TrainConfig
from train.ops import can_compile
from train.precision import AMPERE
from train.sequence_config import SHAREABLE

HOPPER = (9, 0)  # compute capability that FlashAttention 3 was written for
SMALL_TILES, HEADS_OF_SMALL_TILES = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64}, 64
NAMES = {"flex": "flex_attention"}  # of transformers, where they are not ours


def ways(config: TrainConfig, model: PretrainedConfig, precision: str, device: torch.device) -> dict[str, str]:
    """{back end: what is in its way here, or nothing}, the best first: the one asked for, or all that ``auto`` tries.

    On an H100 with packed documents ``flex`` took a third to a ninth of the time of ``sdpa``, and less than
    FlashAttention 2 (benchmarks/kernels.py); it can be compiled with the layers around it. AMD's were not measured. On
    a CPU the mask costs ``sdpa`` up to four times the time of ``varlen``. ``sdpa`` is the last, and can always be had.

    Raises:
        ConfigError: what is asked for cannot be had here.
    """
    asked = config.model.attention
    if asked != "auto":
        if wrong := _problems(asked, config, model, precision, device):
            raise ConfigError([f"model.attention={asked}: {line}" for line in wrong])
        return {asked: ""}
    if config.determinism != "D0" or (device.type == "cuda" and precision == "fp32"):
        kinds = []
    elif device.type != "cuda":
        kinds = [VARLEN]
    else:
        alone = config.engine.compile is False or config.engine.zero_stage == 3  # of layers that are not compiled
        hopper = torch.cuda.get_device_capability(device) == HOPPER
        kinds = ["flash_attention_3"] * (hopper and alone) + ["flex"] * (torch.version.hip is None)
        kinds += ["flash_attention_2"] * (config.engine.compile is not True)
    return {kind: "; ".join(_problems(kind, config, model, precision, device)) for kind in (*kinds, PLAIN[0])}


def choose(config: TrainConfig, model: PretrainedConfig, precision: str, device: torch.device) -> str:
    """The back end that one rank alone would take: the first of :func:`ways` with nothing in its way."""
    return next(kind for kind, wrong in ways(config, model, precision, device).items() if not wrong)


def _problems(
    kind: str, config: TrainConfig, model: PretrainedConfig, precision: str, device: torch.device
) -> list[str]:
    """What only the machine, the model's class and a measured precision can tell of a back end."""
    if kind in PLAIN:
        return []
    if kind == VARLEN:
        known = model.model_type in SHAREABLE
        return [] if known else [f"is known to be right for {', '.join(SHAREABLE)}, not {model.model_type}; take sdpa"]
    found = flash_problems(kind, precision, head_size(model.to_dict()))
    if device.type != "cuda":
        found.append("its gradients are for GPUs; take sdpa")
    elif kind == "flex" and not can_compile(device):
        found.append("is made by torch's compiler, which wants Triton and a C compiler here; take sdpa")
    elif kind in FLASH and torch.cuda.get_device_capability(device) < AMPERE:
        found.append("its kernels begin with Ampere (A100); take sdpa")
    supports = "_supports_flash_attn" if kind in FLASH else "_supports_flex_attn"
    if not getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model), None), supports, False):
        found.append(f"transformers has it not for {model.model_type}; take sdpa")
    window, longest = getattr(model, "sliding_window", None), max(stage.length for stage in config.timeline)
    if kind in FLASH and window and window < longest:
        found.append(f"would look {window} tokens back where sdpa sees the whole document; set "
                     "model.settings.sliding_window=null")  # fmt: skip
    return found


def borders(documents: Tensor | None, ids: Tensor, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a model's forward is told of its documents.

    Args:
        documents: (B, L), the document of each position; None: each sequence is one.
        ids: (B, L), the tokens.
        attention: the back end as ``transformers`` calls it.
        dtype: of the scores.
    """
    if attention in PLAIN:
        return {"attention_mask": None if documents is None else attention_mask(documents, attention, dtype)}
    if documents is None:
        documents = torch.zeros_like(ids)
    if attention == VARLEN:
        return {"attention_mask": None, "documents": documents}
    if attention in FLASH:
        return {"attention_mask": None, **sequences(documents)}
    return {"attention_mask": block_mask(documents)}


def kernel_options(attention: str, model: PretrainedConfig, device: torch.device) -> dict[str, Any]:
    """What a model's forward is told of the kernel: tiles, where those that ``flex`` takes by itself are not the best.

    With heads of 64 on an H100 a forward pass then takes 0.6 to 0.7 of the time; with heads of 128 it would take twice
    as long (benchmarks/kernels.py).
    """
    if attention != NAMES["flex"] or device.type != "cuda" or torch.version.hip:
        return {}
    small = (head_size(model.to_dict()) or HEADS_OF_SMALL_TILES + 1) <= HEADS_OF_SMALL_TILES
    return {"kernel_options": dict(SMALL_TILES)} if small and torch.cuda.get_device_capability(device) == HOPPER else {}


def attention_mask(documents: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """Mask of shape (B, 1, L, L): position i sees j <= i of its own document.

    What is added to scores: 0, or minus infinity (``eager``: the lowest of ``dtype``). ``sdpa`` would take booleans
    too, and make these numbers of them in every layer, to be kept for the backward pass.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    lowest = -torch.inf if attention == "sdpa" else torch.finfo(dtype).min
    return torch.zeros(same.shape, dtype=dtype, device=documents.device).masked_fill_(~same.tril_(), lowest)


def block_mask(documents: Tensor) -> BlockMask:
    """The same for ``flex_attention`` (Dong et al., arXiv 2412.05496): blocks that hold anything, and a rule inside."""

    def sees(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[batch, query] == documents[batch, key])

    rows, length = documents.shape
    make = _compiled_block_mask() if documents.device.type == "cuda" else create_block_mask
    return make(sees, rows, None, length, length, device=documents.device.type)


@cache
def _compiled_block_mask() -> Callable[..., BlockMask]:
    """Not compiled, (B, L, L) booleans lie in memory for a moment. Once: asking for it takes the host 5 ms."""
    return compiled(create_block_mask)


def sequences(documents: Tensor) -> dict[str, Any]:
    """The same for FlashAttention (Dao, arXiv 2307.08691): where each document starts in the rows laid end to end.

    The host waits for the number of documents, once a micro-batch; ``transformers`` waits there in any case.
    """
    first = torch.ones_like(documents, dtype=torch.bool)  # also of each row: a document does not go on in the next one
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = first.flatten().nonzero().flatten()
    ends = torch.nn.functional.pad(starts, (0, 1), value=documents.numel()).to(torch.int32)
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def lengths(documents: Tensor) -> list[list[int]]:
    """How long the documents of each row are, in their order."""
    return [row.unique_consecutive(return_counts=True)[1].tolist() for row in documents]


@torch.compiler.disable  # which would compile layers anew for every row, if lengths were known outside
def varlen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, documents: Tensor,
    **told: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """``transformers``' ``sdpa`` of one document after the other: no mask, and nothing computed that one would hide.

    Shapes as there: query (B, heads, L, D), key and value (B, key heads, L, D) -> (B, L, heads, D).
    """
    found = []
    for *row, mine in zip(query, key, value, lengths(documents), strict=True):
        parts = (one[None].split(mine, dim=2) for one in row)  # whose gradients are put together once
        found += [sdpa_attention_forward(module, q, k, v, None, **told)[0] for q, k, v in zip(*parts, strict=True)]
    return torch.cat(found, 1).view(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(VARLEN, varlen)


def transformers_name(attention: str) -> str:
    """What ``transformers`` calls a back end."""
    return NAMES.get(attention, attention)
