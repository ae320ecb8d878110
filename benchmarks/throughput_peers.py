"""One training of another trainer, for benchmarks/train_throughput.py: run by that trainer's own Python, which has no
hanse. Needs numpy, torch and the peer only.

    PYTHON throughput_peers.py OLMo-core|litgpt FOLDER      one process a rank, with torchrun's variables

``FOLDER/work.json`` says what to train, ``FOLDER/windows.npy`` on which windows (N, L), again from the first when they
are over; rank 0 writes the times at which steps ended to ``FOLDER/times.txt``, a line each. Both log and save nothing,
and neither confines attention to documents (OLMo-core needs flash-attn for it, litgpt does not know it). OLMo-core
compiles the model where hanse does, litgpt always.
"""

import itertools
import json
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch


@contextmanager
def clock(folder):
    """What a rank calls at the end of each step: the first of them writes the time."""
    with (folder / "times.txt").open("a") if os.environ["RANK"] == "0" else nullcontext() as times:

        def step_ended():
            if times:
                print(time.time(), file=times, flush=True)

        yield step_ended


def olmo_core(work, windows, folder, step_ended):
    """DistributedDataParallel over gloo, fused AdamW."""
    from olmo_core.data import NumpyDataLoaderConfig, NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig
    from olmo_core.distributed.parallel import DataParallelType
    from olmo_core.nn.attention import AttentionBackendName
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import AdamWConfig
    from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerDataParallelConfig, TransformerTrainModuleConfig

    on_gpu = torch.cuda.is_available()
    os.environ["NUM_NODES"] = "1"
    prepare_training_environment(seed=0, backend="cpu:gloo,cuda:nccl" if on_gpu else "cpu:gloo")
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    length, model = work["sequence_length"], work["model"]

    class Clock(Callback):
        def post_step(self):
            step_ended()

    tokens = folder / f"tokens-{os.environ['RANK']}.npy"
    windows.astype(np.uint32).tofile(tokens)  # no header, as OLMo wants it
    data = NumpyFSLDatasetConfig(
        tokenizer=TokenizerConfig(work["vocabulary_size"], work["end_of_document_id"], work["end_of_document_id"]),
        paths=[str(tokens)], dtype=NumpyDatasetDType.uint32, sequence_length=length, work_dir=str(folder / "work"),
    ).build()  # fmt: skip
    config = TransformerConfig.llama_like(
        d_model=model["hidden_size"], vocab_size=work["vocabulary_size"], n_layers=model["num_hidden_layers"],
        n_heads=model["num_attention_heads"], n_kv_heads=model["num_key_value_heads"], rope_theta=10_000,
        feed_forward=FeedForwardConfig(hidden_size=model["intermediate_size"], bias=False),
        attn_backend=AttentionBackendName.torch,
    )  # fmt: skip
    from olmo_core.config import DType

    module = TransformerTrainModuleConfig(
        rank_microbatch_size=work["micro_batch_size"] * length, max_sequence_length=length,
        optim=AdamWConfig(lr=work["learning_rate"], fused=True), max_grad_norm=work["gradient_clipping"],
        dp_config=TransformerDataParallelConfig(name=DataParallelType.ddp),
        autocast_precision=DType.bfloat16 if work["precision"] == "bf16" else None, compile_model=work["compile"],
    ).build(config.build(init_device="cpu"), device)  # fmt: skip
    loader = NumpyDataLoaderConfig(global_batch_size=work["global_batch_size"] * length, seed=0, num_workers=0).build(
        data, dp_process_group=module.dp_process_group
    )
    trainer = TrainerConfig(
        save_folder=str(folder / "save"), work_dir=str(folder / "work"), max_duration=Duration.steps(work["steps"]),
        device=str(device), no_checkpoints=True, no_evals=True, metrics_collect_interval=1_000_000,
        callbacks={"clock": Clock()},
    ).build(module, loader)  # fmt: skip
    trainer.fit()
    teardown_training_environment()


def litgpt(work, windows, folder, step_ended):
    """One process, compiled as it always is; a step has ended when it asks for the next one's first micro-batch."""
    from litgpt import Config
    from litgpt.args import EvalArgs, LogArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    length, model, flat = work["sequence_length"], work["model"], windows.reshape(-1)
    flat = np.append(flat, flat[0])

    class Windows(torch.utils.data.IterableDataset):
        def __init__(self, clocked):
            self.clocked = clocked

        def __reduce__(self):  # its checkpoint at the end holds this, and nobody reads it
            return list, ()

        def __iter__(self):
            for asked in itertools.count():
                for number in range(len(windows)):
                    if self.clocked and (asked or number) and number % work["global_batch_size"] == 0:
                        step_ended()
                    yield torch.from_numpy(flat[number * length : (number + 1) * length + 1].astype(np.int64))

    class Data(DataModule):
        def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
            self.size = batch_size

        def train_dataloader(self):
            return torch.utils.data.DataLoader(Windows(True), batch_size=self.size)

        def val_dataloader(self):
            return torch.utils.data.DataLoader(Windows(False), batch_size=self.size)

    sys.argv[1:] = ["mine"]  # it reads its own command line again when it saves, at the end
    setup(
        "mine", out_dir=folder / "out", data=Data(),
        precision=work["litgpt_precision"] if work["precision"] == "bf16" else "32-true",
        model_config=Config(
            name="mine", block_size=length, vocab_size=work["vocabulary_size"],
            padded_vocab_size=work["vocabulary_size"], n_layer=model["num_hidden_layers"],
            n_head=model["num_attention_heads"], n_embd=model["hidden_size"],
            n_query_groups=model["num_key_value_heads"], rotary_percentage=1.0, parallel_residual=False, bias=False,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=model["intermediate_size"],
        ),
        train=TrainArgs(
            save_interval=None, log_interval=1_000_000, global_batch_size=work["global_batch_size"],
            micro_batch_size=work["micro_batch_size"], max_tokens=work["steps"] * work["global_batch_size"] * length,
            max_norm=work["gradient_clipping"], lr_warmup_steps=1, min_lr=0.0, tie_embeddings=False,
        ),
        eval=EvalArgs(interval=1_000_000, max_iters=1, final_validation=False), log=LogArgs(), devices=1,
        logger_name="csv", optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": work["learning_rate"]}},
    )  # fmt: skip


PEERS = {"OLMo-core": olmo_core, "litgpt": litgpt}


def main(name, folder):
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    work, windows = json.loads((folder / "work.json").read_text()), np.load(folder / "windows.npy")
    with clock(folder) as step_ended:
        PEERS[name](work, windows, folder, step_ended)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
