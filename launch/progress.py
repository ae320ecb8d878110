"""How far a run is, from the files in its folder alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.life import KINDS, Policy, Record, Start, excluded_nodes, failures_in_a_row, newest_step
from launch.render import job_folders
from launch.sweep_record import name_of, run_folders

TAIL_BYTES = 256 * 1024  # some hundreds of steps, so that it holds the last comparison of the ranks' times
RECENT_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """A launched run at one moment; what is not known is None."""

    run: Path
    job: str | None  # number of the newest job
    starts: list[Start]
    step: int | None
    steps: int | None  # in the whole budget
    loss: float | None
    tokens_per_second: float | None  # mean of the last steps
    mfu: float | None  # of the measured peak; the next one: of the data sheets'
    mfu_data_sheet: float | None
    checkpoint_step: int
    silent_seconds: float | None  # since the last sign of life
    phase: str | None  # what the trainer said it is doing
    bad_nodes: tuple[str, ...]
    failures: int  # in a row, without a new checkpoint
    tokens_left: int | None  # of the whole budget
    slow: tuple[str, ...]  # ranks that the last comparison found slow, in words
    bits_per_byte: dict[str, float]  # {language: the last validation's}
    tasks: dict[str, float]  # {task: share of right answers in the last evaluation, mean over its languages}

    @property
    def name(self) -> str:
        """Of the run; of a run of a sweep, after that of the sweep."""
        return name_of(self.run)

    @property
    def told(self) -> str:
        """How far it is, in words, from its own files."""
        if self.done:
            return "done"
        how = KINDS.get(self.starts[-1].kind, "running") if self.starts else ""
        where = f"step {self.step or 0:,}" + (f" of {self.steps:,}" if self.steps else "")
        return f"{where}: {how}" if how else where

    @property
    def done(self) -> bool:
        """Whether its last checkpoint is that of its last step."""
        return self.steps is not None and self.checkpoint_step >= self.steps

    @property
    def seconds_left(self) -> float | None:
        """Of training, at the present speed; waiting in the queue not counted."""
        if self.tokens_left is None or not self.tokens_per_second:
            return None
        return self.tokens_left / self.tokens_per_second


def launched(runs: Path) -> list[Path]:
    """Run folders below ``runs`` that have a job folder, those of sweeps included."""
    return run_folders(runs, "jobs/[0-9]*")


def look(run: Path) -> Progress:
    """Read a run folder. Files may be missing, half-written or of a job that never started."""
    jobs = job_folders(run)
    submitted = [job for job in jobs if (job / "job.json").is_file()]
    train = _yaml(jobs[-1] / "train.yaml") if jobs else {}
    record = Record(submitted[-1]) if submitted else None
    starts = record.starts() if record else []
    tail = list(_tail(run / "metrics.jsonl"))
    steps = [entry for entry in tail if "loss" in entry][-RECENT_STEPS:]
    speeds = [entry["tokens_per_second"] for entry in steps if entry.get("tokens_per_second")]
    heartbeat = _json(run / "heartbeat.json")
    step = steps[-1]["step"] if steps else None
    whole, left = _budget(train, heartbeat, step)
    return Progress(
        run=run, job=str(_json(submitted[-1] / "job.json").get("job_id") or "") or None if submitted else None,
        starts=starts, step=step, steps=whole,
        loss=steps[-1]["loss"] if steps else None,
        tokens_per_second=len(speeds) / sum(1 / speed for speed in speeds) if speeds else None,
        mfu=_mean(steps, "mfu"), mfu_data_sheet=_mean(steps, "mfu_data_sheet"),
        checkpoint_step=newest_step(run), silent_seconds=_silence(run),
        phase=heartbeat.get("phase"),
        bad_nodes=excluded_nodes(starts, Policy.read(submitted[-1])) if submitted else (),
        failures=failures_in_a_row(starts), tokens_left=left, slow=_slow(tail), bits_per_byte=_bits_per_byte(tail),
        tasks=_tasks(tail),
    )  # fmt: skip


def _mean(entries: list[dict[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in entries if entry.get(key) is not None]
    return sum(values) / len(values) if values else None


def _budget(train: dict[str, Any], heartbeat: dict[str, Any], step: int | None) -> tuple[int | None, int | None]:
    """(steps of the whole budget, tokens left): as the run says; of one that has not yet, as its configuration does."""
    try:
        if "tokens" in heartbeat:
            return int(heartbeat["steps"]), max(int(heartbeat["tokens"]) - int(heartbeat["consumed_tokens"]), 0)
    except (KeyError, TypeError, ValueError):
        pass
    steps = steps_asked(train)
    return steps, max(steps - step, 0) * _tokens_per_step(train) if steps and step is not None else None


def steps_asked(train: dict[str, Any]) -> int | None:
    """Steps of a training configuration's budget; None where it does not say, or has stages, which the run counts."""
    try:
        return None if train.get("stages") else int(train["tokens"]) // _tokens_per_step(train)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _tokens_per_step(train: dict[str, Any]) -> int:
    return int(train["batch"]["global_batch_size"]) * int(train["data"]["sequence_length"])


def _slow(entries: list[dict[str, Any]]) -> tuple[str, ...]:
    compared = [entry["rank_times"] for entry in entries if "rank_times" in entry]
    try:
        return tuple(f"rank {one['rank']} on {one['node']} is slow: {one['part']} {one['seconds']:.3g} s a step, "
                     f"the median rank {one['median']:.3g} s" for one in compared[-1]["slow"])  # fmt: skip
    except (IndexError, KeyError, TypeError, ValueError):
        return ()


def _bits_per_byte(entries: list[dict[str, Any]]) -> dict[str, float]:
    """{language: bits per byte} of the last validation among metrics."""
    found = [entry["evaluation"] for entry in entries if "evaluation" in entry]
    try:
        return {name: float(one["bits_per_byte"]) for name, one in found[-1].items()}
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _tasks(entries: list[dict[str, Any]]) -> dict[str, float]:
    """{task: accuracy, mean over the languages that were asked} of the last evaluation among metrics."""
    found = [entry.get("evaluation_tasks") or {} for entry in entries if "evaluation" in entry]
    try:
        return {task: sum(float(one["accuracy"]) for one in rows.values()) / len(rows)
                for task, rows in found[-1].items() if rows}  # fmt: skip
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _silence(run: Path) -> float | None:
    signs = [path.stat().st_mtime for name in ("heartbeat.json", "metrics.jsonl") if (path := run / name).is_file()]
    return time.time() - max(signs) if signs else None


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The last records of a file of JSON lines that somebody is writing."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")[bool(start) : -1]  # the first may be half of one, the last not yet whole
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    except (OSError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
