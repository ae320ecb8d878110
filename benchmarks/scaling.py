"""How well the communication model (train/scaling.py) meets published measurements, and what it predicts; the plot of
docs/how/scaling.md.

    python -m benchmarks.scaling [--plot docs/images/scaling.svg]

``benchmarks/published/scaling.csv`` has sequences a second of FSDP runs that shard everything (ZeRO-3), as published:
Modalities (MIT; docs/scaling_experiments/scaling_leonardo.md at 8a9b661 and scaling_mn5.md at 5644c95), llm-foundry
(scripts/train/benchmarking/README.md at 061f2c7; from 128 GPUs on, and 7B, at c90b9b3: tokens a second there, of
sequences of 2,048), torchtitan (benchmarks/llama3_h100_202412_torchtitan.md at 31a17bf).
Of each series (one model, sequence length and micro-batch) the run on the fewest GPUs tells the computation, and the
model predicts the others. Bandwidths are those of the machines' descriptions. ``--measure`` trains on 1, 2 and 4 ranks
here instead.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from train.hardware import GPUS
from train.scaling import BANDWIDTH_SHARE, TURN_SECONDS, Work, compute_seconds, efficiency, network, step_seconds

CSV = Path(__file__).parent / "published/scaling.csv"
SHARES = [0.05 * number for number in range(4, 21)]
TURNS = [1e-6 * number for number in (2, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 120)]
PLANNED = {"1.7B": (1.7e9, 28, 4096), "7B": (7e9, 32, 4096), "70B": (70e9, 80, 4096)}  # parameters, layers, length
SITES = {"LUMI-G": ("MI250X GCD", 8, 800), "Leonardo": ("A100", 4, 400), "MareNostrum 5": ("H100", 4, 800),
         "JUPITER": ("GH200", 4, 800)}  # fmt: skip
USUAL = math.sqrt(math.prod(TURN_SECONDS))  # the turn that plans take: the middle, on a logarithmic scale
RANGE = (min(TURN_SECONDS), USUAL, max(TURN_SECONDS))
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Measured:
    """One published run; ``gpu``: its kind, ``gpus``: how many."""

    system: str
    peer: str
    parameters: float
    layers: int
    gpus_per_node: int
    node_gbit: float
    gpu: str
    sequence_length: int
    recompute: bool
    gpus: int
    micro_batch: int
    accumulation: int
    sequences_per_second: float

    @property
    def seconds(self):
        return self.gpus * self.micro_batch * self.accumulation / self.sequences_per_second

    @property
    def series(self):
        return self.system, self.peer, self.parameters, self.sequence_length, self.micro_batch

    def work(self):
        return Work(self.parameters, self.layers, 3, self.accumulation, 0.0, self.recompute)


def published():
    """All rows of the file."""
    kinds = Measured.__annotations__
    with CSV.open(encoding="utf-8") as file:
        return [Measured(**{key: bool(int(value)) if kinds[key] is bool else kinds[key](value)
                            for key, value in row.items()}) for row in csv.DictReader(file)]  # fmt: skip


def errors(rows, share, turn):
    """(run, measured seconds, predicted seconds) of all runs but each series' on the fewest GPUs."""
    series, found = defaultdict(list), []
    for row in rows:
        series[row.series].append(row)
    for runs in series.values():
        base, *others = sorted(runs, key=lambda run: run.gpus)
        net = replace(network(base.gpu, base.gpus_per_node, base.node_gbit, turn), share=share)
        work = replace(base.work(), compute=compute_seconds(base.seconds, base.work(), base.gpus, net))
        found += [(run, run.seconds, step_seconds(work, run.gpus, net)) for run in others]
    return found


def fit(rows):
    """(share of the bandwidth, seconds of a turn) with the least mean square of the logarithm of the error."""

    def distance(share, turn):
        return sum(math.log(predicted / measured) ** 2 for _, measured, predicted in errors(rows, share, turn))

    return min(((share, turn) for share in SHARES for turn in TURNS), key=lambda pair: distance(*pair))


def spread(found):
    """``median 4 %, nine in ten within 12 %, worst 30 % of 29``."""
    off = sorted(abs(predicted / measured - 1) for _, measured, predicted in found)
    return (f"median {statistics.median(off):.0%}, nine in ten within {off[int(0.9 * len(off))]:.0%}, "
            f"worst {off[-1]:.0%}, of {len(off)}")  # fmt: skip


def compare(rows):
    for system in ("Leonardo", "MareNostrum 5"):
        here = [row for row in rows if row.system == system]
        small = [row for row in here if row.parameters == 2.7e9]
        share, turn = fit(small)
        print(f"{system}, fitted to its 2.7B runs: {share:.0%} of the bandwidth, {1e6 * turn:.0f} us a turn")
        print(f"  on these:         {spread(errors(small, share, turn))}")
        print(f"  on larger models: {spread(errors([row for row in here if row not in small], share, turn))}")
    for system in dict.fromkeys(row.system for row in rows):
        here = [row for row in rows if row.system == system]
        print(f"{system}, as hanse plan does without knowing the machine ({BANDWIDTH_SHARE:.0%}):")
        for turn in RANGE:
            print(f"  {1e6 * turn:3.0f} us a turn: {spread(errors(here, BANDWIDTH_SHARE, turn))}")
    inside = [min(low, high) * 0.95 <= measured <= max(low, high) * 1.05
              for (_, measured, low), (_, _, high) in zip(errors(rows, BANDWIDTH_SHARE, min(TURN_SECONDS)),
                                                          errors(rows, BANDWIDTH_SHARE, max(TURN_SECONDS)),
                                                          strict=True)]  # fmt: skip
    print(f"within the range of plans, 5 % added: {sum(inside)} of {len(inside)}\n")


def tell_largest(rows):
    """Each run of llm-foundry on 128 GPUs and more, so that the largest published model is seen by itself."""
    here = [row for row in rows if row.peer == "llm-foundry"]
    print("llm-foundry from 128 GPUs on, seconds a step: measured; predicted at 15, 30 and 60 us a turn, and the error")
    for told in zip(*(errors(here, BANDWIDTH_SHARE, turn) for turn in RANGE), strict=True):
        run, measured, _ = told[0]
        if run.gpus >= 128:
            cells = "  ".join(f"{predicted:6.3f} {predicted / measured - 1:+6.1%}" for _, _, predicted in told)
            print(f"  {run.parameters / 1e9:4.1f}B on {run.gpus:3d}: {measured:6.3f}; {cells}")
    print()


def tell_half_told():
    """Two published series at ZeRO-1 (or its like) that do not say how many sequences a GPU takes at once: here one of
    4,096 tokens. oellm-autoexp: 284.6 and 254.8 TFLOP/s a GPU; Lucie's study: 512 sequences a step."""
    print("ZeRO-1, layouts half told, at 15, 30 and 60 us a turn")
    parameters, layers, length = PLANNED["1.7B"]
    for accumulation in (1, 2, 4):
        work = Work(parameters, layers, 1, accumulation, 6 * parameters * length / 284.6e12)
        kept = [efficiency(work, 32, net) / efficiency(work, 4, net)
                for net in (network(*SITES["JUPITER"], turn) for turn in RANGE)]  # fmt: skip
        print(f"  1.7B on JUPITER, {accumulation} micro-batches a step, kept from 1 to 8 nodes: 89.5% measured; "
              + ", ".join(f"{one:.1%}" for one in kept))  # fmt: skip
    parameters, layers, length = PLANNED["7B"]
    speeds = []
    for turn in RANGE:
        net, told = network("A100", 8, 400, turn), Work(parameters, layers, 1, 64, 0.0)
        told = replace(told, compute=compute_seconds(64 * length / 4188, told, 8, net))
        speeds.append(4 * length / step_seconds(replace(told, accumulation=4), 128, net))
    print("  7B on A100s, tokens/s a GPU on 128, told by 4,188 on 8: 982 measured; "
          + ", ".join(f"{one:,.0f}" for one in speeds) + "\n")  # fmt: skip


def planned(size, site, nodes, turn, mfu=0.4):
    """(seconds, efficiency) of ZeRO-3 with one sequence a rank, ZeRO-1 with as many as make 4M tokens a step."""
    parameters, layers, length = PLANNED[size]
    gpu, gpus_per_node, gbit = SITES[site]
    ranks = nodes * gpus_per_node
    stage = 3 if size == "70B" else 1
    accumulation = 1 if stage == 3 else max(1, 1024 // ranks)
    compute = 6 * parameters * length / (GPUS[gpu].bf16_flops * mfu)
    work = Work(parameters, layers, stage, accumulation, compute)
    net = network(gpu, gpus_per_node, gbit, turn)
    return step_seconds(work, ranks, net), efficiency(work, ranks, net)


def predict():
    for size in PLANNED:
        layout = "ZeRO-3, a sequence a GPU" if size == "70B" else "ZeRO-1, 4M tokens a step, a sequence a GPU at least"
        print(f"{size}, {layout}: seconds a step, efficiency (from-to)")
        for site in SITES:
            cells = []
            for nodes in NODES:
                seconds, share = planned(size, site, nodes, USUAL)
                low, high = (planned(size, site, nodes, turn)[1] for turn in (max(TURN_SECONDS), min(TURN_SECONDS)))
                cells.append(f"{nodes}: {seconds:.2f} s {share:.0%} ({low:.0%}-{high:.0%})")
            print(f"  {site:14s} {'  '.join(cells)}")


def draw(path, rows):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "hanse"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    shown = [("Leonardo", 2.7e9, 4096, 1), ("Leonardo", 6.7e9, 4096, 2), ("MareNostrum 5", 2.7e9, 4096, 2),
             ("MareNostrum 5", 6.7e9, 8192, 1), ("MareNostrum 5", 28e9, 8192, 1)]  # fmt: skip
    for colour, (system, parameters, length, micro_batch) in enumerate(shown):
        runs = sorted((row for row in rows if (row.system, row.parameters, row.sequence_length, row.micro_batch)
                       == (system, parameters, length, micro_batch)), key=lambda row: row.gpus)  # fmt: skip
        base, gpus = runs[0], [row.gpus for row in runs]
        label = f"{system} {parameters / 1e9:g}B, {micro_batch} x {length}"
        left.plot(gpus, [base.seconds / row.seconds for row in runs], "o", color=f"C{colour}", label=label)
        bands = [[1.0, *(base.seconds / predicted for _, _, predicted in errors(runs, BANDWIDTH_SHARE, turn))]
                 for turn in TURN_SECONDS]  # fmt: skip
        left.fill_between(gpus, *bands, color=f"C{colour}", alpha=0.2, linewidth=0)
    left.set(xscale="log", ylim=(0, 1.1), xlabel="GPUs", ylabel="speed a GPU, of that on the fewest",
             title="published (points) and predicted (bands)")  # fmt: skip
    left.legend(fontsize=7)
    for size, style in zip(PLANNED, ("-", "--", ":"), strict=True):
        for tint, site in enumerate(("Leonardo", "JUPITER")):
            shares = [planned(size, site, nodes, USUAL)[1] for nodes in NODES]
            right.plot(NODES, shares, style, color=f"C{tint}", label=f"{site} {size}")
            ends = [[planned(size, site, nodes, turn)[1] for nodes in NODES] for turn in TURN_SECONDS]
            right.fill_between(NODES, *ends, color=f"C{tint}", alpha=0.1, linewidth=0)
    right.set(xscale="log", ylim=(0, 1.1), xlabel="nodes", ylabel="efficiency", title="predicted, nobody has measured")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


def measure(arguments):
    """Tokens/s of ``hanse train`` on 1, 2, 4 ranks here, ZeRO stages 1 and 3, the batch the same."""
    for stage in (1, 3):
        for ranks in (1, 2, 4):
            with tempfile.TemporaryDirectory() as scratch:
                subprocess.run(
                    [sys.executable, "-m", "hanse", "train", "experiment=demo/train", f"run={scratch}/run",
                     f"data.shards={arguments.measure}/shards", f"data.tokenizer={arguments.measure}/tokenizer",
                     f"ranks={ranks}", "threads_per_rank=1", "engine.precision=fp32", f"engine.zero_stage={stage}",
                     "batch.global_batch_size=8", "batch.micro_batch_size=2", f"tokens={arguments.steps * 8 * 256}",
                     "checkpoint.every_steps=100000", "evaluate.every_steps=100000",
                     "evaluate.tokens_per_language=1", "schedule.warmup_steps=1", "state_hash_every_steps=0",
                     "track.wandb=disabled"], check=True, capture_output=True,
                )  # fmt: skip
                said = json.loads(Path(scratch, "run/summary.json").read_text())
            shares = ", ".join(f"{part} {share:.1%}" for part, share in said["time_shares"].items() if share > 0.001)
            over = f" on {os.cpu_count()} cores" if ranks > (os.cpu_count() or 1) else ""
            print(f"ZeRO-{stage}, {ranks} ranks{over}: {said['tokens_per_second']:,.0f} tokens/s; {shares}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--measure", type=Path, metavar="DATA", help="folder with shards/ and tokenizer/, as data/demo")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments)
    rows = published()
    compare(rows)
    tell_largest(rows)
    tell_half_told()
    predict()
    if arguments.plot:
        draw(arguments.plot, rows)


if __name__ == "__main__":
    sys.exit(main())
