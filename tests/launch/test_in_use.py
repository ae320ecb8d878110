"""A run folder that a live job uses, or that somebody keeps stopped, is not launched into; what a dead one left is."""

from __future__ import annotations

import json

import pytest

from common.errors import HanseError
from launch import slurm
from launch.slurm import QueuedJob
from launch.submit import refuse_if_in_use


@pytest.fixture
def queue(monkeypatch):
    """The jobs that are in Slurm's queue; add to it."""
    there: set[str] = set()
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queued", lambda numbers: {
        one: QueuedJob(one, "RUNNING", "None", "n1", "", "") for one in numbers if one in there})  # fmt: skip
    return there


def test_a_live_job_is_named_with_what_can_be_done(tmp_path, queue):
    (tmp_path / "jobs/0001").mkdir(parents=True)
    (tmp_path / "jobs/0001/job.json").write_text(json.dumps({"job_id": "12_3"}))
    refuse_if_in_use(tmp_path)
    queue.add("12_3")
    with pytest.raises(HanseError, match=r"in use by job 12_3 \(running\).*scancel 12_3.*train.run="):
        refuse_if_in_use(tmp_path)


def test_a_job_that_was_started_by_hand_counts_as_well_and_its_lock_goes_with_it(tmp_path, queue):
    lock = tmp_path / "in-use.json"
    lock.write_text(json.dumps({"slurm_job_id": "9"}))
    queue.add("9")
    with pytest.raises(HanseError, match="in use by job 9"):
        refuse_if_in_use(tmp_path)
    queue.clear()
    refuse_if_in_use(tmp_path)
    assert not lock.exists()


def test_a_stop_file_of_a_person_keeps_a_run_stopped_and_one_of_ours_does_not(tmp_path, queue):
    stop = tmp_path / "stop"
    stop.touch()
    with pytest.raises(HanseError, match="keeps the run stopped; delete it"):
        refuse_if_in_use(tmp_path)
    stop.write_text("hanse: the time limit of job 9")
    refuse_if_in_use(tmp_path)
    assert not stop.exists()
