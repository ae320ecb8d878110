"""Trainings that take turns: one at a time goes on, all of its processes, and an end that nobody asked for is told."""

import sys
import time

import pytest

from benchmarks.taking_turns import PeerError, Training, times_in

STEPS = """
import os, sys, time
with open(f"{sys.argv[1]}/times-{os.environ.get('RANK', 0)}.txt", "a") as times:
    for _ in range(int(sys.argv[2])):
        time.sleep(0.02)
        print(time.time(), file=times, flush=True)
"""
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STEPS!r}, *sys.argv[1:]])"


@pytest.fixture
def begun():
    """Makes trainings, and ends them."""
    made = []

    def begin(folder, steps=100_000, ranks=0, code=STEPS):
        folder.mkdir()
        training = Training("one", folder, lambda: times_in(folder / "times-0.txt"))
        made.append(training)
        command = [sys.executable, "-c", code, str(folder), str(steps)]
        if ranks:
            training.start_ranks(command, ranks, 1)
        else:
            training.start(command)
        return training

    yield begin
    for training in made:
        training.end()


@pytest.mark.parametrize(("ranks", "code"), [(0, STEPS), (0, CHILD), (2, STEPS)], ids=["process", "child", "ranks"])
def test_only_the_one_whose_turn_it_is_goes_on(begun, tmp_path, ranks, code):
    first, second = begun(tmp_path / "a", ranks=ranks, code=code), begun(tmp_path / "b", ranks=ranks, code=code)
    for training in (first, second):
        training.turn(3)
    for training, other in ((first, second), (second, first)) * 2:
        time.sleep(0.1)  # a signal takes its time
        waiting = [path.read_bytes() for path in sorted(other.folder.glob("times-*"))]
        began, ended = training.turn(4)
        assert [path.read_bytes() for path in sorted(other.folder.glob("times-*"))] == waiting
        times = training.ended()
        assert times.index(ended) - times.index(began) == 4


def test_a_step_that_was_interrupted_does_not_count(begun, tmp_path):
    training = begun(tmp_path / "a")
    training.turn(3)
    stopped = time.time()
    time.sleep(0.2)
    began, _ = training.turn(3)
    assert began > stopped + 0.2


def test_one_that_ends_by_itself_is_told_with_its_last_words(begun, tmp_path):
    training = begun(tmp_path / "a", steps=2, code=STEPS + "\nsys.exit('out of windows')")
    with pytest.raises(PeerError, match="one ended:\nout of windows"):
        training.turn(3)


def test_a_time_that_is_being_written_is_none_yet(tmp_path):
    (tmp_path / "times").write_text("1.5\n2.5\n3.")
    assert times_in(tmp_path / "times") == [1.5, 2.5]
    assert times_in(tmp_path / "none") == []
