"""``hanse plan``: what a training would need, before any GPU is asked for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import PretrainedConfig

from common.errors import ConfigError, HanseError
from common.files import read_json, write_json
from common.terminal import count, duration, next_step, say, table
from data_pipelines.shards import ShardsManifest
from launch.site import Queue
from launch.verb import configuration_of
from train.attention_config import PLAIN
from train.config import TrainConfig
from train.engine_config import ZERO_STAGES
from train.hardware import GPUS, Gpu, find_gpu
from train.memory import VALUE_BYTES, Activations, Layout, Memory, activations, memory, on_host
from train.mixture import Share
from train.model import flops_per_token, model_config, parameter_counts, shape_of_model
from train.optimizers import bytes_per_parameter
from train.plan_stages import StagePlan, plan_stages, show_stages, whole
from train.plan_stages import as_json as stages_as_json
from train.scaling import TURN_SECONDS, Work, efficiency, network
from train.verb_config import PlanConfig

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """The GPU that is planned for, and how many a node has."""

    name: str
    gpu: Gpu
    memory_gb: float
    gpus_per_node: int
    site: str
    network_gbit: float | None  # of a node


@dataclass(frozen=True)
class Subject:
    """What is to be trained; ``flops_per_token``: the mean of the run's stages; ``exchanged``: :func:`exchanged`."""

    config: TrainConfig
    vocabulary: int
    parameters: int
    layers: int
    flops_per_token: int
    activations: Activations
    exchanged: float
    precision: str
    optimizer_bytes: float  # a parameter: master, moments, average; what a checkpoint holds
    stages: list[StagePlan]
    shares: dict[str, Share]  # of each language; empty where there are no shards yet


@dataclass(frozen=True)
class Choice:
    """The lowest ZeRO stage that fits at a number of ranks, with the largest micro-batch that does."""

    ranks: int
    stage: int
    micro_batch: int
    memory: Memory


@dataclass(frozen=True)
class Timing:
    """A whole training on ``nodes``; energy in MWh, of GPUs and the rest of the nodes, without PUE and with it.

    ``efficiency``: share of the time that is not spent on communication, predicted, and its range; None: not known.
    """

    nodes: int
    ranks: int
    efficiency: tuple[float, float, float] | None
    tokens_per_second: float
    seconds: float
    gpu_hours: float
    mwh: float
    facility_mwh: float | None


@dataclass(frozen=True)
class Plan:
    """The answer: for each number of nodes what fits (None: nothing) and what it takes."""

    config: PlanConfig
    subject: Subject
    machine: Machine
    mfu: float
    mfu_is: str
    choices: dict[int, Choice | None]
    times: list[Timing]


def run(config: PlanConfig) -> None:
    """Work it out, show it, and say how to go on.

    Raises:
        HanseError: the training configuration is wrong, or the GPU is unknown.
    """
    subject, machine = describe(config), find_machine(config)
    mfu, why = share_of_peak(config, machine)
    ranks, available = {nodes: nodes * machine.gpus_per_node for nodes in config.nodes}, room(config, machine.memory_gb)
    choices = {nodes: choose(subject, ranks[nodes], available) for nodes in config.nodes}
    shares = {nodes: predicted(subject, machine, mfu, choice) for nodes, choice in choices.items()}
    times = [timing(config, subject, machine, mfu, nodes, share=share) for nodes, share in shares.items()]
    plan = Plan(config, subject, machine, mfu, why, choices, times)
    _show(plan)
    if config.output:
        write_json(Path(config.output), as_json(plan))
        say(f"written: {config.output}")
    nodes, best = next(((nodes, choice) for nodes, choice in plan.choices.items() if choice), (0, None))
    if best is None:
        next_step("more nodes, a GPU with more memory, train.engine.recompute_every_layers=1, a shorter "
                  "train.data.sequence_length, or a smaller train.model")  # fmt: skip
    else:
        next_step(f"hanse launch site={machine.site} nodes={nodes} train.engine.zero_stage={best.stage} "
                  f"train.batch.micro_batch_size={best.micro_batch} ...")  # fmt: skip


def describe(config: PlanConfig) -> Subject:
    """The training configuration and its model, whose shapes are looked at on the meta device."""
    found, wrong = configuration_of("train", config.train, "ranks=${engine.sequence_parallel}")
    if found is None or wrong:
        raise ConfigError(wrong)
    train = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), found))
    assert isinstance(train, TrainConfig)
    shards = Path(train.data.shards)
    there = (shards / "manifest.json").is_file()
    manifest = ShardsManifest.read(shards) if there else None
    vocabulary = manifest.vocabulary_size if manifest else train.model.vocabulary_size
    longest = max(stage.length for stage in train.timeline)
    shape = model_config(train.model, vocabulary, longest)
    model = shape_of_model(shape)
    stages, taken = plan_stages(train, manifest), train.timeline.taken(train.steps)
    flops = sum(flops_per_token(model, stage.length) * tokens for stage, tokens in taken)
    precision = "bf16" if train.engine.precision == "auto" else train.engine.precision
    masked = (*PLAIN, "auto") if precision == "fp32" or train.determinism != "D0" else PLAIN
    return Subject(
        train, shape.vocab_size, parameter_counts(model)[0], shape.num_hidden_layers,
        flops // train.timeline.tokens(train.steps),
        activations(shape, longest, precision, train.engine.recompute_every_layers, train.engine.sequence_parallel,
                    masked=train.model.attention in masked),
        exchanged(shape, train, precision), precision,
        bytes_per_parameter(model, train), stages, whole(stages, train, manifest) if manifest else {},
    )  # fmt: skip


def find_machine(config: PlanConfig) -> Machine:
    """The GPU that was asked for, or that of the site's usual queue.

    Raises:
        HanseError: the peak of the site's GPU is not known, or it has none.
    """
    site = config.site
    queue = site.queues.get(site.queue or "") or Queue()
    name = config.gpu or site.node.gpu or (None if site.node.gpus == 0 else "H100")
    found = find_gpu(name)
    if found is None:
        raise HanseError(f"site={site.name}: the peak of its GPU ({name or 'none'}) is not known here; say gpu=... "
                         f"({', '.join(GPUS)})")  # fmt: skip
    of_site = None if config.gpu else queue.gpu_memory_gb or site.node.gpu_memory_gb
    return Machine(found[0], found[1], config.gpu_memory_gb or of_site or found[1].memory_gb[0],
                   config.gpus_per_node or queue.gpus or site.node.gpus or 4, site.name,
                   config.network_gbit or site.node.network_gbit)  # fmt: skip


def share_of_peak(config: PlanConfig, machine: Machine) -> tuple[float, str]:
    """The share of the GPU's bf16 peak that training reaches, and how it is known.

    Raises:
        HanseError: the run that is to tell has not ended, or was trained before summaries told it.
    """
    if config.measured_in is None:
        return config.mfu, "assumed"
    path = Path(config.measured_in) / "summary.json"
    summary = read_json(path, "summary of a run")
    if "flops_per_token" not in summary:
        raise HanseError(f"{path}: does not say flops_per_token (an older run); give its share of the peak: mfu=...")
    rate = summary["tokens_per_second"] * summary["flops_per_token"] / summary["ranks"]
    return rate / machine.gpu.bf16_flops, f"measured in {config.measured_in}"


def room(config: PlanConfig, memory_gb: float) -> float:
    """Bytes of a GPU that training may fill."""
    return memory_gb * GB * (1 - config.spare_memory)


def choose(subject: Subject, ranks: int, available: float) -> Choice | None:
    """The lowest stage that fits with one sequence, and the largest micro-batch that fits then and gives the batch.

    Sequences are the longest of the run's stages, and the micro-batch divides the batches of all of them.
    """
    batches, shared = [stage.size for stage in subject.config.timeline], subject.config.engine.sequence_parallel
    if ranks % shared:
        return None
    units = range(ranks // shared, min(batches) + 1, ranks // shared)  # sequences that all ranks run at once
    sizes = [unit * shared // ranks for unit in units if not any(one % unit for one in batches)]
    for stage in ZERO_STAGES:
        fitting = [(size, need) for size in sizes if (need := needs(subject, ranks, stage, size)).total <= available]
        if fitting:
            return Choice(ranks, stage, *fitting[-1])
    return None


def needs(subject: Subject, ranks: int, stage: int, micro_batch: int) -> Memory:
    """Memory of one GPU."""
    return memory(subject.parameters, subject.activations, layout_of(subject, ranks, stage), micro_batch)


def layout_of(subject: Subject, ranks: int, stage: int) -> Layout:
    """How the states of what is to be trained would be shared out."""
    engine = subject.config.engine
    accumulated, _ = engine.sums(subject.precision, subject.config.determinism)
    return Layout(ranks, stage, subject.precision, accumulated=accumulated, optimizer_bytes=subject.optimizer_bytes,
                  offloaded=tuple(what for what in engine.offloaded if what == "optimizer" or stage == 3))  # fmt: skip


def predicted(
    subject: Subject, machine: Machine, mfu: float, choice: Choice | None
) -> tuple[float, float, float] | None:
    """Share of the time that is not spent on communication: expected, at worst, at best (train/scaling.py)."""
    if machine.network_gbit is None or choice is None:
        return None
    train, shared = subject.config, subject.config.engine.sequence_parallel
    flops = subject.flops_per_token * train.data.sequence_length * choice.micro_batch / shared
    work = Work(
        subject.parameters, subject.layers, choice.stage,
        train.batch.global_batch_size // (choice.micro_batch * choice.ranks // shared),
        flops / (machine.gpu.bf16_flops * mfu), bool(train.engine.recompute_every_layers),
        VALUE_BYTES[subject.precision], sharing=shared, exchanged=subject.exchanged * choice.micro_batch,
    )  # fmt: skip
    found = [efficiency(work, choice.ranks, network(machine.name, machine.gpus_per_node, machine.network_gbit, turn))
             for turn in (math.sqrt(math.prod(TURN_SECONDS)), max(TURN_SECONDS), min(TURN_SECONDS))]  # fmt: skip
    return found[0], found[1], found[2]


def exchanged(shape: PretrainedConfig, train: TrainConfig, precision: str) -> float:
    """Bytes of one sequence that one of the ranks which share it gives away in all-to-alls; 0 where none do.

    In each layer queries, keys and values on the way to attention and its result on the way back; as much in the
    backward pass, and once more where it computes the forward pass again.
    """
    shared, heads = train.engine.sequence_parallel, shape.num_attention_heads
    if shared == 1:
        return 0.0
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    values = (2 * heads + 2 * max(shape.num_key_value_heads, shared)) * size * train.data.sequence_length / shared
    return float((3 if train.engine.recompute_every_layers else 2) * shape.num_hidden_layers * values
                 * VALUE_BYTES[precision])  # fmt: skip


def timing(
    config: PlanConfig, subject: Subject, machine: Machine, mfu: float, nodes: int, *,
    share: tuple[float, float, float] | None,
) -> Timing:  # fmt: skip
    """Time and energy; where the network is not known, as if more nodes lost nothing."""
    ranks = nodes * machine.gpus_per_node
    rate = ranks * machine.gpu.bf16_flops * mfu / subject.flops_per_token * (share[0] if share else 1)
    seconds = subject.config.tokens / rate
    mwh = seconds / 3600 * (ranks * machine.gpu.watts + nodes * config.node_watts) / 1e6
    return Timing(nodes, ranks, share, rate, seconds, ranks * seconds / 3600, mwh, config.pue and mwh * config.pue)


MEMORY = ("weights", "gradients", "optimizer", "buffers", "activations", "head")


def _show(plan: Plan) -> None:
    subject, machine, train = plan.subject, plan.machine, plan.subject.config
    steps = " and ".join(f"{size:,}" for size in dict.fromkeys(stage.tokens_per_step for stage in train.timeline))
    say(f"{train.model.architecture}, {count(subject.parameters)} parameters (vocabulary {subject.vocabulary:,}), "
        f"{count(train.tokens)} tokens in {train.steps:,} steps of {steps}")  # fmt: skip
    say(f"{count(subject.flops_per_token, 'FLOP')} a token, {subject.flops_per_token * train.tokens:.2e} FLOP in all, "
        f"{subject.precision}; {machine.name} of {machine.memory_gb:g} GB, {machine.gpus_per_node} a node")  # fmt: skip
    show_stages(subject.stages, subject.shares, train)
    _show_memory(plan)
    _show_fits(plan)
    _show_times(plan)
    size, speed = subject.optimizer_bytes * subject.parameters, plan.config.storage_gb_per_second
    write = f", {duration(size / GB / speed)} to write" if speed else ""
    say(f"checkpoint {count(size, 'B')}{write}; exported in bf16 {count(2 * subject.parameters, 'B')}\n")


def _show_memory(plan: Plan) -> None:
    """A row a stage, at the fewest nodes that fit and the micro-batch they would take."""
    nodes = next((one for one, choice in plan.choices.items() if choice), plan.config.nodes[-1])
    ranks, chosen, subject = nodes * plan.machine.gpus_per_node, plan.choices[nodes], plan.subject
    size, available = chosen.micro_batch if chosen else 1, room(plan.config, plan.machine.memory_gb)
    rows = []
    for stage in ZERO_STAGES:
        need = needs(subject, ranks, stage, size)
        parts = [f"{getattr(need, part) / GB:,.1f}" for part in MEMORY]
        rows.append([stage, *parts, f"{need.total / GB:,.1f}", "yes" if need.total <= available else "no"])
    table(f"\nGB on each of {ranks} GPUs, micro-batch {size}", ["ZeRO", *MEMORY, "sum", "fits"], rows)
    value = VALUE_BYTES[subject.precision]
    layout = layout_of(subject, ranks, chosen.stage if chosen else ZERO_STAGES[-1])
    summed = VALUE_BYTES[layout.accumulated]
    say(
        f"weights {value} N, gradients {summed} N, optimizer {subject.optimizer_bytes:.3g} N bytes; / {ranks}: "
        f"optimizer from stage 1, gradients from 2, weights at 3; fits: in {1 - plan.config.spare_memory:.0%} of a GPU"
    )
    if layout.offloaded:
        where = "host memory and disk" if subject.config.engine.nvme_path else "host memory"
        say(f"{where} a GPU: {on_host(subject.parameters, layout) / GB:,.1f} GB ({', '.join(layout.offloaded)}; at "
            f"ZeRO-{layout.stage})")  # fmt: skip


def _show_fits(plan: Plan) -> None:
    """A row for each GPU there is, the planned one first."""
    machine, config = plan.machine, plan.config
    known = [(name, memory_gb) for name, gpu in GPUS.items() for memory_gb in gpu.memory_gb]
    rows = []
    for name, memory_gb in dict.fromkeys([(machine.name, machine.memory_gb), *known]):
        found = (choose(plan.subject, nodes * machine.gpus_per_node, room(config, memory_gb)) for nodes in config.nodes)
        rows.append(
            [f"{name} {memory_gb:g} GB", *(f"ZeRO-{one.stage} x {one.micro_batch}" if one else "-" for one in found)]
        )
    nodes = [f"{one} node{'s' * (one > 1)}" for one in config.nodes]
    table("\nlowest ZeRO stage x largest micro-batch that fit", ["GPU", *nodes], rows)


def _show_times(plan: Plan) -> None:
    config, gpu = plan.config, plan.machine.gpu
    known = any(one.efficiency for one in plan.times)
    columns = [
        "nodes",
        "GPUs",
        *(["efficiency", "from", "to"] if known else []),
        "tokens/s",
        "time",
        "GPU-hours",
        "MWh",
        *(["MWh with PUE"] if config.pue else []),
    ]
    rows = [
        [one.nodes, one.ranks,
         *([f"{share:.0%}" for share in one.efficiency] if one.efficiency else ["-"] * 3 if known else []),
         count(one.tokens_per_second), duration(one.seconds), f"{one.gpu_hours:,.0f}",
         f"{one.mwh:,.3g}", *([f"{one.facility_mwh:,.3g}"] if one.facility_mwh else [])]
        for one in plan.times
    ]  # fmt: skip
    said = (f"what communication costs is predicted from {plan.machine.network_gbit:g} Gbit/s a node" if known else
            "what communication costs is not in it")  # fmt: skip
    table(f"\nthe whole training at {plan.mfu:.0%} ({plan.mfu_is}) of {gpu.bf16_flops / 1e12:g} TFLOP/s a GPU; {said}",
          columns, rows)  # fmt: skip
    rest = f" and {config.node_watts:g} W a node" if config.node_watts else ", the rest of the nodes not counted"
    pue = f"; PUE {config.pue:g}" if config.pue else "; without the site's PUE"
    say(f"MWh: {gpu.watts:g} W a GPU ({gpu.source}){rest}{pue}")


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; bytes, seconds, FLOP."""
    subject, machine = plan.subject, plan.machine
    return {
        "parameters": subject.parameters, "vocabulary_size": subject.vocabulary, "precision": subject.precision,
        "flops_per_token": subject.flops_per_token, "tokens": subject.config.tokens,
        "gpu": {"name": machine.name, **dataclasses.asdict(machine.gpu), "memory_gb": machine.memory_gb},
        "gpus_per_node": machine.gpus_per_node, "network_gbit": machine.network_gbit,
        "mfu": plan.mfu, "mfu_is": plan.mfu_is, "pue": plan.config.pue,
        "mixture": {name: dataclasses.asdict(one) for name, one in subject.shares.items()},
        "stages": stages_as_json(subject.stages),
        "checkpoint_bytes": subject.optimizer_bytes * subject.parameters,
        "fits": {str(nodes): choice and dataclasses.asdict(choice) for nodes, choice in plan.choices.items()},
        "times": [dataclasses.asdict(one) for one in plan.times],
    }  # fmt: skip
