"""One machine of a Ray cluster: ``python -m data_pipelines.ray_node head|worker --address IP:PORT ...``, until ended.

    head      began with it; the others, and whoever works with the cluster, are told its address
    worker    joins it

Every port is named beforehand: where Ray picks them, its parts wait a short time for one another's choice and give up,
which is too short on a machine that does much else. Whoever may start work on the cluster runs any code as its
user, and others may have accounts on the same machines: so it wants to be told a token (``RAY_AUTH_TOKEN``).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import inspect
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

# Beside the one that others are told; in this order from --ports on, or each free one. The last is the head's alone.
PORTS = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port",
         "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")  # fmt: skip
# Nothing is reported home, nobody without the token is served, a slow machine is waited for, and work has the priority
# that we have.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PATIENCE_SECONDS = 600.0
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def free_ports(number: int) -> list[int]:
    """TCP ports that are free now, all different."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def options_of(arguments: argparse.Namespace) -> list[str]:
    """What ``ray start`` is given on this machine."""
    host, _, port = arguments.address.rpartition(":")
    numbers = range(arguments.ports, arguments.ports + len(PORTS)) if arguments.ports else free_ports(len(PORTS))
    options = [f"--{name}={number}" for name, number in zip(PORTS, numbers, strict=True)]
    options += [f"--num-cpus={arguments.cpus}", f"--temp-dir={arguments.folder}", "--include-log-monitor=false"]
    if arguments.ip:
        options.append(f"--node-ip-address={arguments.ip}")
    if arguments.role == "head":
        options += ["--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    else:
        options = [*(one for one in options if "client" not in one), f"--address={host}:{port}"]
    return ["start", "--block", *options]


def wait_for(address: str) -> None:
    """Wait until the head listens; machines of a job do not start at the same moment."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), 5).close()
            return
        except OSError:
            time.sleep(1)


def write_ports_early() -> None:
    """Have the ports that a raylet is not told written down before it starts.

    It waits fifteen seconds (Ray 2.60) for the agent beside it to do so, and dies; they are known already.
    """
    try:
        raylet: Any = importlib.import_module("ray._raylet")
        services: Any = importlib.import_module("ray._private.services")
        start, persist = services.start_raylet, raylet.persist_port
        names = {"dashboard_agent_listen_port": raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
                 "metrics_export_port": raylet.METRICS_EXPORT_PORT_NAME}  # fmt: skip
    except (ImportError, AttributeError):  # another version, with ways of its own
        return

    def start_raylet(*values: Any, **named: Any) -> Any:
        given = inspect.signature(start).bind(*values, **named).arguments
        for key, name in names.items():
            if given.get(key):
                persist(given["session_dir"], given["node_id"], name, given[key])
        return start(*values, **named)

    services.start_raylet = start_raylet


def main(words: Sequence[str]) -> None:
    """Be ``ray start``."""
    parser = argparse.ArgumentParser(prog="data_pipelines.ray_node", description=__doc__)
    parser.add_argument("role", choices=("head", "worker"))
    parser.add_argument("--address", required=True, help="IP:PORT of the head")
    parser.add_argument("--ip", default="", help="this machine's own, where it has several")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", required=True, help="for sockets and what does not fit in memory; a short name")
    parser.add_argument("--ports", type=int, default=0, help="the first of seven in a row; 0: any free ones")
    arguments = parser.parse_args(words)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # does not outlive who started it
    os.environ |= ENVIRONMENT
    from ray.scripts.scripts import main as ray_command

    if arguments.role == "worker":
        wait_for(arguments.address)
    write_ports_early()
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        sys.argv = ["ray", *options_of(arguments)]
        try:
            ray_command()
        except Exception as error:  # a head that listens, and does not yet know itself; Ray has no type for it
            if arguments.role == "head" or time.monotonic() > end:
                raise
            print(f"not yet: {error}", file=sys.stderr, flush=True)
            time.sleep(2)


if __name__ == "__main__":
    main(sys.argv[1:])
