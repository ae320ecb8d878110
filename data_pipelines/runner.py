"""Work on many files, file by file: each task makes one file, and is done when that file has its name.

Nothing else is remembered. So work goes on after any death at any moment, any number of processes and machines may
work at the same time, and a file made twice is the same file: whoever is last replaces it by its equal.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from common.errors import HanseError
from common.files import PARTIAL, atomic_file
from common.terminal import Progress, count

POLL_SECONDS = 0.2
ATTEMPTS = 3  # at a file whose partial was swept away by somebody who took its writer for dead


class Tell(Protocol):
    """Called by a task now and then: the share of its input that is done (0 to 1), bytes of text so far."""

    def __call__(self, share: float, text_bytes: int) -> None: ...


@dataclass(frozen=True)
class Task:
    """Make the file ``path``: ``make(partial, tell)`` writes all of it to ``partial``.

    What ``make`` writes must depend on nothing but the task, and ``path`` on everything that decides it. It is sent to
    other processes, so it must be picklable. ``size``: bytes of its input, for a fair division and for progress.
    """

    path: Path
    size: int
    make: Callable[[Path, Tell], None]


def share_of(tasks: Sequence[Task], worker: int, workers: int) -> list[Task]:
    """The tasks of one of several workers, in their order: the largest first to whoever has least."""
    loads, shares = [0] * workers, [-1] * len(tasks)
    for place in sorted(range(len(tasks)), key=lambda place: (-tasks[place].size, place)):
        shares[place] = loads.index(min(loads))
        loads[shares[place]] += max(tasks[place].size, 1)
    return [task for task, share in zip(tasks, shares, strict=True) if share == worker]


def run_tasks(tasks: Sequence[Task], what: str, processes: int = 0) -> int:
    """Do the tasks that are not done, in ``processes`` processes (0: one a core); how many there were.

    Raises:
        HanseError: what a task raised; or a process was killed. What is done stays done.
    """
    undone = sorted((task for task in tasks if not task.path.exists()), key=lambda task: -task.size)
    if not undone:
        return 0
    for folder in sorted({task.path.parent for task in undone}):
        sweep(folder)
    board = multiprocessing.get_context("forkserver").RawArray("d", 2 * len(undone))
    told = Told(what, tasks, undone, board)
    processes = min(processes or len(os.sched_getaffinity(0)), len(undone))
    if processes == 1:
        for place, task in enumerate(undone):
            _make(task, place, board, told)
    else:
        _in_processes(undone, board, told, processes)
    return len(undone)


class Told:
    """Progress over all tasks, read off a board with two numbers a task: share done, bytes of text."""

    def __init__(self, what: str, tasks: Sequence[Task], undone: Sequence[Task], board: Any):
        sizes = [max(task.size, 1) for task in undone]
        total = sum(max(task.size, 1) for task in tasks)
        self.sizes, self.board = sizes, board
        self.before = total - sum(sizes)
        self.progress = Progress(what, total, "B", done=self.before)

    def __call__(self) -> None:
        if self.progress.done >= self.progress.total:
            return
        done = sum(size * share for size, share in zip(self.sizes, self.board[::2], strict=True))
        text, seconds = sum(self.board[1::2]), max(time.monotonic() - self.progress.start, 1e-9)
        extra = f"{sum(share >= 1 for share in self.board[::2])} of {len(self.sizes)} files, {count(text, 'B')} of text"
        self.progress.update(self.before + done, extra, rate=f"{count(text / seconds, 'B')}/s")


def _make(task: Task, place: int, board: Any, told: Callable[[], None]) -> None:
    def tell(share: float, text_bytes: int) -> None:
        board[2 * place], board[2 * place + 1] = min(share, 0.999), text_bytes
        told()

    for attempt in range(ATTEMPTS):
        try:
            with atomic_file(task.path, shared=True) as partial:
                partial.touch()
                with locked(partial):
                    task.make(partial, tell)
            break
        except FileNotFoundError:
            if task.path.exists():
                break
            if attempt == ATTEMPTS - 1:
                raise
    board[2 * place] = 1.0
    told()


def sweep(folder: Path) -> None:
    """Remove files and folders that killed processes left half written; what a living one holds a lock on stays."""
    for path in folder.glob(f"*{PARTIAL}") if folder.is_dir() else []:
        with suppress(OSError), locked(path, must=True):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked(path: Path, must: bool = False) -> Iterator[None]:
    """Hold a lock on a file or folder; the kernel lets go of it when the process dies.

    Raises:
        OSError: ``must``, and another process holds it; or it is a link, or not there.
    """
    handle = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if path.is_dir() else os.O_RDWR))  # NFS locks what is writable
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or a filesystem without locks
        if must:
            os.close(handle)
            raise
    try:
        yield
    finally:
        os.close(handle)


def _in_processes(tasks: Sequence[Task], board: Any, told: Callable[[], None], processes: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipelines.annotate.stage"])
    following, errors = context.Value("q", 0), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(tasks, board, following, errors), daemon=True) for _ in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(POLL_SECONDS / processes)
            told()
            _complain(errors, workers)
        _complain(errors, workers)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
    told()


def _complain(errors: Any, workers: Sequence[BaseProcess]) -> None:
    if not errors.empty():
        expected, text = errors.get()
        raise HanseError(text) if expected else RuntimeError(f"in a worker process:\n{text}")
    dead = [worker.exitcode for worker in workers if worker.exitcode]
    if dead:
        name = signal.Signals(-dead[0]).name if dead[0] < 0 else f"exit code {dead[0]}"
        raise HanseError(
            f"a worker process died ({name}; SIGKILL often means that memory ran out: set processes lower); "
            "what is done stays done, run the same command again to go on"
        )


def _work(tasks: Sequence[Task], board: Any, following: Any, errors: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and stops us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        while True:
            with following.get_lock():
                place = following.value
                following.value += 1
            if place >= len(tasks):
                return
            _make(tasks[place], place, board, lambda: None)
    except HanseError as error:
        errors.put((True, str(error)))
    except BaseException:
        errors.put((False, traceback.format_exc()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
