"""Files are made once, by whoever comes first; a death costs nothing but time."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.runner import Task, run_tasks, share_of, sweep


def write(text, path, tell):
    tell(0.5, len(text))
    path.write_text(text)


def refuse(path, tell):
    path.write_text("half")
    raise HanseError("in.jsonl: cannot be read")


def die(path, tell):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


@given(st.lists(st.integers(0, 10**9), max_size=30), st.integers(1, 8))
def test_shares_are_all_tasks_once_and_nearly_equal(sizes, workers):
    tasks = [Task(Path(str(number)), size, refuse) for number, size in enumerate(sizes)]
    shares = [share_of(tasks, worker, workers) for worker in range(workers)]
    assert sorted(int(task.path.name) for share in shares for task in share) == list(range(len(sizes)))
    loads = [sum(max(task.size, 1) for task in share) for share in shares]
    assert max(loads) - min(loads) <= max([1, *sizes])


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_there_is_not_made_again_and_what_was_left_half_written_goes(tmp_path, processes):
    tasks = [Task(tmp_path / "a" / f"{number}.txt", number, partial(write, f"text {number}")) for number in range(5)]
    tasks[3].path.parent.mkdir()
    tasks[3].path.write_text("there already")
    (tmp_path / "a" / "1.txt.host-7.partial").write_text("half")
    assert run_tasks(tasks, "test", processes) == 4
    assert {path.name: path.read_text() for path in (tmp_path / "a").iterdir()} == {
        "0.txt": "text 0", "1.txt": "text 1", "2.txt": "text 2", "3.txt": "there already", "4.txt": "text 4",
    }  # fmt: skip
    assert run_tasks(tasks, "test", processes) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_task_is_the_runners_and_nothing_half_written_stays(tmp_path, processes):
    tasks = [Task(tmp_path / "bad", 9, refuse), Task(tmp_path / "good", 1, partial(write, "x"))]
    with pytest.raises(HanseError, match=r"^in\.jsonl: cannot be read$"):
        run_tasks(tasks, "test", processes)
    assert not (tmp_path / "bad").exists()


def test_a_killed_process_is_told_of_and_the_rest_goes_on_later(tmp_path):
    tasks = [Task(tmp_path / "bad", 9, die), Task(tmp_path / "good", 1, partial(write, "x"))]
    with pytest.raises(HanseError, match=r"a worker process died \(SIGKILL.*run the same command again"):
        run_tasks(tasks, "test", 2)
    assert not (tmp_path / "bad").exists()
    assert run_tasks([Task(tmp_path / "bad", 9, partial(write, "y")), tasks[1]], "test", 2) >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]


def test_progress_counts_what_was_done_before(tmp_path, capsys):
    tasks = [Task(tmp_path / str(number), 50, partial(write, "12345")) for number in range(2)]
    tasks[0].path.write_text("there")
    run_tasks(tasks, "annotate", 1)
    assert "annotate 100%" in capsys.readouterr().out


def test_a_living_writers_file_is_not_swept(tmp_path):
    """Another process writes; a sweep meanwhile leaves its partial alone, and takes that of a dead one."""
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    living, dead = tmp_path / "x.a-1.partial", tmp_path / "x.a-2.partial"
    dead.write_text("half")
    with subprocess.Popen([sys.executable, "-c", program, living], stdin=-1, stdout=-1) as writer:
        assert writer.stdout.readline() == b"locked\n"
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [living]
        writer.communicate(timeout=60)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


ORPHANS = """
import sys, time
from pathlib import Path
from data_pipelines.runner import Task, run_tasks
from tests.data_pipelines.test_runner import wait
run_tasks([Task(Path(sys.argv[1]) / str(number), 1, wait) for number in range(2)], "test", 2)
"""


def wait(path, tell):
    path.with_name(f"pid-{os.getpid()}").touch()
    signal.pause()


@pytest.mark.slow
def test_processes_do_not_outlive_a_killed_parent(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ORPHANS, tmp_path], stdout=subprocess.DEVNULL) as parent:
        while len(pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]) < 2:
            assert parent.poll() is None
        parent.kill()
    for pid in pids:
        for _ in range(600):
            if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
                break
            multiprocessing.Event().wait(0.1)
        else:
            pytest.fail(f"process {pid} outlived its parent")
