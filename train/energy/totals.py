"""What the energy ledger of a run adds up to, with what is measured and what is estimated kept apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.terminal import duration
from train.energy.grid import GridFactor
from train.energy.slurm import read_answers
from train.energy.starts import Spent, Start, gap_note, read_starts, spend
from train.run_folder import RunFolder

FLOPS_FORMULA = "6 N + 12 layers heads head_size L a token; N: parameters of matrix products, L: sequence length"
LEFT_OUT = {
    "GPUs only": "Only GPUs were counted: processors, memory, fans, network and storage are left out.",
    "CPU packages only": "Only processors were counted: memory, fans, network and storage are left out.",
    "CPU packages and memory only": "Only processors and memory were counted: fans, network and storage are left out.",
    "GPUs and CPU packages": "GPUs and processors were counted: memory, fans, network and storage are left out.",
    "GPUs, CPU packages and memory": "GPUs, processors and memory were counted: fans, network, storage are left out.",
}


@dataclass(frozen=True)
class EnergyTotals:
    """Energy, time and computation of a run, over all its starts. None: cannot be told; ``notes`` say why.

    Attributes:
        joules: of the machines (IT equipment, without PUE): measured and estimated together.
        measured_joules: read off counters, or Slurm's accounting; ``estimated_joules``: the rest of ``joules``.
        sources: {source: joules}, e.g. "Cray pm_counters", "NVML + RAPL", "estimated".
        coverage: what was counted, e.g. "whole node", "GPUs only", "CPU packages only", "estimated".
        pue: power usage effectiveness of the sites, weighted by energy; None where a start names none.
        facility_joules: ``joules`` with each start's PUE.
        kg_co2e: location-based, of ``facility_joules``, or of ``joules`` where there is no PUE (a note says so).
        kg_co2e_market: the same with the market-based factor (contracts of the site).
        grid: the location-based factors used; ``grid_market``: the market-based ones.
        wall_seconds: of all starts, work that was lost included; ``gap_seconds``: of these, after the last record of a
            start that was killed (estimated); ``unknown_seconds``: of these, neither measured nor estimated.
        device_hours: GPUs times hours, or nodes times hours where there are no GPUs; ``devices``: {kind: hours}.
        steps_kept: optimizer steps that the result is made of, of this folder (a run that goes on from another's
            checkpoint counts its own); ``steps_done``: with those done twice after a crash.
        tokens_kept, tokens_done: the same in tokens.
        flops: model FLOPs of all steps done; ``flops_kept``: of those kept (``flops_formula``).
        starts: how often the run was started; ``killed``: starts that ended without a last record.
        notes: what a reader must know to trust the numbers, a sentence each.
    """

    joules: float | None
    measured_joules: float
    estimated_joules: float
    sources: dict[str, float]
    coverage: tuple[str, ...]
    pue: float | None
    facility_joules: float | None
    kg_co2e: float | None
    kg_co2e_market: float | None
    grid: tuple[GridFactor, ...]
    grid_market: tuple[GridFactor, ...]
    wall_seconds: float
    gap_seconds: float
    unknown_seconds: float
    device_hours: float
    devices: dict[str, float]
    steps_kept: int
    steps_done: int
    tokens_kept: int
    tokens_done: int
    flops: float | None
    flops_kept: float | None
    flops_formula: str
    starts: int
    killed: int
    notes: tuple[str, ...]

    @property
    def how(self) -> str:
        """``measured``, ``estimated``, ``partly estimated (12 %)`` or ``not known``: to be said beside every number."""
        if self.joules is None:
            return "not known"
        share = self.estimated_joules / self.joules if self.joules else 0.0
        told = {0.0: "measured", 1.0: "estimated"}.get(share, f"partly estimated ({max(share, 0.01):.0%})")
        return f"{told}, incomplete" if self.unknown_seconds else told

    @property
    def mwh(self) -> float | None:
        """Megawatt-hours of the machines."""
        return None if self.joules is None else self.joules / 3.6e9

    @property
    def joules_per_step(self) -> float | None:
        """All energy spent, a step kept."""
        return self.joules / self.steps_kept if self.joules is not None and self.steps_kept else None

    @property
    def joules_per_token(self) -> float | None:
        """All energy spent, a token kept."""
        return self.joules / self.tokens_kept if self.joules is not None and self.tokens_kept else None

    def to_json(self) -> dict[str, Any]:
        """JSON values; every number that stems from energy says how it was come by."""

        def number(value: float | None, unit: str) -> dict[str, Any]:
            return {"value": value, "unit": unit, "how": "not known" if value is None else self.how}

        return {
            "how": self.how,
            "energy": number(self.joules, "J"),
            "energy_mwh": number(self.mwh, "MWh"),
            "energy_per_step": number(self.joules_per_step, "J"),
            "energy_per_token": number(self.joules_per_token, "J"),
            "energy_of_the_site": number(self.facility_joules, "J"),
            "emissions": number(self.kg_co2e, "kgCO2e"),
            "emissions_market_based": number(self.kg_co2e_market, "kgCO2e"),
            "measured_joules": self.measured_joules,
            "estimated_joules": self.estimated_joules,
            "sources": self.sources,
            "coverage": list(self.coverage),
            "pue": self.pue,
            "grid": [asdict(factor) for factor in self.grid],
            "grid_market": [asdict(factor) for factor in self.grid_market],
            "wall_seconds": self.wall_seconds,
            "gap_seconds": self.gap_seconds,
            "unknown_seconds": self.unknown_seconds,
            "device_hours": self.device_hours,
            "devices": self.devices,
            "steps_kept": self.steps_kept,
            "steps_done": self.steps_done,
            "tokens_kept": self.tokens_kept,
            "tokens_done": self.tokens_done,
            "flops": self.flops,
            "flops_kept": self.flops_kept,
            "flops_formula": self.flops_formula,
            "starts": self.starts,
            "killed": self.killed,
            "notes": list(self.notes),
        }


def energy_totals(run_folder: str | Path, *, pue: float | None = None, grid: GridFactor | None = None) -> EnergyTotals:
    """Add up ``energy.jsonl`` of a run; ``pue`` and ``grid`` stand in where the starts of the run named none.

    Raises:
        HanseError: the ledger is damaged, or not one of ours.
    """
    folder = RunFolder(run_folder)
    starts = read_starts(folder)
    spent = spend(starts, read_answers(folder))
    pairs = [(one, drawn, one.pue or pue) for one, drawn in zip(starts, spent, strict=True)]
    joules = math.fsum(drawn.joules for drawn in spent) if any(_known(drawn) for drawn in spent) else None
    facility = None
    if joules is not None and all(effectiveness for _, _, effectiveness in pairs):
        facility = math.fsum(drawn.joules * (effectiveness or 1) for _, drawn, effectiveness in pairs)
    steps = [one.last_step - one.first_step for one in starts]
    begin = min((one.first_step for one in starts), default=0)
    kept = starts[-1].last_step - begin if starts else 0
    return EnergyTotals(
        joules=joules,
        measured_joules=math.fsum(value for drawn in spent for value in drawn.measured.values()),
        estimated_joules=math.fsum(drawn.estimated for drawn in spent),
        sources=_sources(spent),
        coverage=tuple(sorted({told for drawn in spent for told in drawn.coverage})),
        pue=facility / joules if facility and joules else None,
        facility_joules=facility,
        kg_co2e=_emissions(pairs, joules, lambda one: one.grid or grid),
        kg_co2e_market=_emissions(pairs, joules, lambda one: one.grid_market),
        grid=_distinct(one.grid or grid for one in starts),
        grid_market=_distinct(one.grid_market for one in starts),
        wall_seconds=math.fsum(one.seconds for one in starts),
        gap_seconds=math.fsum(one.gap_seconds for one in starts),
        unknown_seconds=math.fsum(drawn.unknown_seconds for drawn in spent),
        device_hours=math.fsum(_devices(starts).values()),
        devices=_devices(starts),
        steps_kept=kept,
        steps_done=sum(steps),
        tokens_kept=starts[-1].tokens(begin) if starts else 0,
        tokens_done=sum(one.tokens() for one in starts),
        flops=float(sum(one.flops() for one in starts)) or None,
        flops_kept=float(starts[-1].flops(begin)) if starts and kept else None,
        flops_formula=FLOPS_FORMULA,
        starts=len(starts),
        killed=sum(not one.ended for one in starts),
        notes=tuple(_notes(pairs, kept, sum(steps), grid)),
    )


Pairs = Sequence[tuple[Start, Spent, float | None]]


def _known(drawn: Spent) -> bool:
    return bool(drawn.measured) or drawn.estimated > 0


def _sources(spent: Iterable[Spent]) -> dict[str, float]:
    found: dict[str, float] = {}
    for drawn in spent:
        for source, joules in (*drawn.measured.items(), ("estimated", drawn.estimated)):
            if joules or source != "estimated":
                found[source] = found.get(source, 0.0) + joules
    return dict(sorted(found.items()))


def _emissions(pairs: Pairs, joules: float | None, factor: Callable[[Start], GridFactor | None]) -> float | None:
    """Kilograms of CO2 equivalent; None where a start that drew something has no factor."""
    total = 0.0
    for one, drawn, effectiveness in pairs:
        used = factor(one)
        if used is None or joules is None:
            return None
        total += drawn.joules / 3.6e6 * (effectiveness or 1) * used.kg_co2e_per_kwh
    return total if pairs else None


def _distinct(factors: Iterable[GridFactor | None]) -> tuple[GridFactor, ...]:
    return tuple(dict.fromkeys(factor for factor in factors if factor))


def _devices(starts: Iterable[Start]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in starts:
        for kind, number in one.devices.items():
            found[kind] = found.get(kind, 0.0) + number * one.seconds / 3600
    return found


def _notes(pairs: Pairs, kept: int, done: int, grid: GridFactor | None) -> list[str]:
    if not pairs:
        return ["There is no energy.jsonl in this run: it was trained before hanse kept one."]
    starts, notes = [one for one, _, _ in pairs], []
    for coverage in sorted({told for _, drawn, _ in pairs for told in drawn.coverage}):
        notes += [LEFT_OUT[coverage]] if coverage in LEFT_OUT else []
    notes += list(dict.fromkeys(note for _, drawn, _ in pairs for note in drawn.notes))
    notes += filter(None, [gap_note(starts)])
    unknown = math.fsum(drawn.unknown_seconds for _, drawn, _ in pairs)
    if unknown:
        notes.append(f"Of {duration(unknown)} nothing is known: the true energy is higher (energy.gpu_watts=... of the "
                     "next start gives an estimate).")  # fmt: skip
    if done > kept:
        notes.append(f"{done - kept:,} steps were trained again after a crash: their energy is counted, their tokens "
                     "are counted once.")  # fmt: skip
    if not all(effectiveness for _, _, effectiveness in pairs):
        notes.append("No PUE was given (energy.pue): what cooling and supply drew is left out.")
    if not all(one.grid or grid for one in starts):
        notes.append("No grid factor was given (energy.country or energy.grid): emissions are not known.")
    return notes
