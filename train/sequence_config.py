"""Sequence parallelism: what ``engine.sequence_parallel`` asks of the rest of a configuration, and of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.config_rules import divides_ranks
from train.init_config import FROM_CHECKPOINT

if TYPE_CHECKING:
    from train.config import TrainConfig

# transformers' model types in which positions meet nowhere but in causal attention, which transformers lets one
# replace, and tell of documents; tests hold it for each of these, one of them on two ranks.
SHAREABLE = ("apertus", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3")


def sequence_problems(config: TrainConfig) -> list[str]:
    """Everything wrong with ``engine.sequence_parallel``, alone and beside the rest, one line each."""
    size = config.engine.sequence_parallel
    here = f"engine.sequence_parallel={size}: "
    if size < 1:
        return [f"{here}must be 1 or more"]
    if size == 1:
        return []
    found = divides_ranks("engine.sequence_parallel", size, config.ranks_of_start)
    lengths = {"": config.data.sequence_length}
    lengths |= {f"stages.{number}.": one.data.sequence_length for number, one in enumerate(config.stages)
                if one.data.sequence_length}  # fmt: skip
    found += [f"{here}must divide {key}data.sequence_length={length}" for key, length in lengths.items()
              if length % size]  # fmt: skip
    if config.determinism == "D2":
        found.append(f"{here}not with determinism=D2: the gradient of a sequence in parts is rounded part by part")
    if config.model.attention == "eager":
        found.append(f"{here}not with model.attention=eager, which is part of the model's own code; take sdpa")
    if config.model.architecture == FROM_CHECKPOINT:
        return found  # its model is not known yet
    return found + model_problems(size, config.model.architecture, config.model.settings)


def model_problems(size: int, architecture: str, settings: Mapping[str, Any], longest: int = 0) -> list[str]:
    """The same of a model, as far as its settings tell.

    Args:
        size: ranks that share a sequence.
        architecture: of ``transformers``.
        settings: those of a configuration file, or all of them.
        longest: tokens of the longest sequence; 0: windows are not looked at.
    """
    here, found = f"engine.sequence_parallel={size}: ", []
    if architecture not in SHAREABLE:
        found.append(f"{here}is known to be right for {', '.join(SHAREABLE)}; in {architecture} positions may meet "
                     "outside attention")  # fmt: skip
    heads, shared = (settings.get(key) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads and int(heads) % size:
        found.append(f"{here}must divide the model's num_attention_heads={heads}")
    if shared and int(shared) % size and size % int(shared):
        found.append(f"{here}must divide the model's num_key_value_heads={shared}, or be a multiple of it")
    window = settings.get("sliding_window")
    if longest and window and int(window) < longest:
        found.append(f"{here}looks at whole documents, and the model has sliding_window={window}; set "
                     "model.settings.sliding_window=null")  # fmt: skip
    return found
