"""What a site may say of itself: one YAML a site in ``configs/site/``, and which of them this machine is.

Every value is a fact with its source and date in a comment beside it, or ``null`` with the comment "unknown": a guess
costs more than a question. ``docs/sites/adding.md`` says how to add a site.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from common.configuration import CONFIGS
from common.errors import HanseError

SCHEDULERS = ("slurm", "none")
ACCOUNTS = ("required", "optional")
AUTO = "auto"  # the profile that stands for "whichever this machine is"


@dataclass
class Queue:
    """One way to ask for time: a partition, a QoS, or both."""

    partition: str | None = None
    qos: str | None = None  # "{account}" stands for the account
    max_hours: float | None = None
    min_nodes: int | None = None
    max_nodes: int | None = None
    gpus: int | None = None  # where the queue's nodes differ from the site's
    gpu_memory_gb: float | None = None


@dataclass
class Node:
    """One compute node."""

    architecture: str | None = None  # x86_64 | aarch64
    gpus: int | None = None  # as Slurm counts them; 0: a node of CPUs
    gpu: str | None = None
    gpu_vendor: str | None = None  # nvidia | amd
    gpu_memory_gb: float | None = None
    cpus_per_gpu: int | None = None  # what --cpus-per-task asks for, one task a GPU
    memory_gb: float | None = None
    network_gbit: float | None = None  # a second, all network cards of a node together, one way
    healthy_free_memory_gb: float | None = None  # less than this free before a job starts: a bad node


@dataclass
class Request:
    """How ``sbatch`` is asked."""

    account: str | None = None  # required | optional
    account_pattern: str | None = None  # regular expression of a valid account
    gpus: str | None = None  # "{gpus}": GPUs a node
    memory: str | None = None
    options: list[str] = field(default_factory=list)


@dataclass
class Step:
    """How ``srun`` starts the ranks, and how they find each other."""

    options: list[str] = field(default_factory=list)
    cpu_masks: list[str] = field(default_factory=list)  # one a GPU; used when a job takes all GPUs of its nodes
    master: str = "{host}"  # name of the first host in the fast network
    ipv4: bool = False  # resolve that name to an IPv4 address first


@dataclass
class Container:
    """How a container is started; ``command: environment`` is Alps' ``srun --environment``."""

    command: str | None = None  # singularity | apptainer | environment
    options: list[str] = field(default_factory=list)
    binds: list[str] = field(default_factory=list)


@dataclass
class Site:
    """A site profile."""

    name: str = MISSING
    title: str = ""
    country: str | None = None  # two letters (ISO 3166-1): of whose grid its energy is
    hosts: list[str] = field(default_factory=list)  # regular expressions of whole host names, login and compute
    scheduler: str = "slurm"
    queue: str | None = None  # the one taken when nobody asks for another
    queues: dict[str, Queue] = field(default_factory=dict)
    node: Node = field(default_factory=Node)
    request: Request = field(default_factory=Request)
    step: Step = field(default_factory=Step)
    container: Container = field(default_factory=Container)
    setup: list[str] = field(default_factory=list)  # shell lines before anything else: modules, limits
    environment: dict[str, str] = field(default_factory=dict)
    node_local: str = "$TMPDIR"  # a folder of the node itself; shell variables are expanded there
    node_local_in_memory: bool | None = None
    internet: bool | None = None  # on compute nodes
    storage: dict[str, str] = field(default_factory=dict)
    storage_gb_per_second: float | None = None  # that the filesystem of runs takes from all its clients, as published
    notes: list[str] = field(default_factory=list)  # what a person should know before the first job

    def problems(self) -> list[str]:
        """Everything wrong with the profile, one line each."""
        found = []
        if self.scheduler not in SCHEDULERS:
            found.append(f"site.scheduler={self.scheduler}: one of {', '.join(SCHEDULERS)}")
        if self.request.account not in (None, *ACCOUNTS):
            found.append(f"site.request.account={self.request.account}: one of {', '.join(ACCOUNTS)}, or null")
        if self.queue is not None and self.queue not in self.queues:
            found.append(f"site.queue={self.queue}: not one of site.queues ({', '.join(self.queues)})")
        if self.step.cpu_masks and len(self.step.cpu_masks) != self.node.gpus:
            found.append(f"site.step.cpu_masks: {len(self.step.cpu_masks)} masks for {self.node.gpus} GPUs")
        if self.storage_gb_per_second is not None and not self.storage_gb_per_second > 0:
            found.append(f"site.storage_gb_per_second={self.storage_gb_per_second}: must be above 0; null: unknown")
        for pattern in [*self.hosts, self.request.account_pattern or ""]:
            try:
                re.compile(pattern)
            except re.error as error:
                found.append(
                    f"site: '{pattern}' in hosts or request.account_pattern is no regular expression ({error})"
                )
        return found


def site_names() -> list[str]:
    """The sites there are profiles for."""
    return sorted(path.stem for path in (CONFIGS / "site").glob("*.yaml") if path.stem != AUTO)


def load_site(name: str) -> Site:
    """A shipped profile, checked against the schema.

    Raises:
        HanseError: there is none of this name, or it does not follow the schema.
    """
    path = CONFIGS / "site" / f"{name}.yaml"
    if not path.is_file():
        raise HanseError(f"site={name}: no such profile; there are {', '.join(site_names())}")
    try:
        site = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Site), OmegaConf.load(path)))
    except Exception as error:
        why = str(error).splitlines()[0]
        raise HanseError(f"{path}: does not follow the schema of launch/site.py ({why})") from None
    assert isinstance(site, Site)
    return site


def host_names() -> list[str]:
    """The names of this machine, short and full."""
    return list(dict.fromkeys([socket.gethostname().split(".")[0], socket.gethostname(), socket.getfqdn()]))


def detect(names: list[str] | None = None) -> list[str]:
    """The sites whose host names this machine has, the most telling pattern first; empty where none."""
    names = host_names() if names is None else names
    found = []
    for site in site_names():
        path = CONFIGS / "site" / f"{site}.yaml"
        patterns = yaml.load(path.read_bytes(), yaml.CSafeLoader).get("hosts") or []  # OmegaConf takes 20 times as long
        lengths = [len(pattern) for pattern in patterns for name in names if re.fullmatch(pattern, name)]
        if lengths:
            found.append((max(lengths), site))
    return [name for _, name in sorted(found, reverse=True)]


def resolve(site: Site) -> tuple[Site, str]:
    """The site to use and why: ``auto`` becomes the detected profile, with what was set by hand kept.

    Raises:
        HanseError: this machine is none of the sites, or could be several.
    """
    if site.name != AUTO:
        return site, "asked for"
    found = detect()
    if len(found) != 1:
        which = f"could be {' or '.join(found)}" if found else "is none of the sites there are profiles for"
        raise HanseError(f"site: this machine ({host_names()[-1]}) {which}; say site=NAME ({', '.join(site_names())}; "
                         "site=slurm fits any Slurm), see docs/sites/adding.md for adding one")  # fmt: skip
    given, default = (OmegaConf.to_container(OmegaConf.structured(one)) for one in (site, Site))
    by_hand = _differences(given, default)
    by_hand.pop("name")
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(load_site(found[0])), by_hand))
    assert isinstance(merged, Site)
    return merged, f"detected: this is {host_names()[0]}"


def _differences(value: Any, default: Any) -> dict[str, Any]:
    out = {}
    for key, inner in value.items():
        base = default.get(key) if isinstance(default, dict) else None
        changed = _differences(inner, base) if isinstance(inner, dict) and isinstance(base, dict) else inner
        if changed not in (base, {}):
            out[key] = changed
    return out


def facts(site: Site) -> list[tuple[str, str]]:
    """The facts a person asks for first, as (what, value)."""
    node = site.node
    gpus = f"{node.gpus} x {node.gpu or 'GPU'}" if node.gpus else "none" if node.gpus == 0 else "unknown"
    memory = f"{node.gpu_memory_gb:g} GB" if node.gpu_memory_gb else "unknown"
    return [
        ("machine", site.title),
        ("country", site.country or "unknown"),
        ("GPUs a node", f"{gpus}, {memory} each" if node.gpus else gpus),
        ("CPUs a GPU", str(node.cpus_per_gpu or "unknown")),
        ("memory a node", f"{node.memory_gb:g} GB" if node.memory_gb else "unknown"),
        ("internet on compute nodes", {True: "yes", False: "no", None: "unknown"}[site.internet]),
        ("containers", site.container.command or "unknown"),
        *((f"queue {name}", limits(queue)) for name, queue in site.queues.items()),
        *((f"storage {name}", path) for name, path in site.storage.items()),
    ]


def limits(queue: Queue) -> str:
    """A queue's limits in words."""
    hours = f"{queue.max_hours:g} h" if queue.max_hours else "time limit unknown"
    least = queue.min_nodes or 1
    return f"{hours}, {least} to {queue.max_nodes} nodes" if queue.max_nodes else f"{hours}, {least} or more nodes"
