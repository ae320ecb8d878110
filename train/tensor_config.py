"""Tensor parallelism: what ``engine.tensor_parallel`` asks of the rest of a configuration, and of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.config_rules import divides_ranks
from train.init_config import FROM_CHECKPOINT

if TYPE_CHECKING:
    from train.config import TrainConfig

# transformers' model types whose matrices DeepSpeed's AutoTP cuts rightly by their names; tests hold it for each.
CUTTABLE = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
STAGES = (1, 2)  # of ZeRO
SUMMED = r".*\.(q_norm|k_norm)\.weight$"  # whole on each rank, and seen by its own heads only: gradients are summed
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")  # of a model: cut into equal parts


def tensor_problems(config: TrainConfig) -> list[str]:
    """Everything wrong with ``engine.tensor_parallel``, alone and beside the rest, one line each."""
    engine = config.engine
    size = engine.tensor_parallel
    here = f"engine.tensor_parallel={size}: "
    if size < 1:
        return [f"{here}must be 1 or more"]
    if size == 1:
        return []
    found = divides_ranks("engine.tensor_parallel", size, config.ranks_of_start)
    untested = {
        f"engine.zero_stage={engine.zero_stage}": (engine.zero_stage not in STAGES, "set 1 or 2"),
        f"engine.sequence_parallel={engine.sequence_parallel}": (engine.sequence_parallel > 1, "one of them must be 1"),
        f"engine.precision={engine.precision}": (engine.precision == "fp16", "take bf16"),
        f"engine.offload_optimizer={engine.offload_optimizer}": (engine.offload_optimizer != "none", "set none"),
        "engine.compile=true": (bool(engine.compile), "leave it out"),
        f"optimizer.kind={config.optimizer.kind}": (config.optimizer.kind == "muon", "take adamw or ademamix"),
        f"determinism={config.determinism}": (config.determinism != "D0", "set D0"),
    }
    found += [f"{here}not with {what}, {advice}" for what, (wrong, advice) in untested.items() if wrong]
    if config.model.architecture == FROM_CHECKPOINT:
        return found  # its model is not known yet
    return found + model_problems(size, config.model.architecture, config.model.settings)


def model_problems(size: int, architecture: str, settings: Mapping[str, Any]) -> list[str]:
    """The same of a model, as far as its settings tell.

    Args:
        size: ranks that share matrices.
        architecture: of ``transformers``.
        settings: those of a configuration file, or all of them.
    """
    here, found = f"engine.tensor_parallel={size}: ", []
    if architecture not in CUTTABLE:
        found.append(f"{here}is known to be right for {', '.join(CUTTABLE)}; in {architecture} what is cut may meet "
                     "what is not")  # fmt: skip
    found += [f"{here}must divide the model's {key}={settings[key]}" for key in DIVIDED
              if settings.get(key) and int(settings[key]) % size]  # fmt: skip
    return found
