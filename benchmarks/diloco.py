"""Two sites that meet every few steps (DiLoCo), beside one site training twice as long; a curve and a table.

python -m benchmarks.diloco --data data/demo [--rounds 4] [--steps 32] [--plot docs/images/diloco.png]

All begin with one base. A site trains --steps steps of the demo's model from the base, with fresh AdamW state and data
of its own (another seed each round); then `hanse average method=diloco` makes the next base. The one site alone trains
2 x rounds x steps steps from the first base: as many tokens as the two together. The rate is constant after a warmup.
Plotted and printed: validation bits per byte, mean of the languages, always of the weights that the next round starts
from.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from common.configuration import instantiate
from common.verbs import QUIET_ENVIRONMENT
from consortium import average
from consortium.config import AverageConfig
from launch.local import free_port
from train.config import TrainConfig
from train.engine import initialise_ranks
from train.evaluate import Evaluation
from train.loop import train_as_rank
from train.model import PackedLanguageModel, build_model, model_inputs
from train.ranks import Place
from train.run_folder import complete_steps, folder_of
from train.setup import open_data
from train.weights import open_weights

LENGTH, SEQUENCES, WARMUP = 256, 4, 8
EVALUATED = 8_192  # tokens of each language
ALONE = Place(0, 1)
OUTER = {"outer rate 0.7, momentum 0.9": (0.7, 0.9), "outer rate 1, no momentum": (1.0, 0.0)}


class Bench:
    """Trainings and evaluations in one process: a start would cost more than a round."""

    def __init__(self, data: Path, folder: Path):
        self.folder = folder
        self.places = [f"data.shards={data / 'shards'}", f"data.tokenizer={data / 'tokenizer'}"]
        for name, schema in (("train_schema", TrainConfig), ("average_schema", AverageConfig)):
            ConfigStore.instance().store(name, schema)
        self.device = initialise_ranks(ALONE)

    def compose(self, verb: str, *overrides: str):
        with initialize_config_module("configs", version_base="1.3"):
            return instantiate(compose(verb, overrides=list(overrides)))

    def train(self, name: str, steps: int, seed: int, *, base: Path | None, every: int) -> list[Path]:
        """A training; its checkpoints, old to new."""
        config = self.compose(
            "train", "experiment=demo/train", *self.places, f"run={self.folder / name}",
            f"tokens={steps * SEQUENCES * LENGTH}", "ranks=1",
            f"data.sequence_length={LENGTH}", f"batch.global_batch_size={SEQUENCES}",
            f"batch.micro_batch_size={SEQUENCES}", f"seed={seed}", f"schedule.warmup_steps={WARMUP}",
            "schedule.decay_fraction=0", "engine.precision=fp32", f"checkpoint.every_steps={every}",
            "checkpoint.keep_last=99", "evaluate.every_steps=100000", "evaluate.tokens_per_language=256",
            "track.wandb=disabled", f"init_from={base or 'null'}",
        )  # fmt: skip
        assert train_as_rank(config, ALONE, self.device) == 0
        checkpoints = self.folder / name / "checkpoints"
        return [folder_of(checkpoints, step) for step in complete_steps(checkpoints)]

    def outer(self, name: str, base: Path, sites: Sequence[Path], rate: float, momentum: float) -> Path:
        """An outer step; the next base."""
        config = self.compose(
            "average", f"inputs=[{','.join(map(str, sites))}]", f"base={base}", f"output={self.folder / name}",
            "method=diloco", f"outer_learning_rate={rate}", f"outer_momentum={momentum}",
        )  # fmt: skip
        average.run(config)
        return self.folder / name

    @torch.no_grad()
    def score(self, folder: Path) -> float:
        """Validation bits per byte of a model, mean of the languages."""
        config = self.compose("train", "experiment=demo/train", *self.places, f"data.sequence_length={LENGTH}")
        found = open_data(config)
        evaluation = Evaluation(found.validation, EVALUATED, SEQUENCES, found.token_bytes)
        model = build_model(found.model, 0)
        open_weights(folder).load(model)
        module = PackedLanguageModel(model).eval()
        bits, size = [0.0] * len(evaluation.languages), [0] * len(evaluation.languages)
        for index, (language, batch) in enumerate(evaluation.batches):
            _, nll = module(**model_inputs(batch, torch.device("cpu")))
            bits[language] += float(nll[: evaluation.counted[index]].double().sum()) / math.log(2)
            size[language] += int(found.token_bytes[evaluation.labels(index)].sum())
        return sum(one / other for one, other in zip(bits, size, strict=True)) / len(bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with shards/ and tokenizer/")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32, help="of a site, in a round")
    parser.add_argument("--base-steps", type=int, default=64)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    os.environ.update(QUIET_ENVIRONMENT, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(free_port()))  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    started, rounds, steps = time.monotonic(), options.rounds, options.steps
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data.resolve(), Path(folder))
        (base,) = bench.train("base", options.base_steps, 0, base=None, every=options.base_steps)
        first = bench.score(base)
        alone = bench.train("alone", 2 * rounds * steps, 1, base=base, every=steps)
        curves = {"one site alone": [first, *map(bench.score, alone)]}
        for number, (name, (rate, momentum)) in enumerate(OUTER.items()):
            at, curve = base, [first]
            for turn in range(rounds):
                sites = [bench.train(f"{number}-{turn}-{site}", steps, 100 + 10 * turn + site, base=at, every=steps)[-1]
                         for site in range(2)]  # fmt: skip
                at = bench.outer(f"{number}-{turn}", at, sites, rate, momentum)
                curve.append(bench.score(at))
                print(f"{name}: round {turn + 1}: {curve[-1]:.3f}", flush=True)
            curves[f"two sites, {name}"] = curve
    report(curves, steps, rounds)
    print(f"{torch.get_num_threads()} threads, {time.monotonic() - started:.0f} s in all")
    if options.plot:
        plot(curves, steps, options.plot)


def report(curves: dict[str, list[float]], steps: int, rounds: int) -> None:
    """The table: bits per byte after as many steps one after the other, and after as many tokens in all."""
    print(f"base: {curves['one site alone'][0]:.3f} bits per byte")
    print("| | steps one after the other | tokens in all | bits per byte |\n| --- | ---: | ---: | ---: |")
    tokens = SEQUENCES * LENGTH
    for name, curve in curves.items():
        sites = 1 if name == "one site alone" else 2
        for length in [rounds, 2 * rounds] if sites == 1 else [rounds]:
            done = length * steps
            print(f"| {name} | {done} | {sites * done * tokens:,} | {curve[length]:.3f} |")


def plot(curves: dict[str, list[float]], steps: int, path: Path) -> None:
    """Bits per byte over steps one after the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, curve), colour in zip(curves.items(), ("#444444", "#0f766e", "#c2410c"), strict=True):
        axes.plot([steps * index for index in range(len(curve))], curve, marker="o", ms=4, label=name, color=colour)
    axes.set_xlabel("optimizer steps after the base, one after the other (a site's own)")
    axes.set_ylabel("validation bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
