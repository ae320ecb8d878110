"""Weights of another model are refused by what their configuration says, and a model is taken from its weights."""

import json
from dataclasses import replace

import pytest
from transformers import AutoConfig

from common.errors import ConfigError, HanseError
from tests.train.multirank import configuration as composed
from train.agreement import disagreements, with_model_of_weights
from train.config import TrainConfig
from train.initial import check
from train.model import build_model, model_config
from train.run_folder import RunFolder
from train.weights import open_weights

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 99, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
# As the makers of Llama 3.1 and Qwen3 publish them: keys of older versions of transformers.
LLAMA31 = {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "torch_dtype": "bfloat16",
           "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192}}  # fmt: skip
QWEN3 = {"rope_theta": 1_000_000, "rope_scaling": None, "head_dim": 16, "max_window_layers": 28, "sliding_window": None,
         "use_sliding_window": False, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}  # fmt: skip
# Mistral 7B v0.3: no window, where its class has one of 4,096.
MISTRAL = {"rope_theta": 1_000_000.0, "sliding_window": None, "rms_norm_eps": 1e-5, "max_position_embeddings": 32_768,
           "tie_word_embeddings": False}  # fmt: skip


def published(folder, kind, settings):
    """A small model of a kind with weights, its config.json as its makers would have written it."""
    build_model(AutoConfig.for_model(kind, **SMALL | settings), 1).save_pretrained(folder)
    told = {"model_type": kind, "architectures": ["some"], "transformers_version": "4.43.0", **SMALL, **settings}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def config(*overrides: str) -> TrainConfig:
    from omegaconf import OmegaConf

    values = composed(["name=x", "run=none", "tokens=100_000", "data.sequence_length=64", *overrides])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), values))


def test_all_settings_that_differ_are_told_at_once_and_can_be_meant(tmp_path):
    weights = open_weights(published(tmp_path / "there", "llama", LLAMA31))
    preset = AutoConfig.for_model("llama", **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    with pytest.raises(HanseError, match=r"^init_from=") as caught:
        check(weights, preset, None)
    told = str(caught.value)
    assert "rms_norm_eps is 1e-05 there and 1e-06 in this configuration" in told
    assert "rope_parameters.rope_type is llama3 there and default in" in told
    assert "rope_parameters.factor is 8.0 there and None in" in told
    assert "rope_theta" not in told
    assert "model=from_checkpoint" in told
    assert told.endswith("init_changes=[rms_norm_eps,rope_parameters]")
    check(weights, preset, None, ["rms_norm_eps", "rope_parameters"])
    with pytest.raises(HanseError, match=r"init_changes=\[rms_norm_eps\]$"):
        check(weights, preset, None, ["rope_parameters"])


@pytest.mark.parametrize(
    ("kind", "there", "here", "differs"),
    [
        ("qwen3", QWEN3, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 16,
                          "tie_word_embeddings": True}, set()),
        ("llama", {"max_position_embeddings": 4096, "attention_dropout": 0.1, "initializer_range": 0.1,
                   "bos_token_id": 7, "use_cache": False}, {}, set()),
        ("llama", {"head_dim": 8}, {}, set()),  # what the class makes of none
        ("llama", {"hidden_act": "gelu"}, {}, {"hidden_act"}),
        ("mistral", {"sliding_window": 128}, {"sliding_window": None}, {"sliding_window"}),
        ("gemma2", {"final_logit_softcapping": None}, {}, {"final_logit_softcapping"}),
        ("gemma2", {"query_pre_attn_scalar": 128}, {}, {"query_pre_attn_scalar"}),
        ("llama", {"attention_bias": True}, {}, {"attention_bias"}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 128},
         {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
          "max_position_embeddings": 256}, {"max_position_embeddings"}),
        ("qwen3_moe", {"norm_topk_prob": True}, {}, {"norm_topk_prob"}),
    ],
)  # fmt: skip
def test_what_changes_the_result_must_agree_and_nothing_else(kind, there, here, differs):
    other = AutoConfig.for_model(kind, **SMALL | here).to_dict()
    assert set(disagreements({"model_type": kind, **SMALL, **there}, other)) == differs


def test_another_kind_of_model_is_told_as_such():
    llama = AutoConfig.for_model("llama", **SMALL).to_dict()
    assert disagreements({**llama, "model_type": "mistral"}, llama) == {"model_type": ("mistral", "llama")}
    assert disagreements({}, llama) == {}


@pytest.mark.parametrize(("kind", "settings"), [("llama", LLAMA31), ("qwen3", QWEN3), ("mistral", MISTRAL)])
def test_a_model_is_taken_from_its_weights(tmp_path, kind, settings):
    folder = published(tmp_path / "there", kind, settings)
    found = with_model_of_weights(config("model=from_checkpoint", f"init_from={folder}"))
    assert found.model.architecture == kind
    shape = model_config(found.model, 90, 64, bos_token_id=0, eos_token_id=0)  # shards have fewer tokens than rows
    check(open_weights(folder), shape, None, found.init_changes)
    assert found.init_changes == []
    assert shape.max_position_embeddings == settings.get("max_position_embeddings", 32_768)
    right = AutoConfig.from_pretrained(folder)
    assert shape.rope_parameters == right.rope_parameters
    assert with_model_of_weights(found) is found

    longer = with_model_of_weights(config(
        "model=from_checkpoint", f"init_from={folder}", "+model.settings.rope_parameters.rope_theta=8e6"
    ))  # fmt: skip
    assert longer.init_changes == ["rope_parameters"]
    shape = model_config(longer.model, 90, 64)
    assert shape.rope_parameters == {**right.rope_parameters, "rope_theta": 8e6}
    check(open_weights(folder), shape, None, longer.init_changes)


def test_a_run_that_goes_on_without_the_weights_keeps_its_model(tmp_path):
    folder = published(tmp_path / "there", "qwen3", QWEN3)
    asked = config("model=from_checkpoint", f"init_from={folder}")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    asked = replace(asked, run=str(run.path))
    first = with_model_of_weights(asked)
    run.keep_config(first)
    folder.rename(tmp_path / "gone")
    assert with_model_of_weights(asked).model == first.model


def test_a_folder_that_tells_no_model_is_refused(tmp_path):
    asked = config("model=from_checkpoint", f"init_from={tmp_path}")
    with pytest.raises(HanseError, match=r"^model=from_checkpoint, init_from=.*: has no config.json"):
        with_model_of_weights(asked)
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(HanseError, match="not a configuration of a transformers model"):
        with_model_of_weights(asked)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HanseError, match="names no model_type"):
        with_model_of_weights(asked)


def test_whatever_else_is_wrong_with_it_is_told_too(tmp_path):
    folder = published(tmp_path / "there", "gemma3_text", {})
    shared = config("model=from_checkpoint", f"init_from={folder}", "engine.sequence_parallel=2",
                    "optimizer.kind=adamw")  # fmt: skip
    assert shared.problems() == []
    with pytest.raises(ConfigError, match="in gemma3_text positions may meet outside attention"):
        with_model_of_weights(shared)
    with pytest.raises(ConfigError, match=r"^model=from_checkpoint: is the model of the weights of init_from"):
        config("model=from_checkpoint")
