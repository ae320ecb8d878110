"""A rank of the trainings that benchmarks/train_throughput.py compares hanse with and that share its packages.

    python -m benchmarks.throughput_loops plain|trainer FOLDER [hanse train overrides ...]

Rank 0 writes the times at which steps ended to ``FOLDER/times.txt``, a line each.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.throughput_peers import clock
from benchmarks.train_throughput import compiles, this_device, training_config
from train.attention import borders, choose
from train.attention_config import PLAIN, VARLEN
from train.model import build_model, model_inputs
from train.setup import open_data
from train.stream import IGNORED

StepEnded = Callable[[], None]


def main(name: str, folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    config = training_config(overrides)
    data = open_data(config)
    chosen = choose(config, data.model, config.engine.precision, this_device())
    model = build_model(data.model, config.seed, PLAIN[0] if chosen == VARLEN else chosen).to(this_device())
    with clock(folder) as step_ended:
        {"plain": plain_loop, "trainer": trainer}[name](config, data, model, folder, step_ended)


def plain_loop(config, data, model, folder: Path, step_ended: StepEnded) -> None:
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    device, attention = this_device(), model.config._attn_implementation
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if compiles(config):
        model.compile(dynamic=False)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, fused=True)
    half = config.engine.precision == "bf16"
    autocast = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
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
        step_ended()
    dist.destroy_process_group()


def trainer(config, data, model, folder: Path, step_ended: StepEnded) -> None:
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
        def on_step_end(self, *_, **__):
            step_ended()

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    InOrder(
        model=model, train_dataset=Windows(), callbacks=[Clock()],
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
