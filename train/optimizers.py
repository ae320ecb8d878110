"""The optimizers: which parameters each steps, what it keeps of them, and its step on ZeRO's flat fp32 tensors.

    adamw     Loshchilov and Hutter, arXiv 1711.05101; torch's fused one
    ademamix  Pagliardini et al., arXiv 2409.03137: AdamW with a second, slow mean of the gradient, as Apertus took
    muon      Jordan et al., kellerjordan.github.io/posts/muon; scaled as in arXiv 2502.16982: :mod:`train.muon`

In host memory AdamW may be DeepSpeed's CPUAdam (Ren et al., ZeRO-Offload, arXiv 2101.06840), a fused kernel, too.

ZeRO hands an optimizer one tensor a group of parameters, flat, of which this rank owns a share. To the first two, which
go element by element, that makes no difference; Muon brings the matrices together again.

Those written out here use only operations that round once (plain products, sums, quotients and roots are exact to the
last bit by IEEE 754, wherever they are computed). Multiplying and adding in one go rounds once or twice, depending on
whether an element lies in a vector register or in the remainder of a loop, and so on where the layout cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from train.config import TrainConfig
from train.engine_config import OptimizerConfig
from train.parametrisation import rate_factors, split_by_rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
SLOW = "exp_avg_slow"
ALL_MOMENTS = (*MOMENTS, SLOW)  # whatever any optimizer keeps


@dataclass(frozen=True)
class Group:
    """Parameters that are stepped alike.

    Attributes:
        parameters: {name in the model: parameter}, in the model's order.
        method: a key of :data:`STEPS`; ``moments``: what it keeps of each of them.
        decays: whether weight decay shrinks them.
    """

    parameters: dict[str, nn.Parameter]
    method: str
    moments: tuple[str, ...]
    decays: bool


def groups_of(model: PreTrainedModel, kind: str, *, decay_embeddings: bool = True) -> list[Group]:
    """How an optimizer treats a model's parameters. Vectors (norms, biases) are never shrunk.

    Nor are embeddings, with ``decay_embeddings=False``, one that is the head's matrix too among them: the smaller they
    get, the larger are the gradients of the layers above (OLMo 2, arXiv 2501.00656; Takase et al., arXiv 2312.16903),
    and of a token that does not occur decay is all that changes the row.

    Muon is for the matrices between the embeddings; these and all that is no matrix are AdamW's.
    """
    named = dict(model.named_parameters())
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    kept = {name: one for name, one in named.items()
            if one.dim() < 2 or (id(one) in embeddings and not decay_embeddings)}  # fmt: skip
    matrices = {name: one for name, one in named.items() if name not in kept}
    if kind == "muon":
        ends = {*embeddings, id(cast(Any, model.get_output_embeddings()).weight)}
        hidden = {name: one for name, one in matrices.items() if one.dim() == 2 and id(one) not in ends}
        rest = {name: one for name, one in matrices.items() if name not in hidden}
        found = [Group(hidden, "muon", MOMENTS[:1], True), Group(rest, "adamw", MOMENTS, True),
                 Group(kept, "adamw", MOMENTS, False)]  # fmt: skip
    else:
        moments = (*MOMENTS, SLOW) if kind == "ademamix" else MOMENTS
        found = [Group(matrices, kind, moments, True), Group(kept, kind, moments, False)]
    return [group for group in found if group.parameters]


def moments_of(model: PreTrainedModel, kind: str) -> dict[str, tuple[str, ...]]:
    """{parameter: what the optimizer keeps of it}, in the model's order."""
    found = {name: group.moments for group in groups_of(model, kind) for name in group.parameters}
    return {name: found[name] for name, _ in model.named_parameters()}


def bytes_per_parameter(model: PreTrainedModel, config: TrainConfig) -> float:
    """Of fp32 masters, moments and, where it is kept, the average of the weights; the mean over the parameters."""
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    moments = moments_of(model, config.optimizer.kind)
    kept = sum(4 * size * len(moments[name]) for name, size in sizes.items())
    return (4 + 4 * (config.ema.decay > 0)) + kept / sum(sizes.values())


def build(config: TrainConfig, model: PreTrainedModel) -> torch.optim.Optimizer:
    """The optimizer as DeepSpeed takes it: over the model's own parameters, which ZeRO then replaces by flat ones."""
    settings, host = config.optimizer, config.engine.offload_adamw == "deepspeed"
    plain: list[dict[str, Any]] = [
        {"params": list(group.parameters.values()), "weight_decay": settings.weight_decay if group.decays else 0.0,
         "method": "cpu_adam" if host else group.method, "moments": group.moments}
        for group in groups_of(model, settings.kind, decay_embeddings=settings.decay_embeddings)
    ]  # fmt: skip
    groups = split_by_rate(plain, rate_factors(config.model.init, model))
    if settings.kind == "adamw" and config.determinism != "D2" and not host:
        betas = (settings.betas[0], settings.betas[1])
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon, fused=True)
    return Stepper(groups, settings, steps=config.steps)


class Stepper(torch.optim.Optimizer):
    """Steps every group by its own method. The state of each tensor is made by the engine, before the first step.

    Args:
        groups: as of torch, each with its ``method``.
        settings: the numbers of all methods.
        steps: of the whole run, which AdEMAMix warms up over.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: OptimizerConfig, steps: int = 1):
        super().__init__(groups, {"lr": settings.learning_rate, "weight_decay": 0.0})
        self.settings, self.steps = settings, steps
        self.muon: Callable[[Tensor, Tensor], Tensor] | None = None  # train/muon.py; set when ZeRO has cut

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for weights, group in self._due():
            state = self.state[weights]
            state["step"] += 1
            STEPS[group["method"]](self, weights, weights.grad, state, group)

    def _due(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    yield weights, group


def adamw(of: Stepper, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """A step of AdamW."""
    rate, (first, _) = group["lr"], of.settings.betas
    count, mean = int(state["step"]), state["exp_avg"]
    mean.mul_(first).add_(gradient * (1 - first))
    scale = _scale(of, gradient, state)
    weights.mul_(1 - rate * group["weight_decay"])
    weights.sub_((mean / scale).mul_(rate / (1 - first**count)))


def cpu_adam(of: Stepper, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """The same by DeepSpeed's kernel, in place, on the threads of OpenMP. All four tensors: fp32, in host memory.

    It is told the corrections of means within the rate, epsilon and decay, in double precision. Its own are products
    of all steps that a process has made, so a run that goes on would round otherwise than one that never stopped.
    """
    (first, second), rate, count = of.settings.betas, group["lr"], int(state["step"])
    root = math.sqrt(1 - second**count)
    scaled = rate * root / (1 - first**count)  # of the mean over the root of the mean of squares, neither corrected
    decay = rate * group["weight_decay"] / scaled if scaled else 0.0
    kernel, number = host_kernel()
    kernel.adam_update(number, count, scaled, first, second, of.settings.epsilon * root, decay, False,
                       weights.data, gradient.float().contiguous(), state["exp_avg"], state["exp_avg_sq"])  # fmt: skip


@cache
def host_kernel() -> tuple[Any, int]:
    """(DeepSpeed's module, the number of its AdamW for this process); compiled before, by :mod:`train.ops`.

    All numbers of a step are told at the step, so that one serves all parameters.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    kernel, number = CPUAdamBuilder().load(verbose=False), DeepSpeedCPUAdam.optimizer_id
    DeepSpeedCPUAdam.optimizer_id += 1
    kernel.create_adam(number, 0.0, 0.0, 0.0, 0.0, 0.0, True, False)  # True: AdamW; False: says nothing
    return kernel, number


def ademamix(of: Stepper, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """A step of AdEMAMix: the slow mean is added to AdamW's, and is not corrected for its start at 0."""
    rate, (first, _), count = group["lr"], of.settings.betas, int(state["step"])
    slow_beta, weight = mixed(count, of.settings, of.steps)
    fast, slow = state["exp_avg"], state[SLOW]
    fast.mul_(first).add_(gradient * (1 - first))
    slow.mul_(slow_beta).add_(gradient * (1 - slow_beta))
    scale = _scale(of, gradient, state)
    weights.mul_(1 - rate * group["weight_decay"])
    weights.sub_((fast / (1 - first**count)).add_(slow * weight).div_(scale).mul_(rate))


def _scale(of: Stepper, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
    """What a step is divided by: the root of the mean of squares, corrected for its start at 0, and epsilon."""
    second, square = of.settings.betas[1], state["exp_avg_sq"]
    square.mul_(second).add_(gradient.square().mul_(1 - second))
    return square.sqrt().div_(math.sqrt(1 - second ** int(state["step"]))).add_(of.settings.epsilon)


def mixed(step: int, settings: OptimizerConfig, steps: int) -> tuple[float, float]:
    """(decay, weight) of AdEMAMix' slow mean in a step, from 1 on: both grow over the warm-up (section 3 there).

    The weight grows linearly; the decay from ``betas[0]`` so that the half-life of the mean does.
    """
    share = min(1.0, step / (settings.slow_warmup_steps or steps))
    begin, end = math.log(settings.betas[0]), math.log(settings.slow_beta)
    decay = math.exp(begin * end / ((1 - share) * end + share * begin))
    return min(decay, settings.slow_beta), share * settings.slow_weight


def muon(of: Stepper, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """A step of Muon: the mean of the gradient with Nesterov's look ahead, each matrix made orthogonal."""
    assert of.muon is not None, "the engine tells how the matrices are cut"
    decay, mean = of.settings.momentum, state["exp_avg"]
    fresh = gradient * (1 - decay)
    mean.mul_(decay).add_(fresh)
    update = of.muon(weights, fresh.add_(mean * decay))
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    weights.sub_(update.mul_(group["lr"]))


STEPS = {"adamw": adamw, "cpu_adam": cpu_adam, "ademamix": ademamix, "muon": muon}
