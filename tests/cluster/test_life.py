"""Whatever happens to a job, one successor goes on, and the losses are those of a run that nothing happened to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cluster = Any  # tests/cluster/conftest.py
Run = Any
Hanse = Callable[..., int]
LONG = 1200 * 8 * 64


def pids(cluster: Cluster, node: str, pattern: str) -> list[int]:
    """Processes on one node, which is a network namespace here."""
    inside = cluster.slurm("ip", "netns", "pids", f"slsim-{node.removeprefix('node')}").split()
    matching = subprocess.run(["pgrep", "-f", pattern], check=False, capture_output=True, text=True).stdout.split()
    return sorted(map(int, set(inside) & set(matching)))


def wait_for_progress(cluster: Cluster, run: Run, start: int) -> None:
    """Until a start has made three steps of its own."""
    cluster.wait_until(f"start {start}; {run.folder}", lambda: len(run.starts()) > start, 120)
    first = run.starts()[start]["first_step"]
    cluster.wait_until(f"three steps after {first}; {run.folder}", lambda: run.step(start) >= first + 3, 240)


def wait_for_end(cluster: Cluster, run: Run, start: int) -> None:
    cluster.wait_until(
        f"the end of start {start}; {run.folder}", lambda: len(run.starts()) > start and run.kinds()[start], 120
    )


def assert_equal_runs(run: Run, other: Run) -> None:
    """The same loss at every step, each step once."""
    assert run.losses() == other.losses()
    steps = [step for step, _ in run.losses()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_bad_night_ends_with_the_losses_of_a_good_one(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    launch = ["launch", *settings, f"train.run={run.folder}", "life.backoff_seconds=0"]
    assert hanse(*launch) == 0
    job = run.number

    wait_for_progress(cluster, run, 0)
    for _ in range(2):  # the signal before the time limit, twice
        cluster.slurm("scancel", "--batch", "--signal=USR1", job)
    wait_for_end(cluster, run, 0)
    cluster.start_now(job)
    assert not (run.folder / "stop").exists()

    wait_for_progress(cluster, run, 1)
    assert hanse(*launch) == 2, "a run folder in use by a live job is refused"
    unlucky = run.nodes(1)[-1]
    os.kill(pids(cluster, unlucky, "launch.rank")[-1], signal.SIGKILL)
    wait_for_end(cluster, run, 1)
    cluster.start_now(job)

    wait_for_progress(cluster, run, 2)
    cluster.slurm(
        "scontrol", "update", f"nodename={run.nodes(2)[-1]}", "state=down", "reason=test"
    )  # requeued by Slurm
    cluster.start_now(job)

    wait_for_progress(cluster, run, 3)
    cluster.slurm("scancel", job)
    wait_for_end(cluster, run, 3)
    cluster.wait_until("the cancelled job is gone", lambda: cluster.state(job) == "GONE", 60)
    assert [run.kinds()[start] for start in (0, 1, 3)] == ["limit", "crash", "cancelled"]
    assert run.kinds()[2] in ("cancelled", "vanished"), "the first node may live to see that another failed"
    assert run.starts()[1]["blamed"] == unlucky

    first = run.job
    assert hanse(*launch) == 0, run.log
    assert run.job != first
    wait_for_end(cluster, run, 0)
    assert run.kinds() == ["done"], run.log
    assert_equal_runs(run, undisturbed)
    submitted = {path.name for path in (run.folder / "jobs").glob("*/slurm-*.log")}
    assert submitted == {f"slurm-{job}.log", f"slurm-{run.number}.log"}, "no job but those we launched"


def test_hung_ranks_are_ended_and_the_stuck_node_is_named(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    assert hanse("launch", *settings, f"train.run={run.folder}", "life.hang_minutes=0.1", "life.backoff_seconds=0",
                 "life.exclude_after=1") == 0  # fmt: skip
    wait_for_progress(cluster, run, 0)
    stuck = run.nodes(0)[-1]
    os.kill(pids(cluster, stuck, "launch.rank")[-1], signal.SIGSTOP)
    wait_for_end(cluster, run, 0)
    cluster.start_now(run.number)
    wait_for_end(cluster, run, 1)
    assert run.kinds() == ["hung", "done"], run.log
    assert run.starts()[0]["blamed"] == stuck
    assert stuck not in run.nodes(1), "the next start does without it"
    assert_equal_runs(run, undisturbed)


def test_stop_and_save_files_are_obeyed(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    launch = ["launch", *settings, f"train.run={run.folder}"]
    assert hanse(*launch) == 0
    wait_for_progress(cluster, run, 0)
    (run.folder / "save").touch()
    cluster.wait_until("the save file is gone", lambda: not (run.folder / "save").exists(), 60)
    cluster.wait_until("a checkpoint between the usual ones", lambda: any(
        record.get("event") == "checkpoint" and record["step"] % 10 for record in run.records()), 60)  # fmt: skip
    (run.folder / "stop").touch()
    wait_for_end(cluster, run, 0)
    cluster.wait_until("no successor", lambda: cluster.state(run.number) == "GONE", 60)
    assert run.kinds() == ["stopped"]
    assert hanse(*launch) == 2, "a run that somebody keeps stopped is not launched"
    (run.folder / "stop").unlink()
    assert hanse(*launch) == 0
    wait_for_end(cluster, run, 0)
    assert_equal_runs(run, undisturbed)


def test_a_run_goes_through_real_time_limits_to_its_last_token(
    cluster: Cluster, hanse: Hanse, settings: list[str], tmp_path: Path
) -> None:
    longer = [f"train.tokens={LONG}", "train.checkpoint.every_steps=1000"]
    whole, run = cluster.run(tmp_path / "whole"), cluster.run(tmp_path / "run")
    assert hanse("launch", *settings, *longer, f"train.run={whole.folder}") == 0
    wait_for_end(cluster, whole, 0)
    limits = ["hours=0.0167", "life.signal_seconds=25", "life.max_failures=10"]
    assert hanse("launch", *settings, *longer, *limits, f"train.run={run.folder}") == 0
    job = run.number
    for start in range(20):
        wait_for_end(cluster, run, start)
        if run.kinds()[-1] == "done":
            break
        cluster.start_now(job)
    assert set(run.kinds()[:-1]) == {"limit"}, run.log
    assert run.kinds()[-1] == "done"
    assert len(run.kinds()) >= 2
    assert_equal_runs(run, whole)


def test_a_job_that_gets_nowhere_gives_up(cluster: Cluster, hanse: Hanse, settings: list[str], tmp_path: Path) -> None:
    run = cluster.run(tmp_path / "run")
    assert hanse("launch", *settings, f"train.run={run.folder}", "life.max_failures=2", "life.backoff_seconds=0",
                 "software.environment={GLOO_SOCKET_IFNAME: no-such-interface}") == 0  # fmt: skip
    wait_for_end(cluster, run, 0)
    cluster.start_now(run.number)
    wait_for_end(cluster, run, 1)
    cluster.wait_until("the end", lambda: cluster.state(run.number) == "GONE", 60)
    assert run.kinds() == ["crash", "crash"]
    assert "giving up" in run.log


def test_torchrun_stops_and_goes_on_as_srun_does(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    assert hanse("launch", *settings, f"train.run={run.folder}", "launcher=torchrun") == 0
    wait_for_progress(cluster, run, 0)
    cluster.slurm("scancel", "--batch", "--signal=USR1", run.number)
    wait_for_end(cluster, run, 0)
    cluster.start_now(run.number)
    wait_for_end(cluster, run, 1)
    assert run.kinds() == ["limit", "done"], run.log
    assert_equal_runs(run, undisturbed)
