"""Continued pretraining of the European families and their relatives: a Hugging Face folder, trained on by the engine.

The oracle is transformers, which loads the same folder and is asked about each document by itself: no packing, no mask.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.errors import EXIT_DONE
from tests.train.multirank import losses
from tests.train.test_model import SMALL, preset
from tests.train.test_zero_parity import plain_optimizers
from train.config import ModelConfig, TrainConfig
from train.model import build_model, model_config
from train.run_folder import RunFolder
from train.setup import Data, open_data
from train.stream import IGNORED

LENGTH, STEPS, VOCABULARY = 32, 2, 1024


def loss_of_step(model: PreTrainedModel, data: Data, config: TrainConfig, step: int) -> torch.Tensor:
    """Mean over the labels of a step's batch, put together from what the model itself says of each document."""
    size = config.batch.global_batch_size
    samples = range(step * size, (step + 1) * size)
    batch, total, labels = data.stream.micro_batch(samples), torch.zeros(()), 0
    for ids, ends, documents in zip(batch.input_ids, batch.labels, batch.documents, strict=True):
        for number in np.unique(documents):
            inside = documents == number
            last = ends[inside][-1:]  # a document that is cut where the sequence ends has one more label
            tokens = torch.from_numpy(np.concatenate([ids[inside], last[last != IGNORED]]))[None]
            if tokens.numel() > 1:
                total = total + model(input_ids=tokens, labels=tokens).loss * (tokens.numel() - 1)
                labels += tokens.numel() - 1
    assert labels == data.stream.targets(samples)
    return total / labels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-0.6b", "mistral-7b", "eurollm-1.7b", "apertus-8b", "salamandra-2b"])
def test_a_family_is_trained_on_from_its_folder_as_transformers_and_torch_would(name, tiny_settings, hanse, tmp_path):
    of_family = preset(name)
    grouped = of_family.settings["num_key_value_heads"] < of_family.settings["num_attention_heads"]  # not Salamandra
    shape = {**SMALL, "num_key_value_heads": 2 if grouped else 4, "initializer_range": 0.2}
    small = ModelConfig(of_family.architecture, {**of_family.settings, **shape})
    build_model(model_config(small, VOCABULARY, LENGTH), 1).save_pretrained(tmp_path / "theirs")
    settings = [one for one in tiny_settings if not one.startswith("model.")]
    run = tmp_path / "run"
    assert hanse(
        "train", *settings, f"run={run}", f"init_from={tmp_path / 'theirs'}", "model=from_checkpoint",
        "engine.zero_stage=2", f"data.sequence_length={LENGTH}", f"tokens={STEPS * 8 * LENGTH}",
        "schedule.warmup_steps=0", "schedule.decay_fraction=0.0", "evaluate.tokens_per_language=64",
    ) == EXIT_DONE  # fmt: skip
    config = RunFolder(run).read_config()
    data = open_data(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    weights = dict(model.named_parameters())
    expected = []
    for step in range(STEPS):
        model.zero_grad()
        loss = loss_of_step(model, data, config, step)
        loss.backward()
        expected.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(weights.values(), config.optimizer.gradient_clipping)
        for optimizer in plain_optimizers(config, weights) if step == 0 else []:
            for group in optimizer.param_groups:
                group["lr"] = config.optimizer.learning_rate
            optimizer.step()
    found = losses(run)
    print(name, expected, found)
    assert abs(expected[0] - np.log(VOCABULARY)) > 0.1  # the weights say something
    assert [found[step + 1] for step in range(STEPS)] == pytest.approx(expected, rel=1e-5)
