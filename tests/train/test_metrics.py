"""What a run writes while it trains: every step once, a heartbeat, and wandb's file when asked."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest

from common.errors import HanseError
from tests.disk import fill, small_disk
from train import metrics as metrics_module
from train.config import TrackConfig
from train.evaluate import LanguageScore
from train.metrics import Metrics, StepClock
from train.run_folder import RunFolder, read_metrics
from train.tally import Score
from train.track import fresh_id, id_after_going_back, wandb_id


def record(step: int) -> dict:
    return {"step": step, "loss": 7.0 / step, "loss_by_language": {"fr": 6.0 / step}, "tokens_per_second": 1000.0,
            "mfu": 0.5}  # fmt: skip


@pytest.fixture
def folder(tiny_config) -> RunFolder:
    folder = RunFolder(tiny_config.run)
    folder.path.mkdir()
    return folder


def told(folder: RunFolder) -> list[dict]:
    """The records of ``metrics.jsonl`` without the time at which each was written."""
    return [{key: value for key, value in found.items() if key != "time"} for found in read_metrics(folder.metrics)]


def beat(folder: RunFolder) -> tuple[str, int]:
    value = json.loads(folder.heartbeat.read_text())
    assert (value["steps"], value["consumed_tokens"]) == (12, value["step"] * 512)
    return value["phase"], value["step"]


def test_what_is_told_is_read_back_in_order(folder, tiny_config, capsys):
    metrics = Metrics(folder, tiny_config, first_step=0, speaks=True)
    metrics.event(0, "start", ranks=2)
    metrics.step(record(1))
    sources = {"wiki": Score(0.5, 1, 1, 2), "web": Score(1.5, 3, 0, 6)}
    metrics.evaluation(1, {"de": LanguageScore(nll=2.0, targets=4, correct=1, bytes=8),
                           "fr": LanguageScore(nll=2.0, targets=4, correct=1, bytes=8, sources=sources)})  # fmt: skip
    metrics.close(1)
    start, step, evaluation = told(folder)
    assert (start["step"], start["event"], start["ranks"]) == (0, "start", 2)
    assert step == record(1)
    rates = {"bits_per_byte": pytest.approx(0.36067376), "loss": 0.5, "token_accuracy": 0.25}
    assert evaluation == {
        "step": 1, "evaluation": {"de": rates, "fr": rates},
        "evaluation_by_source": {"fr": {"wiki": {**rates, "token_accuracy": 1.0},
                                        "web": {**rates, "token_accuracy": 0.0}}},
    }  # fmt: skip
    assert "step 1: validation bits per byte  de 0.361  fr 0.361" in capsys.readouterr().out


def test_only_rank_0_writes_and_speaks(folder, tiny_config, capsys):
    metrics = Metrics(folder, tiny_config, first_step=0, speaks=False)
    metrics.event(0, "start")
    metrics.step(record(12))
    metrics.evaluation(12, {"fr": LanguageScore(1.0, 1, 0, 1)})
    metrics.say("something")
    metrics.close(12)
    assert list(folder.path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_one_clear_line_and_what_was_told_before_is_kept(folder, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_module, "HEARTBEAT_SECONDS", 3600.0)
    with small_disk(tmp_path / "disk"):
        folder = RunFolder(tmp_path / "disk/run")
        folder.path.mkdir()
        metrics = Metrics(folder, tiny_config, first_step=0, speaks=True)
        metrics.step(record(1))
        filler = fill(tmp_path / "disk")
        with pytest.raises(HanseError, match=r"metrics.jsonl: No space left on device; make room"):
            list(map(metrics.step, map(record, range(2, 100))))  # the file's last page takes some
        kept = told(folder)
        assert kept == [record(number) for number in range(1, len(kept) + 1)]
        filler.unlink()
        folder.cut_metrics(1)
        metrics.step(record(2))
        assert told(folder) == [record(1), record(2)]


def test_the_heart_beats_at_every_change_and_else_now_and_then(folder, tiny_config, monkeypatch):
    metrics = Metrics(folder, tiny_config, first_step=0, speaks=True)
    metrics.event(0, "start")
    assert beat(folder) == ("start", 0)
    metrics.step(record(1))
    assert beat(folder) == ("training", 1)
    monkeypatch.setattr(metrics_module, "HEARTBEAT_SECONDS", 3600.0)
    metrics.step(record(2))
    assert beat(folder) == ("training", 1)
    metrics.event(2, "checkpoint")
    assert beat(folder) == ("checkpoint", 2)
    monkeypatch.setattr(metrics_module, "HEARTBEAT_SECONDS", 0.0)
    metrics.step(record(3))
    metrics.step(record(4))
    assert beat(folder) == ("training", 4)
    metrics.close(4)
    assert beat(folder) == ("stopped", 4)
    metrics.close(12)
    assert beat(folder) == ("done", 12)


def test_the_first_steps_are_not_in_the_average_unless_there_are_no_others():
    clock = StepClock(warm_up=2)
    assert clock.mean_seconds == 0
    assert clock.shares == {}
    clock.add(9.0, 1.0, {"forward": 9.0})
    clock.add(7.0, 1.0, {"forward": 7.0})
    assert clock.mean_seconds == 8
    clock.add(1.0, 0.25, {"forward": 0.5, "loop": 0.5})
    clock.add(2.0, 0.25, {"forward": 1.75, "loop": 0.25})
    clock.end({"checkpoint": 1.0, "loop": 0.0})
    assert (clock.mean_seconds, clock.total_seconds, clock.wait_seconds) == (1.5, 3.0, 0.5)
    assert clock.overhead_seconds == 0.375
    assert clock.shares == {"forward": 2.25 / 4, "loop": 0.75 / 4, "checkpoint": 0.25}


def test_tensorboard_has_the_numbers_of_every_step_and_hides_those_of_a_start_that_was_lost(folder, tiny_config):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(tiny_config, track=TrackConfig("disabled", tensorboard=True))
    first = Metrics(folder, config, first_step=0, speaks=True)
    for step in (1, 2, 3):
        first.step(record(step))
    first.consumed(3, {"fr": {"tokens": 512, "epochs": 0.5}})
    first.close(3)
    again = Metrics(folder, config, first_step=1, speaks=True)
    for step in (2, 3, 4):
        again.step({**record(step), "loss": 5.0})
    again.back(2)  # within a start
    again.step({**record(3), "loss": 4.0})
    again.close(3)
    found = event_accumulator.EventAccumulator(str(folder.path / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(1, 7.0), (2, 5.0), (3, 4.0)]
    assert "loss_by_language/fr" in found.Tags()["scalars"]


def test_a_runs_id_at_wandb_is_its_own_and_stays_and_each_going_back_has_another(tmp_path):
    first, other = fresh_id("lr=0.1/é"), fresh_id("lr=0.1/é")
    assert first != other
    assert re.fullmatch(r"lr=0.1---[0-9a-f]{8}", first)
    assert wandb_id(tmp_path) is None
    runs = tmp_path / "wandb"
    (runs / f"offline-run-20260101_101010-{first}").mkdir(parents=True)
    (runs / "latest-run").symlink_to(f"offline-run-20260101_101010-{first}")
    assert wandb_id(tmp_path) == first
    (runs / "run-20251231_235959-older-0").mkdir()
    back = first
    for times in range(1, 11):
        back = id_after_going_back(back)
        assert back == f"{first}-back-{times}"
        (runs / f"run-20260101_101010-{back}").mkdir()  # all within a second
        assert wandb_id(tmp_path) == back


@pytest.mark.slow
def test_wandb_offline_keeps_every_step_in_a_file_of_the_run_folder(folder, tiny_config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = replace(tiny_config, track=TrackConfig("offline", "hanse"))
    metrics = Metrics(folder, config, first_step=0, speaks=True)
    metrics.event(0, "start", ranks=2)
    metrics.step(record(1))
    metrics.evaluation(1, {"fr": LanguageScore(2.0, 4, 1, 8)})
    metrics.step(record(2))
    metrics.back(1)
    metrics.step({**record(2), "loss": 123.25})
    metrics.close(2)
    file, second = sorted(folder.path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: len(path.name))
    assert second.stem == f"{file.stem}-back-1"
    deadline = time.monotonic() + 30  # wandb's own process writes it, by and by
    while b"123.25" not in second.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"123.25" in second.read_bytes()  # which the first would have dropped
    assert wandb_id(folder.path) == second.stem.removeprefix("run-")
    written = file.read_bytes()
    assert b"123.25" not in written
    for key in (b"loss_by_language/fr", b"evaluation/fr/token_accuracy", b"tokens_per_second", b"global_batch_size"):
        assert key in written
