"""Which back ends of attention there are, and what each asks of the rest of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from train.config_rules import one_of

if TYPE_CHECKING:
    from train.config import TrainConfig

FLASH = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}  # and the distribution that brings it
PLAIN = ("sdpa", "eager")  # torch's own operations, which run everywhere
VARLEN = "varlen"  # ours
ATTENTIONS = ("auto", *PLAIN, VARLEN, "flex", *FLASH)
LARGEST_HEAD = 256  # and a multiple of 8: what FlashAttention's kernels check (csrc/flash_attn/flash_api.cpp)


def attention_problems(config: TrainConfig) -> list[str]:
    """Everything wrong with ``model.attention``, alone and beside the rest of the configuration, one line each."""
    asked = config.model.attention
    found = one_of(config, "model.attention", ATTENTIONS)
    if found or asked in (*PLAIN, "auto"):
        return found
    if config.determinism != "D0":
        found.append(f"with determinism={config.determinism} it must be {' or '.join(PLAIN)}: others promise no bits")
    if config.engine.compile and asked in FLASH:
        found.append(f"has a kernel of its own, which engine.compile=true would cut out; take {PLAIN[0]}, or auto")
    found += flash_problems(asked, config.engine.precision, head_size(config.model.settings))
    return [f"model.attention={asked}: {line}" for line in found]


def flash_problems(kind: str, precision: str, size: int | None) -> list[str]:
    """Why FlashAttention cannot be had for heads of this size (None: not known yet); nothing, if ``kind`` is none."""
    if kind not in FLASH:
        return []
    found = []
    if not _installed(FLASH[kind]):
        found.append(
            f"the package {FLASH[kind]} is not installed here (hanse[gpu] brings flash-attn); take auto, flex or sdpa"
        )
    if precision == "fp32":
        found.append("computes in half precision only; set engine.precision=bf16 or fp16, or take flex or sdpa")
    if size is not None and (size % 8 or size > LARGEST_HEAD):
        found.append(f"heads of {size} are not among its sizes, multiples of 8 up to {LARGEST_HEAD}; take sdpa")
    return found


def head_size(settings: Mapping[str, Any]) -> int | None:
    """The size of a head by a model's settings, as ``transformers`` works it out; None: they do not say."""
    if size := settings.get("head_dim"):
        return int(size)
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


def for_reading(trained_with: str) -> str:
    """The back end that a model is asked with afterwards, in fp32 and on any machine."""
    return trained_with if trained_with in PLAIN else PLAIN[0]


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
