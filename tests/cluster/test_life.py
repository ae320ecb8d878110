"""Whatever happens to a job, one successor goes on, and the losses are those of a run that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import Cluster, assert_equal_runs
from tests.cluster.run import Run

Hanse = Callable[..., int]


def test_a_bad_night_ends_with_the_losses_of_a_good_one(
    cluster: Cluster, hanse: Hanse, settings: list[str], at_home: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    launch = ["launch", *settings, "ranks_per_node=1", f"train.run={run.folder}"]
    assert hanse(*launch) == 0
    job = run.number

    with cluster.in_the_middle(run, 0):  # the signal before the time limit, twice
        for _ in range(2):
            cluster.slurm("scancel", "--batch", "--signal=USR1", job)
        cluster.wait_until("the script has heard it", (run.folder / "stop").exists)
    assert cluster.wait_for_end(run, 0) == "limit", run.log
    cluster.start_now(job)
    assert not (run.folder / "stop").exists()

    with cluster.in_the_middle(run, 1):  # Slurm requeues the job by itself
        assert hanse(*launch) == 2, "a run folder in use by a live job is refused"
        cluster.slurm("scontrol", "update", f"nodename={run.nodes(1)[-1]}", "state=down", "reason=test")
        cluster.start_now(job)

    with cluster.in_the_middle(run, 2):
        cluster.slurm("scancel", job)
    assert cluster.wait_for_end(run, 2) == "cancelled", run.log
    assert run.kinds()[1] in ("cancelled", "vanished"), "the first node may live to see that another failed"
    cluster.wait_until("the cancelled job is gone", lambda: cluster.state(job) == "GONE")

    first = run.job
    assert hanse(*launch) == 0, run.log
    assert run.job != first
    assert cluster.wait_for_end(run, 0) == "done", run.log
    assert_equal_runs(run, at_home)
    logs = {path.name for path in (run.folder / "jobs").glob("*/slurm-*.log")}
    assert logs == {f"slurm-{job}.log", f"slurm-{run.number}.log"}, "no job but those we launched"


def test_a_bad_node_is_named_excluded_and_replaced(
    cluster: Cluster, hanse: Hanse, settings: list[str], at_home: Run, tmp_path: Path
) -> None:
    disks = tmp_path / "disks"  # one folder a node stands for its own disk
    disks.mkdir()
    one, bad, spare, _ = cluster.nodes
    (disks / bad).write_text("a broken disk")
    check = [
        "ranks_per_node=1",
        "life.node_checks=true",
        "life.slow_node=0",
        f"site.node_local={disks}/$SLURMD_NODENAME",
    ]

    run = cluster.run(tmp_path / "requeued")
    assert hanse("launch", *settings, *check, f"train.run={run.folder}", "train.tokens=5120") == 0
    assert cluster.wait_for_end(run, 0) == "bad-node", run.log
    assert run.starts()[0]["bad_nodes"] == [bad]
    cluster.wait_until("the bad node is named", lambda: f"bad node {bad}" in run.log)
    cluster.start_now(run.number)
    assert cluster.wait_for_end(run, 1) == "done", run.log
    assert bad not in run.nodes(1)

    run = cluster.run(tmp_path / "with-a-spare")
    assert hanse("launch", *settings, *check, f"train.run={run.folder}", "spare_nodes=1") == 0
    cluster.wait_for_progress(run, 0)
    assert sorted(set(run.ranks().values())) == [one, spare], "the spare node takes its place"
    assert cluster.wait_for_end(run, 0) == "done", run.log
    assert_equal_runs(run, at_home)


def test_a_job_that_gets_nowhere_gives_up(cluster: Cluster, hanse: Hanse, settings: list[str], tmp_path: Path) -> None:
    python = tmp_path / "broken/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    run = cluster.run(tmp_path / "run")
    assert hanse("launch", *settings, f"train.run={run.folder}", "life.max_failures=2",
                 f"software.venv={tmp_path / 'broken'}") == 0  # fmt: skip
    assert cluster.wait_for_end(run, 0) == "crash", run.log
    cluster.start_now(run.number)
    assert cluster.wait_for_end(run, 1) == "crash", run.log
    cluster.wait_until("the end", lambda: cluster.state(run.number) == "GONE")
    assert "giving up" in run.log
