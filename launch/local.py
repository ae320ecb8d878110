"""Ranks on this machine: start them, pass signals on, and say which one failed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from common.errors import EXIT_CRASH, EXIT_DONE, EXIT_FLAKY, EXIT_GO_ON, EXIT_HUNG, EXIT_USER_ERROR
from common.terminal import say

ONE_SECONDS = 1.0  # signals so close to the first are the same: timeout(1) and others send it twice, also to our group
GRACE_SECONDS = 10.0  # between one rank's failure and the end of the others
ASKED = "asked to stop: a training finishes its step, and saves; a second time ends the ranks at once"
SPEAKING = (EXIT_USER_ERROR, EXIT_HUNG, EXIT_FLAKY)  # exit codes of a rank that are those of the whole
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def free_port() -> int:
    """A TCP port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environments(ranks: int, threads: int) -> list[dict[str, str]]:
    """Ours for each of so many ranks on this machine, with torchrun's variables."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": str(threads),
    }
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def run_ranks(command: Sequence[str], ranks: int, threads: int, log_folder: Path) -> int:
    """Run ``command`` once a rank, with torchrun's environment variables; the exit code of the whole.

    Rank 0 writes to this terminal, the others to ``log_folder/rank-NNNNN.log``. SIGINT and SIGTERM are passed on as
    SIGTERM; a second one, ``ONE_SECONDS`` later or more, ends the ranks at once. When a rank fails, its last words are
    shown and the others are ended.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    stops, first_stop = 0, float("inf")

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal stops, first_stop
        if time.monotonic() < first_stop + ONE_SECONDS and stops:
            return
        stops, first_stop = stops + 1, min(first_stop, time.monotonic())
        if stops == 1:
            say(ASKED)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if stops == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank, environment in enumerate(environments(ranks, threads)):
            log = None if rank == 0 else _log(log_folder, rank).open("ab")
            processes.append(start_rank(command, environment, log))
            if log:
                log.close()
        ended_here = _wait(processes)
        codes = [process.returncode for process in processes]
        if stops and min(codes) < 0:  # before training began, or asked twice
            say("stopped at once; the same command goes on from the last checkpoint")
            return EXIT_GO_ON
        return _judge(codes, ended_here, log_folder)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def start_rank(command: Sequence[str], environment: dict[str, str], log: BinaryIO | None) -> subprocess.Popen[bytes]:
    """Start one rank, its output going to ``log``, or where ours goes."""
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                            start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509  # fmt: skip


def _wait(processes: list[subprocess.Popen[bytes]]) -> set[int]:
    """Wait for all ranks; after the first failure the others get ``GRACE_SECONDS``. The ranks that were ended here."""
    deadline, ended_here = float("inf"), set()
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        ended = [(rank, process.poll()) for rank, process in enumerate(processes)]
        failed = [rank for rank, code in ended if code not in (None, EXIT_DONE, EXIT_GO_ON)]
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            ended_here |= {rank for rank, code in ended if code is None}
            for rank in ended_here:
                processes[rank].kill()
    return ended_here


def _judge(codes: Sequence[int], ended_here: set[int], log_folder: Path) -> int:
    """The exit code of the whole; of the ranks that failed, the one that failed by itself is shown."""
    failed = [rank for rank, code in enumerate(codes) if code not in (EXIT_DONE, EXIT_GO_ON) and rank not in ended_here]
    if not failed:
        return max(codes)
    # One that was killed from outside comes first, then one that says what is wrong with the input: when a rank
    # leaves, the others' collectives fail.
    culprit = min(failed, key=lambda rank: (codes[rank] >= 0, codes[rank] not in SPEAKING, rank))
    code = codes[culprit]
    if code not in SPEAKING or culprit > 0:  # rank 0 has said it on this terminal
        _last_words(culprit, code, log_folder)
    return code if code in SPEAKING else EXIT_CRASH


def _last_words(rank: int, code: int, log_folder: Path) -> None:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    say(f"rank {rank} failed ({how})")
    log = _log(log_folder, rank)
    if rank and log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        say("\n".join([f"last lines of {log}:", *(f"  {line}" for line in lines)]))


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.log"


def _die_with_parent() -> None:
    """In the child: be told to stop when the parent dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
