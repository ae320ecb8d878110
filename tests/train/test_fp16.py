"""fp16: which gradients are overflows, and when it is chosen. Runs in it: test_engine_runs.py."""

import json

import torch

from tests.train.test_engine_config import configured, problems_of
from train import precision
from train.fp16 import LossScale
from train.fp16_config import Fp16Config
from train.loss import LinearCrossEntropy
from train.precision import agree, choose, half_of
from train.zero_config import deepspeed_config


def noted(scale, text):
    """What a scale says of steps with (+) and without (-) a finite gradient."""
    return [scale.note(finite=step == "+") for step in text]


def test_an_overflow_halves_the_scale_and_a_window_of_good_steps_doubles_it():
    scale = LossScale(Fp16Config(initial_scale_power=4, loss_scale_window=3))
    assert noted(scale, "--++-") == [True, True, False, False, True]
    assert (scale.scale, scale.overflows, scale.in_a_row) == (2.0, 3, 1)
    noted(scale, "+++")
    assert (scale.scale, scale.good_steps) == (4.0, 0)
    scale.update_scale(True)  # DeepSpeed's word for a step that a guard refused as well
    assert scale.scale == 4.0
    assert float(scale.scale_loss(torch.tensor(3.0))) == 12.0


def test_what_lasts_at_the_least_scale_or_for_too_long_is_a_fault():
    least = LossScale(Fp16Config(initial_scale_power=3, min_loss_scale=3))
    assert noted(least, "----") == [True, True, False, False]
    assert least.scale == 3.0
    row = LossScale(Fp16Config(max_overflows=2))
    assert noted(row, "--+---") == [True, True, False, True, True, False]


def test_a_scale_goes_on_as_if_it_had_not_been_stopped():
    before, after = (LossScale(Fp16Config(loss_scale_window=4)) for _ in range(2))
    noted(before, "+-++-")
    after.load(json.loads(json.dumps(before.state())))
    assert noted(before, "+++-") == noted(after, "+++-")
    assert after.state() == before.state()
    after.load({})  # of a checkpoint in another precision
    assert after.state() == LossScale(Fp16Config()).state()


def test_deepspeed_is_told_of_fp16_and_of_nothing_else_in_other_precisions():
    config = configured("engine.precision=fp16", "engine.fp16.initial_scale_power=12", "engine.communication=fp16")
    told = deepspeed_config(config, 2, "fp16", 10**6)
    assert told["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 1000,
                            "hysteresis": 1, "min_loss_scale": 1}  # fmt: skip
    assert not told["bf16"]["enabled"]
    assert (told["data_types"]["grad_accum_dtype"], told["communication_data_type"]) == ("fp32", "fp16")
    assert deepspeed_config(config, 2, "bf16", 10**6)["fp16"] == {"enabled": False}
    chosen = configured("engine.gradient_accumulation=bf16")  # with precision=auto, on a GPU that has no bf16
    assert chosen.engine.sums("fp16", "D0") == ("fp32", "fp32")


def test_numbers_that_make_no_sense_are_named():
    found = problems_of(
        "engine.precision=fp16", "determinism=D2", "threads_per_rank=1", "engine.fp16.loss_scale_window=0",
        "engine.fp16.min_loss_scale=0", "engine.fp16.max_overflows=-1", "engine.fp16.initial_scale_power=33",
        "engine.gradient_accumulation=bf16",
    )  # fmt: skip
    assert [line.partition(":")[0] for line in found] == [
        "engine.gradient_accumulation=bf16", "engine.gradient_accumulation=bf16", "engine.fp16.loss_scale_window=0",
        "engine.fp16.min_loss_scale=0", "engine.fp16.max_overflows=-1", "engine.fp16.initial_scale_power=33",
        "engine.precision=fp16",
    ]  # fmt: skip
    (line,) = problems_of("engine.fp16.initial_scale_power=2", "engine.fp16.min_loss_scale=5")
    assert line.startswith("engine.fp16.min_loss_scale=5: above 2^initial_scale_power=4")


def test_fp16_is_chosen_only_where_there_is_no_bf16(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))  # V100
    assert (half_of("auto", gpu), half_of("bf16", gpu), half_of("auto", cpu), half_of("fp16", cpu)) == (
        "fp16", "bf16", "bf16", "fp16")  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert half_of("auto", gpu) == half_of("fp32", gpu) == "bf16"
    assert choose("auto", {"fp32": 15.7, "fp16": 125.0}) == "fp16"
    assert choose("auto", {"fp32": 15.7, "fp16": 16.0}) == "fp32"
    monkeypatch.setattr(precision.dist, "broadcast_object_list", lambda told: None)
    monkeypatch.setattr(precision, "measured_peaks", lambda device, half: {"fp32": 1.0, half: 0.1})
    assert agree("fp16", cpu) == ("fp16", {"fp32": 1.0, "fp16": 0.1})
    assert agree("auto", cpu) == ("fp32", {"fp32": 1.0, "bf16": 0.1})


def test_the_head_takes_factors_that_do_not_fit_into_fp16():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(6, 8), torch.randn(16, 8), torch.randint(0, 16, (6,))
    for factor in (1e-6, 3e5):  # a scale over many labels of a step, and over few
        exact = [one.double().requires_grad_() for one in (hidden.half(), weight.half())]
        (torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum") * factor).backward()
        half = [one.detach().half().requires_grad_() for one in (hidden, weight)]
        (LinearCrossEntropy.apply(*half, labels)[0] * factor).backward()
        for mine, right in zip(half, exact, strict=True):
            fits = right.grad.abs() < 65504
            assert bool(mine.grad.isfinite()[fits].all())
            assert torch.allclose(mine.grad.double()[fits], right.grad[fits], rtol=2e-2, atol=max(1e-7, 1e-3 * factor))
