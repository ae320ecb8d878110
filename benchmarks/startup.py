"""What a rank imports before it can train: CPU seconds, modules and files, with what is spared and without.

    python -m benchmarks.startup [--rounds 3]

``spared``: as ranks start (train/imports.py). ``as they come``: the same imports with nothing put in their way. Each is
a process of its own, in turns; medians. On a cluster every rank opens these files on the shared filesystem.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys

KINDS = ("spared", "as they come")


def be_a_rank(kind: str) -> None:
    """Import what a rank does, in this process, and print what it took."""
    opened = 0

    def note(event: str, _: tuple[object, ...]) -> None:
        nonlocal opened
        opened += event == "open"

    sys.addaudithook(note)
    import train.imports

    if kind != KINDS[0]:
        sys.meta_path[:] = [one for one in sys.meta_path if type(one).__module__ != train.imports.__name__]
    importlib.import_module("train.loop")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # as ZeRO does when an engine is made
    times = os.times()
    print(json.dumps({"seconds": times.user + times.system, "modules": len(sys.modules), "files": opened}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        be_a_rank(options.kind)
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, rounds in found.items():
            command = [sys.executable, "-m", "benchmarks.startup", "--kind", kind]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds.append(json.loads(said.splitlines()[-1]))
    print(f"{'':14s} {'CPU seconds':>12s} {'modules':>8s} {'files':>8s}")
    for kind, rounds in found.items():
        seconds, modules, files = (statistics.median(one[key] for one in rounds) for key in rounds[0])
        print(f"{kind:14s} {seconds:12.1f} {modules:8,.0f} {files:8,.0f}")


if __name__ == "__main__":
    main()
