"""What a person asks for while a job runs, and torchrun in the place of srun: the losses stay the same."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.conftest import Cluster, assert_equal_runs
from tests.cluster.run import Run
from tests.conftest import Hanse


def test_stop_and_save_files_are_obeyed_and_torchrun_goes_on_like_srun(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run = cluster.run(tmp_path / "run")
    launch = ["launch", *settings, f"train.run={run.folder}", "launcher=torchrun"]
    assert hanse(*launch) == 0
    with cluster.in_the_middle(run, 0):
        cluster.slurm("scancel", "--batch", "--signal=USR1", run.number)
        cluster.wait_until("the script has heard it", (run.folder / "stop").exists)
    assert cluster.wait_for_end(run, 0) == "limit", run.log
    cluster.start_now(run.number)

    with cluster.in_the_middle(run, 1):
        (run.folder / "save").touch()
    cluster.wait_until("the save file is gone", lambda: not (run.folder / "save").exists())
    with cluster.in_the_middle(run, 1):
        (run.folder / "stop").touch()
    assert cluster.wait_for_end(run, 1) == "stopped", run.log
    cluster.wait_until("no successor", lambda: cluster.state(run.number) == "GONE")
    saved = [record["step"] for record in run.records() if record.get("event") == "checkpoint"]
    assert sum(step % 10 != 0 for step in saved) >= 2, "the signal, the file save and the file stop each left one"
    assert hanse(*launch) == 2, "a run that somebody keeps stopped is not launched"

    (run.folder / "stop").unlink()
    assert hanse(*launch) == 0
    assert cluster.wait_for_end(run, 0) == "done", run.log
    assert_equal_runs(run, undisturbed)
