"""Values that somebody set and that nothing reads, because of others: told to whoever starts a run.

They make no run wrong, so they are no ``problems()``: what a stranger's run or an older one was started with is read
as it is. They do mislead a person, who set ``optimizer.momentum`` and trains with AdamW. That a value was set can be
seen only where it is not the default.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from train.config_rules import value_of
from train.engine_config import OF_KIND
from train.stages import countable

if TYPE_CHECKING:
    from train.config import TrainConfig


def without_effect(config: TrainConfig) -> list[str]:
    """A line for each value that is not the default and has no effect beside the others."""
    found = []
    for kind, keys in OF_KIND.items():
        if kind != config.optimizer.kind:
            found += _set(config, f"optimizer.kind={config.optimizer.kind} does not have it; {kind} does",
                          *(f"optimizer.{key}" for key in keys))  # fmt: skip
    if not config.init_tokenizer:
        found += _set(config, "no embeddings are made anew without init_tokenizer", "init_embeddings")
    if config.init_from:
        fresh_rows = config.init_tokenizer and config.init_embeddings == "random"
        found += _set(config, "all weights are those of init_from", "model.init.residual",
                      *([] if fresh_rows else ["model.init.std"]))  # fmt: skip
    if config.engine.precision in ("bf16", "fp32"):
        found += _set(config, f"no loss is scaled in engine.precision={config.engine.precision}; fp16 does",
                      *(f"engine.fp16.{one.name}" for one in fields(config.engine.fp16)))  # fmt: skip
    if not config.ema.decay:
        found += _set(config, "no average is kept; set ema.decay, e.g. 0.999", "ema.every_steps", "ema.warmup")
    if not config.evaluate.tasks:
        found += _set(config, "evaluate.tasks names none", "evaluate.items_per_language")
    return [*found, *_data_without_effect(config), *_best_without_choice(config)]


def _set(config: Any, why: str, *keys: str) -> list[str]:
    """A line for each of these dotted keys whose value is not its default."""
    found = []
    for key in keys:
        group, _, name = key.rpartition(".")
        owner = value_of(config, group) if group else config
        default = next(one.default for one in fields(owner) if one.name == name)
        if (value := getattr(owner, name)) != default:
            found.append(f"{key}={value}: has no effect here: {why}")
    return found


def _data_without_effect(config: TrainConfig) -> list[str]:
    """Numbers of a rule of the mixture that no stage follows."""
    rules = {config.data.mixture_rule, *(stage.data.mixture_rule for stage in config.stages)}
    found = []
    for key, rule in (("temperature", "temperature"), ("max_epochs", "unimax")):
        if rule in rules:
            continue
        why = f"data.mixture_rule={rule} has it, and is asked for nowhere"
        found += _set(config, why, f"data.{key}")
        found += [f"stages.{number}.data.{key}={value}: has no effect here: {why}"
                  for number, stage in enumerate(config.stages)
                  if (value := getattr(stage.data, key)) is not None]  # fmt: skip
    return found


def _best_without_choice(config: TrainConfig) -> list[str]:
    """``checkpoint.keep_best`` chooses among checkpoints of steps that were evaluated: are there more than it keeps?"""
    best, saved, evaluated = config.checkpoint.keep_best, config.checkpoint.every_steps, config.evaluate.every_steps
    if not best or saved < 1 or evaluated < 1 or not countable(config) or not config.steps:  # others say so
        return []
    both, steps = math.lcm(saved, evaluated), config.steps
    candidates = steps // both + (steps % both != 0)  # the last step is saved and evaluated in any case
    if both == saved or candidates > best:
        return []
    return [f"checkpoint.keep_best={best}: has no choice: of all checkpoints only {candidates} will be of a step that "
            f"is evaluated; let evaluate.every_steps={evaluated} divide checkpoint.every_steps={saved}"]  # fmt: skip
