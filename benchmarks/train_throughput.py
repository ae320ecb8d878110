"""Tokens per second of ``hanse train`` beside a plain PyTorch loop, Hugging Face's ``Trainer``, OLMo-core and litgpt.

    python -m benchmarks.train_throughput [--data data/demo] [--ranks 2] [--threads 1] [--precision auto] [--rounds 3]
                                          [--steps 24] [--shapes demo 8m long] [--olmo-python P] [--litgpt-python P]
                                          [hanse train overrides ...]

Same model and initial weights, same windows in the same order, same ranks, threads, batch and precision; on GPUs where
there are any. All take turns, ``--rounds`` times. The clock runs from the end of step 4 (``--settled``) to that of the
last step, on rank 0: batches, forward, backward, optimizer and whatever each does between steps. hanse is the console
command as people run it, with metrics and wandb offline. The plain loop is DistributedDataParallel, ``cross_entropy``
on the logits, gradient clipping and fused AdamW; in bf16 it autocasts. The Trainer gets the same data set, fused AdamW,
``bf16=True`` for bf16, no logging and no checkpoints. Both peers have the back end of attention that hanse chooses, or
sdpa where that is hanse's own, and are told the document boundaries, too: the plain loop as hanse is, the Trainer by
positions. Where hanse compiles layers (on GPUs, and with ``engine.compile=true``), they and OLMo-core compile models.

OLMo-core and litgpt need virtual environments of their own (pip install ai2-olmo-core==3.0.0 or litgpt==0.5.13, with
the same torch), whose Pythons are named; benchmarks/throughput_peers.py says what they are told. They do not tie
embeddings, so neither does any of them where one of the two takes part. litgpt shards over CUDA only: it is one process
with the threads of all ranks.

MFU is of the peak that hanse measured at the start of the round, on all ranks at once. hanse also says what its loop
takes a step beside forward, backward, update and communication, and how long it waited for data.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

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


class PeerError(Exception):
    """A program ended with an error."""


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
    return [*common, f"tokens={a_step * arguments.steps}", f"run={folder}/run"]


def run(name, overrides, arguments, folder):
    """Wall-clock times at which steps ended."""
    if name in FOREIGN:
        return run_foreign(name, overrides, arguments, folder)
    if name == "hanse":
        command = [sys.executable, "-m", "hanse", "train", *overrides]
    else:
        command = [sys.executable, "-m", "benchmarks.train_throughput", "--peer", name, "--folder", str(folder),
                   "--ranks", str(arguments.ranks), "--threads", str(arguments.threads), *overrides]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise PeerError(f"{name} failed and is left out:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    if name != "hanse":
        return json.loads((folder / "times.json").read_text())
    from train.run_folder import read_metrics

    return [record["time"] for record in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in record]


def run_foreign(name, overrides, arguments, folder):
    """The same of a peer that does not know hanse: the windows are written for it."""
    import os

    import numpy as np

    from launch.local import run_ranks
    from train.setup import open_data

    config = training_config(overrides)
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
    python, script = arguments.foreign[name], Path(__file__).with_name("throughput_peers.py")
    alone = name == "litgpt"
    ranks, threads = (1, arguments.ranks * arguments.threads) if alone else (arguments.ranks, arguments.threads)
    os.environ["NUM_NODES"] = "1"  # OLMo-core's
    with Path(folder / "said.txt").open("w") as said:
        before = os.dup(1), os.dup(2)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            code = run_ranks([str(python), str(script), name, str(folder)], ranks, threads, folder / "logs")
        finally:
            os.dup2(before[0], 1)
            os.dup2(before[1], 2)
    if code:
        raise PeerError(f"{name} failed and is left out:\n{(folder / 'said.txt').read_text()[-3000:]}")
    return json.loads((folder / "times.json").read_text())


def start_peer(arguments):
    """Start the ranks of a peer as ``hanse train`` starts its own."""
    from launch.local import run_ranks

    command = [sys.executable, "-m", "benchmarks.train_throughput", "--rank", "--peer", arguments.peer, "--folder",
               str(arguments.folder), *arguments.overrides]  # fmt: skip
    return run_ranks(command, arguments.ranks, arguments.threads, arguments.folder / "logs")


def this_device():
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compiles(config):
    """Whether hanse compiles layers, of models such as these."""
    asked = config.engine.compile
    return this_device().type == "cuda" if asked is None else asked


def be_a_rank(arguments):
    import os

    import torch

    from train.attention import choose
    from train.attention_config import PLAIN, VARLEN
    from train.model import build_model
    from train.setup import open_data

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    config = training_config(arguments.overrides)
    data = open_data(config)
    chosen = choose(config, data.model, config.engine.precision, this_device())
    attention = PLAIN[0] if chosen == VARLEN else chosen
    model = build_model(data.model, config.seed, attention).to(this_device())
    times = {"plain PyTorch": plain_loop, "HF Trainer": trainer}[arguments.peer](config, data, model, arguments.folder)
    if os.environ["RANK"] == "0":
        (arguments.folder / "times.json").write_text(json.dumps(times))


def plain_loop(config, data, model, folder):
    import os

    import torch
    import torch.distributed as dist
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    from train.attention import borders
    from train.model import model_inputs
    from train.stream import IGNORED

    device, attention = this_device(), model.config._attn_implementation
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if compiles(config):
        model.compile(dynamic=False)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, fused=True)
    half = config.engine.precision == "bf16"
    autocast = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
    times = []
    for step in range(config.steps):
        parts = data.stream.step(step, rank=rank, ranks=ranks)
        for number, part in enumerate(parts):
            inputs = model_inputs(part, device)
            told = borders(inputs["documents"], inputs["input_ids"], attention,
                           torch.bfloat16 if half and device.type == "cuda" else torch.float32)  # fmt: skip
            with nullcontext() if number == len(parts) - 1 else parallel.no_sync(), autocast:
                logits = parallel(input_ids=inputs["input_ids"], position_ids=inputs["positions"],
                                  use_cache=False, **told).logits  # fmt: skip
                loss = cross_entropy(logits.flatten(0, 1).float(), inputs["labels"].flatten(), ignore_index=IGNORED)
                (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        float(loss)
        times.append(time.time())
    dist.destroy_process_group()
    return times


def trainer(config, data, model, folder):
    import os

    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ranks, batch = int(os.environ["WORLD_SIZE"]), config.batch

    class Windows(torch.utils.data.Dataset):
        def __len__(self):
            return config.steps * batch.global_batch_size

        def __getitem__(self, number):
            part = data.stream.micro_batch(range(number, number + 1))
            labels = torch.cat((torch.tensor([-100]), torch.from_numpy(part.labels[0, :-1])))  # the model shifts them
            return {"input_ids": torch.from_numpy(part.input_ids[0]), "labels": labels,
                    "position_ids": torch.from_numpy(part.positions[0])}  # fmt: skip

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_end(self, *_, **__):
            self.times.append(time.time())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    clock = Clock()
    InOrder(
        model=model, train_dataset=Windows(), callbacks=[clock],
        args=TrainingArguments(
            output_dir=str(folder / "trainer"), per_device_train_batch_size=batch.micro_batch_size,
            gradient_accumulation_steps=batch.global_batch_size // (batch.micro_batch_size * ranks),
            max_steps=config.steps, optim="adamw_torch_fused",
            learning_rate=config.optimizer.learning_rate, max_grad_norm=config.optimizer.gradient_clipping,
            bf16=config.engine.precision == "bf16", torch_compile=compiles(config), use_cpu=this_device().type == "cpu",
            ddp_backend="nccl" if this_device().type == "cuda" else "gloo", save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_num_workers=0,
            dataloader_pin_memory=this_device().type == "cuda", seed=config.seed,
        ),
    ).train()  # fmt: skip
    return clock.times


def measured_precision():
    import torch

    from train.precision import choose, measured_peaks

    torch.set_num_threads(1)
    return choose("auto", measured_peaks(this_device()))


def compare(arguments, shape, names):
    arguments.overrides = [*SHAPES[shape], *arguments.given]
    if set(names) & set(FOREIGN):
        arguments.overrides.append("model.settings.tie_word_embeddings=false")
    rates, shares = {name: [] for name in names}, {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        overrides = overrides_of(arguments, Path(scratch) / "none")
        config = training_config(overrides)
        layout = f"{arguments.ranks} ranks x {arguments.threads} threads, {arguments.precision}"
        print(f"{shape}: {config.model.settings}\n{layout}, {config.timeline.at(0).tokens_per_step:,} tokens a step, "
              f"{arguments.steps} steps\n")  # fmt: skip
        for turn in range(arguments.rounds):
            for name in list(rates):
                folder = Path(scratch) / f"{turn}-{name.replace(' ', '-')}"
                folder.mkdir()
                try:
                    times = run(name, overrides_of(arguments, folder), arguments, folder)
                except PeerError as error:
                    if name == "hanse":
                        raise
                    print(error, flush=True)
                    del rates[name]
                    continue
                assert len(times) == arguments.steps, f"{name} took {len(times)} steps"
                tokens = (len(times) - arguments.settled) * config.timeline.at(0).tokens_per_step
                rates[name].append(tokens / (times[-1] - times[arguments.settled - 1]))
                if name == "hanse":
                    flops, said = flops_and_peak(folder / "run")
                shares[name].append(rates[name][-1] * flops)
                print(f"round {turn + 1}  {name:14s} {rates[name][-1]:8,.0f} tokens/s  MFU {shares[name][-1]:.1%}"
                      + (said if name == "hanse" else ""), flush=True)  # fmt: skip
    print(f"\n{'':14s} {'median tokens/s':>16s} {'MFU':>7s} {'hanse is':>10s}")
    for name, found in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["hanse"], found, strict=True))
        print(f"{name:14s} {statistics.median(found):16,.0f} {statistics.median(shares[name]):7.1%} {ratio:9.2f}x")
    print()


def flops_and_peak(run_folder):
    """(MFU for a token a second, what hanse's loop took and lost)."""
    from train.run_folder import read_metrics

    start, *records = read_metrics(run_folder / "metrics.jsonl")
    summary = json.loads((run_folder / "summary.json").read_text())
    shares, rates = summary["time_shares"], [one["tokens_per_second"] for one in records if "loss" in one]
    lost = (f"  loop {1000 * summary['overhead_seconds']:.1f} ms a step, data {shares['data wait']:.2%}, "
            f"communication {shares['communication']:.1%}, "
            f"its own median {statistics.median(rates):,.0f} tokens/s")  # fmt: skip
    return summary["flops_per_token"] / start["peak_of_all_ranks"], lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--settled", type=int, default=4, help="steps before the clock starts: allocation, compilation")
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
    parser.add_argument("--peer", choices=NAMES[1:], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.rank:
        return be_a_rank(arguments)
    if arguments.peer:
        return start_peer(arguments)
    arguments.given = arguments.overrides
    arguments.foreign = {"OLMo-core": arguments.olmo_python, "litgpt": arguments.litgpt_python}
    names = [name for name in (*NAMES, *FOREIGN) if name in NAMES or arguments.foreign[name]]
    names = [name for name in names if not arguments.only or name == "hanse" or name in arguments.only]
    if arguments.precision == "auto":
        arguments.precision = measured_precision()
    for shape in arguments.shapes:
        compare(arguments, shape, names)
    return None


if __name__ == "__main__":
    sys.exit(main())
