"""What a lineage cost: computation, time and energy."""

from __future__ import annotations

from collections import Counter

from consortium.dossier.evidence import Citation, Evidence
from consortium.dossier.forms import band_of
from consortium.dossier.lineage import Lineage, Segment
from consortium.dossier.rounding import significant
from train.run_folder import read_metrics

SECONDS_A_DAY = 86_400
DAYS_A_MONTH = 365.25 / 12
METHOD = (
    "Counted from the architecture: (6 N + 12 layers x heads x head size x sequence length) FLOP a token, N the "
    "parameters of matrix products; forward and backward, nothing recomputed (PaLM, arXiv 2204.02311, appendix B)"
)

FLOPS = ("compute.own_flops", "compute.flops_text", "compute.flops_rounded", "compute.flops_magnitude")
TIME = ("compute.wall_seconds", "compute.wall_text", "compute.wall_days_rounded", "compute.wall_band",
        "compute.device_hours", "compute.device_hours_text", "compute.hardware_days_rounded")  # fmt: skip
ENERGY = ("energy.joules", "energy.text", "energy.rounded", "energy.method", "energy.kg_co2e", "energy.how")


def tell(evidence: Evidence, lineage: Lineage) -> None:
    """``compute.*`` and ``energy.*``."""
    if not lineage.lost:
        citations = [*evidence["training.consumed_tokens"].citations,
                     *(one.state.at("model") for one in lineage.trained)]  # fmt: skip
        flops = sum(one.flops for one in lineage.trained)
        evidence.know("compute.flops", flops, *citations)
        evidence.know("compute.own_flops", lineage.head.flops, *lineage.head.cite_tokens())
        evidence.know("compute.flops_text", f"{significant(flops, 3)} FLOP", *citations)
        evidence.know("compute.flops_rounded", f"{significant(flops)} FLOP", *citations)
        evidence.know("compute.flops_magnitude", f"10^{len(str(flops)) - 1} FLOP", *citations)
    evidence.know("compute.method", METHOD)
    _time(evidence, lineage)
    _details(evidence, lineage)
    _energy(evidence, lineage)
    evidence.miss(FLOPS, "a run that the model was made from was not found, so that a total would be too small")


def _time(evidence: Evidence, lineage: Lineage) -> None:
    if lineage.lost:
        return evidence.miss(TIME, "a run that the model was made from was not found")
    citations = [one.state.at("wall_seconds") for one in lineage.trained]
    wall = sum(float(one.checkpoint.state["wall_seconds"]) for one in lineage.trained)
    device_hours = sum(_device_hours(one) for one in lineage.trained)
    citations += [one.ledger.at("starts") for one in lineage.trained if one.ledger]
    days, hardware_days = wall / SECONDS_A_DAY, device_hours / 24
    evidence.know("compute.wall_seconds", wall, *citations)
    evidence.know("compute.wall_text", f"{significant(wall / 3600)} hours ({significant(days)} days), up to the "
                  "checkpoint, work lost to crashes left out", *citations)  # fmt: skip
    evidence.know("compute.wall_days_rounded", f"{significant(days)} days", *citations)
    evidence.know("compute.wall_band", band_of("wall_months", days / DAYS_A_MONTH), *citations)
    evidence.know("compute.device_hours", device_hours, *citations)
    unit = "GPU" if any(_devices(one) for one in lineage.trained) else "rank (processes on CPUs)"
    evidence.know("compute.device_hours_text", f"{significant(device_hours)} {unit}-hours", *citations)
    evidence.know("compute.hardware_days_rounded", f"{significant(hardware_days)} {unit}-days", *citations)


def _device_hours(segment: Segment) -> float:
    """Wall clock times ranks; where the number of ranks changed between starts, by the steps done with each."""
    spent = _seconds_by_ranks(segment)
    total, state = sum(spent.values()), segment.checkpoint.state
    mean = sum(ranks * seconds for ranks, seconds in spent.items()) / total if total else state["ranks"]
    return float(state["wall_seconds"]) * mean / 3600


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


def _devices(segment: Segment) -> list[str]:
    return list(segment.lock.content["machine"]["devices"]) if segment.lock else []


def _details(evidence: Evidence, lineage: Lineage) -> None:
    head, locks = lineage.head, [one.lock for one in lineage.trained if one.lock]
    hardware = []
    for segment in lineage.trained:
        if segment.lock:
            machine, layout = segment.lock.content["machine"], segment.lock.content["layout"]
            devices = ", ".join(dict.fromkeys(machine["devices"])) or f"CPU ({machine['processor']})"
            hardware.append(f"{segment.name}: {layout['ranks']} ranks on {devices}, {machine['system']}")
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
        f"{restarts} restarts, {repeated} optimizer steps done a second time after a crash",
        *([f"{len(lineage.segments)} stages: " + ", ".join(f"{one.name} (step {one.step})" for one in lineage.segments)]
          if len(lineage.segments) > 1 else []),
    ], head.state.at("ranks"), *_ledgers(lineage))  # fmt: skip


def _ledgers(lineage: Lineage) -> list[Citation]:
    return [one.ledger.at("starts and steps") for one in lineage.trained if one.ledger]


def _energy(evidence: Evidence, lineage: Lineage) -> None:
    evidence.miss(ENERGY, "no run has an energy.jsonl")
