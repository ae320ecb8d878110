"""How long a plan takes: every stage of the run by its own batch and sequences, and their sum."""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.memory import VALUE_BYTES
from train.plan_fit import Choice
from train.plan_subject import Machine, Subject
from train.scaling import TURN_SECONDS, Work, efficiency, network
from train.stages import Stage
from train.verb_config import PlanConfig

Shares = tuple[float, float, float]  # of the time, not spent on communication: expected, at worst, at best


@dataclass(frozen=True)
class StageTime:
    """One stage of the run; ``name`` is "" in a run without stages."""

    name: str
    efficiency: Shares | None
    seconds: float


@dataclass(frozen=True)
class Timing:
    """A whole training on ``nodes``; energy in MWh, of GPUs and the rest of the nodes, without PUE and with it.

    ``efficiency``: share of the time that is not spent on communication, predicted, and its range; None: not known.
    """

    nodes: int
    ranks: int
    efficiency: Shares | None
    tokens_per_second: float
    seconds: float
    gpu_hours: float
    mwh: float
    facility_mwh: float | None
    stages: list[StageTime]


def timing(
    config: PlanConfig, subject: Subject, machine: Machine, mfu: float, *, nodes: int, choice: Choice | None
) -> Timing:
    """Time and energy; where the network is not known or nothing fits, as if more nodes lost nothing."""
    ranks, stages, alone = nodes * machine.gpus_per_node, list[StageTime](), list[float]()
    for stage in subject.config.timeline:
        alone.append(stage.tokens * subject.flops[stage.length] / (ranks * machine.gpu.bf16_flops * mfu))
        share = predicted(subject, machine, mfu, choice, stage) if choice else None
        stages.append(StageTime(stage.name, share, alone[-1] / (share[0] if share else 1)))
    shares = [one.efficiency for one in stages if one.efficiency]
    whole = _together(alone, shares) if shares else None
    seconds = sum(one.seconds for one in stages)
    mwh = seconds / 3600 * (ranks * machine.gpu.watts + nodes * config.node_watts) / 1e6
    return Timing(nodes, ranks, whole, subject.config.timeline.tokens(subject.config.steps) / seconds, seconds,
                  ranks * seconds / 3600, mwh, config.pue and mwh * config.pue, stages)  # fmt: skip


def _together(alone: list[float], shares: list[Shares]) -> Shares:
    """The share of the whole, of parts that take ``alone`` seconds where nothing is lost."""
    expected, worst, best = (
        sum(alone) / sum(seconds / share[which] for seconds, share in zip(alone, shares, strict=True))
        for which in range(3)
    )
    return expected, worst, best


def predicted(subject: Subject, machine: Machine, mfu: float, choice: Choice, stage: Stage) -> Shares | None:
    """What communication leaves of the time of a stage (train/scaling.py); None: the network is not known."""
    if machine.network_gbit is None:
        return None
    engine = subject.config.engine
    tokens = stage.length * choice.micro_batch  # of a micro-batch
    flops = subject.flops[stage.length] * tokens / engine.sharing
    work = Work(
        subject.held, subject.layers, choice.stage,
        stage.size // (choice.micro_batch * choice.ranks // engine.sharing),
        flops / (machine.gpu.bf16_flops * mfu), bool(engine.recompute_every_layers),
        VALUE_BYTES[subject.precision], sharing=engine.sharing, exchanged=subject.exchanged * tokens,
        messages=subject.messages, matrices=engine.tensor_parallel > 1,
    )  # fmt: skip
    expected, worst, best = (
        efficiency(work, choice.ranks, network(machine.name, machine.gpus_per_node, machine.network_gbit, turn))
        for turn in (math.sqrt(math.prod(TURN_SECONDS)), max(TURN_SECONDS), min(TURN_SECONDS))
    )
    return expected, worst, best
