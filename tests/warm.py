"""Programs that start warm: forked from a process that has imported what they will import.

A rank imports for some eight seconds of CPU before it does anything of its own, and the suite starts a few hundred;
``hanse launch`` and ``hanse plan`` ask another verb for its configuration, which takes a second. :func:`start` takes
the place of ``launch.local.start_rank`` and :func:`answer` that of ``subprocess.run`` there: same command, variables,
output and signals, same module run as ``__main__``; only the interpreter is not a new one. What starts by itself
(tests/launch/test_local.py, the demo, the cluster's jobs) starts cold, as in life.

    python -m tests.warm KIND FD    the process that forks KIND; asked through the socket of that number
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

# What they would import by themselves: the verbs' own, and what DeepSpeed, pyarrow and transformers import when used.
PRELOADED = {
    "ranks": (
        "train.loop", "train.score", "train.outcome", "data_pipelines.corpus", "hydra", "tokenizers", "pandas",
        "pyarrow.dataset", "deepspeed.runtime.zero.muon.muon_optimizer", "transformers.models.llama.modeling_llama",
    ),
    "verbs": ("common.verbs", "train.config", "data_pipelines.config"),
}  # fmt: skip
MESSAGE = 2**17  # bytes at most: variables and arguments
ASKING = threading.Lock()
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Parent:
    """The process that forks, as its user sees it."""

    def __init__(self, kind: str) -> None:
        self.socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", kind, str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        )  # fmt: skip
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


class Warm:
    """A process that was forked: what is used here of ``subprocess.Popen``.

    ``ended``: gives the exit code of a process, None while it runs.
    """

    def __init__(self, pid: int, ended: Callable[[int], int | None]):
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ended(self.pid)
        return self.returncode

    def wait(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"process {self.pid} does not end"
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the process and those that it started."""
        if self.poll() is None:
            if os.getpgid(self.pid) == self.pid:  # it has become the first of a group of its own
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self.kill()


@functools.cache
def parent(kind: str) -> Parent:
    """The one of this session; lives until the session ends."""
    found = Parent(kind)
    atexit.register(found.process.kill)
    return found


def start(
    command: Sequence[str], environment: Mapping[str, str], log: BinaryIO | None, folder: str = "",
    errors: BinaryIO | None = None, kind: str = "ranks",
) -> Warm:  # fmt: skip
    """Start a Python program, its output going to ``log``, or where ours goes; what it says of errors likewise."""
    handles = [1, 2] if log is None else [log.fileno(), (errors or log).fileno()]
    asked = {"run": list(command[1:]), "environment": dict(environment), "folder": folder or os.getcwd()}
    return Warm(parent(kind).ask(asked, handles), lambda pid: parent(kind).ask({"poll": pid}))


def answer(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
    """What a verb answers another one, which asks one at a time."""
    with ASKING, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        code = start(command, env, out, errors=errors, kind="verbs").wait(300)
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, code, out.read().decode(), errors.read().decode())


def can_start(command: Sequence[str]) -> bool:
    """Whether the command is a Python program that may be run in a process forked from ours."""
    return command[0] == sys.executable and (command[1] == "-m" or command[1].endswith(".py"))


# ---------- in the process that forks, and in those that it forks ----------


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
            answer: Any = exit_code(asked["poll"])
        else:
            answer = os.fork()
            if not answer:
                end.close()
                become(asked["run"], asked["environment"], asked["folder"], handles)
                return
            for handle in handles:
                os.close(handle)
        end.send(json.dumps(answer).encode())


def exit_code(pid: int) -> int | None:
    """Of a process forked here; None while it runs."""
    pid, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def become(words: Sequence[str], environment: Mapping[str, str], folder: str, handles: Sequence[int]) -> None:
    """Take on the variables, folder, output and arguments of the program."""
    os.setsid()
    die_with_parent(signal.SIGTERM)
    for target, handle in zip((1, 2), handles, strict=True):
        os.dup2(handle, target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    sys.argv = list(words[1:] if words[0] == "-m" else words)


def run() -> None:
    """The program that ``sys.argv`` names; its ranks, if it starts some, are forked from it."""
    local.start_rank = fork  # type: ignore[assignment]
    if sys.argv[0].endswith(".py"):
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def fork(command: Sequence[str], environment: Mapping[str, str], log: BinaryIO | None) -> Warm:
    """A rank of the program that was forked itself."""
    pid = os.fork()
    if pid:
        return Warm(pid, exit_code)
    code: object = 1
    try:
        handles = [1, 2] if log is None else [log.fileno(), log.fileno()]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        become(command[1:], environment, os.getcwd(), handles)
        run()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:  # never back into the program that forked us
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def ready_for_ranks() -> None:
    """Do what a rank does once, and takes seconds for."""
    import torch

    from train.lock import installed
    from train.precision import measured_peaks

    for half in ("bf16", "fp16"):
        measured_peaks(torch.device("cpu"), half)
    installed()


def ready_for_verbs() -> None:
    """Compose a configuration, for which Hydra looks for its plugins once."""
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore

    from tests.shared import compose_sooner
    from train.config import TrainConfig

    compose_sooner(setattr)
    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        compose("train")


if __name__ == "__main__":
    from launch import local

    gc.disable()
    for name in PRELOADED[sys.argv[1]]:
        importlib.import_module(name)
    {"ranks": ready_for_ranks, "verbs": ready_for_verbs}[sys.argv[1]]()
    gc.freeze()  # what was imported is garbage never: those forked neither look at it nor copy its pages
    gc.enable()
    serve(socket.socket(fileno=int(sys.argv[2])))
    run()
