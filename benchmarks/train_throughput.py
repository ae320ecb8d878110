"""Tokens per second of ``hanse train`` beside a plain PyTorch loop, Hugging Face's ``Trainer``, OLMo-core and litgpt.

    python -m benchmarks.train_throughput [--data data/demo] [--ranks 2] [--threads 1] [--precision auto] [--rounds 8]
                                          [--steps 6] [--shapes demo 8m long] [--olmo-python P] [--litgpt-python P]
                                          [hanse train overrides ...]

Same model and initial weights, same windows in the same order, same ranks, threads, batch and precision; on GPUs where
there are any. All are started and stopped again (SIGSTOP) when they have settled; then they take turns of ``--steps``
steps, ``--rounds`` times (benchmarks/taking_turns.py). On GPUs, whose memory is not shared out like that, each turn is
a start of its own. The clock runs from the end of a step to that of another, on rank 0: batches, forward, backward,
optimizer and whatever each does between steps. hanse is the console command as people run it, with metrics and wandb
offline. The plain loop is DistributedDataParallel, ``cross_entropy`` on the logits, gradient clipping and fused AdamW;
in bf16 it autocasts. The Trainer gets the same data set, fused AdamW, ``bf16=True`` for bf16, no logging and no
checkpoints. Both have the back end of attention that hanse chooses, or sdpa where that is hanse's own, and are told the
document boundaries, too: the plain loop as hanse is, the Trainer by positions. Where hanse compiles layers (on GPUs,
and with ``engine.compile=true``), they and OLMo-core compile models.

OLMo-core and litgpt need virtual environments of their own (pip install ai2-olmo-core==3.0.0 or litgpt==0.5.13, with
the same torch), whose Pythons are named; benchmarks/throughput_peers.py says what they are told. They do not tie
embeddings, so neither does any of them where one of the two takes part. litgpt shards over CUDA only: it is one process
with the threads of all ranks.

MFU is of the products of large squares that all ranks' cores, or GPUs, reach, measured in every round. hanse also says
what its loop takes a step beside forward, backward, update and communication, and how long it waited for data.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.taking_turns import PeerError, Training, times_in

NAMES = ("hanse", "plain PyTorch", "HF Trainer")
FOREIGN = ("OLMo-core", "litgpt")  # which have a Python of their own
SHAPES = {
    "demo": [],  # 2.7M parameters, 4 x 256 tokens a step
    "8m": ["model=llama-8m", "data.sequence_length=512"],
    "410m": [
        "model=llama-410m",
        "model.vocabulary_multiple=32768",
        "data.sequence_length=4096",
        "batch.global_batch_size=16",
        "batch.micro_batch_size=4",
    ],
    "1b": [
        "model=llama3-1b",
        "model.vocabulary_multiple=131072",
        "data.sequence_length=4096",
        "batch.global_batch_size=16",
        "batch.micro_batch_size=2",
    ],
    "long": ["data.sequence_length=1024", "batch.global_batch_size=2", "batch.micro_batch_size=1"],
}


def training_config(overrides):
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore

    from common.configuration import instantiate
    from train.config import TrainConfig

    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        return instantiate(compose("train", overrides=overrides))


def overrides_of(arguments, folder):
    """What ``hanse train`` is told; the peers read the same configuration."""
    common = ["experiment=demo/train", f"data.shards={arguments.data}/shards",
              f"data.tokenizer={arguments.data}/tokenizer", *arguments.overrides,
              f"ranks={arguments.ranks}", f"threads_per_rank={arguments.threads}",
              f"engine.precision={arguments.precision}", "schedule.warmup_steps=1", "schedule.decay_fraction=0.1",
              "checkpoint.every_steps=1000000", "evaluate.every_steps=1000000",
              "evaluate.tokens_per_language=1"]  # fmt: skip
    a_step = training_config([*common, f"tokens={10**12}"]).timeline.at(0).tokens_per_step
    steps = arguments.settled + (1 if on_gpu() else arguments.rounds) * (arguments.steps + 3)
    return [*common, f"tokens={a_step * (steps + 100)}", f"run={folder}/run"]  # it is ended before


def on_gpu():
    import torch

    return torch.cuda.is_available()


def this_device():
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def compiles(config):
    """Whether hanse compiles layers, of models such as these."""
    asked = config.engine.compile
    return on_gpu() if asked is None else asked


def start(name, arguments, folder):
    """The training of a program, begun."""
    overrides = overrides_of(arguments, folder)
    training = Training(name, folder, lambda: times_in(folder / "times.txt"))
    if name == "hanse":
        training.ended = lambda: [record["time"] for record in steps_in(folder / "run" / "metrics.jsonl")]
        training.start([sys.executable, "-m", "hanse", "train", *overrides])
    elif name in FOREIGN:
        write_work(arguments, training_config(overrides), folder)
        alone = name == "litgpt"
        ranks, threads = (1, arguments.ranks * arguments.threads) if alone else (arguments.ranks, arguments.threads)
        script = Path(__file__).with_name("throughput_peers.py")
        training.start_ranks([str(arguments.foreign[name]), str(script), name, str(folder)], ranks, threads)
    else:
        which = "plain" if name == "plain PyTorch" else "trainer"
        command = [sys.executable, "-m", "benchmarks.throughput_loops", which, str(folder), *overrides]
        training.start_ranks(command, arguments.ranks, arguments.threads)
    return training


def write_work(arguments, config, folder):
    """The same for a peer that does not know hanse: windows, and what to do with them."""
    import numpy as np

    from train.setup import open_data

    data, settings = open_data(config), config.model.settings
    samples = config.steps * config.batch.global_batch_size
    windows = [data.stream.micro_batch(range(number, number + 1)).input_ids[0] for number in range(samples)]
    np.save(folder / "windows.npy", np.stack(windows))
    (folder / "work.json").write_text(json.dumps({
        "model": {key: settings[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                                 "num_attention_heads", "num_key_value_heads")},
        "vocabulary_size": data.model.vocab_size, "end_of_document_id": data.manifest.end_of_document_id,
        "sequence_length": config.data.sequence_length, "steps": config.steps, "precision": config.engine.precision,
        "global_batch_size": config.batch.global_batch_size, "micro_batch_size": config.batch.micro_batch_size,
        "learning_rate": config.optimizer.learning_rate, "gradient_clipping": config.optimizer.gradient_clipping,
        "compile": compiles(config), "litgpt_precision": arguments.litgpt_precision,
    }))  # fmt: skip


def steps_in(metrics):
    """hanse's records of its steps so far."""
    from train.run_folder import read_metrics

    start, *records = read_metrics(metrics) if metrics.is_file() else [{}]
    return [{**record, "flops_per_token": record["mfu"] * start["peak_of_all_ranks"] / record["tokens_per_second"]}
            for record in records if "loss" in record]  # fmt: skip


def measured_precision():
    import torch

    from train.precision import choose, measured_peaks

    torch.set_num_threads(1)
    return choose("auto", measured_peaks(this_device()))


def peak(arguments):
    """FLOP/s of all ranks now."""
    import torch

    from train.precision import TYPES, matmul_flops_per_second

    torch.set_num_threads(1 if on_gpu() else arguments.ranks * arguments.threads)
    one = matmul_flops_per_second(TYPES[arguments.precision], this_device())
    return one * (arguments.ranks if on_gpu() else 1)


def turn(name, arguments, scratch, running):
    """Tokens a second of one turn, and on hanse's what it says of those steps."""
    if name not in running:
        running[name] = start(name, arguments, Path(tempfile.mkdtemp(dir=scratch)))
        running[name].turn(arguments.settled)
    training = running[name]
    began, ended = training.turn(arguments.steps)
    records = [record for record in steps_in(training.folder / "run" / "metrics.jsonl")
               if began < record["time"] <= ended]  # fmt: skip
    if on_gpu():
        running.pop(name).end()
    return arguments.steps * arguments.tokens_a_step / (ended - began), records


def compare(arguments, shape, names):
    arguments.overrides = [*SHAPES[shape], *arguments.given]
    if set(names) & set(FOREIGN):
        arguments.overrides.append("model.settings.tie_word_embeddings=false")
    config = training_config(overrides_of(arguments, Path("none")))
    arguments.tokens_a_step = config.timeline.at(0).tokens_per_step
    print(
        f"{shape}: {config.model.settings}\n{arguments.ranks} ranks x {arguments.threads} threads, "
        f"{arguments.precision}, {arguments.tokens_a_step:,} tokens a step, {arguments.steps} steps a turn\n"
    )
    rates, peaks, own, running = {name: [] for name in names}, [], [], {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number in range(arguments.rounds):
                peaks.append(peak(arguments))
                for name in list(rates):
                    try:
                        rate, records = turn(name, arguments, scratch, running)
                    except PeerError as error:
                        if name == "hanse":
                            raise
                        print(f"{name} is left out: {error}", flush=True)
                        del rates[name]
                        running.pop(name).end()
                        continue
                    rates[name].append(rate)
                    own += records
                told = ", ".join(f"{name} {found[-1]:,.0f}" for name, found in rates.items())
                print(f"round {number + 1}, tokens/s: {told}", flush=True)
        finally:
            for training in running.values():
                training.end()
    report(rates, peaks, own)


def report(rates, peaks, own):
    """The table, and what hanse's own steps say."""
    flops = own[0]["flops_per_token"]
    print(f"\n{'':14s} {'median tokens/s':>16s} {'MFU':>7s} {'hanse is':>10s}   in each round")
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["hanse"], found, strict=True)]
        mfu = statistics.median(rate * flops / most for rate, most in zip(found, peaks, strict=True))
        each = f"{min(ratios):.2f} to {max(ratios):.2f}" if name != "hanse" else ""
        print(f"{name:14s} {statistics.median(found):16,.0f} {mfu:7.1%} {statistics.median(ratios):9.2f}x   {each}")
    seconds = sum(record["seconds"] for record in own)
    part = {name: sum(record["seconds_by_part"][name] for record in own) for name in own[0]["seconds_by_part"]}
    print(f"hanse's loop: {1000 * part['loop'] / len(own):.1f} ms a step; data {part['data wait'] / seconds:.2%}, "
          f"communication {part['communication'] / seconds:.1%}, update {part['update'] / seconds:.1%}\n")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    parser.add_argument("--settled", type=int, default=6, help="steps before: allocation, compilation")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["demo"])
    parser.add_argument("--olmo-python", type=Path)
    parser.add_argument("--litgpt-python", type=Path)
    parser.add_argument(
        "--litgpt-precision",
        choices=("bf16-mixed", "bf16-true"),
        default="bf16-mixed",
        help="its default keeps weights in fp32, as all others here do",
    )
    parser.add_argument("--only", nargs="+", choices=NAMES + FOREIGN, help="beside hanse, these only")
    arguments, arguments.given = parser.parse_known_args()
    arguments.foreign = {"OLMo-core": arguments.olmo_python, "litgpt": arguments.litgpt_python}
    names = [name for name in (*NAMES, *FOREIGN) if name in NAMES or arguments.foreign[name]]
    names = [name for name in names if not arguments.only or name == "hanse" or name in arguments.only]
    if arguments.precision == "auto":
        arguments.precision = measured_precision()
    for shape in arguments.shapes:
        compare(arguments, shape, names)


if __name__ == "__main__":
    sys.exit(main())
