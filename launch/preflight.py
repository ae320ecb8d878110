"""Node checks before training: what is wrong with a node is found in seconds, not after a night.

``node`` runs once on every node and writes its report; ``judge`` reads the reports, compares the nodes, and says which
of them train. A node without a report is a bad node. Thresholds that are not comparisons come from production
(OpenEuroLLM/oellm-autoexp, ``scripts/nodecheck.sh``, as recorded in the site profiles and below).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.files import read_json, write_json
from launch.life import Policy, Record, apply, decide, tell
from launch.local import free_port

TOOL_SECONDS = 20  # nvidia-smi hangs on a wedged GPU, stat on a dead mount
SPEED_SECONDS = 180
WRITE_BYTES = 4 * 1024**2
AGGREGATE_ECC = 64  # uncorrected errors in a GPU's lifetime; a bar of 0 excluded 71 healthy nodes (nodecheck.sh)
LINK_DOWNED = 2  # times an InfiniBand port lost its link (nodecheck.sh)
NETWORK_FILE_SYSTEMS = ("lustre", "gpfs", "nfs", "nfs4", "beegfs", "ceph", "fuse.ceph", "wekafs")
SKEW_SECONDS = 5.0
NVIDIA_FIELDS = ("index", "name", "memory.total", "ecc.errors.uncorrected.volatile.total",
                 "ecc.errors.uncorrected.aggregate.total", "remapped_rows.pending", "remapped_rows.failure",
                 "clocks_event_reasons.hw_slowdown")  # fmt: skip


def look_at_node(checks: Path, gpus: int, vendor: str | None) -> dict[str, Any]:
    """The report of this node: what was found, and ``problems`` that need no comparison with other nodes."""
    report: dict[str, Any] = {"time": time.time(), "free_memory_gb": _free_memory_gb(), "problems": []}
    problems: list[str] = report["problems"]
    if gpus:
        query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"]
        report["gpus"] = amd_gpus() if vendor == "amd" else nvidia_gpus(_tool(query))
        problems += gpu_problems(report["gpus"], gpus)
    problems += infiniband_problems(Path("/sys/class/infiniband"))
    problems += mount_problems(Path("/proc/mounts").read_text(encoding="utf-8"))
    report["write_seconds"], report["clock_ahead_seconds"] = _write_test(checks, problems)
    if "HANSE_LOCAL" in os.environ:  # the node's own disk, full or read-only
        _write_test(Path(os.environ["HANSE_LOCAL"]), problems)
    report["speed"] = _speed(gpus, problems) if not problems else None
    return report


def nvidia_gpus(answer: str | None) -> list[dict[str, str]] | None:
    """The rows of ``nvidia-smi --query-gpu``; None where it did not answer."""
    if answer is None:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    return [dict(zip(NVIDIA_FIELDS, row, strict=False)) for row in rows]


def amd_gpus() -> list[dict[str, str]] | None:
    """One entry a GPU that the kernel's driver shows (KFD nodes with SIMD units); no tool is needed for that."""
    nodes = Path("/sys/class/kfd/kfd/topology/nodes")
    if not nodes.is_dir():
        return None
    found = []
    for node in sorted(nodes.iterdir()):
        match = re.search(r"^simd_count (\d+)$", _read(node / "properties"), re.MULTILINE)
        if match and int(match[1]) > 0:
            found.append({"index": node.name, "name": _read(node / "name").strip()})
    return found


def gpu_problems(gpus: Sequence[Mapping[str, str]] | None, wanted: int) -> Iterator[str]:
    """What is wrong with the GPUs of a node that should have ``wanted`` of them."""
    if gpus is None:
        yield f"the GPUs' driver gave no answer within {TOOL_SECONDS} s"
        return
    if len(gpus) < wanted:
        yield f"{len(gpus)} GPUs instead of {wanted}"
    sizes = [float(gpu["memory.total"]) for gpu in gpus if _number(gpu.get("memory.total"))]
    for gpu in gpus:
        name = f"GPU {gpu.get('index')}"
        if _number(gpu.get("ecc.errors.uncorrected.volatile.total")) > 0:
            yield f"{name}: uncorrected memory errors since the last reset"
        if _number(gpu.get("ecc.errors.uncorrected.aggregate.total")) >= AGGREGATE_ECC:
            yield f"{name}: {AGGREGATE_ECC} or more uncorrected memory errors in its lifetime"
        for key in ("remapped_rows.pending", "remapped_rows.failure"):
            if gpu.get(key, "").lower() in ("yes", "1"):
                yield f"{name}: {key.replace('_', ' ').replace('.', ' ')}"
        if gpu.get("clocks_event_reasons.hw_slowdown", "").lower() == "active":
            yield f"{name}: slowed down by its hardware (power or heat)"
        if sizes and _number(gpu.get("memory.total")) < 0.95 * max(sizes):
            yield f"{name}: less memory than the others"


def infiniband_problems(devices: Path) -> Iterator[str]:
    """Ports that are physically connected but not active, or lost their link more than once."""
    for port in sorted(devices.glob("*/ports/*")) if devices.is_dir() else []:
        state, link = _read(port / "state"), _read(port / "phys_state")
        downs = _read(port / "counters/link_downed").strip()
        name = f"{port.parent.parent.name} port {port.name}"
        if "LinkUp" in link and "ACTIVE" not in state:
            yield f"{name} is not active ({state.strip()})"
        if downs.isdigit() and int(downs) >= LINK_DOWNED:
            yield f"{name} lost its link {downs} times"


def mount_problems(mounts: str) -> Iterator[str]:
    """Network file systems that do not answer (a hung one is still listed), and mounts that dead jobs left."""
    for line in mounts.splitlines():
        _, place, kind = line.split()[:3]
        if kind in NETWORK_FILE_SYSTEMS and _tool(["stat", "-f", place]) is None:
            yield f"{place} ({kind}) does not answer within {TOOL_SECONDS} s"
        if "squashfuse" in kind:
            yield f"{place}: a squashfs that an earlier job left mounted"


def _write_test(folder: Path, problems: list[str]) -> tuple[float | None, float | None]:
    """(seconds to write, flush and read back some MB, seconds this node's clock is ahead of the file server's)."""
    path = folder / f"write-test-{os.uname().nodename}"
    data = os.urandom(WRITE_BYTES)
    started = time.monotonic()
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        now = time.time()
        ahead = now - path.stat().st_mtime
        if path.read_bytes() != data:
            problems.append(f"{folder}: what was written is not what is read")
        path.unlink()
    except OSError as error:
        problems.append(f"{folder}: cannot be written ({error.strerror})")
        return None, None
    return time.monotonic() - started, ahead


def _speed(gpus: int, problems: list[str]) -> dict[str, Any] | None:
    """Run ``launch.speed`` on all GPUs of the node, or on two cores."""
    ranks = gpus or 2
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-m", "launch.speed"], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(ranks)
    ]  # fmt: skip
    deadline = time.monotonic() + SPEED_SECONDS
    answers = []
    for process in started:
        try:
            answers.append(process.communicate(timeout=max(deadline - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired:
            problems.append(f"matrix products and an all-reduce did not end within {SPEED_SECONDS} s")
            for other in started:
                other.kill()
            return None
    if any(process.returncode for process in started):
        last = next((error.strip().splitlines()[-1] for _, error in answers if error.strip()), "no message")
        problems.append(f"matrix products and an all-reduce failed: {last}")
        return None
    found: dict[str, Any] = json.loads(answers[0][0].strip().splitlines()[-1])
    return found


def judge(
    reports: Mapping[str, Mapping[str, Any] | None], *, slow: float, least_memory_gb: float | None
) -> dict[str, list[str]]:
    """{bad node: what is wrong}. ``slow``: a node below this share of the median speed is too slow."""
    bad: dict[str, list[str]] = {}
    told = {node: report for node, report in reports.items() if report is not None}
    flops = {node: min(report["speed"]["flops_per_second"]) for node, report in told.items() if report.get("speed")}
    links = {node: report["speed"]["all_reduce_bytes_per_second"] for node, report in told.items()
             if report.get("speed") and report["speed"]["all_reduce_bytes_per_second"]}  # fmt: skip
    clocks = {node: report["clock_ahead_seconds"] for node, report in told.items()
              if report.get("clock_ahead_seconds") is not None}  # fmt: skip
    for node, report in reports.items():
        if report is None:
            bad[node] = ["no report: it could not start a process, or hung"]
            continue
        wrong = list(report["problems"])
        for what, values in (("matrix products", flops), ("all-reduce", links)):
            usual = statistics.median(values.values()) if values else 0.0
            if node in values and values[node] < slow * usual:
                wrong.append(f"{what} at {values[node] / usual:.0%} of the median")
        if node in clocks and abs(clocks[node] - statistics.median(clocks.values())) > SKEW_SECONDS:
            wrong.append(f"its clock is {clocks[node] - statistics.median(clocks.values()):+.0f} s off the others'")
        if least_memory_gb and report["free_memory_gb"] < least_memory_gb:
            wrong.append(
                f"{report['free_memory_gb']:.0f} GB of memory free, a healthy node has {least_memory_gb:g} or more"
            )
        if wrong:
            bad[node] = wrong
    return bad


def verdict(job: Path, checks: Path, among: Sequence[str], wanted: int) -> str:
    """Read the reports and decide: ``train NODES``, ``requeue EXCLUDED`` or ``end CODE``."""
    config = yaml.safe_load((job / "launch.yaml").read_text(encoding="utf-8"))
    reports = {node: read_json(path, "node report") if (path := checks / f"node-{node}.json").is_file() else None
               for node in among}  # fmt: skip
    bad = judge(
        reports, slow=config["life"]["slow_node"], least_memory_gb=config["site"]["node"]["healthy_free_memory_gb"]
    )
    for node, wrong in bad.items():
        tell(f"bad node {node}: {'; '.join(wrong)}")
    good = [node for node in among if node not in bad]
    if len(good) >= wanted:
        if bad:
            write_json(checks / "bad-nodes.json", bad)
        return f"train {','.join(good[:wanted])}"
    record, policy = Record(job), Policy.read(job)
    if len(bad) > 1 and len(bad) > len(among) / 2:
        tell("most nodes fail: that is not the nodes (a full quota, a file system down, or a check that does not fit "
             "here; life.node_checks=false leaves the checks out)")  # fmt: skip
        record.end("user-error")
        return "end 2"
    record.end("bad-node", bad_nodes=list(bad))
    decision = decide(record.starts(), policy)
    tell(f"{decision.why}: {decision.action}")
    return apply(record, decision)


def _tool(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return answer.stdout if answer.returncode == 0 else None


def _free_memory_gb() -> float:
    match = re.search(r"^MemAvailable: +(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    return int(match[1]) * 1024 / 1e9 if match else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return 0.0


def main(words: Sequence[str]) -> int:
    """The command line that the batch script uses."""
    parser = argparse.ArgumentParser(prog="launch.preflight", description=__doc__)
    parser.add_argument("what", choices=("node", "judge"))
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--checks", type=Path, required=True)
    parser.add_argument("--among", default="")
    parser.add_argument("--wanted", type=int, default=1)
    arguments = parser.parse_args(words)
    if arguments.what == "judge":
        print(verdict(arguments.job, arguments.checks, arguments.among.split(","), arguments.wanted))
        return 0
    site = yaml.safe_load((arguments.job / "launch.yaml").read_text(encoding="utf-8"))["site"]
    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    gpus = int(os.environ.get("HANSE_GPUS_PER_NODE", "0"))
    write_json(arguments.checks / f"node-{name}.json", look_at_node(arguments.checks, gpus, site["node"]["gpu_vendor"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
