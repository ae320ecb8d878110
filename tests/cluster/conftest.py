"""A real Slurm on this machine, of simulated nodes, each with its own network and host name.

Workers (pytest-xdist) share it, and each has a partition of four nodes for itself: tests that wait, for a time limit or
for silence to be noticed, run beside tests that compute.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.cluster.run import Run
from tests.conftest import Hanse
from tests.shared import WORKER, WORKERS, alone, once, root

HERE = Path(__file__).parent
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2",
            "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "unshare": "util-linux"}  # fmt: skip
# DeepSpeed's CPU ranks compile for a minute when there is nothing here: torch's usual place, shared with other tests.
USUAL = Path.home() / ".cache/torch_extensions" / f"py{sys.version_info[0]}{sys.version_info[1]}_cpu"
EXTENSIONS = os.environ.get("TORCH_EXTENSIONS_DIR", str(USUAL))
NODES = 4  # of each worker
STEPS = 200  # of a run: room for all that happens to one
LONGEST_FIRST = ("chaos", "limits", "life", "sites", "torchrun", "ray", "corpus", "sweep")  # workers end together
PATIENCE_SECONDS = float(os.environ.get("HANSE_TEST_PATIENCE", "600"))  # of a machine that does much else


def reason_to_skip() -> str:
    """What this machine lacks for nodes with networks of their own; empty where it lacks nothing."""
    missing = [package for command, package in PACKAGES.items() if shutil.which(command, path=PATH) is None]
    if missing:
        return f"install {' '.join(missing)} (Debian's names)"
    if os.geteuid():
        return "wants root"
    for command in ("unshare --net --uts --mount mount -t tmpfs tmpfs /mnt", "unshare --net ip link add type bridge"):
        done = subprocess.run(command.split(), check=False, capture_output=True, text=True, env={"PATH": PATH})
        if done.returncode:
            return f"'{command}' is not allowed here: {done.stderr.strip()}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    why = reason_to_skip() if ours else ""
    for item in ours:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.cluster)
        if why:
            item.add_marker(pytest.mark.skip(reason=f"no simulated Slurm here: {why}"))
    place = {f"test_{name}": number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, -1) if HERE in item.path.parents else -1)


def slurm(*command: object) -> str:
    """What a Slurm command prints."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_until(what: str, happened: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for something; the error says for what."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.1)
    return found


class Cluster:
    """The simulated Slurm, and what a person or bad luck does to its jobs."""

    slurm = staticmethod(slurm)
    wait_until = staticmethod(wait_until)

    def __init__(self, folder: Path):
        self.folder = folder
        self.disk = folder / "disk"  # of its own, seen by all nodes, small enough to be filled
        self.partition = f"part{WORKER}"
        self.nodes = [f"node{NODES * WORKER + number + 1}" for number in range(NODES)]
        self.place = f'sbatch=["--partition={self.partition}"]'  # a setting of hanse launch
        self._ask_again = 0.0

    def run(self, folder: Path) -> Run:
        return Run(folder)

    def reset(self) -> None:
        """No jobs, all nodes in service; those of this worker."""
        subprocess.run(["scancel", "--me", f"--partition={self.partition}"], check=False, timeout=60)
        wait_until("an empty queue", lambda: not self.queue())
        for node in self.nodes:
            back = ["scontrol", "update", f"nodename={node}", "state=resume"]
            subprocess.run(back, check=False, capture_output=True, timeout=60)
        idle = ["sinfo", "-h", "-p", self.partition, "-t", "idle", "-o", "%D"]
        wait_until("four idle nodes", lambda: slurm(*idle) == str(NODES))

    def queue(self) -> dict[str, str]:
        """{job: state}, as squeue says it; an element of an array by its own number, and as ARRAY_INDEX."""
        for _ in range(30):  # the controller of a busy machine does not always answer in time
            command = ["squeue", "-h", "-r", "-p", self.partition, "-o", "%A %i %T"]
            answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
            if answer.returncode == 0:
                rows = [line.split() for line in answer.stdout.splitlines()]
                return {name: state for *names, state in rows for name in names}
        raise AssertionError(f"squeue does not answer: {answer.stderr}")

    def state(self, job: str) -> str:
        """GONE when the job is not in the queue any more."""
        return self.queue().get(job, "GONE")

    def assert_alive(self, run: Run, start: int) -> None:
        """Fail when a start will never go on; asked now and then, for asking costs as much as a step."""
        if time.monotonic() > self._ask_again:
            self._ask_again = time.monotonic() + 5
            kinds = run.kinds()
            gone = self.state(run.number) == "GONE" and run.kinds() == kinds
            assert not gone or any(kinds[start : start + 1]), f"job {run.number} ended without a word\n{run.log}"

    def start_now(self, job: str) -> None:
        """Cut the two minutes that Slurm waits after a requeue to some seconds, without which it kills what it started:
        ``Job credential revoked``, for it tells the old start from the new one by the second. An old ``srun`` that
        still lives would end the new start's step, which has the same number.
        """
        wait_until(f"job {job} waits again", lambda: self.state(job) == "PENDING")
        old = ["pgrep", "--full", rf"^slurmstepd: \[{job}\."]
        wait_until(
            f"nothing of job {job} is left", lambda: subprocess.run(old, check=False, capture_output=True).returncode
        )
        time.sleep(3)
        slurm("scontrol", "update", f"jobid={job}", "StartTime=now")

    def wait_for_progress(self, run: Run, start: int, steps: int = 3) -> None:
        """Until a start has made some steps of its own."""

        def progressed() -> bool:
            kinds = run.kinds()
            assert len(kinds) <= start or not kinds[start], f"start {start} ended too soon\n{run.log}"
            self.assert_alive(run, start)
            return len(kinds) > start and run.steps_made(start) >= steps

        wait_until(f"{steps} steps of start {start} in {run.folder}", progressed)

    def wait_for_end(self, run: Run, start: int) -> str:
        """Until a start has ended; how."""

        def ended() -> str:
            self.assert_alive(run, start)
            return "".join(run.kinds()[start : start + 1])

        return str(wait_until(f"the end of start {start} in {run.folder}", ended))

    @contextmanager
    def in_the_middle(self, run: Run, start: int, steps: int = 3) -> Iterator[None]:
        """Hold all ranks after some steps of a start while something happens to them, however fast the machine is."""
        self.wait_for_progress(run, start, steps)
        ranks = run.ranks()
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert not run.kinds()[start], run.log
            yield
        finally:
            for pid in ranks.keys() & run.ranks().keys():
                os.kill(pid, signal.SIGCONT)


@contextmanager
def first_in_last_out(lock: Path, up: Callable[[], None], down: Callable[[], None]) -> Iterator[None]:
    """``up`` before the first worker, ``down`` after the last one. One that died counts no more."""
    with lock.with_suffix(".users").open("w") as users:
        with alone(lock):
            first = held_by_nobody(users)
            fcntl.flock(users, fcntl.LOCK_SH)
            if first:
                up()
        try:
            yield
        finally:
            with alone(lock):
                fcntl.flock(users, fcntl.LOCK_UN)
                if held_by_nobody(users):
                    down()


def held_by_nobody(file: TextIO) -> bool:
    """Whether nobody holds a lock on a file; if so, we do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_what_a_killed_session_left() -> None:
    """There is one simulated Slurm a machine; workers of an interrupted session have no time to end theirs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().rstrip("\0").split("\0")
            if words[0] == "slurmd" and words[-2] == "-f":
                folder = Path(words[-1]).parent
                with folder.with_suffix(".users").open() as users:
                    if held_by_nobody(users):
                        take_down(folder)
                        return
        except (OSError, UnicodeDecodeError, IndexError):
            continue  # it ended while we looked, or is not ours


def take_down(folder: Path) -> None:
    """End the simulated Slurm of a folder."""
    subprocess.run(["umount", "--lazy", folder / "disk"], check=False)
    down, environment = ["bash", HERE / "slurm-down.sh"], {**os.environ, "PATH": PATH, "SIM_DIR": str(folder)}
    subprocess.run(down, env=environment, check=False, stdout=subprocess.DEVNULL, timeout=120)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = root(tmp_path_factory) / "slurm"
    parts = [f"part{worker}:node[{NODES * worker + 1}-{NODES * (worker + 1)}]" for worker in range(WORKERS)]
    shape = {"SIM_DIR": str(folder), "SIM_NODES": str(NODES * WORKERS), "SIM_CPUS": "8", "SIM_GPUS": "0",
             "SIM_KILLWAIT": "60", "SIM_ACCT": "1", "SIM_PARTS": " ".join(["normal", *parts])}  # fmt: skip
    environment = {**os.environ, **shape, "PATH": PATH}
    log, disk = folder / "up.log", folder / "disk"

    def up() -> None:
        end_what_a_killed_session_left()
        disk.mkdir(parents=True, exist_ok=True)
        # Before the nodes begin: they see what is mounted then, each in a namespace of its own.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        with log.open("w") as file:
            begun = subprocess.run(["bash", HERE / "slurm-up.sh"], env=environment, check=False, stdout=file,
                                   stderr=subprocess.STDOUT, timeout=600)  # fmt: skip
        if begun.returncode:
            take_down(folder)
            pytest.fail(log.read_text())

    with (
        first_in_last_out(folder.with_suffix(".lock"), up, lambda: take_down(folder)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("TORCH_EXTENSIONS_DIR", EXTENSIONS)
        patch.setenv("USER", "root")
        yield Cluster(folder)


@pytest.fixture
def cluster(slurm_cluster: Cluster) -> Iterator[Cluster]:
    slurm_cluster.reset()
    yield slurm_cluster
    slurm_cluster.reset()


@pytest.fixture(scope="session")
def tiny(tiny_data: Path) -> dict[str, object]:
    """What a run of ``STEPS`` steps is trained with, on two ranks or four."""
    return {
        "name": "tiny", "tokens": STEPS * 8 * 64, "engine.precision": "fp32", "data.shards": tiny_data / "shards",
        "data.tokenizer": tiny_data / "tokenizer", "data.sequence_length": 64, "batch.global_batch_size": 8,
        "batch.micro_batch_size": 2, "schedule.warmup_steps": 2, "checkpoint.every_steps": 10,
        "evaluate.every_steps": 1000, "evaluate.tokens_per_language": 512, "track.wandb": "disabled",
        "model.settings.hidden_size": 48, "model.settings.intermediate_size": 96,
        "model.settings.num_hidden_layers": 2, "model.settings.num_attention_heads": 4,
        "model.settings.num_key_value_heads": 2,
    }  # fmt: skip


@pytest.fixture(scope="session")
def settings(slurm_cluster: Cluster, tiny: dict[str, object]) -> list[str]:
    """What ``hanse launch`` needs for two nodes with two ranks each; add ``train.run=FOLDER``."""
    return [
        "site=slurm", "site.node.gpus=0", "nodes=2", "ranks_per_node=2", "threads_per_rank=1", "hours=0.5",
        "life.signal_seconds=60", "life.node_checks=false", "life.backoff_seconds=0", slurm_cluster.place,
        *(f"train.{key}={value}" for key, value in tiny.items()),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(
    slurm_cluster: Cluster, hanse: Hanse, settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The run that nothing happens to, on two nodes with two ranks each."""

    def make(folder: Path) -> None:
        slurm_cluster.reset()
        run = Run(folder / "run")
        assert hanse("launch", *settings, f"train.run={run.folder}") == 0
        assert slurm_cluster.wait_for_end(run, 0) == "done", run.log

    return Run(once(tmp_path_factory, "undisturbed", make) / "run")


@pytest.fixture(scope="session")
def at_home(hanse: Hanse, tiny: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happens to, on two ranks of this machine: two numbers have one sum, over whatever network.

    Half as many ranks start in half the time; what does not want several on a node is held against this one.
    """

    def make(folder: Path) -> None:
        settings = [f"{key}={value}" for key, value in tiny.items()]
        assert hanse("train", "ranks=2", "threads_per_rank=1", *settings, f"run={folder / 'run'}") == 0

    return Run(once(tmp_path_factory, "at_home", make) / "run")


def assert_equal_runs(run: Run, other: Run) -> None:
    """The same loss at every step, each step once."""
    assert run.losses() == other.losses()
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
