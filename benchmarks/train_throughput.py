"""Tokens per second of ``hanse train`` beside a plain PyTorch loop and Hugging Face's ``Trainer``.

    python -m benchmarks.train_throughput [--data data/demo] [--ranks 2] [--threads 1] [--precision auto] [--rounds 3]
                                          [--steps 24] [hanse train overrides ...]

Same model and initial weights, same windows in the same order, same ranks, threads, batch and precision. The three take
turns, ``--rounds`` times. The clock runs from the end of step 4 to the end of the last step, on rank 0: batches,
forward, backward, optimizer and whatever each does between steps. hanse is the console command as people run it, with
metrics and wandb offline. The plain loop is DistributedDataParallel, ``cross_entropy`` on the logits, gradient
clipping and fused AdamW; in bf16 it autocasts. The Trainer gets the same data set, fused AdamW, ``bf16=True`` for bf16,
no logging and no checkpoints. Both peers are told the document boundaries, too: the plain loop by the same mask, the
Trainer by positions.
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

SETTLED = 4  # steps before the clock starts: allocation, first touches
NAMES = ("hanse", "plain PyTorch", "HF Trainer")


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
              f"data.tokenizer={arguments.data}/tokenizer", *arguments.overrides]  # fmt: skip
    return [
        *common, f"tokens={training_config(common).timeline.at(0).tokens_per_step * arguments.steps}",
        f"run={folder}/run",
        f"ranks={arguments.ranks}", f"threads_per_rank={arguments.threads}", f"engine.precision={arguments.precision}",
        "checkpoint.every_steps=1000000", "evaluate.every_steps=1000000", "evaluate.tokens_per_language=1",
        "schedule.warmup_steps=1", "schedule.decay_fraction=0.1",
    ]  # fmt: skip


def run(name, overrides, arguments, folder):
    """Wall-clock times at which steps ended."""
    if name == "hanse":
        command = [sys.executable, "-m", "hanse", "train", *overrides]
    else:
        command = [sys.executable, "-m", "benchmarks.train_throughput", "--peer", name, "--folder", str(folder),
                   "--ranks", str(arguments.ranks), "--threads", str(arguments.threads), *overrides]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{name} failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    if name != "hanse":
        return json.loads((folder / "times.json").read_text())
    from train.run_folder import read_metrics

    return [record["time"] for record in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in record]


def start_peer(arguments):
    """Start the ranks of a peer as ``hanse train`` starts its own."""
    from launch.local import run_ranks

    command = [sys.executable, "-m", "benchmarks.train_throughput", "--rank", "--peer", arguments.peer, "--folder",
               str(arguments.folder), *arguments.overrides]  # fmt: skip
    return run_ranks(command, arguments.ranks, arguments.threads, arguments.folder / "logs")


def be_a_rank(arguments):
    import os

    import torch

    from train.model import build_model
    from train.setup import open_data

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = training_config(arguments.overrides)
    data = open_data(config)
    model = build_model(data.model, config.seed, config.model.attention)
    times = {"plain PyTorch": plain_loop, "HF Trainer": trainer}[arguments.peer](config, data, model, arguments.folder)
    if os.environ["RANK"] == "0":
        (arguments.folder / "times.json").write_text(json.dumps(times))


def plain_loop(config, data, model, folder):
    import os

    import torch
    import torch.distributed as dist
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    from train.model import attention_mask, model_inputs
    from train.stream import IGNORED

    dist.init_process_group("gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16) if config.engine.precision == "bf16" else nullcontext()
    times = []
    for step in range(config.steps):
        parts = data.stream.step(step, rank=rank, ranks=ranks)
        for number, part in enumerate(parts):
            inputs = model_inputs(part, torch.device("cpu"))
            documents = inputs["documents"]
            mask = None if documents is None else attention_mask(documents, "sdpa", torch.float32)
            with nullcontext() if number == len(parts) - 1 else parallel.no_sync(), autocast:
                logits = parallel(input_ids=inputs["input_ids"], position_ids=inputs["positions"], attention_mask=mask,
                                  use_cache=False).logits  # fmt: skip
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
            bf16=config.engine.precision == "bf16", use_cpu=True, ddp_backend="gloo", save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_num_workers=0,
            dataloader_pin_memory=False, seed=config.seed,
        ),
    ).train()  # fmt: skip
    return clock.times


def measured_precision():
    import torch

    from train.precision import choose, measured_peaks

    torch.set_num_threads(1)
    return choose("auto", measured_peaks(torch.device("cpu")))


def compare(arguments):
    if arguments.precision == "auto":
        arguments.precision = measured_precision()
    rates = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as scratch:
        overrides = overrides_of(arguments, Path(scratch) / "none")
        config = training_config(overrides)
        print(f"{config.model.settings}\n{arguments.ranks} ranks x {arguments.threads} threads, {arguments.precision}, "
              f"{config.timeline.at(0).tokens_per_step:,} tokens a step, {arguments.steps} steps\n")  # fmt: skip
        for turn in range(arguments.rounds):
            for name in NAMES:
                folder = Path(scratch) / f"{turn}-{name.replace(' ', '-')}"
                folder.mkdir()
                times = run(name, overrides_of(arguments, folder), arguments, folder)
                assert len(times) == arguments.steps, f"{name} took {len(times)} steps"
                tokens = (len(times) - SETTLED) * config.timeline.at(0).tokens_per_step
                rates[name].append(tokens / (times[-1] - times[SETTLED - 1]))
                print(f"round {turn + 1}  {name:14s} {rates[name][-1]:8,.0f} tokens/s", flush=True)
    print(f"\n{'':14s} {'median tokens/s':>16s} {'hanse is':>10s}")
    for name, found in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["hanse"], found, strict=True))
        print(f"{name:14s} {statistics.median(found):16,.0f} {ratio:9.2f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--peer", choices=NAMES[1:], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments, arguments.overrides = parser.parse_known_args()
    if arguments.rank:
        return be_a_rank(arguments)
    return start_peer(arguments) if arguments.peer else compare(arguments)


if __name__ == "__main__":
    sys.exit(main())
