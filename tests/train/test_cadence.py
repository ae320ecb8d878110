"""Checkpoints come by time as well as by steps."""

import signal
import time

import pytest

from train.loop import Requests
from train.ranks import Place
from train.run_folder import RunFolder


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
