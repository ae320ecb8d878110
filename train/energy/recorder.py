"""``energy.jsonl``: what a run drew, a line at each start, checkpoint and end, chained as :mod:`train.ledger` does.

    {"kind": "start", "step": 0, "at": {"time": ..., "seconds": ...}, "run": {...}, "site": {...}, "slurm": null,
     "devices": {...}, "nodes": {"nid005001": {"source": "Cray pm_counters", "coverage": "whole node", ...}}}
    {"kind": "checkpoint", "step": 100, "at": {...}, "nodes": {"nid005001": {"joules": ..., "raw": {...}, ...}}}
    {"kind": "lost", "step": 123, "at": {"time": ...}}

One rank a node reads, rank 0 writes. Joules and seconds count from the beginning of the start that the line belongs to;
the raw counters stand beside them, so that all can be reckoned anew. ``lost`` says when a start that was killed was
last seen; the next one writes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import HanseError
from common.files import read_json
from common.terminal import many
from train.energy import grid
from train.energy.config import EnergyConfig
from train.energy.counters import Meter, find_source, gpu_watts
from train.ledger import Ledger, lines
from train.ranks import Place, gathered, node_name, together
from train.run_folder import RunFolder, read_metrics

if TYPE_CHECKING:
    import torch

    from train.setup import Run

FORMAT = "hanse.energy/1"
TICK_SECONDS = 60.0  # a CPU package at 300 W runs through its counter's range of 262 kJ in 15 minutes


class NodeReader:
    """The energy of one node since this was made: read where it can be, else rated power times time.

    Args:
        gpus: of the node's ranks (see :func:`train.energy.totals.counters.find_source`).
        root: of the file system; ``clock``: with ``monotonic()`` and ``time()``; others in tests.
    """

    def __init__(self, config: EnergyConfig, gpus: Sequence[str], root: Path = Path("/"), clock: Any = time):
        self.source = find_source(root, gpus)
        self.meter = Meter(self.source) if self.source.counters else None
        self.watts, self.basis = rated_power(config, gpus, root)
        self.clock: Callable[[], float] = clock.monotonic
        self.began = self.ticked = self.clock()
        if self.meter:
            self.meter.read(self.began)

    def describe(self) -> dict[str, Any]:
        """What is read here."""
        return {"source": self.source.name, "coverage": self.source.coverage, "about": list(self.source.notes),
                "rated_watts": self.watts, "rated_from": self.basis}  # fmt: skip

    def read(self) -> dict[str, Any]:
        """Joules so far (None: not known), and what the counters say."""
        now = self.ticked = self.clock()
        if self.meter is None:
            return {"joules": None if self.watts is None else self.watts * (now - self.began)}
        self.meter.read(now)
        return {"joules": self.meter.microjoules / 1e6, "raw": dict(self.meter.raw),
                "missing": sorted(self.meter.missing), "notes": sorted(self.meter.notes)}  # fmt: skip

    def tick(self) -> None:
        """Between records: read what could wrap, now and then."""
        if self.meter and self.meter.wraps and self.clock() - self.ticked > TICK_SECONDS:
            self.ticked = self.clock()
            self.meter.read(self.ticked)


def rated_power(config: EnergyConfig, gpus: Sequence[str], root: Path) -> tuple[float | None, str]:
    """(watts of a node's ranks at full load, None where a part of it is not known; how it was come by)."""
    threads = int(os.environ.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0)))
    told = f"{threads} threads at {config.thread_watts:g} W"
    if not gpus:
        return (threads * config.thread_watts or None), told
    cards = len(gpus) * config.gpu_watts if config.gpu_watts else gpu_watts(root, gpus)
    if cards is None:
        return None, "rated power of the GPUs is not known"
    whose = "energy.gpu_watts" if config.gpu_watts else "the driver's limit"
    each = f"{many(len(gpus), 'GPU')} at {cards / len(gpus):g} W ({whose})"
    return cards + threads * config.thread_watts, f"{each}, {told}"


class EnergyRecorder:
    """Writes the energy of this start of a run. Every method is collective.

    Raises:
        HanseError: there is an ``energy.jsonl``, and it is damaged.
    """

    def __init__(self, config: EnergyConfig, place: Place, folder: RunFolder, device: torch.device, *,
                 root: Path = Path("/"), clock: Any = time):  # fmt: skip
        self.config, self.place, self.clock = config, place, clock
        ranks = gathered(place, _who(device))
        nodes = [rank["node"] for rank in ranks]
        self.node, self.devices = nodes[place.rank], _devices(ranks)
        mine = [rank["gpu"] for rank in ranks if rank["node"] == self.node and rank["gpu"] is not None]
        self.reader = NodeReader(config, mine, root, clock) if nodes.index(self.node) == place.rank else None
        self.began = clock.monotonic()
        self.ledger: Ledger | None = None
        with together(place):
            if place.first:
                self.ledger = open_ledger(folder)

    def begin(self, run: Run) -> None:
        """The line of this start."""
        line = run.config.timeline
        stage = line.at(run.first_step)
        table = [[one.stop_step, one.tokens_per_step, run.flops_per_token(one)] for one in line]
        self._write("start", run.first_step, {
            "format": FORMAT,
            "run": {"tokens_per_step": stage.tokens_per_step, "flops_per_token": run.flops_per_token(stage),
                    "parameters": run.parameters, **({"stages": table} if len(table) > 1 else {})},
            "site": site(self.config),
            "slurm": slurm_step(os.environ),
            "ranks": self.place.ranks,
            "devices": self.devices,
        })  # fmt: skip

    def record(self, kind: str, step: int) -> None:
        """A line after ``step`` steps."""
        self._write(kind, step, {})

    def tick(self) -> None:
        """To be called often, at least once in some minutes. Not collective."""
        if self.reader:
            self.reader.tick()

    def _write(self, kind: str, step: int, facts: Mapping[str, Any]) -> None:
        mine = None
        if self.reader:
            mine = (self.node, (self.reader.describe() if kind == "start" else {}) | self.reader.read())
        nodes = dict(filter(None, gathered(self.place, mine)))
        if self.ledger:
            at = {"time": self.clock.time(), "seconds": self.clock.monotonic() - self.began}
            self.ledger.write(kind, {"step": step, "at": at, **facts, "nodes": nodes})
            self.ledger.sync()


def open_ledger(folder: RunFolder) -> Ledger:
    """The ledger of a run, with a line ``lost`` added where the last start ended without one of its own.

    Now, before this start cuts the metrics that tell when that was.
    """
    ledger, kinds = Ledger(folder.energy), [record["kind"] for _, record in lines(folder.energy)]
    sign = last_sign(folder)
    if kinds and kinds[-1] not in ("end", "lost") and sign:
        ledger.write("lost", {"step": sign["step"], "at": {"time": sign["time"]}})
        ledger.sync()
    return ledger


def _who(device: torch.device) -> dict[str, str | None]:
    node = node_name()
    if device.type != "cuda":
        return {"node": node, "gpu": None, "name": None}
    import torch

    uuid = "" if torch.version.hip else str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    return {"node": node, "gpu": uuid, "name": torch.cuda.get_device_name(device)}


def _devices(ranks: Sequence[Mapping[str, str | None]]) -> dict[str, int]:
    """{kind: number}: GPUs of the ranks, or the nodes where they compute on CPUs."""
    names = [rank["name"] for rank in ranks if rank["name"]]
    if names:
        return {name: names.count(name) for name in sorted(set(names))}
    return {"CPU node": len({rank["node"] for rank in ranks})}


def site(config: EnergyConfig) -> dict[str, Any]:
    """What the configuration says of the place."""
    location, market = grid.location_based(config), grid.market_based(config)
    return {"pue": config.pue, "pue_source": config.pue_source, "grid": asdict(location) if location else None,
            "grid_market": asdict(market) if market else None}  # fmt: skip


def slurm_step(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The job step that this rank is part of."""
    if "SLURM_JOB_ID" not in environment:
        return None
    return {"job": environment["SLURM_JOB_ID"], "step": environment.get("SLURM_STEP_ID", "")}


def last_sign(folder: RunFolder) -> dict[str, Any] | None:
    """When the run was last seen alive, and the last step it told of: ``{"time": ..., "step": ...}``."""
    records = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    if not records:
        return None
    times, steps = [record.get("time", 0.0) for record in records[-1:]], [record["step"] for record in records]
    with suppress(HanseError, KeyError, TypeError, ValueError):  # none, or half a one
        times.append(float(read_json(folder.heartbeat, "heartbeat")["time"]))
    return {"time": max(times), "step": max(steps)}
