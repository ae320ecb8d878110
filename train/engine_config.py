"""Engine, optimizer, loss and average of weights: what may be configured, and what does not go together.

Imports nothing heavy. Meanings, units and defaults stand in ``configs/train.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from train.config_rules import at_least, divides_ranks, one_of
from train.fp16_config import Fp16Config

if TYPE_CHECKING:
    from train.config import TrainConfig

ZERO_STAGES = (0, 1, 2, 3)
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
SUM_TYPES = ("auto", "fp32", "bf16", "fp16")
PLACES = ("none", "cpu", "nvme")
HOST_ADAMW = ("torch", "deepspeed")
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon (AdamW for embeddings and vectors)", "ademamix": "AdEMAMix"}
OF_ALL = ("learning_rate", "betas", "epsilon", "weight_decay", "gradient_clipping")
OF_KIND = {"adamw": (), "muon": ("momentum",), "ademamix": ("slow_beta", "slow_weight", "slow_warmup_steps")}


@dataclass
class OptimizerConfig:
    """Which optimizer, and its numbers (:mod:`train.optimizers` has the sources)."""

    kind: str = "adamw"
    learning_rate: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = (
        True  # of a run whose config.yaml is older than the key; configs/train.yaml has the default
    )
    gradient_clipping: float = 1.0
    momentum: float = 0.95
    slow_beta: float = 0.9999
    slow_weight: float = 5.0
    slow_warmup_steps: int = 0

    @property
    def title(self) -> str:
        """Its name for people."""
        return OPTIMIZERS[self.kind]

    def facts(self) -> dict[str, Any]:
        """Its name and the numbers that it uses."""
        return {"name": self.title, **{key: getattr(self, key) for key in (*OF_ALL, *OF_KIND[self.kind])}}

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        keys = ("weight_decay", "gradient_clipping", "epsilon", "slow_weight", "slow_warmup_steps")
        found = [f"optimizer.{line}" for line in (*one_of(self, "kind", tuple(OPTIMIZERS)), *at_least(self, 0, *keys))]
        if not self.learning_rate > 0:
            found.append(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"optimizer.betas={self.betas}: two numbers in [0, 1), e.g. [0.9, 0.95]")
        for key in ("momentum", "slow_beta"):
            if not 0 <= getattr(self, key) < 1:
                found.append(f"optimizer.{key}={getattr(self, key)}: must be in [0, 1)")
        if self.kind == "ademamix" and len(self.betas) == 2 and not 0 < self.betas[0] <= self.slow_beta:
            found.append(f"optimizer.slow_beta={self.slow_beta}: must not be below betas[0]={self.betas[0]}, and that "
                         "must be above 0: the slow mean starts as the fast one")  # fmt: skip
        return found


@dataclass
class LossConfig:
    """What is minimised besides the cross-entropy."""

    z_weight: float = 0.0

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [f"loss.{line}" for line in at_least(self, 0, "z_weight")]


@dataclass
class AverageConfig:
    """An exponential moving average of the weights, of which ``1 - decay`` is renewed every ``every_steps``."""

    decay: float = 0.0
    warmup: bool = True
    every_steps: int = 1

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [f"ema.{line}" for line in at_least(self, 1, "every_steps")]
        if not 0 <= self.decay < 1:
            found.append(f"ema.decay={self.decay}: must be in [0, 1), e.g. 0.999; 0: no average is kept")
        return found

    def decay_after(self, taken: int) -> float:
        """The share of the average that stays when weights are taken in after ``taken`` others: none at first.

        With ``warmup`` a short run's average is of its own length: ``(1 + n) / (10 + n)`` until that reaches ``decay``
        (TensorFlow's ``ExponentialMovingAverage`` has this formula for ``num_updates``).
        """
        if taken == 0:
            return 0.0
        return min(self.decay, (1 + taken) / (10 + taken)) if self.warmup else self.decay


@dataclass
class EngineConfig:
    """DeepSpeed ZeRO (Rajbhandari et al., arXiv 1910.02054)."""

    zero_stage: int = 1
    precision: str = "auto"
    fp16: Fp16Config = field(default_factory=Fp16Config)
    gradient_accumulation: str = "auto"
    communication: str = "auto"
    recompute_every_layers: int = 0
    compile: bool | None = None
    offload_optimizer: str = "none"
    offload_adamw: str = "torch"
    offload_parameters: str = "none"
    nvme_path: str | None = None
    hpz_partition_size: int = 1
    quantized_weights: bool = False
    quantized_gradients: bool = False
    sequence_parallel: int = 1
    tensor_parallel: int = 1

    def problems(self, config: TrainConfig) -> list[str]:
        """Everything wrong with the values, alone and beside the rest of the configuration, one line each."""
        found = [f"engine.{line}" for line in (
            *one_of(self, "zero_stage", ZERO_STAGES), *one_of(self, "precision", PRECISIONS),
            *one_of(self, "gradient_accumulation", SUM_TYPES), *one_of(self, "communication", SUM_TYPES),
            *one_of(self, "offload_optimizer", PLACES), *one_of(self, "offload_parameters", PLACES),
            *one_of(self, "offload_adamw", HOST_ADAMW),
            *at_least(self, 0, "recompute_every_layers"), *at_least(self, 1, "hpz_partition_size"),
        )]  # fmt: skip
        if config.determinism != "D0" and self.precision == "auto":
            found.append(f"engine.precision=auto: with determinism={config.determinism} it must be set (bf16, fp16 or "
                         "fp32), not measured")  # fmt: skip
        if self.compile and config.determinism == "D2":
            found.append("engine.compile=true: fuses operations as the layout suggests, which determinism=D2 excludes")
        if self.compile and self.zero_stage == 3:
            found.append("engine.compile=true: ZeRO 3 gathers weights in between what would be compiled; set "
                         "engine.zero_stage=2")  # fmt: skip
        for key in ("gradient_accumulation", "communication"):
            asked = getattr(self, key)
            if asked in ("bf16", "fp16") and asked != self.precision and (self.precision, asked) != ("auto", "bf16"):
                found.append(f"engine.{key}={asked}: gradients of engine.precision={self.precision} are not summed in "
                             f"{asked}; leave it auto")  # fmt: skip
            if config.determinism == "D2" and getattr(self, key) != "auto":
                found.append(f"engine.{key}={getattr(self, key)}: with determinism=D2 gradients are summed as "
                             "integers; leave it auto")  # fmt: skip
        return [*found, *self.fp16.problems(config), *self._offload_problems(config), *self._zeropp_problems(config)]

    def _offload_problems(self, config: TrainConfig) -> list[str]:
        found = []
        if self.offload_optimizer != "none":
            here, exact = f"engine.offload_optimizer={self.offload_optimizer}", config.determinism == "D2"
            found += [f"{here}: {why}" for wrong, why in (
                (self.zero_stage == 0, "saves memory, as sharing states out does; set engine.zero_stage=1 or more"),
                (exact, "not with determinism=D2, which hands its sums to an optimizer beside the weights"),
                (config.optimizer.kind == "muon",
                 "not with optimizer.kind=muon, whose products want the GPU; take adamw or ademamix"),
                (config.guards.layer_norms_every_steps,
                 "not with guards.layer_norms_every_steps, which reads gradients beside the weights"),
            ) if wrong]  # fmt: skip
        if self.offload_adamw == "deepspeed":
            here = "engine.offload_adamw=deepspeed"
            if self.offload_optimizer == "none":
                found.append(f"{here}: updates states in host memory; set engine.offload_optimizer=cpu, or take torch")
            if config.optimizer.kind != "adamw":
                found.append(f"{here}: is AdamW, not optimizer.kind={config.optimizer.kind}; take torch")
        if self.offload_optimizer == "nvme":
            here = "engine.offload_optimizer=nvme"
            if self.zero_stage != 3:
                found.append(f"{here}: only ZeRO 3 has it; set engine.zero_stage=3, or take cpu")
            if config.ema.decay:
                found.append(f"{here}: not with ema.decay, whose average wants all weights back at every update")
            if config.state_hash_every_steps:
                found.append(f"{here}: not with state_hash_every_steps, which wants all states at once; set it to 0")
        if self.offload_parameters != "none":
            here = f"engine.offload_parameters={self.offload_parameters}"
            if self.zero_stage != 3:
                found.append(f"{here}: only ZeRO 3 shares out parameters; set engine.zero_stage=3")
            if self.offload_optimizer == "none":
                found.append(f"{here}: wants the optimizer there too; set engine.offload_optimizer=cpu")
        if ("nvme" in (self.offload_optimizer, self.offload_parameters)) != (self.nvme_path is not None):
            found.append(f"engine.nvme_path={self.nvme_path}: a folder on a local disk, where "
                         "engine.offload_optimizer or offload_parameters is nvme, and null otherwise")  # fmt: skip
        return found

    def _zeropp_problems(self, config: TrainConfig) -> list[str]:
        asked = {"hpz_partition_size": self.hpz_partition_size > 1, "quantized_weights": self.quantized_weights,
                 "quantized_gradients": self.quantized_gradients}  # fmt: skip
        found = []
        for key in (key for key, wanted in asked.items() if wanted):
            here = f"engine.{key}={getattr(self, key)}"
            if self.zero_stage != 3:
                found.append(f"{here}: part of ZeRO++, which is for engine.zero_stage=3")
            if key != "hpz_partition_size" and config.determinism == "D2":
                found.append(f"{here}: rounds what travels, which determinism=D2 excludes")
            if self.offload_parameters != "none":
                found.append(f"{here}: not with engine.offload_parameters={self.offload_parameters}")
        # DeepSpeed 0.19 hands its kernel (ops/csrc/quantization) gradients of any type as if their bits were fp16.
        if self.quantized_gradients and self.sums(self.precision, config.determinism)[1] != "fp16":
            found.append("engine.quantized_gradients=True: DeepSpeed takes gradients that travel for fp16, whatever "
                         "they are; set engine.precision=fp16 engine.communication=fp16, or leave it out")  # fmt: skip
        if asked["hpz_partition_size"]:
            wrong = divides_ranks("engine.hpz_partition_size", self.hpz_partition_size, config.ranks_of_start)
            found += [f"{line}; it is the number of GPUs of a node" for line in wrong]
        return found

    @property
    def only_at_three(self) -> bool:
        """Whether anything is asked for that ZeRO has at stage 3 alone: ZeRO++, or parts of the states elsewhere."""
        zero_plus_plus = self.hpz_partition_size > 1 or self.quantized_weights or self.quantized_gradients
        return zero_plus_plus or self.offload_parameters != "none" or self.offload_optimizer == "nvme"

    @property
    def sharing(self) -> int:
        """Ranks side by side that read the same samples: those that share sequences, or matrices."""
        return self.sequence_parallel * self.tensor_parallel

    @property
    def offloaded(self) -> tuple[str, ...]:
        """Which states lie beside no GPU: ``optimizer``, ``weights``."""
        places = {"optimizer": self.offload_optimizer, "weights": self.offload_parameters}
        return tuple(what for what, place in places.items() if place != "none")

    def sums(self, precision: str, determinism: str) -> tuple[str, str]:
        """(type that gradients are accumulated in, type that they travel in) of a run in ``precision``.

        ``auto`` is fp32, and what travels is as what is accumulated. At D2 the engine has nothing to sum. bf16 that was
        asked for is fp32 where ``precision`` was chosen and is fp16.
        """
        if determinism == "D2" or precision == "fp32":
            return precision, precision
        known = (precision, "fp32")
        accumulated = self.gradient_accumulation if self.gradient_accumulation in known else "fp32"
        return accumulated, self.communication if self.communication in known else accumulated
