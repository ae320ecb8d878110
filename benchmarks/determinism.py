"""What determinism and the ledger cost: tokens/s at D0, D1 and D2, in turns; milliseconds a step for the ledger.

python -m benchmarks.determinism --data data/demo [--rounds 3] [--steps 24] [--only ledger]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import OmegaConf

from data_pipelines.shards import ShardsManifest
from train.config import BatchConfig, DataConfig, TrainConfig
from train.ledger import Ledger
from train.order import open_stream

LENGTH, SEQUENCES = 256, 8


def speed(data: Path, folder: Path, steps: int, *settings: str) -> float:
    """Tokens/s of a run of the demo's model on two ranks."""
    tokens = SEQUENCES * LENGTH
    command = [
        sys.executable, "-m", "hanse", "train", "experiment=demo", f"run={folder}", "ranks=2", "threads_per_rank=1",
        f"data.shards={data / 'shards'}", f"data.tokenizer={data / 'tokenizer'}", f"tokens={steps * tokens}",
        f"data.sequence_length={LENGTH}", f"batch.global_batch_size={SEQUENCES}", "batch.micro_batch_size=2",
        "schedule.warmup_steps=2", "engine.precision=fp32", "track.wandb=disabled", "evaluate.tokens_per_language=256",
        *settings,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    seconds = [line["seconds"] for line in lines if "loss" in line][4:]  # the first steps warm up
    return SEQUENCES * LENGTH / statistics.median(seconds)


def ledger(data: Path, folder: Path) -> tuple[float, float]:
    """Milliseconds to hash a step's batch, and to write its line."""
    stream = open_stream(
        ShardsManifest.read(data / "shards"),
        TrainConfig(
            tokens=200 * SEQUENCES * LENGTH, data=DataConfig(sequence_length=LENGTH), batch=BatchConfig(SEQUENCES, 1)
        ),
    )
    book, hashing, writing = Ledger(folder / "ledger.jsonl"), [], []
    for step in range(200):
        started = time.perf_counter()
        sha256 = stream.fingerprint(range(step * SEQUENCES, (step + 1) * SEQUENCES))
        hashed = time.perf_counter()
        book.write("step", {"step": step, "samples": [0, 8], "batch": sha256, "loss": 1 / 3, "learning_rate": 1e-3})
        hashing.append(hashed - started)
        writing.append(time.perf_counter() - hashed)
    return 1e3 * statistics.median(hashing), 1e3 * statistics.median(writing)


def state_hash(data: Path, folder: Path, steps: int) -> tuple[float, float, int]:
    """Of a run that hashes its state after every fourth step: milliseconds a hash and a step, and the interval."""
    speed(data, folder, steps, "engine.zero_stage=3", "state_hash_every_steps=4")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    hashing = [line["state_hash_seconds"] for line in lines if "state_hash_seconds" in line][1:]
    seconds = [line["seconds"] for line in lines if "loss" in line][4:]
    every = OmegaConf.load(folder / "config.yaml").evaluate.every_steps
    return 1e3 * statistics.median(hashing), 1e3 * statistics.median(seconds), every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with shards/ and tokenizer/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", choices=["ledger"], help="leave the levels out")
    options = parser.parse_args()
    kinds = {"D0, ZeRO-1": ("D0", 1), "D1, ZeRO-1": ("D1", 1), "D2, ZeRO-1": ("D2", 1), "D0, ZeRO-3": ("D0", 3),
             "D2, ZeRO-3": ("D2", 3)}  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(0 if options.only else options.rounds):
            for name, (level, stage) in kinds.items():
                run = Path(folder) / f"{turn}-{level}-{stage}"
                found[name].append(
                    speed(options.data, run, options.steps, f"determinism={level}", f"engine.zero_stage={stage}")
                )
        hashing, writing = ledger(options.data, Path(folder))
        state, step, every = state_hash(options.data, Path(folder) / "state", options.steps)
    for name, speeds in found.items() if not options.only else ():
        base = found["D0" + name[2:]]
        ratio = statistics.median(one / other for one, other in zip(speeds, base, strict=True))
        print(f"{name}: {statistics.median(speeds):,.0f} tokens/s, {ratio:.2f} of D0")
    print(f"ledger: {hashing:.2f} ms a step to hash the batch (beside the training), {writing:.3f} ms to write, of "
          f"{step:.0f} ms: {100 * (hashing + writing) / step:.2f} % at most")  # fmt: skip
    print(f"state hash: {state:.0f} ms, every {every} steps of {step:.0f} ms: {100 * state / every / step:.3f} %")


if __name__ == "__main__":
    main()
