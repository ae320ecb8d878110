"""Every site's script before a Slurm of that site's shape: its partitions, QoS, limits and nodes, as the profile says.

The nodes are powered-down ones of a cloud, which no daemon need stand for; ``sbatch --test-only`` plans with them. One
database of accounts, that of the session's cluster, serves all shapes.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch import slurm
from launch.site import Site, load_site, site_names
from tests.cluster.conftest import PATH, Cluster

Hanse = Callable[..., int]
SITES = [name for name in site_names() if name not in ("local", "slurm")]  # "slurm" is what test_life launches
ACCOUNTS = {"lumi": "project_462000001", "jean_zay": "abc@h100", "jean_zay_a100": "abc@a100", "meluxina": "p200001",
            "deucalion": "f202500001g"}  # fmt: skip
CONF = """ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16917
SlurmdPort=16918
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={cluster}/run/munge.sock
CredType=cred/munge
StateSaveLocation={here}/state
SlurmctldPidFile={here}/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
EnforcePartLimits=ALL
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=60
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={cluster}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,qos,limits
NodeName=n[1-32] CPUs={cpus} RealMemory={megabytes} Gres=gpu:{gpus} Feature={features} State=CLOUD
"""


def conf(site: Site, here: Path, cluster: Path) -> str:
    """The slurm.conf of a site's shape. What a profile does not know is made large enough."""
    node = site.node
    features = re.findall(r"--constraint=(\w+)", " ".join(site.request.options))
    text = CONF.format(
        name=site.name.replace("_", ""), here=here, cluster=cluster, gpus=node.gpus or 4,
        cpus=(node.cpus_per_gpu or 16) * (node.gpus or 4), megabytes=round((node.memory_gb or 512) * 1000),
        features=",".join(features) or "any",
    )  # fmt: skip
    hours: dict[str, float] = {}
    for queue in site.queues.values():
        name = queue.partition or "everything"
        hours[name] = max(hours.get(name, 0), queue.max_hours or 48)
    for name, most in hours.items():
        text += f"PartitionName={name} Nodes=ALL Default=YES MaxTime={most * 60:.0f} State=UP OverSubscribe=NO\n"
    return text


def enrol(site: Site, account: str) -> None:
    """The account, and each QoS with the limits that the profile knows, in the database."""
    name = site.name.replace("_", "")

    def sacctmgr(*words: str) -> None:
        subprocess.run(["sacctmgr", "-i", "-Q", *words], check=False, capture_output=True, timeout=60)

    sacctmgr("add", "cluster", name)
    every = ["normal"]
    for queue in site.queues.values():
        if queue.qos:
            every.append(queue.qos.format(account=account))
            sacctmgr("add", "qos", every[-1])
            if queue.max_hours:
                sacctmgr("modify", "qos", every[-1], "set", f"MaxWall={queue.max_hours * 60:.0f}", "Flags=DenyOnLimit")
    sacctmgr("add", "account", account, f"cluster={name}")
    sacctmgr("add", "user", "root", f"account={account}", f"cluster={name}", f"qos={','.join(every)}")


@contextmanager
def shaped(site: Site, account: str, here: Path, cluster: Path) -> Iterator[None]:
    """A Slurm controller of a site's shape, alone; ``SLURM_CONF`` names it."""
    (here / "state").mkdir(parents=True)
    (here / "slurm.conf").write_text(conf(site, here, cluster))
    before = os.environ["SLURM_CONF"]
    os.environ["SLURM_CONF"] = str(here / "slurm.conf")
    with (here / "slurmctld.log").open("w") as log:
        enrol(site, account)
        daemon = subprocess.Popen(["slurmctld", "-D", "-f", here / "slurm.conf"], stdout=log, stderr=log,
                                  env={**os.environ, "PATH": PATH})  # fmt: skip
    try:
        end = time.monotonic() + 60
        while "UP" not in subprocess.run(["scontrol", "ping"], check=False, capture_output=True, text=True).stdout:
            assert daemon.poll() is None, (here / "slurmctld.log").read_text()[-2000:]
            assert time.monotonic() < end, "no controller"
            time.sleep(0.1)
        yield
    finally:
        os.environ["SLURM_CONF"] = before
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(20)


@pytest.mark.parametrize("name", SITES)
def test_a_slurm_of_the_sites_shape_takes_its_script(
    name: str, slurm_cluster: Cluster, hanse: Hanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, account = load_site(name), ACCOUNTS.get(name, "abc123")
    monkeypatch.chdir(tmp_path)
    node = [] if site.node.gpus else ["site.node.gpus=4"]
    launch = ["launch", f"site={name}", *node, "nodes=2", "hours=0.4", f"account={account}", "train.name=voyage",
              "train.batch.global_batch_size=128", "train.tokens=1e9", "dry_run=true"]  # fmt: skip
    assert hanse(*launch) == 0
    script = tmp_path / "runs/voyage/jobs/0001/job.sbatch"
    with shaped(site, account, tmp_path / "slurm", slurm_cluster.folder):
        assert slurm.test_only(script) is None
        too_long = re.sub(r"--time=\S+", "--time=30-0", script.read_text())
        script.write_text(too_long)
        assert slurm.test_only(script), "this Slurm can refuse"
        script.write_text(re.sub(r"--account=\S+", "--account=nobody", too_long.replace("30-0", "00:20:00")))
        assert "ccount" in str(slurm.test_only(script))
