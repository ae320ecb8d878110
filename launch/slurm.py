"""Slurm's own commands, and what its answers mean."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import HanseError

# Reasons of pending jobs, in words (squeue(1), JOB REASON CODES), and whether waiting can help. The limits of a QoS or
# an association do not change by waiting: such a job is accepted by some sites and never starts.
NEVER = "never starts"
REASONS = {
    "QOSMaxWallDurationPerJobLimit": f"{NEVER}: hours=... is more than the QoS allows",
    "AssocMaxWallDurationPerJobLimit": f"{NEVER}: hours=... is more than the account allows",
    "PartitionTimeLimit": f"{NEVER}: hours=... is more than the partition allows",
    "PartitionNodeLimit": f"{NEVER}: nodes=... is more than the partition allows, or less",
    "QOSMaxNodePerJobLimit": f"{NEVER}: nodes=... is more than the QoS allows",
    "AssocMaxNodePerJobLimit": f"{NEVER}: nodes=... is more than the account allows",
    "QOSMaxGRESPerJob": f"{NEVER}: more GPUs than the QoS allows",
    "QOSMaxCpuPerJobLimit": f"{NEVER}: more CPUs than the QoS allows",
    "QOSMaxMemoryPerJob": f"{NEVER}: more memory than the QoS allows",
    "QOSMinGRES": f"{NEVER}: fewer GPUs than the QoS wants",
    "QOSNotAllowed": f"{NEVER}: the account or partition does not allow this QoS",
    "InvalidQOS": f"{NEVER}: the QoS does not exist any more",
    "InvalidAccount": f"{NEVER}: the account does not exist any more",
    "AccountNotAllowed": f"{NEVER}: the partition does not take this account",
    "BadConstraints": f"{NEVER}: no node has what is asked for (features, memory, CPUs a GPU)",
    "DependencyNeverSatisfied": f"{NEVER}: the job it waits for failed",
    "ReqNodeNotAvail": "a node it needs is down, drained or reserved: maintenance, or too many excluded nodes",
    "JobHeldUser": f"{NEVER} until released: scontrol release",
    "JobHeldAdmin": f"{NEVER} until the site releases it: ask the support",
    "AssocGrpCPUMinutesLimit": f"{NEVER} until the project gets more hours: its budget is used up",
    "AssocGrpGRESMinutes": f"{NEVER} until the project gets more hours: its budget is used up",
    "AssocGrpBillingMinutes": f"{NEVER} until the project gets more hours: its budget is used up",
    "QOSGrpNodeLimit": "other jobs of this QoS take its nodes: it waits for them",
    "QOSMaxJobsPerUserLimit": "as many of your jobs run as the QoS allows: it waits for them",
    "AssocGrpNodeLimit": "other jobs of the project take its nodes: it waits for them",
    "BeginTime": "waits for its start time (two minutes after a requeue)",
    "Resources": "next in line: waits for free nodes",
    "Priority": "waits: jobs with a higher priority come first",
    "Dependency": "waits for another job",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "launch failed requeued held": f"{NEVER} until released: the last start failed on the node; scontrol release",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job as ``squeue`` shows it."""

    number: str
    state: str  # PENDING, RUNNING, COMPLETING ...
    reason: str
    nodes: str  # node list of a running job
    start: str  # expected or actual, as Slurm writes it
    left: str  # of its time limit


def available() -> bool:
    """Whether there is a Slurm on this machine."""
    return shutil.which("sbatch") is not None


def queued(numbers: Iterable[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that are still in the queue, pending or running, by number.

    A number may be a job's, an element's of an array (``12_3``), or a whole array's: live as long as one element is.

    Raises:
        HanseError: Slurm does not answer.
    """
    wanted = set(numbers)
    if not wanted:
        return {}
    # All of one's jobs in one question: asking for a number that Slurm has forgotten is an error.
    answer = _run(["squeue", "--me", "-h", "-r", "-o", "%i|%T|%r|%N|%S|%L|%F|%A"])
    if answer.returncode:
        raise HanseError(f"squeue does not answer: {_said(answer)}; try again in a minute")
    found: dict[str, QueuedJob] = {}
    for line in answer.stdout.splitlines():
        number, *rest = line.split("|")
        if len(rest) == 7:
            for name in wanted & {number, *rest[5:]}:
                found.setdefault(name, QueuedJob(name, *rest[:5]))
    return found


def ended(number: str) -> str | None:
    """How a job that left the queue ended (``COMPLETED``, ``TIMEOUT``, ...), where Slurm still knows."""
    if shutil.which("sacct"):
        answer = _run(["sacct", "-n", "-X", "-P", "-j", number, "-o", "State"])
        lines = answer.stdout.split("\n") if answer.returncode == 0 else []
        if lines and lines[0].strip():
            return lines[-2 if len(lines) > 1 else 0].split()[0]
    answer = _run(["scontrol", "show", "job", "-o", number])
    fields = dict(part.split("=", 1) for part in answer.stdout.split() if "=" in part)
    return fields.get("JobState")


def explain(reason: str) -> str:
    """What a reason field means for the person who waits; the bare reason where it is not known."""
    for known, meaning in REASONS.items():
        if reason == known or reason.startswith((f"{known},", f"{known}(")):
            return meaning
    return reason


def test_only(script: Path, *options: str) -> str | None:
    """What ``sbatch --test-only`` has against a script; None where it would take it."""
    answer = _run(["sbatch", "--test-only", *options, str(script)])
    return None if answer.returncode == 0 else _said(answer)


def submit(script: Path, *options: str) -> str:
    """Submit a script; the number of the job.

    Raises:
        HanseError: Slurm refused it.
    """
    answer = _run(["sbatch", "--parsable", *options, str(script)])
    if answer.returncode:
        raise HanseError(f"sbatch refused the job: {_said(answer)}")
    return answer.stdout.strip().split(";")[0]


def requeue(number: str) -> None:
    """Put a running job back into the queue.

    Raises:
        HanseError: Slurm refused.
    """
    answer = _run(["scontrol", "requeue", number])
    if answer.returncode:
        raise HanseError(f"scontrol requeue {number}: {_said(answer)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer from {command[0]} within 60 s")


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join((answer.stderr or answer.stdout).split()).removeprefix("sbatch: error: ") or "no reason given"
