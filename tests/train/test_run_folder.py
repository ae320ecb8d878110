"""One run a folder at a time, with the configuration it was started with, and metrics that tell each step once."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import HanseError
from tests.disk import fill, small_disk
from train.config import BatchConfig, EngineConfig
from train.run_folder import RunFolder, _process_start, read_metrics


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_dead_process_that_nobody_has_asked_about_holds_nothing():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and still in the list of processes
    assert Path(f"/proc/{child}").exists()
    assert _process_start(child) is None
    os.waitpid(child, 0)
    assert _process_start(os.getpid()) is not None


def test_a_folder_in_use_is_refused_and_let_go_afterwards(folder):
    with folder.in_use():
        with pytest.raises(HanseError, match=f"in use by another run \\(process {os.getpid()}"):
            folder.check_free()
        with pytest.raises(HanseError, match="in use by another run"), folder.in_use():
            pass
    folder.check_free()


@pytest.mark.parametrize(
    ("holder", "stale"),
    [
        ({}, False),
        ({"started": "1"}, True),  # the number of an ended process, now another's
        ({"boot": "before"}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "slurm_job_id": "7", "slurm_restart_count": 0}, True),  # the requeued job's own past
        ({"host": "elsewhere", "slurm_job_id": "8", "slurm_restart_count": 0}, False),
    ],
)
def test_only_a_holder_that_is_gone_is_replaced(folder, monkeypatch, holder, stale):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with folder.in_use():
        lock = folder.path / "in-use.json"
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "slurm_job_id": None, **holder}))
        if stale:
            folder.check_free()
            assert not lock.exists()
        else:
            with pytest.raises(HanseError, match="in use by another run"):
                folder.check_free()


def test_an_unreadable_lock_and_a_stop_file_say_what_to_do(folder):
    folder.path.mkdir()
    (folder.path / "in-use.json").write_text("{")
    with pytest.raises(HanseError, match=r"if no run is using .* delete it"):
        folder.check_free()
    folder.stop_file.touch()
    with pytest.raises(HanseError, match="keeps the run stopped; delete it to go on"):
        folder.check_free()


def test_a_full_disk_leaves_no_lock_that_nobody_holds(tmp_path):
    with small_disk(tmp_path / "disk"):
        folder = RunFolder(tmp_path / "disk/run")
        folder.path.mkdir()
        filler = fill(tmp_path / "disk")
        with pytest.raises(HanseError, match=r"in-use.json: No space left on device; make room"), folder.in_use():
            pass
        assert list(folder.path.iterdir()) == []
        filler.unlink()
        with folder.in_use():
            pass


def test_what_is_computed_is_held_and_how_it_is_computed_is_free(folder, tiny_config):
    folder.check_config(tiny_config)
    folder.keep_config(tiny_config)
    folder.check_config(replace(tiny_config, ranks=4, engine=EngineConfig(zero_stage=3)))
    with pytest.raises(HanseError, match=r"batch.global_batch_size was 8, now 16; seed was 0, now 1"):
        folder.check_config(replace(tiny_config, seed=1, batch=BatchConfig(16, 2)))
    assert folder.read_config() == tiny_config


def test_metrics_are_cut_to_the_step_that_is_gone_on_from(folder):
    folder.path.mkdir()
    lines = [json.dumps({"step": step, "loss": step / 2}) for step in range(1, 6)]
    folder.metrics.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(folder.metrics)] == [1, 2, 3, 4, 5]
    folder.cut_metrics(3)
    assert [record["step"] for record in read_metrics(folder.metrics)] == [1, 2, 3]


def test_summary_keeps_what_other_verbs_added(folder):
    folder.path.mkdir()
    folder.update_summary({"steps": 1, "paths": {"shards": "a"}})
    folder.update_summary({"paths": {"export": "b"}})
    folder.update_summary({"steps": 2, "paths": {"shards": "c"}})
    assert json.loads((folder.path / "summary.json").read_text()) == {
        "steps": 2,
        "paths": {"shards": "c", "export": "b"},
    }
