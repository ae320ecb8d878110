"""One screen: what is there is shown, what is not there is left empty, and a job that never starts is called so."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from common.configuration import sort_arguments
from common.errors import HanseError
from launch import slurm
from launch.config import StatusConfig, SyncConfig
from launch.life import Record, Start
from launch.progress import look
from launch.slurm import QueuedJob, explain
from launch.sync import copy_commands, offline_runs, wandb_commands
from launch.watch import hung, remarks, row, run


@pytest.fixture
def voyage(tmp_path: Path) -> Path:
    """A run at step 40 of 100, launched as job 77."""
    folder = tmp_path / "runs/voyage"
    job = folder / "jobs/0001"
    job.mkdir(parents=True)
    train = {"tokens": 100 * 8 * 64, "batch": {"global_batch_size": 8}, "data": {"sequence_length": 64}}
    life = {"max_starts": 50, "max_failures": 3, "backoff_seconds": 0, "exclude_after": 2}
    (job / "train.yaml").write_text(yaml.safe_dump(train))
    (job / "launch.yaml").write_text(yaml.safe_dump({"life": life, "exclude": ["n9"]}))
    (job / "job.json").write_text(json.dumps({"job_id": "77"}))
    Record(job).add(Start(0, time.time() - 500, "n[1-2]", 0))
    steps = [{"step": step, "loss": 9 - step / 10, "tokens_per_second": 512.0, "mfu": 0.4} for step in range(1, 41)]
    lines = [*steps, {"step": 40, "event": "checkpoint"}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    checkpoint = folder / "checkpoints/step-00000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    return folder


def queued(state: str = "RUNNING", reason: str = "None") -> QueuedJob:
    return QueuedJob("77", state, reason, "n[1-2]", "N/A", "1:00:00")


def test_both_utilisations_are_shown_where_the_data_sheet_is_known(voyage):
    assert "40%" in row(look(voyage), queued())
    metrics = voyage / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"mfu": 0.4', '"mfu": 0.4, "mfu_data_sheet": 0.3'))
    assert "40% (sheet 30%)" in row(look(voyage), queued())


def test_slow_ranks_are_named_as_the_last_comparison_found_them(voyage):
    def compared(*slow):
        return json.dumps({"step": 40, "rank_times": {"parts": {}, "slow": slow}}) + "\n"

    one = {"rank": 3, "node": "n2", "part": "forward", "seconds": 2.04, "median": 1.0}
    metrics, begun = voyage / "metrics.jsonl", '{"step": 41, "lo'
    text = metrics.read_text().removesuffix(begun)
    metrics.write_text(text + compared(one) + begun)
    assert "rank 3 on n2 is slow: forward 2.04 s a step, the median rank 1 s" in list(
        remarks(look(voyage), queued(), 60)
    )
    for newer in (compared(), compared({"rank": 3}), '{"step": 40, "rank_times": []}\n'):
        metrics.write_text(text + compared(one) + newer)
        assert not look(voyage).slow


def test_the_last_evaluation_is_told_with_its_tasks(voyage):
    bits = {"de": {"bits_per_byte": 1.5}, "fr": {"bits_per_byte": 2.0}}
    tasks = {"last_word": {"de": {"accuracy": 0.25}, "fr": {"accuracy": 0.5}}, "description": {}}
    lines = [{"step": 30, "evaluation": bits}, {"step": 40, "evaluation": bits, "evaluation_tasks": tasks}]
    with (voyage / "metrics.jsonl").open("r+") as file:
        kept = file.read().rpartition("\n")[0]
        file.seek(0)
        file.write("\n".join([kept, *map(json.dumps, lines), ""]))
    told = "last evaluation, mean of 2 languages: 1.750 bits per byte, last word 37.5%"
    assert told in list(remarks(look(voyage), queued(), 600))


def test_a_running_job_is_one_line(voyage):
    seen = look(voyage)
    assert row(seen, queued()) == [
        "voyage",
        "77",
        "running",
        "1",
        "40 of 100",
        "5.000",
        "512",
        "40%",
        "1m00s",
        "40",
        "1:00:00",
    ]
    assert list(remarks(seen, queued(), 600)) == ["does without n9"]


def test_a_run_of_which_nothing_is_known_yet_is_a_line_too(tmp_path):
    (tmp_path / "runs/new/jobs/0001").mkdir(parents=True)
    assert row(look(tmp_path / "runs/new"), None) == ["new", "", "not submitted", *[""] * 8]


def test_a_job_without_a_sign_of_life_is_hung_and_a_waiting_one_is_not(voyage):
    seen = look(voyage)
    assert list(hung([seen], {"77": queued()}, 400)) == [], "it wrote a moment ago"
    old = time.time() - 5000
    os.utime(voyage / "metrics.jsonl", (old, old))
    seen = look(voyage)
    assert list(hung([seen], {"77": queued()}, 400)) == [seen]
    assert list(hung([seen], {"77": queued()}, 4000)) == [], "this start has not been silent for that long"
    assert list(hung([seen], {"77": queued("PENDING")}, 400)) == []
    assert any("hung" in line for line in remarks(seen, queued(), 400))


@pytest.mark.parametrize(
    "reason", ["QOSMaxWallDurationPerJobLimit", "PartitionTimeLimit", "BadConstraints", "InvalidAccount"]
)
def test_a_job_that_never_starts_is_told_so(voyage, reason):
    lines = list(remarks(look(voyage), queued("PENDING", reason), 600))
    assert slurm.NEVER in lines[0]
    assert "scancel 77" in lines[1]


def test_reasons_are_explained_as_slurm_writes_them():
    assert "maintenance" in explain("ReqNodeNotAvail, UnavailableNodes:n1")
    assert explain("SomethingNew") == "SomethingNew"
    assert slurm.NEVER not in explain("Priority")


def test_status_of_nothing_says_what_to_do(tmp_path):
    with pytest.raises(HanseError, match="hanse launch"):
        run(StatusConfig(runs=str(tmp_path), every_seconds=1, hang_minutes=1))


def test_status_shows_a_screen(voyage, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "available", lambda: False)
    monkeypatch.setattr(slurm, "ended", lambda number: None)
    assert run(StatusConfig(runs=str(voyage.parent), run=str(voyage), every_seconds=1, hang_minutes=10)) == 0
    said = capsys.readouterr().out
    for part in ("voyage", "40 of 100", "starts of job 77", "n[1-2]"):
        assert part in said


def test_watching_goes_on_when_slurm_does_not_answer_and_ends_with_an_interrupt(voyage, capsys, monkeypatch):
    answers = iter([{}, HanseError("squeue does not answer"), {}, KeyboardInterrupt()])

    def ask(_):
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "ended", lambda number: None)
    monkeypatch.setattr(slurm, "queued", ask)
    flags, overrides, _ = sort_arguments("status", ["--watch"])
    assert (flags, overrides) == ([], ["watch=true"])
    assert run(StatusConfig(runs=str(voyage.parent), watch=True, every_seconds=0.01, hang_minutes=10)) == 0
    said = capsys.readouterr().out
    assert said.count("40 of 100") == 2
    assert "does not answer" in said


def test_sync_sends_only_what_was_not_sent(tmp_path):
    folder = tmp_path / "runs/voyage"
    for name, synced in (("offline-run-1-a", True), ("offline-run-2-a", False), ("run-3-b", False)):
        (folder / "wandb" / name).mkdir(parents=True)
        (folder / "wandb" / name / "run-a.wandb").touch()
        if synced:
            (folder / "wandb" / name / "run-a.wandb.synced").touch()
    assert [path.name for path in offline_runs(folder)] == ["offline-run-2-a"]
    (command,) = wandb_commands(folder, SyncConfig(runs="runs", project="p", entity="e"))
    assert command[1:8] == ["-m", "wandb", "sync", "--project", "p", "--entity", "e"]
    (folder / "checkpoints").mkdir()
    (copy,) = copy_commands(folder, SyncConfig(runs="runs", checkpoints="me@host:/store/"))
    assert copy[-1] == "me@host:/store/voyage/checkpoints/"
    (copy,) = copy_commands(folder, SyncConfig(runs="runs", checkpoints="far:store", tool="rclone"))
    assert copy[:2] == ["rclone", "copy"]
