"""``hanse plan``: what a training would need, before any GPU is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, write_json
from common.terminal import count, duration, many, next_step, say, table
from train.hardware import GPUS
from train.memory import SUM_BYTES, VALUE_BYTES, on_host
from train.plan_fit import GB, Choice, choose, layout_of, needs, room, stages_of, uneven
from train.plan_stages import as_json as stages_as_json
from train.plan_stages import show_stages
from train.plan_subject import Machine, Subject, describe, find_machine
from train.plan_time import Timing, timing
from train.verb_config import PlanConfig


@dataclass(frozen=True)
class Plan:
    """The answer: for each number of nodes what fits (None: nothing) and what it takes.

    ``uneven``: why there is no micro-batch, of those numbers of nodes where there is none, however small the model.
    """

    config: PlanConfig
    subject: Subject
    machine: Machine
    mfu: float
    mfu_is: str
    choices: dict[int, Choice | None]
    uneven: dict[int, str]
    times: list[Timing]

    @property
    def checkpoint_bytes(self) -> float:
        """Of masters and all that the optimizer keeps."""
        return self.subject.optimizer_bytes * self.subject.parameters

    @property
    def write_seconds(self) -> float | None:
        """The least that a checkpoint takes to write; None: the speed of the filesystem is not known."""
        speed = self.machine.storage_gb_per_second
        return self.checkpoint_bytes / GB / speed if speed else None


def run(config: PlanConfig) -> None:
    """Work it out, show it, and say how to go on.

    Raises:
        HanseError: the training configuration is wrong, or the GPU is unknown.
    """
    subject, machine = describe(config), find_machine(config)
    mfu, why = share_of_peak(config, machine)
    ranks, available = {nodes: nodes * machine.gpus_per_node for nodes in config.nodes}, room(config, machine.memory_gb)
    choices = {nodes: choose(subject, ranks[nodes], available) for nodes in config.nodes}
    times = [timing(config, subject, machine, mfu, nodes=nodes, choice=choice) for nodes, choice in choices.items()]
    odd = {nodes: said for nodes in config.nodes if (said := uneven(subject, nodes, machine.gpus_per_node))}
    plan = Plan(config, subject, machine, mfu, why, choices, odd, times)
    _show(plan)
    if config.output:
        write_json(Path(config.output), as_json(plan))
        say(f"written: {config.output}")
    nodes, best = next(((nodes, choice) for nodes, choice in plan.choices.items() if choice), (0, None))
    if len(odd) == len(plan.choices):
        next_step("the same with a batch or a number of nodes that divides, as told above")
    elif best is None:
        next_step("more nodes, a GPU with more memory, train.engine.recompute_every_layers=1, a shorter "
                  "train.data.sequence_length, or a smaller train.model")  # fmt: skip
    else:
        next_step(f"hanse launch site={machine.site} nodes={nodes} train.engine.zero_stage={best.stage} "
                  f"train.batch.micro_batch_size={best.micro_batch} ...")  # fmt: skip


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
    write = ""
    if seconds := plan.write_seconds:
        least = f"{seconds:.3g} s" if seconds < 60 else duration(seconds)
        write = f", {least} to write at {machine.storage_gb_per_second:g} GB/s, all that the filesystem takes"
    say(f"checkpoint {count(plan.checkpoint_bytes, 'B')}{write}; exported in bf16 "
        f"{count(2 * subject.parameters, 'B')}\n")  # fmt: skip


def _show_memory(plan: Plan) -> None:
    """A row a stage, at the fewest nodes that fit and the micro-batch they would take."""
    nodes = next((one for one, choice in plan.choices.items() if choice), plan.config.nodes[-1])
    ranks, chosen, subject = nodes * plan.machine.gpus_per_node, plan.choices[nodes], plan.subject
    size, available = chosen.micro_batch if chosen else 1, room(plan.config, plan.machine.memory_gb)
    rows = []
    for stage in stages_of(subject):
        need = needs(subject, ranks, stage, size)
        parts = [f"{getattr(need, part) / GB:,.1f}" for part in MEMORY]
        rows.append([stage, *parts, f"{need.total / GB:,.1f}", "yes" if need.total <= available else "no"])
    table(f"\nGB on each of {many(ranks, 'GPU')}, micro-batch {size}", ["ZeRO", *MEMORY, "sum", "fits"], rows)
    value = VALUE_BYTES[subject.precision]
    layout = layout_of(subject, ranks, chosen.stage if chosen else stages_of(subject)[-1])
    gradients = SUM_BYTES if layout.exact else VALUE_BYTES[layout.accumulated]
    again = f" and once more / {layout.again_in}" if layout.again_in else ""
    own, share = f", and {SUM_BYTES} N / {ranks} beside them at 1" if layout.exact else "", layout.ranks
    if share < ranks:
        say(f"N: {count(subject.held)} parameters, of the parts of one of {ranks // share} GPUs that share matrices")
    say(
        f"weights {value} N, gradients {gradients} N, optimizer {subject.optimizer_bytes:.3g} N bytes; / {share}: "
        f"optimizer from stage 1, gradients from 2{own}, weights at 3{again}; fits: in "
        f"{1 - plan.config.spare_memory:.0%} of a GPU"
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
        cells = []
        for nodes in config.nodes:
            one = choose(plan.subject, nodes * machine.gpus_per_node, room(config, memory_gb))
            none = "uneven" if nodes in plan.uneven else "-"
            cells.append(f"ZeRO-{one.stage} x {one.micro_batch}" if one else none)
        rows.append([f"{name} {memory_gb:g} GB", *cells])
    columns = [many(one, "node") for one in config.nodes]
    table("\nlowest ZeRO stage x largest micro-batch that fit", ["GPU", *columns], rows)
    for said in plan.uneven.values():
        say(f"uneven: {said}")


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
        [f"{one.nodes}{_but(plan, one.nodes)}", one.ranks,
         *([f"{share:.0%}" for share in one.efficiency] if one.efficiency else ["-"] * 3 if known else []),
         count(one.tokens_per_second), duration(one.seconds), f"{one.gpu_hours:,.0f}",
         f"{one.mwh:,.3g}", *([f"{one.facility_mwh:,.3g}"] if one.facility_mwh else [])]
        for one in plan.times
    ]  # fmt: skip
    said = (f"what communication costs is predicted from {plan.machine.network_gbit:g} Gbit/s a node" if known else
            "what communication costs is not in it")  # fmt: skip
    table(f"\nthe whole training at {plan.mfu:.0%} ({plan.mfu_is}) of {gpu.bf16_flops / 1e12:g} TFLOP/s a GPU; {said}",
          columns, rows)  # fmt: skip
    if len(plan.times[0].stages) > 1:
        _show_stage_times(plan.times)
    rest = f" and {config.node_watts:g} W a node" if config.node_watts else ", the rest of the nodes not counted"
    pue = f"; PUE {config.pue:g}" if config.pue else "; without the site's PUE"
    say(f"MWh: {gpu.watts:g} W a GPU ({gpu.source}){rest}{pue}")


def _but(plan: Plan, nodes: int) -> str:
    """What stands beside a number of nodes on which it would not run."""
    return " (uneven)" if nodes in plan.uneven else "" if plan.choices[nodes] else " (does not fit)"


def _show_stage_times(times: list[Timing]) -> None:
    """A row a stage, a column a number of nodes."""
    rows = []
    for number, stage in enumerate(times[0].stages):
        cells = []
        for one in times:
            part = one.stages[number]
            share = f", {part.efficiency[0]:.0%}" if part.efficiency else ""
            cells.append(f"{duration(part.seconds)}{share}")
        rows.append([stage.name, *cells])
    columns = [many(one.nodes, "node") for one in times]
    table("\nof it each stage, and its efficiency where known", ["stage", *columns], rows)


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
        "checkpoint_bytes": plan.checkpoint_bytes, "checkpoint_write_seconds": plan.write_seconds,
        "storage_gb_per_second": machine.storage_gb_per_second,
        "fits": {str(nodes): choice and dataclasses.asdict(choice) for nodes, choice in plan.choices.items()},
        "uneven": {str(nodes): said for nodes, said in plan.uneven.items()},
        "times": [dataclasses.asdict(one) for one in plan.times],
    }  # fmt: skip
