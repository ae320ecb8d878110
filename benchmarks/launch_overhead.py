"""What the commands of a login node cost: wall and CPU seconds, and whether torch was imported on the way.

    python -m benchmarks.launch_overhead [--repeats 5]

No Slurm is needed. CPU seconds are those of the command and of what it starts, and vary less than wall time on a
machine that does other things. The last rows are our own steps between Slurm's start of a job and the start of its
ranks; on the simulated cluster of ``tests/cluster`` they are all that we add.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.terminal import say, table

HANSE = [sys.executable, "-m", "hanse"]
LAUNCH = [*HANSE, "launch", "site=lumi", "nodes=32", "account=project_462000001", "train.name=voyage",
          "train.tokens=2e9", "train.batch.global_batch_size=1024", "dry_run=true"]  # fmt: skip


def measure(command: list[str], repeats: int) -> tuple[float, float]:
    """(least wall seconds, least CPU seconds) of a command."""
    wall, cpu = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(wall), min(cpu)


def imports_torch(command: list[str]) -> bool:
    """Whether Python's own list of imports of a ``python -m hanse`` command names torch."""
    verbose = [command[0], "-X", "importtime", *command[1:]]
    answer = subprocess.run(verbose, check=True, capture_output=True, text=True, timeout=120)
    return any(line.rpartition("|")[2].strip() == "torch" for line in answer.stderr.splitlines())


def many_runs(folder: Path, job: Path, runs: int = 50) -> None:
    """Run folders with a job and a thousand steps each."""
    steps = "".join(json.dumps({"step": step, "loss": 3.0, "tokens_per_second": 1e5}) + "\n" for step in range(1000))
    for number in range(runs):
        there = folder / f"run-{number}"
        (there / "jobs/0001").mkdir(parents=True)
        for name in ("train.yaml", "launch.yaml"):
            (there / "jobs/0001" / name).write_bytes((job / name).read_bytes())
        (there / "metrics.jsonl").write_text(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        subprocess.run(LAUNCH, check=True, stdout=subprocess.DEVNULL, timeout=120)
        job = Path("runs/voyage/jobs/0001").resolve()
        many_runs(Path("many"), job)
        (job / "starts/0").mkdir(parents=True)
        common = ["--job", str(job), "--life", "0"]
        commands = {
            "python, nothing else": [sys.executable, "-c", ""],
            "hanse launch --help": [*HANSE, "launch", "--help"],
            "hanse launch, dry run": LAUNCH,
            "hanse status, 50 runs": [*HANSE, "status", "runs=many"],
            "of a job: may it start": [sys.executable, "-m", "launch.life", "start", *common, "--nodes", "n[1-32]"],
            "of a job: what follows": [sys.executable, "-m", "launch.life", "end", *common, "--code", "75"],
        }
        rows = []
        for name, command in commands.items():
            wall, cpu = measure(command, repeats)
            torch = ("yes" if imports_torch(command) else "no") if command[1] == "-m" else ""
            rows.append([name, f"{wall:.2f} s", f"{cpu:.2f} s", torch])
        table(f"least of {repeats}", ["command", "wall", "CPU", "torch imported"], rows)
        say(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
