"""The life of a job, decided at two points of every start: may it begin, and what comes after its end.

The batch script asks, ``python -m launch.life start ...`` and ``... end ...``, and gets one line: ``train``,
``requeue NODES,TO,EXCLUDE`` or ``end CODE``. What was decided and why stands in ``starts.jsonl`` of the job folder,
from which the next decision is made: nothing is kept anywhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from common.errors import EXIT_CRASH, EXIT_DONE, EXIT_FLAKY, EXIT_GO_ON, EXIT_HUNG, EXIT_USER_ERROR, HanseError
from common.files import read_json, room_for, write_text

LONGEST_WAIT_SECONDS = 3600.0
OUR_STOP = "hanse:"  # begins a stop file that the batch script made; people touch an empty one
# What ended a start, in words. Those marked are failures, whoever is to blame.
KINDS = {
    "done": "all tokens are used up",
    "stopped": "somebody made the file 'stop'",
    "cancelled": "ended by Slurm before its time limit (scancel, preemption, node failure)",
    "limit": "the time limit came, everything is saved",
    "told": "told to stop by a signal, everything is saved",
    "user-error": "the input is wrong, see the log: starting again does not help",
    "crash": "a rank failed",
    "hung": "the ranks gave no sign of life",
    "flaky": "a machine computes wrongly",
    "vanished": "ended without a word (node failure, preemption)",
    "bad-node": "node checks failed",
}
FAILURES = ("crash", "hung", "flaky", "vanished", "bad-node")
ENDS = {"done": EXIT_DONE, "stopped": EXIT_DONE, "cancelled": EXIT_GO_ON, "user-error": EXIT_USER_ERROR}
DIED = re.compile(r"^srun: error: (?P<node>\S+): tasks? [\d,\- ]+: (?P<how>.+)$", re.MULTILINE)
VIOLENT = re.compile(
    r"Killed|Segmentation fault|Bus error|Exited with exit code 1(35|37|39)"
)  # the others' collectives fail because of such a death


@dataclass(frozen=True)
class Policy:
    """The keys ``life.*`` that decide."""

    max_starts: int
    max_failures: int
    backoff_seconds: float
    exclude_after: int
    exclude: list[str] = field(default_factory=list)  # never to run on, whatever happens

    @classmethod
    def read(cls, job: Path) -> Policy:
        """From ``launch.yaml`` of a job folder."""
        config = yaml.safe_load((job / "launch.yaml").read_text(encoding="utf-8"))
        life = config["life"]
        keys = ("max_starts", "max_failures", "backoff_seconds", "exclude_after")
        return cls(**{key: life[key] for key in keys}, exclude=list(config["exclude"]))


@dataclass(frozen=True)
class Start:
    """One start of a job; ``kind`` is empty while it runs."""

    life: int
    begun: float  # Unix time
    nodes: str
    first_step: int  # of the newest checkpoint when it began
    kind: str = ""
    ended: float = 0.0
    step: int = 0  # of the newest checkpoint when it ended
    blamed: str = ""  # the node whose rank failed first
    bad_nodes: tuple[str, ...] = ()  # those that node checks found

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES

    @property
    def progressed(self) -> bool:
        return self.step > self.first_step


@dataclass(frozen=True)
class Decision:
    """What comes next: ``requeue`` (after ``wait_seconds``, without ``exclude``) or ``end`` with an exit code."""

    action: str
    why: str
    code: int = EXIT_DONE
    exclude: tuple[str, ...] = ()
    wait_seconds: float = 0.0


def failures_in_a_row(starts: Sequence[Start]) -> int:
    """Starts since the last one that left a new checkpoint, the failed ones and those that merely got nowhere."""
    row = 0
    for start in starts:
        if start.progressed:
            row = 0
        elif start.kind and start.kind not in ENDS:
            row += 1
    return row


def excluded_nodes(starts: Sequence[Start], policy: Policy) -> tuple[str, ...]:
    """Nodes that the job must not get again, by name."""
    found = {node for start in starts for node in start.bad_nodes}
    blamed = Counter(start.blamed for start in starts if start.failed and start.blamed)
    found |= {node for node, times in blamed.items() if times >= policy.exclude_after}
    return tuple(sorted({*found, *policy.exclude}))


def decide(starts: Sequence[Start], policy: Policy) -> Decision:
    """What follows the last of ``starts``, which has ended."""
    last = starts[-1]
    why = KINDS[last.kind]
    if last.kind in ENDS:
        return Decision("end", why, ENDS[last.kind])
    row = failures_in_a_row(starts)
    if row >= policy.max_failures:
        return Decision("end", f"{why}; {row} starts in a row without a new checkpoint: giving up", EXIT_CRASH)
    if len(starts) >= policy.max_starts:
        return Decision("end", f"{why}; that was start {len(starts)} of at most {policy.max_starts}", EXIT_GO_ON)
    wait = 0.0
    if last.kind in ("crash", "hung"):
        wait = min(policy.backoff_seconds * 2 ** max(row - 1, 0), LONGEST_WAIT_SECONDS)
    return Decision("requeue", why, exclude=excluded_nodes(starts, policy), wait_seconds=wait)


def kind_of_end(  # noqa: PLR0911 (an end each)
    code: int, *, limit_near: bool, ended_by_slurm: bool, past_limit: bool, stopped_by_hand: bool, hung: bool
) -> str:
    """What ended a start, from the exit code of its training step and what happened meanwhile."""
    if code == EXIT_DONE:
        return "done"
    if stopped_by_hand and code in (EXIT_GO_ON, EXIT_USER_ERROR):  # a run that is kept stopped refuses to start
        return "stopped"
    if ended_by_slurm and not past_limit:
        return "cancelled"
    if hung or code == EXIT_HUNG:
        return "hung"
    if code == EXIT_FLAKY:
        return "flaky"
    if code == EXIT_GO_ON:
        return "limit" if limit_near else "told"
    if ended_by_slurm or (limit_near and code == EXIT_USER_ERROR):  # refused to start because of our own stop file
        return "limit"
    return "user-error" if code == EXIT_USER_ERROR else "crash"


def last_word(run: Path) -> tuple[int | None, tuple[str, ...]]:
    """(exit code, nodes to suspect) that the trainer left in ``logs/fault.json``; (None, ()) where it left none.

    srun gives the largest exit code of all tasks, and 137 of those that it kills is larger than any of ours.
    """
    try:
        word = read_json(run / "logs/fault.json", "last word of the ranks")
        return int(word["exit_code"]), tuple(map(str, word["nodes"]))
    except (HanseError, KeyError, TypeError, ValueError):
        return None, ()


def blamed_node(log: str) -> str:
    """The node of the rank that failed first, from what srun said; empty where it said nothing."""
    deaths = [match.group("node", "how") for match in DIED.finditer(log)]
    violent = [node for node, how in deaths if VIOLENT.match(how)]
    return next(iter([*violent, *(node for node, _ in deaths)]), "")


def stuck_node(processes: str) -> str:
    """The node with a stopped (T), undead (Z) or uninterruptibly waiting (D) rank, if it is one node alone.

    Args:
        processes: lines ``NODE STATE PID ...`` of all ranks, from ``ps``.
    """
    rows = [line.split() for line in processes.splitlines()]
    ranks = [row for row in rows if len(row) > 2 and row[2].isdigit()]  # not the words of srun
    nodes = {row[0] for row in ranks if row[1][0] in "TZD"}
    return nodes.pop() if len(nodes) == 1 else ""


def silent_nodes(asked: Sequence[str], processes: str) -> tuple[str, ...]:
    """Those of the nodes asked for their processes that said nothing at all: down, or cut off. None where no node said
    anything, for then it is Slurm that could not be asked.

    Args:
        processes: of each node that answers one line ``NODE ...`` at least.
    """
    heard = {line.split()[0] for line in processes.splitlines() if line.strip()}
    silent = tuple(node for node in asked if node not in heard)
    return silent if len(silent) < len(asked) else ()


def where_it_hangs(here: Path) -> tuple[str, str]:
    """(the node to suspect, what was seen in words) of a start whose ranks the launcher ended for their silence."""
    processes = _text(here / "processes")
    silent = silent_nodes(_text(here / "hung").strip().split(","), processes)
    if silent:
        return silent[0] if len(silent) == 1 else "", f"no answer from {', '.join(silent)}: down, or cut off"
    stuck = stuck_node(processes)
    return stuck, f"a rank on {stuck} does not run: stopped, dead, or waiting for a disk" if stuck else ""


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint of a run folder; 0 where there is none."""
    found = (run / "checkpoints").glob("step-" + "[0-9]" * 8 + "/manifest.json")
    return max((int(path.parent.name[5:]) for path in found), default=0)


class Record:
    """``starts.jsonl`` of a job folder: one line for the begin of a start, one more for its end."""

    def __init__(self, job: Path):
        self.job, self.path = job, job / "starts.jsonl"
        self.run = job.parent.parent

    def starts(self) -> list[Start]:
        """All starts so far, in their order; the later line of a start says all."""
        found: dict[int, Start] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                values = json.loads(line)
                found[values["life"]] = Start(**{**values, "bad_nodes": tuple(values.get("bad_nodes", ()))})
            except (ValueError, TypeError, KeyError):
                continue  # a line cut short by the death of its writer
        return [found[life] for life in sorted(found)]

    def add(self, start: Start) -> None:
        """Append a line, durable before anything is done because of it."""
        text = json.dumps(asdict(start))
        torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + text + "\n")

    def newest_step(self) -> int:
        """Step of the newest complete checkpoint; 0 where there is none."""
        return newest_step(self.run)

    def end(self, kind: str, *, blamed: str = "", bad_nodes: Sequence[str] = ()) -> None:
        """Note how the last start ended."""
        last = self.starts()[-1]
        self.add(Start(**{**asdict(last), "kind": kind, "ended": time.time(), "step": self.newest_step(),
                          "blamed": blamed, "bad_nodes": tuple(bad_nodes)}))  # fmt: skip


def begin(record: Record, policy: Policy, life: int, nodes: str) -> Decision:
    """Decide whether a start may train, and note that it began."""
    starts = record.starts()
    if starts and not starts[-1].kind:
        record.end("vanished")
        starts = record.starts()
        decision = decide(starts, policy)
        if decision.action == "end":
            return decision
    if len(starts) >= policy.max_starts:  # after ends that were not ours to decide
        return Decision("end", f"that was start {len(starts)} of at most {policy.max_starts}", EXIT_GO_ON)
    stop = record.run / "stop"
    if stop.exists():
        if not stop.read_text(encoding="utf-8", errors="replace").startswith(OUR_STOP):
            return Decision("end", KINDS["stopped"], EXIT_DONE)
        stop.unlink()  # left by a start that died between asking and deciding
    (record.run / "logs/fault.json").unlink(missing_ok=True)  # a word of the start before
    record.add(Start(life, time.time(), nodes, record.newest_step()))
    return Decision("train", "")


def finish(record: Record, policy: Policy, arguments: argparse.Namespace) -> Decision:
    """Note how a start ended and decide what follows."""
    stop = record.run / "stop"
    by_hand = stop.exists() and not stop.read_text(encoding="utf-8", errors="replace").startswith(OUR_STOP)
    if stop.exists() and not by_hand:
        stop.unlink()
    here = record.job / "starts" / str(arguments.life)
    hung = (here / "hung").exists()
    word, suspects = last_word(record.run)
    kind = kind_of_end(
        arguments.code if word is None else word, limit_near=bool(arguments.limit_near),
        ended_by_slurm=bool(arguments.ended_by_slurm), past_limit=time.time() >= arguments.end_time - 5,
        stopped_by_hand=by_hand, hung=hung,
    )  # fmt: skip
    blamed = ""
    if kind == "hung":
        blamed, seen = where_it_hangs(here)
        if seen:
            tell(f"start {arguments.life}: {seen}")
        blamed = blamed or (suspects[0] if len(suspects) == 1 else "")
    elif kind == "crash":
        blamed = blamed_node(_text(arguments.log).rpartition(f" start {arguments.life}: job ")[2])
    # A rank that is late may wait for a disk or a switch; a wrong result is the machine's own.
    record.end(kind, blamed=blamed, bad_nodes=suspects if kind == "flaky" else ())
    return decide(record.starts(), policy)


def apply(record: Record, decision: Decision) -> str:
    """Leave what the batch script reads; the line that tells it what to do."""
    if decision.action != "requeue":
        return f"end {decision.code}" if decision.action == "end" else "train"
    exclude = ",".join(decision.exclude)
    write_text(record.job / "excluded", exclude)
    write_text(record.job / "not-before", str(round(time.time() + decision.wait_seconds)))
    return f"requeue {exclude}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def tell(text: str) -> None:
    """A line in the job's log, with the time."""
    print(f"hanse {time.strftime('%F %T')} {text}", file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> int:
    """The command line that the batch script uses."""
    parser = argparse.ArgumentParser(prog="launch.life", description=__doc__)
    parser.add_argument("when", choices=("start", "end"))
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--life", type=int, required=True)
    parser.add_argument("--nodes", default="")
    for name in ("--code", "--limit-near", "--ended-by-slurm", "--end-time"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("/nonexistent"))
    arguments = parser.parse_args(words)
    record, policy = Record(arguments.job), Policy.read(arguments.job)
    try:
        with room_for(record.path):
            if arguments.when == "start":
                decision = begin(record, policy, arguments.life, arguments.nodes)
            else:
                decision = finish(record, policy, arguments)
    except HanseError as error:  # nothing can be noted, so nothing may follow from it
        decision = Decision("end", str(error), EXIT_USER_ERROR)
    if decision.action != "train":
        last = next(reversed(record.starts()), None)
        suspects = ([last.blamed] if last.blamed else last.bad_nodes) if last else ()
        wait = f"{decision.wait_seconds:.0f} s" if decision.wait_seconds else ""
        details = {"suspect": ",".join(suspects), "without": ",".join(decision.exclude), "wait": wait}
        extra = "".join(f", {key} {value}" for key, value in details.items() if value)
        tell(f"{decision.why}: {'once more' if decision.action == 'requeue' else f'end ({decision.code})'}{extra}")
    print(apply(record, decision))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
