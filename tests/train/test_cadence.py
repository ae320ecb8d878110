"""Checkpoints come by time as well as by steps; the newest and the best are kept."""

import signal
import time

import pytest

from common.errors import EXIT_DONE
from tests.train.multirank import evaluations, train_cases
from train.loop import Requests
from train.ranks import Place
from train.run_folder import RunFolder, complete_steps, read_metrics


@pytest.fixture
def own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_checkpoint_is_asked_for_every_so_many_minutes_by_the_first_rank_alone(tmp_path, monkeypatch, own_signals):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    folder, first, second = RunFolder(tmp_path), Place(0, 2), Place(1, 2)
    requests, never = Requests(folder, 5.0), Requests(folder, 0.0)
    now += 299
    assert requests.pending(first).tolist() == [0, 0]
    now += 2
    assert requests.pending(first).tolist() == [0, 1]
    assert requests.pending(second).tolist() == never.pending(first).tolist() == [0, 0]
    requests.granted()  # a checkpoint was begun, whatever for: the clock starts again
    assert requests.pending(first).tolist() == [0, 0]
    now += 301
    assert requests.pending(first).tolist() == [0, 1]


@pytest.mark.slow
def test_a_run_saves_by_the_clock_and_keeps_its_newest_checkpoint_and_its_best(tiny_settings, tmp_path):
    """A rate that rises until nothing is learned any more: the best step lies before the last."""
    run, last = tmp_path / "run", 12
    settings = [*tiny_settings, f"run={run}", "optimizer.learning_rate=1.0", f"schedule.warmup_steps={last}",
                "schedule.decay_fraction=0.0", "evaluate.every_steps=3", "checkpoint.keep_last=1",
                "checkpoint.keep_best=1"]  # fmt: skip
    by_steps = [*settings, "checkpoint.every_steps=3"]
    by_clock = [*settings, "checkpoint.every_steps=12", "checkpoint.every_minutes=1e-5", f"run={tmp_path / 'clock'}"]
    told = train_cases(tmp_path / "ranks", 2, {"steps": by_steps, "clock": by_clock})
    assert told == {"steps": EXIT_DONE, "clock": EXIT_DONE}
    for folder, saved in ((run, [3, 6, 9, 12]), (tmp_path / "clock", [*range(1, last + 1)])):
        bits = {step: sum(found.values()) / len(found) for step, found in evaluations(folder).items()}
        assert list(bits) == [3, 6, 9, 12]
        best = min(bits, key=bits.__getitem__)
        assert best < last - 3
        written = [one["step"] for one in read_metrics(folder / "metrics.jsonl") if one.get("event") == "checkpoint"]
        assert written == saved
        assert complete_steps(folder / "checkpoints") == [best, last]
