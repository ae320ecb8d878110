"""A sweep is one array; each of its elements lives, dies and goes on by itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.run import Run

STEPS = 20


def test_four_runs_of_one_array_one_of_them_killed(
    cluster: Cluster, hanse: Callable[..., int], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/sweep"
    shape = ("train.tokens=", "nodes=", "ranks_per_node=")
    command = ["launch", "--multirun", *(one for one in settings if not one.startswith(shape)), "nodes=1",
               "ranks_per_node=1", f"train.tokens={STEPS * 8 * 64}", f"train.run={folder}",
               "train.optimizer.learning_rate=1e-3,1e-2", "train.seed=0,1"]  # fmt: skip
    assert hanse(*command) == 0
    array = json.loads((folder / "jobs/0001/job.json").read_text())["job_id"]
    runs = {path.parent.parent.name: Run(path.parent.parent) for path in folder.glob("*/jobs/0001")}
    assert set(runs) == {f"learning_rate-{rate}_seed-{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)}
    assert {run.number for run in runs.values()} == {f"{array}_{index}" for index in range(4)}

    victim = runs["learning_rate-0.001_seed-1"]
    with cluster.in_the_middle(victim, 0):
        for pid in victim.ranks():
            os.kill(pid, signal.SIGKILL)
    assert cluster.wait_for_end(victim, 0) == "crash", victim.log
    (again,) = cluster.wait_until("the killed one waits again", lambda: cluster.slurm(
        "squeue", "-h", "-r", "-t", "PD", "-j", victim.number, "-o", "%A").split())  # fmt: skip
    cluster.start_now(again)
    assert cluster.wait_for_end(victim, 1) == "done", victim.log
    for run in runs.values():
        assert cluster.wait_for_end(run, len(run.kinds()) - 1 if run.kinds() else 0) == "done", run.log
        assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
        assert len(run.kinds()) == 1 + (run is victim)

    capsys.readouterr()
    assert hanse("status", f"run={folder}") == 0
    assert hanse("report", f"run={folder}") == 0
    told = capsys.readouterr().out
    assert told.count("done") >= 8
    page = (folder / "sweep.html").read_text()
    assert all(name in page for name in runs)
    assert "4 of 4 runs done" in page
    assert hanse(*command) == 0
    assert "nothing to launch" in capsys.readouterr().out
    assert not (folder / "jobs/0002").exists()
