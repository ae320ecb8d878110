"""The folder of a run: who may write in it, what it was started with, and what came out."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.configuration import belongs, differences
from common.errors import HanseError
from common.files import read_json, room_for, write_json, write_text
from train.change import Change
from train.config import TrainConfig
from train.determinism import FROZEN

# What may change between two starts of one run: how it is computed and watched, not what is computed.
# (What a run began with is bound by its hash, wherever its folder lies now.)
FREE = ("run", "lock", "change_stages", "init_from", "init_tokenizer", "init_changes", "until_step", "ranks",
        "threads_per_rank", "experiment", "state_hash_every_steps", "engine", "model.attention",
        "batch.micro_batch_size", "data.shards", "data.tokenizer", "data.verify_hashes", "checkpoint", "evaluate",
        "track", "profile", "profiling", "energy", "guards.watchdog_seconds", "guards.watchdog_slow_seconds",
        "guards.times_every_steps", "guards.slow_ratio", "guards.weights_every_steps",
        "guards.layer_norms_every_steps")  # fmt: skip
# What may be changed for the steps that are still to come, if it is asked for (train/change.py).
STAGED = ("stages", "tokens", "schedule")


def plain(config: TrainConfig) -> dict[str, Any]:
    """A configuration as nested dictionaries; ``stages.0.tokens`` is a key as every other."""
    values = asdict(config)
    return {**values, "stages": {str(number): one for number, one in enumerate(values["stages"])} or []}


def own_key(key: str) -> str:
    """The key of a run that a key of a stage stands for: ``data.mixture`` of ``stages.0.data.mixture``."""
    return re.sub(r"^stages\.\d+\.", "", key)


class RunFolder:
    """Paths of a run folder, and its small files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self.ledger, self.lock = self.path / "ledger.jsonl", self.path / "run.lock.json"
        self.energy = self.path / "energy.jsonl"
        self.states = self.path / "states.jsonl"
        self.heartbeat = self.path / "heartbeat.json"
        self.stop_file, self.save_file = self.path / "stop", self.path / "save"  # made by hand, or by a launcher

    @property
    def flat(self) -> bool:
        """Whether the folder is itself a checkpoint with the configuration of a run: what ``hanse average`` writes."""
        return (self.path / "manifest.json").is_file()

    @property
    def evaluations(self) -> Path:
        """Where ``hanse evaluate`` writes: beside a flat folder, which holds what its manifest lists alone."""
        return self.path.with_name(f"{self.path.name}.evaluations") if self.flat else self.path / "evaluations"

    @property
    def evaluation_logs(self) -> Path:
        """Where the ranks of ``hanse evaluate`` log."""
        return self.evaluations / "logs" if self.flat else self.path / "logs"

    def find_checkpoints(self) -> dict[int, Path]:
        """{step: folder} of the complete checkpoints, ascending; of a flat folder, itself.

        Raises:
            HanseError: a flat folder's state tells no step.
        """
        if self.flat:
            state = read_json(self.path / "state.json", "checkpoint state")
            if not isinstance(state, dict) or not isinstance(state.get("step"), int):
                raise HanseError(f"{self.path / 'state.json'}: tells no step")
            return {state["step"]: self.path}
        return {step: folder_of(self.checkpoints, step) for step in complete_steps(self.checkpoints)}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder: no second run may write in it.

        The holder is named in ``in-use.json``. One that is gone (same host, process ended; or an earlier start of the
        same Slurm job) is replaced.

        Raises:
            HanseError: another run holds it, or the file ``stop`` is there.
        """
        self.check_free()
        lock = self.path / "in-use.json"
        mine = _holder()
        for _ in range(2):
            try:
                handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                self._clear_if_stale(lock, mine)
        else:
            raise HanseError(f"{self.path}: another run took this folder at the same moment; start again")
        try:
            with room_for(lock), os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(mine, file)
            yield
        finally:
            lock.unlink(missing_ok=True)

    def check_free(self) -> None:
        """Make the folder if it is missing, and see whether a run may start in it.

        Raises:
            HanseError: another run holds it, or the file ``stop`` is there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HanseError(f"{self.path}: cannot be created ({error.strerror}); set another run=...") from None
        if self.flat:
            raise HanseError(
                f"{self.path}: holds a model, not a run; begin a run with it: init_from={self.path} run=..."
            )
        if self.stop_file.exists():
            raise HanseError(f"{self.stop_file}: this file keeps the run stopped; delete it to go on")
        lock = self.path / "in-use.json"
        if lock.exists():
            self._clear_if_stale(lock, _holder())

    def _clear_if_stale(self, lock: Path, mine: Mapping[str, Any]) -> None:
        try:
            holder = json.loads(lock.read_text(encoding="utf-8"))
            host, pid = str(holder["host"]), int(holder["pid"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            raise HanseError(f"{lock}: not readable; if no run is using {self.path}, delete it") from None
        job = holder.get("slurm_job_id")
        earlier_start = job is not None and job == mine["slurm_job_id"] and (
            int(holder.get("slurm_restart_count", 0)) < mine["slurm_restart_count"])  # fmt: skip
        gone = host == mine["host"] and (
            holder.get("boot") != mine["boot"] or _process_start(pid) != holder.get("started"))  # fmt: skip
        if not (earlier_start or gone):
            raise HanseError(f"{self.path}: in use by another run (process {pid} on {host}); wait for it, stop it, or "
                             f"name another folder with run=... (if that process is gone, delete {lock})")  # fmt: skip
        lock.unlink(missing_ok=True)

    def check_config(self, config: TrainConfig) -> Change | None:
        """Hold a run to the configuration that it was started with.

        Returns:
            What differs of its stages, tokens and schedule, where ``change_stages`` lets it; not yet checked.

        Raises:
            HanseError: a key that decides what is computed differs from the first start.
        """
        if not self.config.is_file():
            return None
        before = self.read_config()  # keys that are newer than the run have their defaults
        frozen = FROZEN[config.determinism]
        found = {key: both for key, both in differences(plain(before), plain(config)).items()
                 if not belongs(own_key(key), FREE) or belongs(own_key(key), frozen)}  # fmt: skip
        staged = {key: both for key, both in found.items() if belongs(key, STAGED)}
        if found and (found != staged or not config.change_stages):
            changed = [f"{key} was {was}, now {now}" for key, (was, now) in found.items()]
            raise HanseError(f"{self.path} was started with another configuration: {'; '.join(changed)}; "
                             "give it the same again, or name another folder with run=..."
                             + ("; or, to change what is still to come, say change_stages=true" if staged == found
                                else ""))  # fmt: skip
        return Change(before, config, found) if found else None

    def keep_old_config(self, step: int) -> Path:
        """A copy of ``config.yaml`` as it was before it is changed after ``step`` steps."""
        copy = self.config.with_name(f"config.before-step-{step:08d}.yaml")
        write_text(copy, self.config.read_text(encoding="utf-8"))
        return copy

    def keep_config(self, config: TrainConfig) -> None:
        """Write ``config.yaml``, once everything else about it was found to be right: later starts are held to it."""
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.structured(config)))

    def read_config(self) -> TrainConfig:
        """The configuration that the run was started with.

        Raises:
            HanseError: ``config.yaml`` is missing or is not one of ``hanse train``.
        """
        try:
            merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(self.config))
            config = OmegaConf.to_object(merged)
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise HanseError(f"{self.config}: not a readable configuration of 'hanse train' ({reason})") from None
        assert isinstance(config, TrainConfig)
        return config

    def cut_metrics(self, step: int) -> None:
        """Drop lines of ``metrics.jsonl`` that a run going on after ``step`` steps will write again."""
        if self.metrics.is_file():
            kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
                    if line.endswith("\n") and json.loads(line)["step"] <= step]  # fmt: skip
            write_text(self.metrics, "".join(kept))

    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Set keys of ``summary.json``; ``paths`` are added to those there."""
        path = self.path / "summary.json"
        before = read_json(path, "summary") if path.is_file() else {}
        paths = {**before.get("paths", {}), **values.get("paths", {})}
        write_json(path, {**before, **values, "paths": paths})


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending."""
    return sorted(int(path.parent.name[5:]) for path in checkpoints.glob("step-" + "[0-9]" * 8 + "/manifest.json"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a half-written last line is left out.

    Raises:
        HanseError: there is none, or a line in it is no record.
    """
    if not path.is_file():
        raise HanseError(f"{path}: no metrics here; 'hanse train' writes them")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                record = json.loads(line)
                assert isinstance(record["step"], int)
            except (ValueError, RecursionError, TypeError, KeyError, AssertionError):
                raise HanseError(f"{path}: line {number} is no record of a step; delete it to go on") from None
            records.append(record)
    return records


def evaluations_in(metrics: Path) -> dict[int, dict[str, Any]]:
    """{step: the record of its evaluation} of a ``metrics.jsonl``, in its order; empty where there is none.

    Raises:
        HanseError: a line in it is no record.
    """
    records = read_metrics(metrics) if metrics.is_file() else []
    return {record["step"]: record for record in records if "evaluation" in record}


def _holder() -> dict[str, Any]:
    """What tells this process from every other one."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": _boot(),
        "started": _process_start(os.getpid()),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, which tells it from a later one with its number.

    None where it is gone, or dead and nobody asks how it ended (in a container whose first process does not).
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if facts[0] in "ZX" else facts[19]
