"""Energy as it is shown: a line in the terminal, a section of the report; beside each number, how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.terminal import count, duration, many
from train.energy.grid import GridFactor
from train.energy.totals import EnergyTotals


def energy_line(told: Mapping[str, Any]) -> str:
    """One line on :meth:`train.energy.totals.EnergyTotals.to_json`."""
    energy, token, emissions = told["energy"], told["energy_per_token"], told["emissions"]
    if energy["value"] is None:
        return "energy: not known" + (f" ({told['notes'][0]})" if told["notes"] else "")
    parts = [f"{count(energy['value'], 'J')} ({energy['how']})"]
    if token["value"] is not None:
        parts.append(f"{count(token['value'], 'J')} a token ({token['how']})")
    if emissions["value"] is not None:
        parts.append(f"{emissions['value']:.2g} kgCO2e ({emissions['how']})")
    return "energy: " + ", ".join(parts)


def energy_rows(totals: EnergyTotals) -> list[list[str]]:
    """(what, number and how it came about) of the report's table."""
    rows = [
        ("of the machines", _energy(totals.joules), totals.how),
        ("a step", _joules(totals.joules_per_step), totals.how),
        ("a token", _joules(totals.joules_per_token), totals.how),
        ("of the site", _energy(totals.facility_joules),
         f"{totals.how}, PUE {totals.pue:.3g}" if totals.pue else "no PUE was given"),
        ("emissions", _kilograms(totals.kg_co2e), _factors("location-based", totals.how, totals.grid)),
    ]  # fmt: skip
    if totals.grid_market:
        rows.append(("emissions", _kilograms(totals.kg_co2e_market),
                     _factors("market-based", totals.how, totals.grid_market)))  # fmt: skip
    starts = f"{many(totals.starts, 'start')}, lost work included"
    rows += [
        ("wall time", duration(totals.wall_seconds), starts),
        ("device time", f"{totals.device_hours:,.3g} h", ", ".join(totals.devices)),
        ("computation", _flops(totals.flops), totals.flops_formula),
    ]
    if totals.steps_done > totals.steps_kept:
        rows += [
            ("steps done", f"{totals.steps_done:,}", f"{totals.steps_kept:,} of them are part of the result"),
            ("of this kept", _flops(totals.flops_kept), "of the steps that are part of the result"),
        ]
    return [[name, f"{value} ({how})" if how else value] for name, value, how in rows]


def energy_note(totals: EnergyTotals) -> str:
    """Where the numbers come from, and what they leave out."""
    sources = ", ".join(f"{name} ({count(joules, 'J')})" for name, joules in totals.sources.items())
    return " ".join([*([f"Sources: {sources}."] if sources else []), *totals.notes])


def _energy(joules: float | None) -> str:
    return "not known" if joules is None else f"{count(joules, 'J')} = {joules / 3.6e9:.2g} MWh"


def _joules(joules: float | None) -> str:
    return "not known" if joules is None else count(joules, "J")


def _kilograms(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2g} kgCO2e"


def _flops(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g} FLOP"


def _factors(kind: str, how: str, factors: tuple[GridFactor, ...]) -> str:
    if not factors:
        return "no grid factor was given"
    return "; ".join([f"{how}, {kind}", *(f"{factor.kg_co2e_per_kwh:g} kg/kWh in {factor.year}, {factor.source}"
                             + (f" ({factor.country})" if factor.country else "") for factor in factors)])  # fmt: skip
