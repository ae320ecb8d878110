"""When no step ends, every rank says where it stands, and the one that keeps the others waiting is named."""

import json
import subprocess
import sys
import time

import pytest

from common.errors import EXIT_HUNG
from train.guards.watchdog import Watchdog, stack_file, who_is_behind
from train.ranks import Place


def head(step, marks, at):
    return {"step": step, "marks": marks, "at": at}


def test_the_rank_that_others_wait_for_is_the_one_with_fewest_marks():
    ranks, why = who_is_behind([head(7, 5, "backward"), head(7, 4, "forward"), head(7, 5, "backward")])
    assert ranks == [1]
    assert why == "1 of 3 ranks got no further than 'forward', the others 'backward'"


def test_a_rank_that_is_a_step_behind_is_behind_however_many_marks_it_has():
    assert who_is_behind([head(7, 1, "forward"), head(6, 9, "evaluating")])[0] == [1]


def test_a_rank_that_does_not_answer_is_named_before_any_other():
    ranks, why = who_is_behind([head(7, 5, "backward"), None, head(7, 4, "forward")])
    assert (ranks, why) == ([1], "1 of 3 ranks did not even answer")


def test_where_nothing_tells_the_ranks_apart_none_is_named():
    ranks, why = who_is_behind([head(7, 5, "backward")] * 4)
    assert (ranks, why) == ([], "all ranks stand at the same place (backward)")
    assert who_is_behind([None, None])[0] == []


HANGS = """
import sys, time
from pathlib import Path
from train.ranks import Place
from train.guards.watchdog import Watchdog

def deep_inside_a_collective():
    time.sleep(60)

rank = int(sys.argv[2])
with Watchdog(Path(sys.argv[1]), Place(rank, 2), ["nid1", "nid2"], 0.5, 0.5) as dog:
    dog.step(41)
    dog.at("forward")
    if rank == 0:
        dog.at("backward")
    deep_inside_a_collective()
"""


def test_every_rank_dumps_its_stacks_and_leaves_with_a_code_of_its_own(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", HANGS, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_HUNG, EXIT_HUNG]
    assert all("after step 41" in said and "rank 1 on nid2" in said for said in told)
    for rank in (0, 1):
        stacks = stack_file(tmp_path, rank).read_text()
        assert json.loads(stacks.splitlines()[0])["at"] == ("backward", "forward")[rank]
        assert "deep_inside_a_collective" in stacks
    word = json.loads((tmp_path / "fault.json").read_text())
    assert (word["exit_code"], word["nodes"]) == (EXIT_HUNG, ["nid2"])


@pytest.fixture
def barks(monkeypatch):
    """What a watchdog that would end this process saw."""
    seen = []
    monkeypatch.setattr(Watchdog, "_bark", lambda dog, waited: (seen.append(waited), dog._over.set()))
    return seen


def test_steps_and_what_may_be_slow_keep_it_quiet_and_nothing_is_left_behind(tmp_path, barks):
    with Watchdog(tmp_path, Place(0, 1), ["n"], 0.3, 30) as dog:
        time.sleep(0.5)  # before the first step has ended
        for step in range(5):
            dog.step(step)
            time.sleep(0.1)
        with dog.slowly("evaluating"):
            time.sleep(0.5)
        assert not barks
        time.sleep(0.8)
        assert barks
    assert not list(tmp_path.iterdir())


def test_the_stacks_of_the_start_before_are_kept_and_its_last_word_is_not(tmp_path):
    for rank in (0, 3):
        stack_file(tmp_path, rank).write_text(f"stacks of {rank}")
    (tmp_path / "fault.json").write_text("{}")
    with Watchdog(tmp_path, Place(0, 2), ["n", "n"], 600, 600):
        pass
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {f"stack-rank-0000{rank}.before.txt": f"stacks of {rank}" for rank in (0, 3)}


def test_zero_seconds_turn_it_off(tmp_path):
    with Watchdog(tmp_path, Place(0, 1), ["n"], 0, 0) as dog:
        dog.step(1)
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_run_whose_rank_stands_still_ends_by_itself_and_names_it(tiny_settings, tmp_path, start):
    """Rank 1 is held still, so it answers nobody; rank 0 waits for it in a collective, in C."""
    run = tmp_path / "run"
    command = start(run, [*tiny_settings, f"tokens={10_000 * 8 * 64}", "guards.watchdog_seconds=2"])
    command.wait_for_step(3)
    command.ranks()[1].suspend()
    assert command.end() == EXIT_HUNG
    assert "1 of 2 ranks did not even answer (rank 1 on " in command.output.read_text()
    stacks = stack_file(run / "logs", 0).read_text()
    assert "train/loop.py" in stacks
    assert json.loads((run / "logs/fault.json").read_text())["exit_code"] == EXIT_HUNG
