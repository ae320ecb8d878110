"""A job worked out: what a site, a request and a training configuration come to, and what speaks against it."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.terminal import count, many
from common.zero import states
from launch.config import LaunchConfig
from launch.site import Queue, Site, limits

GIB = 1024**3
STACKS_SECONDS = 30  # in which the trainer's watchdog writes all stacks and leaves, once its limit is over


@dataclass(frozen=True)
class Job:
    """Everything the templates need; paths are absolute."""

    name: str
    site: Site
    config: LaunchConfig
    train: dict[str, Any]
    queue: Queue
    seconds: int  # time limit of one start
    ranks_per_node: int
    gpus_per_node: int  # 0: no GPUs are asked for
    cpus_per_rank: int | None
    work_folder: Path
    run: Path

    @property
    def ranks(self) -> int:
        return self.config.nodes * self.ranks_per_node

    @property
    def account(self) -> str | None:
        return self.config.account

    @property
    def qos(self) -> str | None:
        return self.queue.qos and self.queue.qos.format(account=self.account or "")

    @property
    def time_limit(self) -> str:
        """As sbatch takes it: HH:MM:SS."""
        return f"{self.seconds // 3600:02d}:{self.seconds // 60 % 60:02d}:{self.seconds % 60:02d}"

    @property
    def cpu_masks(self) -> list[str]:
        """The site's masks where the job has whole nodes, and one task a GPU to bind."""
        whole = self.gpus_per_node == self.site.node.gpus
        return self.site.step.cpu_masks if whole and self.config.launcher == "srun" else []

    @property
    def sbatch_options(self) -> list[str]:
        """The lines ``#SBATCH ...``, without those of the job's life."""
        torchrun = self.config.launcher == "torchrun"
        tasks = 1 if torchrun else self.ranks_per_node
        cpus = self.cpus_per_rank and self.cpus_per_rank * (self.ranks_per_node if torchrun else 1)
        request, config = self.site.request, self.config
        options: list[tuple[str, Any]] = [
            ("--nodes", config.nodes + config.spare_nodes), ("--ntasks-per-node", tasks), ("--cpus-per-task", cpus),
            ("--time", self.time_limit), ("--account", self.account), ("--partition", self.queue.partition),
            ("--qos", self.qos), ("--reservation", config.reservation), ("--exclude", ",".join(config.exclude)),
        ]  # fmt: skip
        lines = [f"{key}={value}" for key, value in options if value]
        if self.gpus_per_node and request.gpus:
            lines.append(request.gpus.format(gpus=self.gpus_per_node))
        return [*lines, *filter(None, [request.memory]), *request.options, *config.sbatch]

    @property
    def warnings(self) -> Iterator[str]:
        """What is allowed and seldom meant: limits for silence that end ranks before their own watchdog has spoken."""
        guards = self.train["guards"]
        if not guards["watchdog_seconds"] or self.site.scheduler == "none":
            return
        least = max(guards["watchdog_seconds"], guards["watchdog_slow_seconds"]) + STACKS_SECONDS
        for key in ("hang_minutes", "start_minutes"):
            minutes = getattr(self.config.life, key)
            if minutes * 60 < least:
                yield (f"life.{key}={minutes:g}: silent ranks may be ended before their own watchdog has written their "
                       f"stacks and named who is behind; {math.ceil(least / 60)} or more leave it the time, or set "
                       f"train.guards.watchdog_slow_seconds below {least - STACKS_SECONDS:g}")  # fmt: skip

    @property
    def arithmetic(self) -> str:
        """The global batch, factor by factor."""
        batch = self.train["batch"]
        engine = self.train["engine"]
        shared = engine["sequence_parallel"] * engine["tensor_parallel"]  # one of them is 1
        accumulation = batch["global_batch_size"] // (batch["micro_batch_size"] * self.ranks // shared)
        what = "matrix" if engine["tensor_parallel"] > 1 else "sequence"
        to_each = f" / {shared} to a {what}" if shared > 1 else ""
        ranks = f"{many(self.config.nodes, 'node')} x {many(self.ranks_per_node, 'rank')}"
        return (f"{ranks}{to_each} x {batch['micro_batch_size']} sequences x {accumulation} accumulated = "
                f"{batch['global_batch_size']} sequences of "
                f"{self.train['data']['sequence_length']} tokens a step")  # fmt: skip


def ranks_per_node(config: LaunchConfig, site: Site) -> int | None:
    """Processes a node: as asked for, else one a GPU; None where nobody knows."""
    queue = site.queues.get(config.queue or site.queue or "") or Queue()
    gpus = queue.gpus if queue.gpus is not None else site.node.gpus
    return config.ranks_per_node or gpus or (1 if gpus == 0 else None)


def work_out(
    config: LaunchConfig, site: Site, train: dict[str, Any] | None, wrong: list[str], work_folder: Path, *, here: bool
) -> Job:
    """The job, if nothing speaks against it.

    Args:
        train: the resolved configuration of ``hanse train``; None where it cannot be composed.
        wrong: what is wrong with that configuration by itself.
        here: whether this machine is the site, so that files can be looked for.

    Raises:
        ConfigError: everything that would make Slurm refuse the job, keep it waiting for ever, or waste its hours.
    """
    queue = site.queues.get(config.queue or site.queue or "") or Queue()
    ranks = ranks_per_node(config, site)
    hours = config.hours if config.hours is not None else queue.max_hours
    gpus = site.node.gpus if queue.gpus is None else queue.gpus
    problems = [*wrong, *request_problems(config, site, queue, hours=hours, ranks=ranks, gpus=gpus, here=here)]
    if train is not None:
        problems += [*_memory(config, site, queue, train, ranks or 1), *_data(train, work_folder, here=here)]
    if problems or train is None or ranks is None:
        raise ConfigError(problems)
    cpus = config.threads_per_rank or site.node.cpus_per_gpu
    return Job(
        name=train["name"], site=site, config=config, train=train, queue=queue, seconds=round((hours or 0) * 3600),
        ranks_per_node=ranks, gpus_per_node=ranks if gpus or gpus is None else 0, cpus_per_rank=cpus,
        work_folder=work_folder, run=work_folder / train["run"],
    )  # fmt: skip


def request_problems(
    config: LaunchConfig,
    site: Site,
    queue: Queue,
    *,
    hours: float | None,
    ranks: int | None,
    gpus: int | None,
    here: bool,
) -> Iterator[str]:
    """What speaks against a request at a site, whatever will run there, one line each."""
    yield from _queue(config, site, queue)
    yield from _time(config, site, hours, queue)
    yield from _account(config, site)
    yield from _nodes(config, site, ranks, gpus)
    yield from _software(config, site, here=here)


def _queue(config: LaunchConfig, site: Site, queue: Queue) -> Iterator[str]:
    if config.queue is not None and config.queue not in site.queues:
        close = difflib.get_close_matches(config.queue, site.queues, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        there = "; ".join(f"{name} ({limits(one)})" for name, one in site.queues.items())
        yield f"queue={config.queue}: {site.name} has no such queue; {hint}There are {there or 'none'}"
    asked = config.nodes + config.spare_nodes
    name = config.queue or site.queue
    if queue.max_nodes and asked > queue.max_nodes:
        yield f"nodes={config.nodes} (+ {config.spare_nodes} spare): {name} gives a job at most {queue.max_nodes} nodes"
    if queue.min_nodes and asked < queue.min_nodes:
        yield f"nodes={config.nodes} (+ {config.spare_nodes} spare): {name} is for {queue.min_nodes} nodes or more"


def _time(config: LaunchConfig, site: Site, hours: float | None, queue: Queue) -> Iterator[str]:
    if site.scheduler == "none":
        return  # nobody ends it
    if hours is None and (config.queue is None or config.queue in site.queues):
        yield "hours: must be set (hours=...), the limit of this queue is not known"
    elif hours is not None and queue.max_hours and hours > queue.max_hours:
        yield (f"hours={hours:g}: the queue allows {queue.max_hours:g}; the job starts again by itself until its "
               "tokens are used up, so a shorter one loses nothing")  # fmt: skip
    elif hours is not None and hours * 3600 < config.life.signal_seconds + 30:
        yield (f"hours={hours:g}: {hours * 3600:.0f} s, of which the last {config.life.signal_seconds} are for saving "
               "(life.signal_seconds); ask for more time")  # fmt: skip


def _account(config: LaunchConfig, site: Site) -> Iterator[str]:
    pattern = site.request.account_pattern
    if site.request.account == "required" and not config.account:
        form = f", of the form {pattern}" if pattern else ""
        yield f"account: {site.name} wants to know which project pays; set account=...{form} (or SBATCH_ACCOUNT)"
    elif config.account and pattern and not re.fullmatch(pattern, config.account):
        yield f"account={config.account}: not of the form that {site.name} wants, {pattern}"


def _nodes(config: LaunchConfig, site: Site, ranks: int | None, gpus: int | None) -> Iterator[str]:
    if ranks is None:
        yield f"ranks_per_node: must be set, the profile {site.name} does not know the GPUs of its nodes"
    elif gpus and ranks > gpus:
        yield f"ranks_per_node={ranks}: a node of {site.name} has {gpus} GPUs, and each rank needs one"
    per_gpu = site.node.cpus_per_gpu
    if gpus and per_gpu and config.threads_per_rank and config.threads_per_rank > per_gpu:
        yield (f"threads_per_rank={config.threads_per_rank}: {site.name} gives {per_gpu} CPUs to a GPU; more is "
               "refused, waits for ever, or is billed as more GPUs")  # fmt: skip


def _memory(config: LaunchConfig, site: Site, queue: Queue, train: dict[str, Any], ranks: int) -> Iterator[str]:
    available = queue.gpu_memory_gb or site.node.gpu_memory_gb
    parameters = least_parameters(train["model"]["settings"])
    if not available or not parameters:
        return
    parts = train["engine"]["tensor_parallel"]
    needed = state_bytes(parameters // parts, ranks * config.nodes // parts, train["engine"]["zero_stage"])
    if needed > available * GIB:
        yield (f"train.engine.zero_stage={train['engine']['zero_stage']}: {count(parameters)} parameters or more need "
               f"{needed / GIB:.0f} GiB on each of {ranks * config.nodes} GPUs for weights, gradients and optimizer "
               f"alone, and {site.name} has {available:g}; take a higher ZeRO stage or more nodes")  # fmt: skip


def least_parameters(settings: dict[str, Any]) -> int:
    """The least number of weights that a decoder with these settings has; 0 where they do not say. Embeddings, whose
    size the data decides, are not counted.
    """
    try:
        hidden, layers, inner = (
            int(settings[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
        )
        heads = int(settings["num_attention_heads"])
    except (KeyError, TypeError, ValueError):
        return 0
    head = int(settings.get("head_dim") or hidden // heads)
    key_value = int(settings.get("num_key_value_heads") or heads)
    attention = 2 * hidden * heads * head + 2 * hidden * key_value * head
    return layers * (attention + 2 * hidden * inner)


def state_bytes(parameters: int, ranks: int, stage: int) -> float:
    """Bytes a GPU needs for the states of mixed-precision Adam under ZeRO."""
    return sum(states(parameters, ranks, stage))


def _software(config: LaunchConfig, site: Site, *, here: bool) -> Iterator[str]:
    software = config.software
    if software.container and site.container.command is None:
        yield (f"software.container: the profile {site.name} does not know how containers are started; "
               "set site.container.command")  # fmt: skip
    if software.container and site.container.command == "environment" and software.archive:
        yield "software.archive: not together with --environment; mount it in the EDF file"
    if software.archive and not software.archive.endswith((".sqsh", ".squashfs", ".tar")):
        yield f"software.archive={software.archive}: a file ending in .sqsh or .tar"
    if not here:
        return
    if software.container and not Path(software.container).exists():
        yield f"software.container={software.container}: not there"
    if software.archive and not Path(software.archive).is_file():
        venv = software.venv or sys.prefix
        pack = (f"tar -C {shlex.quote(venv)} -cf {shlex.quote(software.archive)} ." if software.archive.endswith(".tar")
                else f"mksquashfs {shlex.quote(venv)} {shlex.quote(software.archive)}")  # fmt: skip
        yield f"software.archive={software.archive}: not there; pack one with: {pack}"
    if software.venv and not software.archive and not (Path(software.venv) / "bin/python").exists():
        yield f"software.venv={software.venv}: no virtual environment (no bin/python in it)"


def _data(train: dict[str, Any], work_folder: Path, *, here: bool) -> Iterator[str]:
    shards = work_folder / train["data"]["shards"]
    if here and not (shards / "manifest.json").is_file():
        yield f"train.data.shards={shards}: no token shards there (no manifest.json); 'hanse tokenize' writes them"
