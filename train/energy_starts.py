"""Reading ``energy.jsonl``: the starts of a run, and what each drew, measured and estimated apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import HanseError
from common.terminal import duration
from train.energy_ledger import ESTIMATE, FORMAT, last_sign
from train.grid import GridFactor
from train.ledger import lines
from train.run_folder import RunFolder

SLURM = "Slurm's accounting"
Record = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """One start of a run as its lines tell it.

    Attributes:
        first_step, last_step: optimizer steps done before it, and when it was last heard of.
        ended: in good order; ``began``: Unix time of its first line.
        nodes: {node: what is read there}; ``last``: {node: its last reading}.
        covered_seconds: up to its last line; ``gap_seconds``: from there until it was last heard of.
        power: mean watts of all nodes between its first line and its last; None: nothing known, or only one line.
        rated_power: watts of all nodes at full load; None where one is not known.
        slurm: "JOB.STEP", or "".
    """

    first_step: int
    last_step: int
    ended: bool
    began: float
    nodes: dict[str, Record]
    last: dict[str, Record]
    covered_seconds: float
    gap_seconds: float
    power: float | None
    rated_power: float | None
    devices: dict[str, int]
    tokens_per_step: int
    flops_per_token: int
    pue: float | None
    grid: GridFactor | None
    grid_market: GridFactor | None
    slurm: str

    @property
    def seconds(self) -> float:
        return self.covered_seconds + self.gap_seconds

    @property
    def key(self) -> str:
        """Tells it from the other lives of the same Slurm job."""
        return f"{self.slurm}@{self.began:.0f}"


def read_starts(folder: RunFolder) -> list[Start]:
    """The starts that a run's ledger tells of, in order.

    Raises:
        HanseError: it is damaged, or not one of ours.
    """
    parts: list[list[Record]] = []
    for _, record in lines(folder.energy):
        if record["kind"] == "start" or not parts:
            parts.append([])
        parts[-1].append(record)
    try:
        signs = [part[0]["before"] for part in parts[1:]] + [last_sign(folder)]
        return [_start(part, sign) for part, sign in zip(parts, signs[: len(parts)], strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HanseError(f"{folder.energy}: not an energy ledger of {FORMAT} ({error!r})") from None


def _start(records: Sequence[Record], sign: Record | None) -> Start:
    first, last = records[0], records[-1]
    if first["format"] != FORMAT:
        raise ValueError(first["format"])
    ended, nodes, gap, last_step = last["kind"] == "end", first["nodes"], 0.0, int(last["step"])
    if not ended and sign and sign["time"] >= first["at"]["time"]:
        gap, last_step = max(0.0, sign["time"] - last["at"]["time"]), max(last_step, int(sign["step"]))
    rated, site, slurm = [node["rated_watts"] for node in nodes.values()], first["site"], first["slurm"] or {}
    return Start(
        first_step=int(first["step"]), last_step=last_step, ended=ended, began=float(first["at"]["time"]), nodes=nodes,
        last={name: last["nodes"][name] for name in nodes}, covered_seconds=float(last["at"]["seconds"]),
        gap_seconds=gap, power=_power(first, last), rated_power=None if None in rated else math.fsum(rated),
        devices=first["devices"], tokens_per_step=int(first["run"]["tokens_per_step"]),
        flops_per_token=int(first["run"]["flops_per_token"]), pue=site["pue"], grid=_factor(site["grid"]),
        grid_market=_factor(site["grid_market"]), slurm=f"{slurm['job']}.{slurm['step']}" if slurm.get("step") else "",
    )  # fmt: skip


def _factor(told: Mapping[str, Any] | None) -> GridFactor | None:
    return GridFactor(**told) if told else None


def _power(first: Record, last: Record) -> float | None:
    """Mean watts between two lines of a start."""
    before, after = ([node["joules"] for node in line["nodes"].values()] for line in (first, last))
    seconds = last["at"]["seconds"] - first["at"]["seconds"]
    return (math.fsum(after) - math.fsum(before)) / seconds if seconds > 0 and None not in after else None


@dataclass(frozen=True)
class Spent:
    """What a start drew.

    Attributes:
        measured: {source: joules}; ``estimated``: joules, of nodes without a counter and of the gap.
        unknown_seconds: in which neither is known of at least one node.
    """

    measured: dict[str, float]
    estimated: float
    unknown_seconds: float
    coverage: frozenset[str]
    notes: tuple[str, ...]

    @property
    def joules(self) -> float:
        return math.fsum((*self.measured.values(), self.estimated))


def spend(starts: Sequence[Start], slurm: Mapping[str, float]) -> list[Spent]:
    """What each start drew; ``slurm``: {its :attr:`Start.key`: joules} of Slurm's accounting."""
    return [_spend(start, typical_power(start, starts), slurm.get(start.key)) for start in starts]


def typical_power(start: Start, starts: Sequence[Start]) -> float | None:
    """Watts to take for the time that no line of a start covers; None: not known.

    Its own mean while it trained; else that of the other starts on as many of the same devices; else rated power.
    """
    if start.power is not None:
        return start.power
    alike = [other.power for other in starts if other.devices == start.devices and other.power is not None]
    return statistics.fmean(alike) if alike else start.rated_power


def _spend(start: Start, power: float | None, slurm: float | None) -> Spent:
    sources = [node["source"] for node in start.nodes.values()]
    if slurm is not None and ESTIMATE in sources:  # of the whole step: no gap
        return Spent({SLURM: slurm}, 0.0, 0.0, frozenset({"as the site has set up Slurm's accounting"}), ())
    measured: dict[str, float] = {}
    estimated, unknown = 0.0, 0.0
    for source, reading in zip(sources, start.last.values(), strict=True):
        if reading["joules"] is None:
            unknown = start.covered_seconds
        elif source == ESTIMATE:
            estimated += reading["joules"]
        else:
            measured[source] = measured.get(source, 0.0) + reading["joules"]
    if power is None:
        unknown += start.gap_seconds
    else:
        estimated += power * start.gap_seconds
    return Spent(measured, estimated, unknown, frozenset(node["coverage"] for node in start.nodes.values()),
                 tuple(_notes(start, math.fsum(measured.values()), slurm)))  # fmt: skip


def _notes(start: Start, measured: float, slurm: float | None) -> list[str]:
    about = {(note, node) for node, told in start.nodes.items() for note in told["about"]}
    for node, reading in start.last.items():
        about |= {(note, node) for note in reading.get("notes", ())}
        about |= {(f"{counter} could not be read at last: what it counted since is missing", node)
                  for counter in reading.get("missing", ())}  # fmt: skip
    notes = [f"{note} ({_where([node for told, node in about if told == note])})."
             for note in sorted({note for note, _ in about})]  # fmt: skip
    if slurm is not None and measured and start.ended and abs(slurm / measured - 1) > 0.1:
        notes.append(f"Slurm's accounting says {slurm:.4g} J of step {start.slurm}, the counters say {measured:.4g} J.")
    return notes


def _where(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes, {min(nodes)} first"


def gap_note(starts: Sequence[Start]) -> str:
    """What is said of starts that did not end in good order; empty where all did."""
    cut = [start for start in starts if not start.ended]
    if not cut:
        return ""
    seconds = sum(start.gap_seconds for start in cut)
    last = " (the last one may be running)" if not starts[-1].ended else ""
    return (f"{len(cut)} of {len(starts)} starts have no last line{last}: counters cover them up to their last "
            f"checkpoint, the {duration(seconds)} after that are estimated from their mean power.")  # fmt: skip
