"""Real time limits. Slurm counts in minutes and its signal comes up to half a minute early: most of this is waiting."""

from __future__ import annotations

import math
from pathlib import Path

from tests.cluster.conftest import Cluster, assert_equal_runs
from tests.cluster.run import Run
from tests.conftest import Hanse

EARLY_SECONDS = 30


def test_three_real_time_limits_one_of_them_met_by_ranks_that_hang_lose_nothing(
    cluster: Cluster, hanse: Hanse, settings: list[str], at_home: Run, undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    # The signal leaves twice the time that the start of twice as many ranks took on this machine.
    begun = 2 * (undisturbed.records()[0]["time"] - undisturbed.starts()[0]["begun"])
    minutes = math.ceil((begun + 2 * EARLY_SECONDS) / 60)
    assert hanse("launch", *settings, "ranks_per_node=1", f"train.run={run.folder}",
                 f"hours={minutes / 60 + 1e-4:.4f}", "life.max_failures=10",
                 f"life.signal_seconds={60 * minutes - EARLY_SECONDS - math.ceil(begun)}") == 0  # fmt: skip
    for start, hang in enumerate((False, True, False)):
        with cluster.in_the_middle(run, start):
            told = f"start {start}: the time limit is near"
            cluster.wait_until(told, lambda told=told: told in run.log)  # type: ignore[misc]
            if hang:
                assert cluster.wait_for_end(run, start) == "limit", run.log
        assert cluster.wait_for_end(run, start) == "limit", run.log
        assert (f"start {start}: the ranks did not stop in time" in run.log) == hang
        if start == 2:  # the last one is to have time enough
            cluster.wait_until("it waits again", lambda: cluster.state(run.number) == "PENDING")
            cluster.slurm("scontrol", "update", f"jobid={run.number}", "TimeLimit=30")
        cluster.start_now(run.number)
    assert cluster.wait_for_end(run, 3) == "done", run.log
    assert_equal_runs(run, at_home)
