"""What a lineage cost: computation, time and energy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from common.terminal import many
from consortium.dossier.evidence import Citation, Evidence
from consortium.dossier.forms import band_of
from consortium.dossier.lineage import Lineage, Segment
from consortium.dossier.rounding import significant
from train.energy.totals import EnergyTotals, energy_totals
from train.run_folder import read_metrics

SECONDS_A_DAY = 86_400
DAYS_A_MONTH = 365.25 / 12
JOULES_A_MEGAWATT_HOUR = 3.6e9
METHOD = (
    "Counted from the architecture: (6 N + 12 layers x heads x head size x sequence length) FLOP a token, N the "
    "parameters of matrix products; forward and backward, nothing recomputed (PaLM, arXiv 2204.02311, appendix B)"
)

FLOPS = (
    "compute.own_flops",
    "compute.parent_flops",
    "compute.flops_text",
    "compute.flops_rounded",
    "compute.flops_magnitude",
)
TIME = ("compute.wall_seconds", "compute.wall_text", "compute.wall_days_rounded", "compute.wall_band",
        "compute.device_hours", "compute.device_hours_text", "compute.hardware_days_rounded")  # fmt: skip
ENERGY = ("energy.joules", "energy.megawatt_hours", "energy.text", "energy.rounded", "energy.method", "energy.kg_co2e",
          "energy.how")  # fmt: skip


def tell(evidence: Evidence, lineage: Lineage) -> None:
    """``compute.*`` and ``energy.*``."""
    if not lineage.lost:
        citations = [*evidence["training.consumed_tokens"].citations,
                     *(one.state.at("model") for one in lineage.trained)]  # fmt: skip
        flops = sum(one.flops for one in lineage.trained)
        evidence.know("compute.flops", flops, *citations)
        evidence.know("compute.parent_flops", flops - lineage.head.flops, *citations)
        evidence.know("compute.own_flops", lineage.head.flops, *lineage.head.cite_tokens())
        evidence.know("compute.flops_text", f"{significant(flops, 3)} FLOP", *citations)
        evidence.know("compute.flops_rounded", f"{significant(flops)} FLOP", *citations)
        evidence.know("compute.flops_magnitude", f"10^{len(str(flops)) - 1} FLOP", *citations)
    evidence.know("compute.method", METHOD, *(one.state.at("model") for one in lineage.trained))
    energies = [energy_totals(one.folder.path) if one.folder and one.energy else None for one in lineage.trained]
    _time(evidence, lineage, energies)
    _details(evidence, lineage)
    _energy(evidence, lineage, energies)
    evidence.miss(FLOPS, "a run that the model was made from was not found, so that a total would be too small; the "
                  f"model's own run alone: {significant(lineage.head.flops)} FLOP")  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Time of a run: of all its starts where it has an energy ledger, else up to the checkpoint.

    Attributes:
        wall_seconds, device_hours: ``devices`` says of what. ``whole``: work that a crash lost is included.
    """

    wall_seconds: float
    device_hours: float
    devices: str
    whole: bool
    citations: tuple[Citation, ...]


def _spent(segment: Segment, energy: EnergyTotals | None) -> Spent:
    if energy and energy.starts and segment.energy:
        kinds = " and ".join(energy.devices)
        return Spent(energy.wall_seconds, energy.device_hours, kinds, True, (segment.energy.at("all records"),))
    state, spent = segment.checkpoint.state, _seconds_by_ranks(segment)
    total = sum(spent.values())
    mean = sum(ranks * seconds for ranks, seconds in spent.items()) / total if total else state["ranks"]
    hours = float(state["wall_seconds"]) * mean / 3600  # exact where the number of ranks never changed
    cited = (segment.state.at("wall_seconds"), *([segment.ledger.at("starts")] if segment.ledger else []))
    return Spent(float(state["wall_seconds"]), hours, "ranks", False, cited)


def _time(evidence: Evidence, lineage: Lineage, energies: list[EnergyTotals | None]) -> None:
    if lineage.lost:
        return evidence.miss(TIME, "a run that the model was made from was not found")
    spent = [_spent(one, energy) for one, energy in zip(lineage.trained, energies, strict=True)]
    at = [citation for one in spent for citation in one.citations]
    wall, hours = sum(one.wall_seconds for one in spent), sum(one.device_hours for one in spent)
    days, hardware_days = wall / SECONDS_A_DAY, hours / 24
    devices = ", ".join(dict.fromkeys(one.devices for one in spent))
    lost = "work lost to crashes included" if all(one.whole for one in spent) else "work lost to crashes left out"
    evidence.know("compute.wall_seconds", wall, *at)
    evidence.know("compute.wall_text", f"{significant(wall / 3600)} hours ({significant(days)} days), {lost}", *at)
    evidence.know("compute.wall_days_rounded", f"{significant(days)} days", *at)
    evidence.know("compute.wall_band", band_of("wall_months", days / DAYS_A_MONTH), *at)
    evidence.know("compute.device_hours", hours, *at)
    evidence.know("compute.device_hours_text", f"{significant(hours)} device-hours ({devices}), {lost}", *at)
    evidence.know("compute.hardware_days_rounded", f"{significant(hardware_days)} device-days ({devices})", *at)


def _seconds_by_ranks(segment: Segment) -> dict[int, float]:
    """{ranks: seconds of steps done with so many}, as the ledger and the metrics tell it."""
    starts = [(one["step"], one["ranks"]) for one in segment.records if one["kind"] == "start"]
    spent: Counter[int] = Counter()
    if segment.metrics:
        for record in read_metrics(segment.metrics.path):
            if "seconds" in record and record["step"] <= segment.step:
                before = [ranks for step, ranks in starts if step < record["step"]]
                spent[before[-1] if before else segment.checkpoint.state["ranks"]] += record["seconds"]
    return dict(spent)


def _details(evidence: Evidence, lineage: Lineage) -> None:
    head, locks = lineage.head, [one.lock for one in lineage.trained if one.lock]
    hardware = []
    for segment in lineage.trained:
        if segment.lock:
            machine, layout = segment.lock.content["machine"], segment.lock.content["layout"]
            devices = ", ".join(dict.fromkeys(machine["devices"])) or f"CPU ({machine['processor']})"
            hardware.append(f"{segment.name}: {many(layout['ranks'], 'rank')} on {devices}, {machine['system']}")
    if hardware:
        evidence.know("compute.hardware", hardware, *(one.at("machine") for one in locks))
    evidence.miss("compute.hardware", "no run has a run.lock.json")
    state, config = head.checkpoint.state, head.config
    restarts = sum(max(one.starts - 1, 0) for one in lineage.trained)
    repeated = sum(one.repeated_steps for one in lineage.trained)
    evidence.know("training.restarts", restarts, *_ledgers(lineage))
    evidence.know("training.repeated_steps", repeated, *_ledgers(lineage))
    evidence.know("compute.details", [
        f"DeepSpeed ZeRO stage {state.get('zero_stage')}, {state.get('ranks')} ranks, precision {state['precision']}",
        f"Determinism {config.determinism if config else 'not known'}; the order of data follows from the seed",
        f"{many(restarts, 'restart')}, {repeated} optimizer steps done a second time after a crash",
        *([f"{len(lineage.segments)} stages: " + ", ".join(f"{one.name} (step {one.step})" for one in lineage.segments)]
          if len(lineage.segments) > 1 else []),
    ], head.state.at("ranks"), *_ledgers(lineage))  # fmt: skip


def _ledgers(lineage: Lineage) -> list[Citation]:
    return [one.ledger.at("starts and steps") for one in lineage.trained if one.ledger]


def _energy(evidence: Evidence, lineage: Lineage, energies: list[EnergyTotals | None]) -> None:
    """All energy that was spent, on work lost to crashes too; every number says whether it was measured."""
    if lineage.lost:
        return evidence.miss(ENERGY, "a run that the model was made from was not found")
    told = list(zip(lineage.trained, energies, strict=True))
    silent = [one.name for one, energy in told if energy is None or energy.joules is None]
    if silent:
        return evidence.miss(ENERGY, f"there is no energy ledger (energy.jsonl) of {', '.join(silent)}")
    known = [energy for energy in energies if energy]
    at = [one.energy.at("all records") for one in lineage.trained if one.energy]
    joules = sum(energy.joules or 0.0 for energy in known)
    how = known[0].how if len(known) == 1 else "; ".join(f"{one.name}: {energy.how}" for one, energy in told if energy)
    megawatt_hours = joules / JOULES_A_MEGAWATT_HOUR
    evidence.know("energy.joules", joules, *at)
    evidence.know("energy.megawatt_hours", megawatt_hours, *at)
    evidence.know("energy.how", how, *at)
    evidence.know("energy.text", f"{significant(megawatt_hours)} MWh ({how})", *at)
    evidence.know("energy.rounded", f"{significant(megawatt_hours)} MWh ({how})", *at)
    evidence.know("energy.method", _method(told), *at)
    if all(energy.kg_co2e is not None for energy in known):
        evidence.know("energy.kg_co2e", sum(energy.kg_co2e or 0.0 for energy in known), *at)
    evidence.miss("energy.kg_co2e", "no run names the emissions of its grid (energy=...)")


def _method(told: list[tuple[Segment, EnergyTotals | None]]) -> list[str]:
    lines = []
    for segment, energy in told:
        if energy is None:
            continue
        before = f"{segment.name}: " if len(told) > 1 else ""
        sources = ", ".join(
            f"{name} {joules / JOULES_A_MEGAWATT_HOUR:.3g} MWh" for name, joules in energy.sources.items()
        )
        lines.append(f"{before}{energy.how}; {sources}; covers {', '.join(energy.coverage)}")
        pue = f"{energy.pue:.2f}" if energy.pue else "not known"
        grid = "; ".join(f"{one.kg_co2e_per_kwh:g} kgCO2e/kWh ({one.year}, {one.source})" for one in energy.grid)
        emitted = f", {significant(energy.kg_co2e)} kgCO2e location-based" if energy.kg_co2e is not None else ""
        lines.append(f"{before}IT equipment without cooling; PUE {pue}; grid factor {grid or 'not known'}{emitted}")
        lines += [f"{before}{note}" for note in energy.notes]
    return list(dict.fromkeys(lines))
