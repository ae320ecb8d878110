"""Speed and memory of `hanse average`: two models and their base, each method in a process of its own.

python -m benchmarks.average [--megabytes 400] [--folder FOLDER]

Each model has three tensors, the largest of them half of it. Printed: bytes of the result a second, all reading,
hashing and writing included; and the most memory above what the process had when it began, from VmHWM.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

METHODS = {"average": (), "slerp": ("method=slerp",), "ties": ("method=ties", "base={base}"),
           "diloco": ("method=diloco", "base={base}")}  # fmt: skip


def status(field: str) -> int:
    """A figure of this process in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def write_models(folder: Path, megabytes: int) -> list[Path]:
    """Two models and their base."""
    from train.checkpoint_writer import finish, write_share

    state = {"step": 1, "consumed_samples": 1, "data_merkle_root": "", "tokenizer_sha256": "", "model": {},
             "precision": "fp32", "wall_seconds": 0.0}  # fmt: skip
    sizes = {"half": megabytes * 125_000, "quarter": megabytes * 62_500, "other": megabytes * 62_500}
    paths = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        tensors = {f"{name}[0:{size}]": torch.randn(size, generator=generator) for name, size in sizes.items()}
        final = folder / str(number)
        files = write_share({"model": tensors}, folder / f"{number}.partial", 0)
        finish(folder / f"{number}.partial", final, files, {name: (size,) for name, size in sizes.items()}, state)
        paths.append(final)
    return paths


def one(method: str, folder: Path) -> None:
    """Put together in this process; print seconds, result's bytes, and bytes above the beginning."""
    from common.verbs import main as verb
    from hanse import VERBS

    overrides = [word.format(base=folder / "2") for word in METHODS[method]]
    import consortium.average  # noqa: F401  (what is imported is not counted)

    Path("/proc/self/clear_refs").write_text("5")
    before, started = status("VmRSS"), time.perf_counter()
    output = folder / f"made-{method}"
    inputs = f"inputs=[{folder / '0'},{folder / '1'}]"
    assert verb(VERBS, ["average", inputs, f"output={output}", *overrides]) == 0
    seconds, most = time.perf_counter() - started, status("VmHWM") - before
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{method}: {size / 1e6 / seconds:.0f} MB/s of result ({seconds:.1f} s), {most / 1e6:.0f} MB above the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of a model")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one otherwise")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_models(Path(folder), options.megabytes)
        print(f"models of {options.megabytes} MB, largest tensor {options.megabytes / 2:.0f} MB, "
              f"{os.cpu_count()} cores")  # fmt: skip
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.average", "--one", method, "--folder", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(next(line for line in done.stdout.splitlines() if line.startswith(f"{method}: ")), flush=True)


if __name__ == "__main__":
    main()
