"""Slurm's own account of the energy of a job step, asked for afterwards where Slurm's commands are.

What it counts depends on the site's ``AcctGatherEnergyType``: whole nodes, processors or GPUs only, or nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import HanseError
from common.files import read_json, write_json
from train.energy.starts import Start, read_starts
from train.run_folder import RunFolder

FORMAT = "hanse.energy-slurm/1"
FIELDS = "JobID,ConsumedEnergyRaw,Start,End,NNodes,State"
NO_VALUE = {0, 2**32 - 2, 2**64 - 2}  # nothing gathered; Slurm's NO_VAL and NO_VAL64 (slurm.h)
EARLY_SECONDS = 3600.0  # between the start of a step and the first line of its ranks, at most


def ask(folder: RunFolder) -> None:
    """Keep what ``sacct`` says of a run's job steps that are over in ``energy.slurm.json``; nothing where it is not."""
    starts = [start for start in read_starts(folder) if start.slurm]
    if not starts or not shutil.which("sacct"):
        return
    told = answers(starts, _sacct(sorted({start.slurm for start in starts})))
    if told:
        write_json(folder.path / "energy.slurm.json", {"format": FORMAT, "fields": FIELDS, "steps": told})


def _sacct(steps: Iterable[str]) -> str:
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--format={FIELDS}", f"--jobs={','.join(steps)}"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def answers(starts: Iterable[Start], output: str) -> dict[str, dict[str, Any]]:
    """{key of a start: ``joules``, and the line of sacct that says so}; a requeued job has a line each time."""
    rows = [(line, line.split("|")) for line in output.splitlines() if line.count("|") == FIELDS.count(",")]
    found = {}
    for start in starts:
        for line, (step, joules, began, ended, _, _) in rows:
            if step == start.slurm and joules.isdigit() and began.isdigit() and ended.isdigit():
                inside = int(began) <= start.began <= int(ended) and start.began - int(began) < EARLY_SECONDS
                if inside and int(joules) not in NO_VALUE:
                    found[start.key] = {"joules": int(joules), "line": line}
    return found


def read_answers(folder: RunFolder) -> Mapping[str, float]:
    """{key of a start: joules}, of ``energy.slurm.json``.

    Raises:
        HanseError: it is there, and not readable.
    """
    path = folder.path / "energy.slurm.json"
    if not path.is_file():
        return {}
    told = read_json(path, "answer of Slurm's accounting")
    try:
        return {step: float(answer["joules"]) for step, answer in told["steps"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HanseError(f"{path}: not an answer of Slurm's accounting; delete it and run 'hanse report'") from None
