"""What fits: which ZeRO stage and micro-batch a number of GPUs would take, and why there may be none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.terminal import many
from train.engine_config import ZERO_STAGES
from train.memory import Layout, Memory, memory
from train.plan_subject import Subject
from train.tensor_config import STAGES as STAGES_OF_PARTS
from train.verb_config import PlanConfig

GB = 1e9


@dataclass(frozen=True)
class Choice:
    """The lowest ZeRO stage that fits at a number of ranks, with the largest micro-batch that does."""

    ranks: int
    stage: int
    micro_batch: int
    memory: Memory


def room(config: PlanConfig, memory_gb: float) -> float:
    """Bytes of a GPU that training may fill."""
    return memory_gb * GB * (1 - config.spare_memory)


def choose(subject: Subject, ranks: int, available: float) -> Choice | None:
    """The lowest stage that fits with one sequence, and the largest micro-batch that fits then and gives the batch.

    Not stage 0, which sends as much as stage 1 and leaves less room for a micro-batch: it is for who asks for it.
    Sequences are the longest of the run's stages, and the micro-batch divides the batches of all of them.
    """
    sizes = micro_batches(subject, ranks)
    for stage in filter(None, stages_of(subject)):
        fitting = [(size, need) for size in sizes if (need := needs(subject, ranks, stage, size)).total <= available]
        if fitting:
            return Choice(ranks, stage, *fitting[-1])
    return None


def stages_of(subject: Subject) -> tuple[int, ...]:
    """The ZeRO stages at which it can be trained."""
    engine = subject.config.engine
    if engine.only_at_three:
        return (3,)
    if engine.offload_optimizer != "none":
        return tuple(one for one in ZERO_STAGES if one)
    return tuple(one for one in ZERO_STAGES if engine.tensor_parallel == 1 or one in STAGES_OF_PARTS)


def micro_batches(subject: Subject, ranks: int) -> list[int]:
    """All micro-batches, ascending, that so many ranks can make the batches of every stage of; none where it is uneven.

    Ranks that share sequences or matrices are one.
    """
    shared = subject.config.engine.sharing
    if ranks % shared or ranks % subject.config.engine.hpz_partition_size or common_batch(subject) % (ranks // shared):
        return []
    each = common_batch(subject) // (ranks // shared)
    return [size for size in range(1, each + 1) if each % size == 0]


def common_batch(subject: Subject) -> int:
    """What divides the batches of all stages, in sequences."""
    return math.gcd(*(stage.size for stage in subject.config.timeline))


def uneven(subject: Subject, nodes: int, gpus_per_node: int) -> str | None:
    """Why steps cannot be shared out among the GPUs of so many nodes, and what would do; None: they can."""
    ranks, engine = nodes * gpus_per_node, subject.config.engine
    shared, key = engine.sharing, "tensor_parallel" if engine.tensor_parallel > 1 else "sequence_parallel"
    if micro_batches(subject, ranks):
        return None
    advice = []
    if ranks % shared:
        why = f"train.engine.{key}={shared} does not divide them"
    elif ranks % engine.hpz_partition_size:
        why = f"train.engine.hpz_partition_size={engine.hpz_partition_size} does not divide them"
    else:
        groups = ranks // shared
        sizes = [size for size in dict.fromkeys(stage.size for stage in subject.config.timeline) if size % groups]
        by = f", {shared} GPUs sharing each" if shared > 1 else ""
        why = f"steps of {' and '.join(f'{size:,}' for size in sizes)} sequences do not divide among them{by}"
        advice = [f"global_batch_size={below} or {below + groups}" if (below := size // groups * groups) else
                  f"global_batch_size={groups}" for size in sizes]  # fmt: skip
    if others := _even_nodes(subject, nodes, gpus_per_node):
        advice.append(f"nodes={' or '.join(map(str, others))}")
    what = "; ".join(advice) or "another number of GPUs"
    return f"{many(nodes, 'node')}, {many(ranks, 'GPU')}: {why}; what would do: {what}"


def _even_nodes(subject: Subject, nodes: int, gpus_per_node: int) -> list[int]:
    """The nearest numbers of nodes, below and above, whose GPUs share the steps out evenly."""
    most = common_batch(subject) * subject.config.engine.sharing // gpus_per_node
    even = [one for one in range(1, most + 1) if micro_batches(subject, one * gpus_per_node)]
    return [*[one for one in even if one < nodes][-1:], *[one for one in even if one > nodes][:1]]


def needs(subject: Subject, ranks: int, stage: int, micro_batch: int) -> Memory:
    """Memory of one GPU."""
    return memory(subject.held, subject.activations, layout_of(subject, ranks, stage), micro_batch)


def layout_of(subject: Subject, ranks: int, stage: int) -> Layout:
    """How the states of what is to be trained would be shared out."""
    engine = subject.config.engine
    determinism = subject.config.determinism
    accumulated, _ = engine.sums(subject.precision, determinism)
    holders = ranks // engine.tensor_parallel  # of the same parts
    return Layout(holders, stage, subject.precision, accumulated=accumulated, exact=determinism == "D2",
                  largest=subject.largest, kind=subject.config.optimizer.kind, optimizer_bytes=subject.optimizer_bytes,
                  again_in=engine.hpz_partition_size if engine.hpz_partition_size > 1 else 0,
                  offloaded=tuple(what for what in engine.offloaded if what == "optimizer" or stage == 3))  # fmt: skip
