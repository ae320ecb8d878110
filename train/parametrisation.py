"""What depends on a model's width and depth: how its fresh weights are drawn, and how fast each of them learns.

``std``: of fresh matrices. ``config``: the architecture's ``initializer_range``. ``small``: sqrt(2 / 5 hidden_size)
(Nguyen and Salazar, arXiv 1910.05895). ``fan_in``: 1 / sqrt(fan in), and of embeddings 1 / sqrt(hidden_size).

``residual=depth``: matrices that write into the residual stream start 1 / sqrt(2 layers) smaller, so that the stream's
size does not grow with depth (GPT-2; Megatron-LM's scaled_init_method_normal).

``mup_base_width``: the maximal update parametrisation (Yang et al., arXiv 2203.03466, table 8, Adam). With m times the
width of the base model, everything a step changes keeps its size, so that a learning rate found on the base model is
right for the wide one:

    matrices between the embeddings    fresh ones 1/sqrt(m) as large, learning rate 1/m
    output embedding, logits           1/m of what they would be
    attention logits                   q.k / d in place of q.k / sqrt(d), with head size d
    input embedding, norms             as they are

The two multipliers are no new code in a model: under Adam, which makes steps of the size of the learning rate whatever
the gradient's, multiplying a weight by c is to draw it c times as large and to let it learn c times as fast (Yang and
Hu, arXiv 2011.14522, the symmetry of abc-parametrisations). So logits are made small through an output embedding of its
own, or, where it is tied to the input, through the gain of the norm before it; attention through the query's matrix, or
its norm's gain. Any ``transformers`` model then stays what it is: export is an identity, and nothing has to be told to
whoever loads it. Weight decay is divided by the factor of the rate: what a step shrinks does not depend on width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from common.errors import HanseError
from train.init_config import InitConfig
from train.loss import PLAIN_HEADS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")  # names in transformers, of the families in PLAIN_HEADS


def scale_fresh(model: PreTrainedModel, init: InitConfig) -> None:
    """Give freshly drawn weights the sizes that ``init`` asks for; nothing is touched at its defaults.

    Raises:
        HanseError: the architecture's parts are not known by name.
    """
    factors = fresh_factors(model, init)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in factors:
                parameter.mul_(factors[name])


def fresh_factors(model: PreTrainedModel, init: InitConfig) -> dict[str, float]:
    """{parameter: what ``init`` multiplies it by, as ``transformers`` has drawn it}, where that is not 1.

    Raises:
        HanseError: the architecture's parts are not known by name.
    """
    if init == InitConfig():
        return {}
    _check(model, init)
    multipliers = _mup(model, init)
    factors = {name: multipliers.get(name, (1.0, 1.0))[0] * _drawn(model, name, parameter, init)
               for name, parameter in model.named_parameters()}  # fmt: skip
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def rate_factors(init: InitConfig, model: PreTrainedModel) -> dict[int, float]:
    """{id(parameter): factor of its learning rate}, where that is not 1; {} without muP."""
    if not init.mup_base_width:
        return {}
    _check(model, init)
    factors = _mup(model, init)
    return {id(one): factors[name][1] for name, one in model.named_parameters()
            if name in factors and factors[name][1] != 1.0}  # fmt: skip


def split_by_rate(groups: Iterable[dict[str, Any]], factors: Mapping[int, float]) -> list[dict[str, Any]]:
    """An optimizer's groups, cut so that each has one ``lr_factor``; the same groups where there are no factors."""
    groups = list(groups)
    if not factors:
        return groups
    found = []
    for group in groups:
        apart: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            apart.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        found += [{**group, "params": params, "lr_factor": factor, "weight_decay": group["weight_decay"] / factor}
                  for factor, params in apart.items()]  # fmt: skip
    return found


def _check(model: PreTrainedModel, init: InitConfig) -> None:
    kind = model.config.model_type
    if kind not in PLAIN_HEADS:
        raise HanseError(f"model.init: of {kind} it is not known which of its weights does what; known are "
                         f"{', '.join(sorted(PLAIN_HEADS))}")  # fmt: skip
    if init.residual == "depth" and not any(name.endswith(INTO_RESIDUAL) for name, _ in model.named_parameters()):
        raise HanseError(f"model.init.residual=depth: {kind} has no matrices of the names {', '.join(INTO_RESIDUAL)}")


def _drawn(model: PreTrainedModel, name: str, parameter: nn.Parameter, init: InitConfig) -> float:
    """What ``std`` and ``residual`` multiply a matrix by, as ``transformers`` has drawn it."""
    if parameter.dim() < 2:
        return 1.0
    config, factor = model.config, 1.0
    if init.std == "small":
        factor = math.sqrt(2 / (5 * config.hidden_size)) / config.initializer_range
    elif init.std == "fan_in":
        factor = 1 / math.sqrt(parameter.shape[-1]) / config.initializer_range
    if init.residual == "depth" and name.endswith(INTO_RESIDUAL):
        factor /= math.sqrt(2 * config.num_hidden_layers)
    return factor


def _mup(model: PreTrainedModel, init: InitConfig) -> dict[str, tuple[float, float]]:
    """{parameter: (factor of what is drawn, factor of the learning rate)}, but for those where both are 1."""
    if not init.mup_base_width:
        return {}
    config, untyped = model.config, cast(Any, model)
    wider = config.hidden_size / init.mup_base_width
    named = dict(model.named_parameters())
    embedding, head = untyped.get_input_embeddings().weight, untyped.get_output_embeddings().weight
    found = {}
    for name, parameter in named.items():
        if parameter is head and head is not embedding:
            found[name] = (1 / wider, 1 / wider)
        elif parameter.dim() >= 2 and parameter is not embedding:
            found[name] = (1 / math.sqrt(wider), 1 / wider)
    if head is embedding:
        last = next(name for name, one in named.items() if one is untyped.base_model.norm.weight)
        found[last] = (1 / wider, 1 / wider)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    flatter = math.sqrt((init.mup_base_head_size or head_size) / head_size)
    if flatter != 1.0:
        normed = any(name.endswith("q_norm.weight") for name in named)
        for name in named:
            if name.endswith("q_norm.weight" if normed else ("q_proj.weight", "q_proj.bias")):
                drawn, rate = found.get(name, (1.0, 1.0))
                found[name] = (drawn * flatter, rate * flatter)
    return {name: factors for name, factors in found.items() if factors != (1.0, 1.0)}
