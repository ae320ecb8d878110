"""What follows the end of a start: exactly one decision, from what is written down."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.life import (
    ENDS,
    FAILURES,
    KINDS,
    Policy,
    Record,
    Start,
    blamed_node,
    decide,
    excluded_nodes,
    failures_in_a_row,
    kind_of_end,
    last_word,
    main,
    silent_nodes,
    stuck_node,
)
from tests.disk import fill, small_disk

POLICY = Policy(max_starts=50, max_failures=3, backoff_seconds=100, exclude_after=2, exclude=["bad9"])


def start(kind: str, first: int = 0, step: int = 0, **more) -> Start:
    return Start(life=0, begun=1.0, nodes="n[1-2]", first_step=first, kind=kind, step=step, **more)


starts = st.lists(
    st.builds(
        start, st.sampled_from(sorted(KINDS)), st.just(0), st.integers(0, 3), blamed=st.sampled_from(["", "n1", "n2"])
    ),
    min_size=1, max_size=60,
)  # fmt: skip


@given(starts)
def test_every_history_has_one_decision_and_none_goes_on_for_ever(history):
    decision = decide(history, POLICY)
    assert decision.action in ("requeue", "end")
    if history[-1].kind in ENDS or len(history) >= POLICY.max_starts or failures_in_a_row(history) >= 3:
        assert decision.action == "end"
    else:
        assert decision.action == "requeue"
        assert "bad9" in decision.exclude


@given(starts)
def test_a_new_checkpoint_forgives_earlier_failures(history):
    assert failures_in_a_row([*history, start("crash", 5, 6)]) == 0


def test_waits_double_with_each_failure_and_end_at_an_hour():
    policy = Policy(max_starts=99, max_failures=99, backoff_seconds=100, exclude_after=2)
    waits = [decide([start("crash")] * times, policy).wait_seconds for times in range(1, 9)]
    assert waits == [100, 200, 400, 800, 1600, 3200, 3600, 3600]
    assert decide([start("limit", 0, 5)], policy).wait_seconds == 0


def test_time_limits_without_a_checkpoint_are_failures_too():
    assert decide([start("limit")] * 3, POLICY).action == "end"
    assert decide([start("limit", step, step + 1) for step in range(9)], POLICY).action == "requeue"


def test_a_node_is_excluded_when_it_is_to_blame_often_enough_or_failed_its_checks():
    history = [start("crash", blamed="n1"), start("hung", blamed="n1"), start("crash", blamed="n2"),
               start("bad-node", bad_nodes=("n3",)), start("limit", blamed="n4"),
               start("limit", blamed="n4")]  # fmt: skip
    assert excluded_nodes(history, POLICY) == ("bad9", "n1", "n3")


@pytest.mark.parametrize(
    ("code", "circumstances", "kind"),
    [
        (0, {}, "done"),
        (0, {"limit_near": True}, "done"),
        (75, {"limit_near": True}, "limit"),
        (75, {}, "told"),
        (75, {"stopped_by_hand": True}, "stopped"),
        (75, {"stopped_by_hand": True, "limit_near": True}, "stopped"),
        (2, {}, "user-error"),
        (2, {"limit_near": True}, "limit"),
        (2, {"stopped_by_hand": True}, "stopped"),
        (1, {}, "crash"),
        (69, {}, "hung"),
        (71, {}, "flaky"),
        (137, {}, "crash"),
        (137, {"hung": True}, "hung"),
        (143, {"ended_by_slurm": True}, "cancelled"),
        (75, {"ended_by_slurm": True}, "cancelled"),
        (143, {"ended_by_slurm": True, "past_limit": True}, "limit"),
        (137, {"ended_by_slurm": True, "past_limit": True, "limit_near": True}, "limit"),
    ],
)
def test_the_end_of_a_start_is_called_what_it_was(code, circumstances, kind):
    usual = {"limit_near": False, "ended_by_slurm": False, "past_limit": False, "stopped_by_hand": False, "hung": False}
    assert kind_of_end(code, **{**usual, **circumstances}) == kind


def test_the_node_that_was_killed_first_is_blamed_not_those_that_fell_with_it():
    # What srun 22.05.8 printed when rank 2 was killed.
    log = """srun: error: node1: task 0: Exited with exit code 1
srun: error: node2: task 2: Exited with exit code 137
srun: launch/slurm: _step_signal: Terminating StepId=4.0
srun: error: node2: task 3: Exited with exit code 143
srun: error: node1: tasks 0-1: Killed
"""
    assert blamed_node(log) == "node2"
    assert blamed_node("srun: error: nid001: task 7: Exited with exit code 1\n") == "nid001"
    assert blamed_node("nothing of that kind") == ""


def test_the_stuck_node_is_the_one_whose_rank_does_not_run():
    assert stuck_node("n1 Sl 10 x python\nn2 Tl 11 y python\nn2 Sl 12 z python\n") == "n2"
    assert stuck_node("n1 D 10 x python\nn2 D 11 y python\n") == "", "a dead file system is no node's fault"
    assert stuck_node("") == ""
    assert stuck_node("srun: Terminating StepId=4.1\nn1 answers\nn1 Sl 10 x python\n") == ""


NODES = ["n1", "n2", "n3", "n4"]


@given(st.lists(st.sampled_from(NODES)), st.sampled_from(["", "srun: error: n4: task 3: Killed\n"]))
def test_silent_are_the_nodes_without_a_line_of_their_own(answering, more):
    lines = "".join(f"{node} {'Sl 7 x python' if number % 2 else 'answers'}\n" for number, node in enumerate(answering))
    silent = silent_nodes(NODES, more + lines)
    assert set(silent) == (set(NODES) - set(answering) if answering else set())


@pytest.mark.parametrize(
    ("processes", "blamed", "said"),
    [
        ("n1 answers\nn1 Sl 10 x python\nsrun: error: Task launch for StepId=4.1 failed on node n2\n", "n2",
         "start 0: no answer from n2: down, or cut off"),
        ("n1 answers\nn1 Sl 10 x python\nn2 answers\nn2 Tl 11 x python\n", "n2",
         "start 0: a rank on n2 does not run"),
        ("n1 answers\nn1 Sl 10 x python\nn2 answers\nn2 Sl 11 x python\n", "", ""),
        ("srun: error: Unable to contact slurm controller (connect failure)\n", "", ""),
    ],
)  # fmt: skip
def test_a_node_that_is_cut_off_is_told_from_one_with_a_stopped_rank(job, capsys, processes, blamed, said):
    common = ["--job", job, "--end-time", 4_000_000_000, "--life", 0]
    ask(capsys, "start", *common, "--nodes", "n[1-2]")
    (job / "starts/0").mkdir(parents=True)
    (job / "starts/0/hung").write_text("n1,n2\n")
    (job / "starts/0/processes").write_text(processes)
    assert main([str(word) for word in ("end", *common, "--code", 143)]) == 0
    told = capsys.readouterr()
    assert said in told.err
    assert said or "start 0:" not in told.err
    assert Record(job).starts()[0].blamed == blamed
    assert told.out.strip() == f"requeue {blamed}".strip()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "run/jobs/0001"
    folder.mkdir(parents=True)
    life = {"max_starts": 50, "max_failures": 3, "backoff_seconds": 600, "exclude_after": 1}
    (folder / "launch.yaml").write_text(yaml.safe_dump({"life": life, "exclude": []}), encoding="utf-8")
    return folder


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.strip()


def checkpoint(job: Path, step: int) -> None:
    folder = job.parent.parent / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


def test_a_job_is_led_from_its_first_start_to_its_end(job, capsys):
    common = ["--job", job, "--end-time", 4_000_000_000]
    assert ask(capsys, "start", *common, "--life", 0, "--nodes", "n[1-2]") == "train"
    checkpoint(job, 10)
    (job.parent.parent / "stop").write_text("hanse: the time limit of job 1\n")
    assert ask(capsys, "end", *common, "--life", 0, "--code", 75, "--limit-near", 1) == "requeue"
    assert not (job.parent.parent / "stop").exists(), "our own stop file is gone before the next start"

    assert ask(capsys, "start", *common, "--life", 1, "--nodes", "n[1-2]") == "train"
    log = job / "slurm-1.log"
    log.write_text(
        "srun: error: old: task 0: Killed\nhanse 2026 start 1: job 1 on n[1-2]\nsrun: error: n2: task 2: Killed\n"
    )
    assert main([str(word) for word in ("end", *common, "--life", 1, "--code", 137, "--log", log)]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == "requeue n2"
    assert "a rank failed: once more, suspect n2, without n2, wait " in told.err
    assert int((job / "not-before").read_text()) > 0
    assert (job / "excluded").read_text() == "n2"

    assert ask(capsys, "start", *common, "--life", 2, "--nodes", "n[1,3]") == "train"
    # The node of the batch script dies: no end is written. Then somebody stops the run.
    (job.parent.parent / "stop").touch()
    assert ask(capsys, "start", *common, "--life", 3, "--nodes", "n[1,3]") == "end 0"
    assert (job.parent.parent / "stop").exists(), "what a person made stays"
    assert [one.kind for one in Record(job).starts()] == ["limit", "crash", "vanished"]


def test_where_nothing_can_be_noted_the_job_ends_and_says_so(job, tmp_path, capsys):
    with small_disk(tmp_path / "disk"):
        full = tmp_path / "disk/jobs/0001"
        shutil.copytree(job, full)
        common = ["--job", full, "--end-time", 4_000_000_000, "--life", 0]
        assert ask(capsys, "start", *common, "--nodes", "n[1-2]") == "train"
        fill(tmp_path / "disk")
        with (full / "starts.jsonl").open("ab", buffering=0) as file, suppress(OSError):
            while True:  # what is left of its last page
                file.write(b" ")
        assert main([str(word) for word in ("end", *common, "--code", 1)]) == 0
        told = capsys.readouterr()
        assert told.out == "end 2\n"
        assert "No space left on device; make room and run the same command again: end (2)" in told.err


def leave_word(job: Path, code: int, *nodes: str) -> None:
    (job.parent.parent / "logs").mkdir(exist_ok=True)
    word = {"exit_code": code, "nodes": nodes, "why": "..."}
    (job.parent.parent / "logs/fault.json").write_text(json.dumps(word))


def test_what_the_ranks_left_counts_more_than_the_code_of_those_that_srun_killed(job, capsys):
    """A machine that computes wrongly is left out at once, one that others waited for after ``exclude_after`` times."""
    common = ["--job", job, "--end-time", 4_000_000_000]
    policy = yaml.safe_load((job / "launch.yaml").read_text())
    policy["life"]["exclude_after"] = 2
    (job / "launch.yaml").write_text(yaml.safe_dump(policy))
    ask(capsys, "start", *common, "--life", 0, "--nodes", "n[1-2]")
    leave_word(job, 69, "n1")
    assert ask(capsys, "end", *common, "--life", 0, "--code", 137) == "requeue"
    ask(capsys, "start", *common, "--life", 1, "--nodes", "n[1-2]")
    leave_word(job, 71, "n2")
    assert ask(capsys, "end", *common, "--life", 1, "--code", 137) == "requeue n2"
    assert [(one.kind, one.blamed, one.bad_nodes) for one in Record(job).starts()] == [
        ("hung", "n1", ()), ("flaky", "", ("n2",))
    ]  # fmt: skip
    # The word of one start is none of the next.
    ask(capsys, "start", *common, "--life", 2, "--nodes", "n[1,3]")
    assert ask(capsys, "end", *common, "--life", 2, "--code", 1) == "end 1"
    assert Record(job).starts()[-1].kind == "crash"


@pytest.mark.parametrize("text", ["", "[]", '{"exit_code": []}', '{"exit_code": 71, "nodes": 3}', '{"exit_code": "x"}'])
def test_a_broken_last_word_is_none(tmp_path, text):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/fault.json").write_text(text)
    assert last_word(tmp_path) == (None, ())


def test_a_record_cut_short_does_not_stop_the_next_start(job, capsys):
    Record(job).add(start(""))
    with (job / "starts.jsonl").open("a") as file:
        file.write('{"life": 1, "beg')
    assert ask(capsys, "start", "--job", job, "--life", 2, "--nodes", "n1") == "train"
    assert [one.life for one in Record(job).starts()] == [0, 2]
    assert all(json.loads(line) for line in (job / "starts.jsonl").read_text().splitlines() if line.endswith("}"))


def test_all_failures_are_kinds():
    assert set(FAILURES) | set(ENDS) < set(KINDS)
