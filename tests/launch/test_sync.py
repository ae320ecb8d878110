"""Sync with the real tools: wandb's own client and files against a server that speaks as much of the protocol as can
be run here, and rsync. Interrupted, it goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.config import SyncConfig
from launch.sweep_record import Sweep
from launch.sync import offline_runs, run
from tests.launch.wandb_server import Server

ROOT = Path(__file__).parents[2]
# Two starts of one run, as the trainer makes them: the second goes on with the same id.
STARTS = """
import sys, wandb
for begin in (1, 6):
    settings = wandb.Settings(silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    run = wandb.init(mode="offline", project="voyages", name="demo", dir=sys.argv[1], id="demo-0", resume="allow",
                     settings=settings)
    for step in range(begin, begin + 5):
        run.log({"loss": 9 - step / 10}, step=step)
    run.finish()
"""


@pytest.fixture(scope="module")
def voyage(tmp_path_factory) -> Path:
    """A run folder with two offline wandb runs, written by wandb itself."""
    folder = tmp_path_factory.mktemp("runs") / "voyage"
    folder.mkdir()
    (folder / "config.yaml").touch()
    subprocess.run([sys.executable, "-c", STARTS, str(folder)], check=True, timeout=300, capture_output=True)
    return folder


def sync(folder: Path, server: Server, *more: str) -> subprocess.Popen[str]:
    """``hanse sync`` as a person starts it, in a session of its own."""
    variables = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hanse", "sync", f"run={folder}", *more]
    return subprocess.Popen(command, env=variables, cwd=folder.parent, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_upload_goes_on_and_what_is_there_is_not_sent_again(voyage, tmp_path):
    folder, server = tmp_path / "voyage", Server()
    shutil.copytree(voyage, folder, symlinks=True)
    first, second = (path / "run-demo-0.wandb.synced" for path in offline_runs(folder))

    def interrupt(pieces):
        lines = pieces.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        if any(json.loads(line)["_step"] > 5 for line in lines):  # before it is kept
            os.killpg(process.pid, signal.SIGKILL)
            raise ConnectionError

    server.uploads.before_stream = interrupt
    process = sync(folder, server, "project=other")
    said = process.communicate(timeout=300)[0]
    assert first.exists(), said
    assert not second.exists()
    assert list(server.uploads.history["demo-0"]) == [1, 2, 3, 4, 5]

    server.uploads.before_stream = lambda pieces: None
    process = sync(folder, server, "project=other")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert said.count("offline-run-") >= 1
    assert not (folder.parent / "wandb").exists()  # the logs of wandb's command are with its runs
    history = server.uploads.history["demo-0"]
    assert {step: line["loss"] for step, line in history.items()} == {step: 9 - step / 10 for step in range(1, 11)}
    assert server.uploads.twice == []
    assert server.uploads.ended == {"demo-0": 0}

    asked = server.uploads.requests
    process = sync(folder, server)
    assert "nothing to send" in process.communicate(timeout=300)[0]
    assert server.uploads.requests == asked


@pytest.mark.slow
def test_a_start_of_which_the_end_was_not_acknowledged_comes_again_step_by_step_the_same(voyage, tmp_path):
    """wandb's client cannot tell; the numbers of the steps say that they are the same."""
    folder, server = tmp_path / "voyage", Server()
    shutil.copytree(voyage, folder, symlinks=True)
    shutil.rmtree(offline_runs(folder)[1])

    def interrupt(pieces):
        if pieces.get("complete"):
            server.uploads.stream("demo-0", pieces)  # kept, but the client is gone before it hears so
            os.killpg(process.pid, signal.SIGKILL)
            raise ConnectionError

    server.uploads.before_stream = interrupt
    process = sync(folder, server)
    process.communicate(timeout=300)
    assert len(server.uploads.history["demo-0"]) == 5
    server.uploads.before_stream = lambda pieces: None
    process = sync(folder, server)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert len(server.uploads.history["demo-0"]) == 5
    assert not any(other for _, _, other in server.uploads.twice)


@pytest.fixture
def checkpoints(tmp_path):
    """A run folder with a checkpoint of two files, and one that is not complete."""
    folder = tmp_path / "runs/voyage"
    step = folder / "checkpoints/step-00000010"
    step.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (step / "a.safetensors").write_bytes(os.urandom(10**5))
    (step / "b.safetensors").write_bytes(os.urandom(4 * 10**6))
    (folder / "checkpoints/step-00000020.partial").mkdir()
    (folder / "checkpoints/step-00000020.partial/a.safetensors").touch()
    return folder


@pytest.mark.skipif(shutil.which("rsync") is None, reason="wants rsync")
def test_checkpoints_arrive_and_an_interrupted_copy_goes_on(checkpoints, tmp_path, monkeypatch, capfd):
    slow = tmp_path / "bin/rsync"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nexec {shutil.which("rsync")} --bwlimit=1000 "$@"\n')
    slow.chmod(0o755)
    goal, there = tmp_path / "store", tmp_path / "store/voyage/checkpoints/step-00000010"
    command = [sys.executable, "-m", "hanse", "sync", f"runs={checkpoints.parent}", f"checkpoints={goal}"]
    variables = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 120
    while not list(there.glob(".b.safetensors.*")) and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert (there / "a.safetensors").exists()
    assert not (there / "b.safetensors").exists() or (there / "b.safetensors").stat().st_size < 4 * 10**6
    arrived = (there / "a.safetensors").stat().st_ino

    config = SyncConfig(runs=str(checkpoints.parent), checkpoints=str(goal))
    assert run(config) == 0
    assert (
        f"rsync -a --mkpath --partial --info=progress2 '--exclude=*.partial' {checkpoints}/checkpoints/"
        in capfd.readouterr().out
    )
    for name in ("a.safetensors", "b.safetensors"):
        assert (there / name).read_bytes() == (checkpoints / "checkpoints/step-00000010" / name).read_bytes()
    assert (there / "a.safetensors").stat().st_ino == arrived, "sent once"
    assert not (goal / "voyage/checkpoints/step-00000020.partial").exists()
    assert run(config) == 0


def test_runs_of_a_sweep_keep_its_name_on_the_way(checkpoints, capsys):
    sweep = checkpoints.parent / "lr"
    sweep.mkdir()
    checkpoints.rename(sweep / "seed-1")
    Sweep(sweep, {"seed-1": {"seed": "1"}}).write()
    for where in ({"runs": str(checkpoints.parent)}, {"runs": "x", "run": str(sweep)}):
        assert run(SyncConfig(**where, checkpoints="far:store", tool="rclone", dry_run=True)) == 0
        assert f"{sweep}/seed-1/checkpoints far:store/lr/seed-1/checkpoints" in capsys.readouterr().out
