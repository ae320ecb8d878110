"""Reading ``energy.jsonl``: the starts of a run, and what each drew, measured and estimated apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import HanseError
from common.terminal import duration
from train.energy.counters import ESTIMATE
from train.energy.grid import GridFactor
from train.energy.recorder import FORMAT, last_sign
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
        stages: of the run: the step each ends with, tokens a step, FLOPs a token.
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
    stages: tuple[tuple[float, int, int], ...]
    pue: float | None
    grid: GridFactor | None
    grid_market: GridFactor | None
    slurm: str

    def tokens(self, first_step: int | None = None) -> int:
        """Tokens of the steps since ``first_step`` (None: those of this start)."""
        return sum(tokens for tokens, _ in self._work(first_step))

    def flops(self, first_step: int | None = None) -> int:
        """Model FLOPs of them."""
        return sum(tokens * per_token for tokens, per_token in self._work(first_step))

    def _work(self, first_step: int | None) -> Iterator[tuple[int, int]]:
        """(tokens, FLOPs a token) of the steps in each stage."""
        done = self.first_step if first_step is None else first_step
        for stop, per_step, per_token in self.stages:
            steps = max(int(min(stop, self.last_step)) - done, 0)
            yield steps * per_step, per_token
            done += steps

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
        return [_start(part, last_sign(folder) if part is parts[-1] else None) for part in parts]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HanseError(f"{folder.energy}: not an energy ledger of {FORMAT} ({error!r})") from None


def _start(records: list[Record], sign: Record | None) -> Start:
    """A start of these lines; ``sign``: when it was last seen, if no line says so."""
    if records[-1]["kind"] == "lost":
        lost = records.pop()
        sign = {"time": lost["at"]["time"], "step": lost["step"]}
    first, last = records[0], records[-1]
    if first["format"] != FORMAT:
        raise ValueError(first["format"])
    site, slurm, nodes = first["site"], first["slurm"] or {}, first["nodes"]
    before, after = _readings(first, nodes), _readings(last, nodes)
    began, told = _number(first["at"]["time"]), _number(last["at"]["time"])
    set_up, covered = _number(first["at"]["seconds"]), _number(last["at"]["seconds"])
    ended, gap, last_step = last["kind"] == "end", 0.0, _whole(last["step"])
    if not ended and sign and _number(sign["time"]) >= began:
        gap, last_step = max(0.0, sign["time"] - told), max(last_step, _whole(sign["step"]))
    if last_step < _whole(first["step"]):
        raise ValueError(f"step {last_step} after step {first['step']}")
    rated, ends = [node["rated_watts"] for node in nodes.values()], [node["joules"] for node in after.values()]
    power = None
    if covered > set_up and None not in ends:
        power = (math.fsum(ends) - math.fsum(node["joules"] for node in before.values())) / (covered - set_up)
    return Start(
        first_step=_whole(first["step"]), last_step=last_step, ended=ended, began=began, nodes=nodes, last=after,
        covered_seconds=covered, gap_seconds=gap, power=power,
        rated_power=None if None in rated else math.fsum(map(_number, rated)),
        devices={str(kind): _whole(number) for kind, number in first["devices"].items()},
        stages=_stages(first["run"]),
        pue=None if site["pue"] is None else _number(site["pue"]), grid=_factor(site["grid"]),
        grid_market=_factor(site["grid_market"]), slurm=f"{slurm['job']}.{slurm['step']}" if slurm.get("step") else "",
    )  # fmt: skip


def _readings(line: Record, nodes: Mapping[str, Record]) -> dict[str, Record]:
    """{node: its reading} of a line, checked."""
    found = {name: line["nodes"][name] for name in nodes}
    for name, reading in found.items():
        if reading["joules"] is not None:
            _number(reading["joules"])
        texts = [nodes[name]["source"], nodes[name]["coverage"], nodes[name]["rated_from"], *nodes[name]["about"],
                 *reading.get("notes", ()), *reading.get("missing", ())]  # fmt: skip
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"a text of node {name} is none")
    return found


def _stages(told: Record) -> tuple[tuple[float, int, int], ...]:
    """Those of a run; one without stages tells of its only one."""
    rows = told.get("stages", [])
    table = [(_number(stop), _whole(per_step), _whole(per_token)) for stop, per_step, per_token in rows]
    return (*table[:-1], (math.inf, *(table[-1][1:] if table else
                                      (_whole(told["tokens_per_step"]), _whole(told["flops_per_token"])))))  # fmt: skip


def _number(value: Any) -> float:
    """A number that energy, time or power can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ValueError(f"{value!r} is no amount")
    return float(value)


def _whole(value: Any) -> int:
    return int(_number(value))


def _factor(told: Mapping[str, Any] | None) -> GridFactor | None:
    if not told:
        return None
    country = told["country"]
    return GridFactor(
        _number(told["kg_co2e_per_kwh"]),
        _whole(told["year"]),
        str(told["source"]),
        None if country is None else str(country),
    )


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
    about |= {(f"Estimated as rated power times time: {told['rated_from']}", node)
              for node, told in start.nodes.items() if told["source"] == ESTIMATE and told["rated_watts"]}  # fmt: skip
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
    last = " (the last one may still be running)" if not starts[-1].ended else ""
    return (f"Of {len(starts)} starts {len(cut)} did not end in good order{last}: their records end with the last "
            f"checkpoint, the {duration(seconds)} after that are estimated from their mean power.")  # fmt: skip
