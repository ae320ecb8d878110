"""What engine, optimizer and determinism allow each other, and what DeepSpeed is told."""

import importlib

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from common.configuration import instantiate
from common.errors import ConfigError, HanseError
from train import ops
from train.config import TrainConfig
from train.zero_config import deepspeed_config, zero_plus_plus


def configured(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store("train_schema", TrainConfig)
    with initialize_config_module("configs", version_base="1.3"):
        return instantiate(compose("train", overrides=["name=x", *overrides]))


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(*overrides)
    return caught.value.problems


def test_defaults_have_no_problem_and_ask_deepspeed_for_nothing_special():
    config = configured()
    told = deepspeed_config(config, 2, "fp32", 10**6)
    assert told["data_types"] == {"grad_accum_dtype": "fp32"}
    assert told["communication_data_type"] == "fp32"
    assert not {"offload_optimizer", "offload_param", "zero_quantized_weights"} & told["zero_optimization"].keys()


@pytest.mark.parametrize(
    ("overrides", "precision", "summed"),
    [
        ([], "bf16", ("fp32", "fp32")),
        (["engine.gradient_accumulation=bf16"], "bf16", ("bf16", "bf16")),
        (["engine.communication=bf16"], "bf16", ("fp32", "bf16")),
        (["determinism=D2", "threads_per_rank=1", "engine.precision=bf16"], "bf16", ("bf16", "bf16")),
    ],
)
def test_the_types_that_gradients_are_summed_in(overrides, precision, summed):
    config = configured(*overrides)
    told = deepspeed_config(config, 2, precision, 10**6)
    assert (told["data_types"]["grad_accum_dtype"], told["communication_data_type"]) == summed


def test_offload_is_told_to_deepspeed_at_the_stages_that_have_it():
    config = configured("engine.offload_optimizer=cpu", "engine.zero_stage=3", "engine.offload_parameters=nvme",
                        "engine.nvme_path=/scratch")  # fmt: skip
    zero = deepspeed_config(config, 2, "bf16", 10**6)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert (zero["offload_param"]["device"], zero["offload_param"]["nvme_path"]) == ("nvme", "/scratch/x")
    config = configured("engine.offload_optimizer=nvme", "engine.zero_stage=3", "engine.nvme_path=/scratch",
                        "state_hash_every_steps=0")  # fmt: skip
    zero = deepspeed_config(config, 2, "fp32", 10**6)["zero_optimization"]
    assert zero["offload_optimizer"] | {"pin_memory": False} == {
        "device": "nvme", "nvme_path": "/scratch/x", "buffer_count": 5, "pin_memory": False}  # fmt: skip
    assert "offload_param" not in zero


ZERO_PLUS_PLUS = ("engine.zero_stage=3", "ranks=8", "engine.hpz_partition_size=4", "engine.quantized_weights=true",
                  "engine.quantized_gradients=true", "engine.precision=fp16", "engine.communication=fp16")  # fmt: skip


def test_zero_plus_plus_is_told_where_there_are_gpus(monkeypatch):
    config = configured(*ZERO_PLUS_PLUS)
    with pytest.raises(HanseError, match="need GPUs"):
        zero_plus_plus(config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert zero_plus_plus(config) == {"zero_hpz_partition_size": 4, "zero_quantized_weights": True,
                                      "zero_quantized_gradients": True}  # fmt: skip


@pytest.mark.parametrize("overrides", [
    (), ("engine.zero_stage=0",), ("engine.zero_stage=2",), ZERO_PLUS_PLUS,
    ("engine.zero_stage=3", "determinism=D2", "threads_per_rank=1", "engine.precision=bf16"),
    ("engine.zero_stage=3", "engine.offload_optimizer=nvme", "engine.offload_parameters=nvme",
     "engine.nvme_path=/scratch", "state_hash_every_steps=0"),
])  # fmt: skip
def test_deepspeed_knows_every_key_that_it_is_told(monkeypatch, overrides):
    """Its own class reads them: a key that it does not have is an error there, and a value comes out as it went in."""
    importlib.import_module("train.engine")  # which says to DeepSpeed what computes here
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    told = deepspeed_config(configured(*overrides), 8, "fp16", 10**6)["zero_optimization"]
    understood = DeepSpeedZeroConfig(**told)
    for key, value in told.items():
        if not isinstance(value, dict):
            assert value == getattr(understood, key.removeprefix("stage3_"))
    with pytest.raises(ValueError, match="zero_hpz_size"):
        DeepSpeedZeroConfig(**told, zero_hpz_size=4)


def test_quantised_gradients_are_only_taken_where_what_travels_is_what_deepspeed_takes_it_for():
    asked = ("engine.zero_stage=3", "engine.quantized_gradients=true")
    configured(*asked, "engine.precision=fp16", "engine.communication=fp16")
    configured(*asked, "engine.precision=fp16", "engine.gradient_accumulation=fp16")
    for types in ((), ("engine.precision=bf16",), ("engine.precision=fp32",), ("engine.precision=fp16",),
                  ("engine.precision=bf16", "engine.communication=bf16")):  # fmt: skip
        (found,) = problems_of(*asked, *types)
        assert found.startswith("engine.quantized_gradients=True: DeepSpeed takes gradients that travel for fp16")


def test_all_that_does_not_go_together_is_said_at_once():
    found = problems_of(
        "engine.offload_optimizer=cpu", "determinism=D2", "threads_per_rank=1", "optimizer.kind=muon",
        "guards.layer_norms_every_steps=5", "engine.offload_parameters=cpu", "engine.hpz_partition_size=3",
        "engine.quantized_gradients=true", "engine.precision=fp32", "engine.gradient_accumulation=bf16",
        "engine.nvme_path=/x", "ema.decay=1", "ema.every_steps=0", "loss.z_weight=-1", "engine.offload_adamw=deepspeed",
    )  # fmt: skip
    keys = [line.partition(":")[0] for line in found]
    assert keys == [
        "loss.z_weight=-1.0", "ema.every_steps=0", "ema.decay=1.0", "engine.gradient_accumulation=bf16",
        "engine.gradient_accumulation=bf16", *["engine.offload_optimizer=cpu"] * 3,
        "engine.offload_adamw=deepspeed", "engine.offload_parameters=cpu", "engine.nvme_path=/x",
        *["engine.hpz_partition_size=3"] * 2, *["engine.quantized_gradients=True"] * 4,
        "engine.hpz_partition_size=3",
    ]  # fmt: skip


def test_moments_on_a_disk_ask_for_a_stage_a_folder_and_nobody_who_reads_them_all():
    found = problems_of("engine.offload_optimizer=nvme", "ema.decay=0.9", "state_hash_every_steps=5")
    assert [line.partition(":")[0] for line in found] == [
        *["engine.offload_optimizer=nvme"] * 3,
        "engine.nvme_path=None",
    ]
    assert "set engine.zero_stage=3" in found[0]


def test_a_machine_without_libaio_is_told_what_is_missing(monkeypatch):
    monkeypatch.setattr(ops, "compile_op", lambda name: False)
    with pytest.raises(HanseError, match="headers of libaio"):
        ops.prepare_swapping()


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    def fails(name):
        raise RuntimeError("Error building extension 'async_io'\nand two hundred lines")

    monkeypatch.setattr(ops, "compile_op", fails)
    with pytest.raises(HanseError, match=r"RuntimeError: Error building extension 'async_io'\).*; or take cpu$"):
        ops._prepare(ops.SWAPPING, "engine.offload_optimizer=nvme", "a C++ compiler", "take cpu")
    assert ops.can_compile(torch.device("cpu")) is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("engine.zero_stage=0", "engine.offload_optimizer=cpu"),
            "engine.offload_optimizer=cpu: saves memory, as sharing states out does; set engine.zero_stage=1 or more",
        ),
        ("engine.zero_stage=4", "engine.zero_stage=4: one of 0, 1, 2, 3"),
        ("engine.precision=fp8", "engine.precision=fp8: one of auto, bf16, fp16, fp32"),
        ("engine.communication=int8", "engine.communication=int8: one of auto, fp32, bf16, fp16"),
        ("engine.offload_optimizer=disk", "engine.offload_optimizer=disk: one of none, cpu, nvme"),
        (
            ("engine.offload_optimizer=cpu", "engine.offload_adamw=intel"),
            "engine.offload_adamw=intel: one of torch, deepspeed",
        ),
        (
            "engine.offload_adamw=deepspeed",
            "engine.offload_adamw=deepspeed: updates states in host memory; set engine.offload_optimizer=cpu, or take "
            "torch",
        ),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(override, message):
    assert problems_of(*([override] if isinstance(override, str) else override)) == [message]
