"""A real Slurm of four simulated nodes, each with its own network and host name, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare")
# DeepSpeed's CPU ranks compile for a minute when there is nothing here: torch's usual place, shared with other tests.
EXTENSIONS = Path.home() / ".cache/torch_extensions" / f"py{sys.version_info[0]}{sys.version_info[1]}_cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in COMMANDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    why = (
        "not root"
        if os.geteuid() != 0
        else f"no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge iproute2)"
    )
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.cluster)
            if os.geteuid() != 0 or missing:
                item.add_marker(pytest.mark.skip(reason=f"no simulated Slurm here: {why}"))


def slurm(*command: object) -> str:
    """What a Slurm command prints."""
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout.strip()


def wait_until(what: str, happened: Callable[[], Any], seconds: float = 180) -> Any:
    """Wait for something; it says itself what it is."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.1)
    return found


class Run:
    """A run folder as tests look at it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def job(self) -> Path:
        return sorted((self.folder / "jobs").glob("[0-9]*"))[-1]

    @property
    def number(self) -> str:
        return str(json.loads((self.job / "job.json").read_text())["job_id"])

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.job.glob("slurm-*.log")))

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def losses(self) -> list[tuple[int, float]]:
        return [(record["step"], record["loss"]) for record in self.records() if "loss" in record]

    def step(self, start: int = 0) -> int:
        """The newest step that a start made; 0 until it has cut the metrics back to the checkpoint it began from."""
        begun = sum(record.get("event") in ("start", "resume") for record in self.records())
        return max((step for step, _ in self.losses()), default=0) if begun > start else 0

    def nodes(self, start: int) -> list[str]:
        """Names of the nodes of a start."""
        return slurm("scontrol", "show", "hostnames", self.starts()[start]["nodes"]).split()

    def starts(self, job: Path | None = None) -> list[dict[str, Any]]:
        """The last line of each start of a job."""
        path = (job or self.job) / "starts.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return list({line["life"]: line for line in lines}.values())

    def kinds(self, job: Path | None = None) -> list[str]:
        return [start["kind"] for start in self.starts(job)]


class Cluster:
    """The simulated Slurm, and what a person or bad luck does to its jobs."""

    slurm = staticmethod(slurm)
    wait_until = staticmethod(wait_until)

    def run(self, folder: Path) -> Run:
        return Run(folder)

    def reset(self) -> None:
        """No jobs, all nodes in service."""
        subprocess.run(["scancel", "--me"], check=False)
        wait_until("an empty queue", lambda: not slurm("squeue", "-h", "-o", "%A"), 60)
        for node in ("node1", "node2", "node3", "node4"):
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
        wait_until("four idle nodes", lambda: slurm("sinfo", "-h", "-p", "normal", "-t", "idle", "-o", "%D") == "4", 60)

    def state(self, job: str) -> str:
        return (
            slurm("squeue", "-h", "-j", job, "-o", "%T") if job in slurm("squeue", "-h", "-o", "%A").split() else "GONE"
        )

    def start_now(self, job: str) -> None:
        """Cut the two minutes that Slurm waits after a requeue, as soon as it waits."""
        wait_until("the requeued job waits", lambda: self.state(job) == "PENDING", 60)
        slurm("scontrol", "update", f"jobid={job}", "StartTime=now")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    shape = {"SIM_DIR": str(folder), "SIM_NODES": "4", "SIM_CPUS": "8", "SIM_GPUS": "0", "SIM_KILLWAIT": "15"}
    environment = {**os.environ, **shape, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["bash", HERE / "slurm-up.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "TORCH_EXTENSIONS_DIR": str(EXTENSIONS), "USER": "root"}
    try:
        yield Cluster()
    finally:
        subprocess.run(["bash", HERE / "slurm-down.sh"], env=environment, check=False, stdout=subprocess.DEVNULL)
        os.environ.clear()
        os.environ |= before


@pytest.fixture
def cluster(slurm_cluster: Cluster) -> Iterator[Cluster]:
    slurm_cluster.reset()
    yield slurm_cluster
    slurm_cluster.reset()


@pytest.fixture(scope="session")
def settings(tiny_data: Path) -> list[str]:
    """What ``hanse launch`` needs for two nodes with two ranks each; add ``train.run=FOLDER``."""
    tiny = {
        "tokens": 300 * 8 * 64, "engine.precision": "fp32", "data.shards": tiny_data / "shards",
        "data.tokenizer": tiny_data / "tokenizer", "data.sequence_length": 64, "batch.global_batch_size": 8,
        "batch.micro_batch_size": 2, "schedule.warmup_steps": 2, "checkpoint.every_steps": 10,
        "evaluate.every_steps": 1000, "evaluate.tokens_per_language": 512, "track.wandb": "disabled",
        "model.settings.hidden_size": 48, "model.settings.intermediate_size": 96,
        "model.settings.num_hidden_layers": 2, "model.settings.num_attention_heads": 4,
        "model.settings.num_key_value_heads": 2,
    }  # fmt: skip
    return [
        "site=slurm", "site.node.gpus=0", "nodes=2", "ranks_per_node=2", "threads_per_rank=1", "hours=0.1",
        "life.signal_seconds=60", "life.node_checks=false", "train.name=tiny",
        *(f"train.{key}={value}" for key, value in tiny.items()),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(
    slurm_cluster: Cluster, hanse: Callable[..., int], settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The run that nothing happens to."""
    slurm_cluster.reset()
    run = Run(tmp_path_factory.mktemp("runs") / "undisturbed")
    assert hanse("launch", *settings, f"train.run={run.folder}") == 0
    wait_until("the end of the undisturbed run", lambda: run.kinds() and run.kinds()[-1], 600)
    assert run.kinds() == ["done"], run.log
    return run
