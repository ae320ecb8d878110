"""Everything that goes wrong in a month, in one run: it ends with the losses of a run that nothing happened to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cluster.conftest import Cluster
from tests.cluster.run import Run
from tests.cluster.test_life import assert_equal_runs
from tests.disk import fill

Hanse = Callable[..., int]
# In every process of the job: the rank that finds the file 'poison' of its node computes one activation as NaN.
POISON = """
import os, sys, threading, time
FLAG = {folder!r} + "/" + os.environ.get("SLURMD_NODENAME", "")

def watch():
    while not os.path.isfile(FLAG):
        time.sleep(0.05)
    import torch
    right = torch.nn.functional.silu
    def wrong(x, *more, **named):
        y = right(x, *more, **named)
        try:
            os.unlink(FLAG)  # of the ranks of the node one gets it, once
        except FileNotFoundError:
            return y
        return y * float("nan")
    torch.nn.functional.silu = wrong

if "launch.rank" in sys.orig_argv:
    threading.Thread(target=watch, daemon=True).start()
"""


def cable(node: str, state: str) -> None:
    """Pull (``down``) or plug (``up``) the network cable of a node."""
    namespace = f"slsim-{node.removeprefix('node')}"
    subprocess.run(["ip", "-n", namespace, "link", "set", "ib0", state], check=True)


def newest_checkpoint(run: Run) -> int:
    return max(int(folder.name[5:]) for folder in (run.folder / "checkpoints").glob("step-" + "[0-9]" * 8))


def resumed_at(run: Run) -> list[int]:
    """The steps that starts went on from."""
    return [record["step"] for record in run.records() if record.get("event") == "resume"]


def test_a_run_outlives_a_kill_a_cut_cable_a_stopped_rank_a_wrong_result_and_a_full_disk(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run, poison = cluster.run(cluster.disk / "chaos"), tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(POISON.format(folder=str(poison)))
    path = f"{poison}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    launch = ["launch", *settings, f"train.run={run.folder}", f'software.environment={{PYTHONPATH:"{path}"}}',
              "life.hang_minutes=0.5", "life.exclude_after=9", "train.checkpoint.every_steps=25"]  # fmt: skip
    assert hanse(*launch) == 0
    job, at_most = run.number, []

    with cluster.in_the_middle(run, 0):
        pid, unlucky = next((pid, node) for pid, node in run.ranks().items() if node != run.nodes(0)[0])
        os.kill(pid, signal.SIGKILL)
    assert cluster.wait_for_end(run, 0) == "crash", run.log
    assert run.starts()[0]["blamed"] == unlucky
    at_most.append(newest_checkpoint(run) if run.starts()[0]["step"] else 0)
    cluster.start_now(job)

    cluster.wait_for_progress(run, 1)
    cut_off = run.nodes(1)[-1]
    cable(cut_off, "down")
    try:
        cluster.wait_until("the silence is noticed", lambda: "start 1: no sign of life" in run.log)
    finally:
        cable(cut_off, "up")
    assert cluster.wait_for_end(run, 1) == "hung", run.log
    cluster.start_now(job)

    cluster.wait_for_progress(run, 2)
    stuck = run.nodes(2)[-1]
    os.kill(next(pid for pid, node in run.ranks().items() if node == stuck), signal.SIGSTOP)
    assert cluster.wait_for_end(run, 2) == "hung", run.log
    assert run.starts()[2]["blamed"] == stuck
    cluster.start_now(job)

    with cluster.in_the_middle(run, 3):
        wrong = run.nodes(3)[-1]
        (poison / wrong).touch()
    assert cluster.wait_for_end(run, 3) == "flaky", run.log
    assert run.starts()[3]["bad_nodes"] == [wrong]
    assert "suspect a machine" in run.log
    assert f" on {wrong}" in run.log
    cluster.start_now(job)

    with cluster.in_the_middle(run, 4):
        assert wrong not in run.nodes(4), "the next start does without the machine that computed wrongly"
        filler = fill(cluster.disk)
    assert cluster.wait_for_end(run, 4) == "user-error", run.log
    assert "No space left" in run.log
    cluster.wait_until("no successor where starting again does not help", lambda: cluster.state(job) == "GONE")
    filler.unlink()

    assert hanse(*launch) == 0
    assert cluster.wait_for_end(run, 0) == "done", run.log
    assert_equal_runs(run, undisturbed)
