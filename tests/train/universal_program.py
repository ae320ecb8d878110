"""Runs inside every rank: trains with DeepSpeed as its own users do, and with hanse, each going on from the other.

    python universal_program.py CONFIG.json FOLDER

CONFIG.json: ``{"overrides": [...], "ours": universal checkpoint written from one of ours, "start": its step}``. Losses
come out in FOLDER/losses.json.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from common.configuration import instantiate
from common.verbs import QUIET_ENVIRONMENT
from tests.train.multirank import losses
from train.attention import attention_mask
from train.checkpoint_config import CheckpointVerbConfig
from train.config import TrainConfig
from train.convert import from_universal
from train.engine import initialise_ranks
from train.loop import train_as_rank
from train.model import build_model, model_inputs
from train.ranks import find_place
from train.schedule import learning_rate
from train.setup import open_data
from train.universal import Universal

BUCKETS = {"reduce_bucket_size": 10**6, "allgather_bucket_size": 10**6, "stage3_prefetch_bucket_size": 10**5,
           "stage3_max_live_parameters": 10**6, "stage3_max_reuse_distance": 10**6}  # fmt: skip


class Theirs:
    """A transformers model under DeepSpeed, with nothing of ours but the batches."""

    def __init__(self, config: TrainConfig, place, stage: int, *, universal: bool = False):
        self.config, self.place, self.data = config, place, open_data(config)
        self.accumulation = config.batch.global_batch_size // (config.batch.micro_batch_size * place.ranks)
        model = build_model(self.data.model, config.seed)
        embeddings = model.get_input_embeddings().weight
        optimizer = torch.optim.AdamW(
            [{"params": [one for one in model.parameters() if one.dim() >= 2 and one is not embeddings],
              "weight_decay": 0.1},
             {"params": [one for one in model.parameters() if one.dim() < 2 or one is embeddings],
              "weight_decay": 0.0}],
            lr=1e-3, betas=tuple(config.optimizer.betas), eps=config.optimizer.epsilon)  # fmt: skip
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={
            "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation, "gradient_clipping": config.optimizer.gradient_clipping,
            "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": stage, **BUCKETS},
            "checkpoint": {"load_universal": universal}, "steps_per_print": 10**9})  # fmt: skip

    def train(self, start: int, stop: int) -> dict[int, float]:
        """{step: loss} from the step after ``start``."""
        found, size = {}, self.config.batch.global_batch_size
        for step in range(start, stop):
            samples = range(step * size, (step + 1) * size)
            targets, mine = self.data.stream.targets(samples), torch.zeros(1, dtype=torch.float64)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.config)
            for batch in self.data.stream.step(step, rank=self.place.rank, ranks=self.place.ranks):
                inputs = model_inputs(batch, torch.device("cpu"))
                mask = inputs["documents"]
                mask = None if mask is None else attention_mask(mask, "sdpa", torch.float32)
                logits = self.engine(input_ids=inputs["input_ids"], position_ids=inputs["positions"],
                                     attention_mask=mask, use_cache=False).logits  # fmt: skip
                total = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), inputs["labels"].flatten(),
                                                          ignore_index=-100, reduction="sum")  # fmt: skip
                mine += float(total.detach())
                self.engine.backward(total * (self.place.ranks * self.accumulation / targets))
                self.engine.step()
            dist.all_reduce(mine)
            found[step + 1] = float(mine) / targets
        return found


def main(request: str, folder: Path) -> None:
    os.environ.update(QUIET_ENVIRONMENT)
    place = find_place(os.environ)
    device = initialise_ranks(place)
    asked, found = json.loads(Path(request).read_text()), {}
    ConfigStore.instance().store("train_schema", TrainConfig)

    def configuration(run: Path) -> TrainConfig:
        with initialize_config_module("configs", version_base="1.3"):
            return instantiate(compose("train", overrides=[*asked["overrides"], f"run={run}"]))

    config, start = configuration(folder / "unused"), asked["start"]
    for stage in (1, 2, 3):  # DeepSpeed goes on from ours
        theirs = Theirs(config, place, stage, universal=True)
        theirs.engine.load_checkpoint(asked["ours"])
        if stage == 3:  # DeepSpeed 0.19.8 has given all parts of the optimizer one counter, which each counts up
            counters = theirs.engine.optimizer.optimizer.state
            assert len({id(part["step"]) for part in counters.values()}) == 1 < len(counters)
            for part in counters.values():
                part["step"] = part["step"].clone()
        assert theirs.engine.global_samples == start * config.batch.global_batch_size
        found[f"theirs from ours, {stage}"] = theirs.train(start, config.steps)

    for stage in (1, 3):  # ours goes on from DeepSpeed's
        theirs, run, saved = Theirs(config, place, stage), folder / f"run-{stage}", folder / f"saved-{stage}"
        theirs.train(0, start)
        theirs.engine.save_checkpoint(str(saved), tag="one")
        found[f"theirs, {stage}"] = theirs.train(start, config.steps)
        if place.first:
            ds_to_universal.main(Namespace(
                input_folder=str(saved / "one"), output_folder=str(saved / "universal"), num_extract_workers=1,
                num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True))  # fmt: skip
            (saved / "config.json").write_text(json.dumps(theirs.data.model.to_dict()))
            verb = CheckpointVerbConfig(str(saved), "convert", model_folder=str(saved), shards=config.data.shards,
                                        sequence_length=config.data.sequence_length)  # fmt: skip
            (run / "checkpoints").mkdir(parents=True)
            from_universal(Universal(saved), run / f"checkpoints/step-{start:08d}", verb)
        dist.barrier()
        train_as_rank(configuration(run), place, device)
        found[f"ours from theirs, {stage}"] = losses(run) if place.first else {}
    dist.barrier()
    dist.destroy_process_group()
    if place.first:
        (folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
