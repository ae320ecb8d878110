"""A model comes into being a module at a time, with the bits of one that was built whole."""

import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from launch.local import run_ranks
from tests.train.multirank import configuration
from train.init_config import InitConfig
from train.materialise import begin
from train.model import build_model
from train.parametrisation import scale_fresh
from train.tensor_parallel import TensorGroup

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
         "num_key_value_heads": 2, "vocab_size": 99, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 1}


class Kept:
    """Where weights land in these tests: beside each other, copied."""

    first, device, tensor = True, torch.device("cpu"), TensorGroup()

    def __init__(self):
        self.values, self._before = {}, []

    def __call__(self, parameter, values):
        self._before = [(shape, one) for shape, one in self._before if one() is not None]
        assert sum(shape.numel() for shape, _ in self._before) <= 2 * 99 * 32, "the host holds no more than a module"
        self._before.append((values.shape, weakref.ref(values)))
        self.values[id(parameter)] = values.clone()

    def agree_on_random_numbers(self):
        pass


@pytest.mark.parametrize(
    ("kind", "settings", "init"),
    [
        ("llama", {"tie_word_embeddings": True}, InitConfig(std="small", residual="depth")),
        ("llama", {"attention_bias": True}, InitConfig(mup_base_width=16)),
        ("qwen3", {}, InitConfig()),
        ("apertus", {"hidden_act": "xielu"}, InitConfig()),  # vectors that are what their construction says
        ("mixtral", {"num_local_experts": 2}, InitConfig()),
        ("gemma3_text", {}, InitConfig()),
    ],
)
def test_every_bit_is_that_of_a_model_built_whole(kind, settings, init):
    shape = AutoConfig.for_model(kind, **SMALL | settings)
    beginning, kept = begin(shape, 5, "sdpa", init), Kept()
    assert beginning.recipe.odd is None
    assert all(one.device.type == "meta" for one in beginning.model.parameters())
    beginning.land(kept)
    stream = torch.get_rng_state()
    whole = build_model(shape, 5)
    assert torch.equal(stream, torch.get_rng_state())
    scale_fresh(whole, init)
    right = dict(whole.named_parameters())
    assert {name for name, _ in beginning.model.named_parameters()} == set(right)
    for name, one in beginning.model.named_parameters():
        assert torch.equal(kept.values[id(one)], right[name]), name
    for name, one in beginning.model.named_buffers():
        assert torch.equal(one, dict(whole.named_buffers())[name]), name


def test_what_does_not_come_about_module_by_module_is_built_whole():
    shape = AutoConfig.for_model("gpt2", **GPT2)
    beginning = begin(shape, 5, "sdpa", InitConfig())
    assert beginning.recipe.odd == "a module initialises the parameters of another"
    kept = Kept()
    beginning.land(kept)
    right = dict(build_model(shape, 5).named_parameters())
    assert all(torch.equal(kept.values[id(one)], right[name]) for name, one in beginning.model.named_parameters())


def test_weights_that_are_read_are_not_drawn_before():
    shape = AutoConfig.for_model("llama", **SMALL)
    right = dict(build_model(shape, 7).named_parameters())
    beginning = begin(shape, 5, "sdpa", InitConfig(), lambda name, out: out.copy_(right[name].flatten()), fresh=False)
    kept = Kept()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    beginning.land(kept)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(kept.values[id(one)], right[name]) for name, one in beginning.model.named_parameters())


@pytest.mark.slow
def test_no_rank_holds_more_than_its_share_and_a_parameter(tmp_path):
    small = ["name=start", "run=none", "ranks=2", "tokens=100_000", "data.sequence_length=16",
             "model.settings.hidden_size=64", "model.settings.intermediate_size=96",
             "model.settings.num_hidden_layers=16", "model.settings.num_attention_heads=4",
             "model.settings.num_key_value_heads=2"]  # fmt: skip
    cases = [configuration([*small, f"engine.zero_stage={stage}", f"engine.precision={precision}",
                            f"model.settings.tie_word_embeddings={tied}", *more])
             for stage, precision, tied, more in [
                 (0, "bf16", True, []), (1, "fp32", True, []), (2, "bf16", False, []),
                 (3, "fp32", False, ["model.init.mup_base_width=32"]),
                 (3, "bf16", True, ["optimizer.kind=muon"]),
                 (3, "fp16", True, ["engine.offload_parameters=cpu", "engine.offload_optimizer=cpu"]),
             ]]  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    program = Path(__file__).with_name("start_program.py")
    command = [sys.executable, str(program), str(tmp_path / "cases.json")]
    assert run_ranks(command, 2, 1, tmp_path / "logs") == 0
