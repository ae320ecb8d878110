"""Everything that goes wrong in a month, in one run: it ends with the losses of a run that nothing happened to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from launch.life import KINDS, VIOLENT
from tests.cluster.conftest import Cluster, assert_equal_runs, wait_until
from tests.cluster.run import Run
from tests.disk import fill
from train.run_folder import complete_steps

Hanse = Callable[..., int]
EVERY, STEPS = 10, 15  # steps between checkpoints, and before something happens
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


def begin_a_page(file: Path) -> None:
    """A full disk gives a file no page more, so what is to be read in it must find room on its last one."""
    with file.open("a") as log:
        log.write("\n" * (os.sysconf("SC_PAGESIZE") - file.stat().st_size % os.sysconf("SC_PAGESIZE") + 1))


def wait_for_words(run: Run, *words: str) -> None:
    """Until they stand in the log, which is told of a decision after it was noted."""
    for each in words:
        wait_until(f"'{each}' in the log", lambda each=each: re.search(rf"{re.escape(each)}\b", run.log), 60)  # type: ignore[misc]


def assert_only_what_was_not_saved_is_lost(run: Run, start: int) -> None:
    """A start began with the newest checkpoint there was, and all that its end cost are the steps since its own.

    That is the last one that was due; or, where the end came while it was written, the one before.
    """
    starts, saved = run.starts(), complete_steps(run.folder / "checkpoints")[-1]
    assert starts[start]["first_step"] == (starts[start - 1]["step"] if start else 0) < saved == starts[start]["step"]
    reached = run.losses()[-1][0]
    due = reached - reached % EVERY
    begun = (run.folder / f"checkpoints/step-{due:08d}.partial").exists() or reached == due
    assert saved == due or (begun and saved == due - EVERY)


def test_a_run_outlives_a_kill_a_cut_cable_a_stopped_rank_a_wrong_result_and_a_full_disk(
    cluster: Cluster, hanse: Hanse, settings: list[str], undisturbed: Run, tmp_path: Path
) -> None:
    run, poison = cluster.run(cluster.disk / "chaos"), tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(POISON.format(folder=str(poison)))
    path = f"{poison}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    launch = ["launch", *settings, f"train.run={run.folder}", f'software.environment={{PYTHONPATH:"{path}"}}',
              "life.hang_minutes=0.5", "life.exclude_after=9", f"train.checkpoint.every_steps={EVERY}"]  # fmt: skip
    assert hanse(*launch) == 0
    job = run.number

    with cluster.in_the_middle(run, 0, STEPS):
        pid, unlucky = next((pid, node) for pid, node in run.ranks().items() if node != run.nodes(0)[0])
        os.kill(pid, signal.SIGKILL)
    assert cluster.wait_for_end(run, 0) == "crash", run.log
    assert_only_what_was_not_saved_is_lost(run, 0)
    assert run.starts()[0]["blamed"] == unlucky
    assert re.search(rf"srun: error: {unlucky}: tasks? [\d,\- ]+: ({VIOLENT.pattern})", run.log)
    wait_for_words(run, f"{KINDS['crash']}: once more, suspect {unlucky}")
    cluster.start_now(job)

    cluster.wait_for_progress(run, 1, STEPS)
    cut_off = run.nodes(1)[-1]
    cable(cut_off, "down")
    try:
        cluster.wait_until("all nodes are asked", lambda: "start 1: ending the ranks" in run.log)
    finally:
        cable(cut_off, "up")  # or what is to end the ranks there arrives when the next start has begun
    assert cluster.wait_for_end(run, 1) == "hung", run.log
    assert run.starts()[1]["blamed"] == cut_off
    wait_for_words(run, "start 1: no sign of life", f"start 1: no answer from {cut_off}",
                   f"{KINDS['hung']}: once more, suspect {cut_off}")  # fmt: skip
    assert_only_what_was_not_saved_is_lost(run, 1)
    cluster.start_now(job)

    cluster.wait_for_progress(run, 2, STEPS)
    stuck = run.nodes(2)[-1]
    os.kill(next(pid for pid, node in run.ranks().items() if node == stuck), signal.SIGSTOP)
    assert cluster.wait_for_end(run, 2) == "hung", run.log
    assert_only_what_was_not_saved_is_lost(run, 2)
    assert run.starts()[2]["blamed"] == stuck
    wait_for_words(run, "start 2: no sign of life", f"start 2: a rank on {stuck} does not run",
                   f"{KINDS['hung']}: once more, suspect {stuck}")  # fmt: skip
    assert "start 2: no answer from" not in run.log
    cluster.start_now(job)

    with cluster.in_the_middle(run, 3, STEPS):
        wrong = run.nodes(3)[-1]
        (poison / wrong).touch()
    assert cluster.wait_for_end(run, 3) == "flaky", run.log
    assert_only_what_was_not_saved_is_lost(run, 3)
    assert run.starts()[3]["bad_nodes"] == [wrong]
    assert "suspect a machine" in run.log
    assert f" on {wrong}" in run.log
    wait_for_words(run, f"{KINDS['flaky']}: once more, suspect {wrong}, without {wrong}")
    cluster.start_now(job)

    with cluster.in_the_middle(run, 4, STEPS):
        assert wrong not in run.nodes(4), "the next start does without the machine that computed wrongly"
        begin_a_page(next(run.job.glob("slurm-*.log")))
        filler = fill(cluster.disk)
    cluster.wait_until("no successor where starting again does not help", lambda: cluster.state(job) == "GONE")
    assert "No space left on device; make room and run the same command again" in run.log
    filler.unlink()
    saved = [start["step"] for start in run.starts()]

    assert hanse(*launch) == 0
    assert cluster.wait_for_end(run, 0) == "done", run.log
    assert [one["step"] for one in run.records() if one.get("event") == "resume"] == saved, "none went further back"
    assert_equal_runs(run, undisturbed)
