"""Ranks that start warm: forked from a process that has imported torch, transformers, DeepSpeed and ours already.

A rank imports for some eight seconds of CPU before it does anything of its own, and the suite starts a few hundred.
:func:`start` takes the place of ``launch.local.start_rank``: same command, variables, log and signals, same module run
as ``__main__``; only the interpreter is not a new one. What starts by itself (tests/launch/test_local.py, the demo, the
cluster's jobs) starts cold, as in life.

    python -m tests.warm FD    the process that forks; asked through the socket of that number
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PRELOADED = ("train.loop", "train.score", "train.outcome", "hydra", "tokenizers")
MESSAGE = 2**17  # bytes at most: variables and arguments
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class WarmRank:
    """What :mod:`launch.local` uses of ``subprocess.Popen``."""

    def __init__(self, parent: Parent, pid: int):
        self.parent, self.pid = parent, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.parent.ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Parent:
    """The process that forks, as its user sees it."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def ask(self, question: dict[str, Any], handles: Sequence[int] = ()) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # whose handlers ask as well
        try:
            socket.send_fds(self.socket, [json.dumps(question).encode()], list(handles))
            answer = self.socket.recv(MESSAGE)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert answer, "the process that forks is gone"
        return json.loads(answer)


def start(parent: Parent, command: Sequence[str], environment: dict[str, str], log: int | None) -> WarmRank:
    """A rank, its output going to the file handle ``log``, or where ours goes."""
    handles = [1, 2] if log is None else [log, log]
    pid = parent.ask({"run": list(command[1:]), "environment": environment, "folder": os.getcwd()}, handles)
    return WarmRank(parent, pid)


def can_start(command: Sequence[str]) -> bool:
    """Whether the command is a Python program that may be run in a process forked from ours."""
    return command[0] == sys.executable and (command[1] == "-m" or command[1].endswith(".py"))


def die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def serve(end: socket.socket) -> None:
    """Fork when asked to, and tell how those forked ended; returns in each of them."""
    while True:
        text, handles, _, _ = socket.recv_fds(end, MESSAGE, 2)
        if not text:
            sys.exit()
        asked = json.loads(text)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                end.close()
                become(asked, handles)
                return
            for handle in handles:
                os.close(handle)
        end.send(json.dumps(answer).encode())


def become(asked: dict[str, Any], handles: Sequence[int]) -> None:
    """Take on the variables, folder, output and arguments of the rank."""
    import torch

    os.setsid()
    die_with_parent(signal.SIGTERM)
    for target, handle in zip((1, 2), handles, strict=True):
        os.dup2(handle, target)
        os.close(handle)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.argv = asked["run"][1:] if asked["run"][0] == "-m" else asked["run"]


def main(handle: int) -> None:
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    serve(socket.socket(fileno=handle))
    if sys.argv[0].endswith(".py"):
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
