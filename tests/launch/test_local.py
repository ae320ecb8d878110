"""Local ranks: what they get, who is blamed when one fails, and how all of them end. Real processes, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import EXIT_CRASH, EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR
from launch import local
from launch.local import ASKED, ONE_SECONDS, run_ranks

ROOT = Path(__file__).parents[2]
# What every rank runs: PROGRAM, with its rank and the folder of the test at hand.
HEAD = "import os, signal, sys, time, pathlib; rank = int(os.environ['RANK']); folder = pathlib.Path(sys.argv[1])\n"


def command(program: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", HEAD + program, str(folder)]


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)


@pytest.fixture
def run(tmp_path, capfd) -> Callable[..., tuple[int, str]]:
    """``run(program, ranks=2)``: (exit code, what the terminal showed)."""

    def start(program: str, ranks: int = 2) -> tuple[int, str]:
        code = run_ranks(command(program, tmp_path), ranks, 3, tmp_path / "logs")
        return code, "".join(capfd.readouterr())

    return start


def ended_within(seconds: float, ended: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.02)
    return ended()


def test_every_rank_gets_the_variables_of_torchrun_and_one_address(run, tmp_path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]
    program = f"import json; (folder / str(rank)).write_text(json.dumps([os.environ[name] for name in {names}]))"
    assert run(program, ranks=3)[0] == EXIT_DONE
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    (port,) = {found.pop(5) for found in told}
    assert 1024 <= int(port) < 65536
    assert told == [[str(rank), str(rank), "3", "3", "127.0.0.1", "3"] for rank in range(3)]


def test_rank_0_speaks_on_the_terminal_and_the_others_into_logs_that_grow(run, tmp_path):
    program = "print('this is', rank, flush=True); print('error of', rank, file=sys.stderr)"
    for _ in range(2):
        code, text = run(program, ranks=3)
        assert (code, sorted(text.splitlines())) == (EXIT_DONE, ["error of 0", "this is 0"])
    logs = sorted((tmp_path / "logs").iterdir())
    assert [log.name for log in logs] == ["rank-00001.log", "rank-00002.log"]
    assert sorted(logs[1].read_text().splitlines()) == ["error of 2"] * 2 + ["this is 2"] * 2


@pytest.mark.parametrize("code", [EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR])
def test_an_exit_code_that_all_ranks_agree_on_is_passed_on_without_a_word(run, code):
    assert run(f"sys.exit({code})", ranks=3) == (code, "")


def test_a_rank_that_saw_the_work_complete_does_not_hide_that_the_others_were_stopped(run):
    assert run(f"sys.exit({EXIT_GO_ON} if rank else 0)")[0] == EXIT_GO_ON


WAITS = "(folder / f'waits-{rank}').touch(); time.sleep(60)"
OTHERS_WAIT = "while rank == 1 and len(list(folder.glob('waits-*'))) < 2: time.sleep(0.01)\n"


def test_a_rank_that_crashes_takes_the_others_down_and_its_last_words_are_shown(run, tmp_path):
    program = f"""{OTHERS_WAIT}
if rank != 1:
    {WAITS}
print(*range(100), sep=chr(10))
raise RuntimeError('the reason')"""
    code, text = run(program, ranks=3)
    assert code == EXIT_CRASH
    assert "rank 1 failed (exit code 1)" in text
    assert f"last lines of {tmp_path / 'logs/rank-00001.log'}:" in text
    assert "RuntimeError: the reason" in text
    assert len(text.splitlines()) == 2 + 15


def test_a_rank_that_was_killed_is_named_before_those_that_failed_because_of_it(run):
    program = f"""{OTHERS_WAIT}
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
(folder / f'waits-{{rank}}').touch()
time.sleep(0.2 if rank == 0 else 60)
raise RuntimeError('connection closed by peer')"""
    code, text = run(program, ranks=3)
    assert code == EXIT_CRASH
    assert "rank 1 failed (killed by SIGKILL)" in text
    assert "rank 0 failed" not in text
    assert "rank 2 failed" not in text


@pytest.mark.parametrize("ends", ["time.sleep(60)", "time.sleep(0.2); raise RuntimeError('connection closed by peer')"])
@pytest.mark.parametrize("explains", [0, 1])
def test_wrong_input_that_only_one_rank_sees_stays_an_error_of_the_user(run, ends, explains):
    """The others are ended, or fail because that one left: neither is a crash to blame."""
    program = f"""
if rank == {explains}:
    print('hanse train: no room', file=sys.stderr)
    sys.exit({EXIT_USER_ERROR})
{ends}"""
    code, text = run(program)
    assert code == EXIT_USER_ERROR
    assert "hanse train: no room" in text
    assert f"rank {1 - explains} failed" not in text


# Signals go to the process that starts the ranks: one of its own, as in life.

STARTER = """
import sys
from pathlib import Path
from launch.local import run_ranks
sys.exit(run_ranks([sys.executable, "-c", sys.argv[2], sys.argv[1]], 2, 1, Path(sys.argv[1]) / "logs"))
"""
READY = "(folder / f'ready-{rank}').touch()\n"
SAVES = f"""
def save(*_):
    (folder / f'saved-{{rank}}').touch()
    sys.exit({EXIT_GO_ON})
signal.signal(signal.SIGTERM, save)
{READY}
time.sleep(60)"""
DEAF = f"""
signal.signal(signal.SIGTERM, lambda *_: (folder / f'heard-{{rank}}').touch())
{READY}
while True: time.sleep(1)"""


@pytest.fixture
def start(tmp_path):
    """``start(program)``: the starter of two ranks, once both are ready."""
    started = []

    def begin(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(tmp_path), HEAD + program], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert ended_within(60, lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        return process

    yield begin
    for process in started:
        process.kill()
        process.stdout.close()
        process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_every_rank_save_and_the_whole_says_go_on(start, tmp_path, number):
    process = start(SAVES)
    process.send_signal(number)
    assert process.wait(60) == EXIT_GO_ON
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert process.stdout.read() == f"{ASKED}\n"


def test_ctrl_c_reaches_the_ranks_once_although_they_share_the_terminal(start, tmp_path):
    process = start(SAVES)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(60) == EXIT_GO_ON
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_two_signals_at_once_are_one(start, tmp_path):
    process = start(SAVES)
    for _ in range(2):  # what timeout(1) does: to the process, and to its group
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == EXIT_GO_ON
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert process.stdout.read() == f"{ASKED}\n"


def test_a_second_signal_ends_ranks_that_do_not_stop(start, tmp_path):
    process = start(DEAF)
    process.send_signal(signal.SIGINT)
    assert ended_within(60, lambda: len(list(tmp_path.glob("heard-*"))) == 2)
    assert process.poll() is None
    time.sleep(ONE_SECONDS)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == EXIT_GO_ON
    assert process.stdout.read() == f"{ASKED}\nstopped at once; the same command goes on from the last checkpoint\n"


def test_a_signal_before_training_began_ends_the_ranks_and_says_go_on(start):
    process = start(f"{READY}time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_GO_ON
    assert "the same command goes on from the last checkpoint" in process.stdout.read()


def test_ranks_are_told_to_stop_when_who_started_them_is_killed(start, tmp_path):
    process = start(SAVES)
    process.kill()
    process.wait(60)
    assert ended_within(60, lambda: len(list(tmp_path.glob("saved-*"))) == 2)


def test_handlers_of_signals_are_put_back(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run("pass")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
