"""fp16: its overflows are left out, counted and named; what is no overflow ends the run as in any other precision."""

import json

import pytest
import torch

from common.errors import EXIT_DONE, EXIT_GO_ON
from tests.train.multirank import train_cases
from tests.train.test_engine_config import configured, problems_of
from train import ledger, precision
from train.checkpoint import Checkpoint
from train.fp16 import LossScale
from train.fp16_config import Fp16Config
from train.loss import LinearCrossEntropy
from train.precision import agree, choose, half_of
from train.run_folder import complete_steps, folder_of, read_metrics
from train.state_hash import state_of_checkpoint
from train.zero_config import deepspeed_config

STEPS, SAVED, POWER = 18, 6, 28


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


@pytest.fixture(scope="module")
def runs(tiny_settings, tmp_path_factory):
    """{name: (run folder, how it ended)}, on two ranks in one start; the scale begins far too large."""
    folder = tmp_path_factory.mktemp("fp16")
    common = [
        *tiny_settings, "engine.precision=fp16", "data.sequence_length=16", f"tokens={STEPS * 8 * 16}",
        "evaluate.tokens_per_language=64", "evaluate.every_steps=100", f"checkpoint.every_steps={SAVED}",
        f"engine.fp16.initial_scale_power={POWER}", "engine.fp16.loss_scale_window=3", "state_hash_every_steps=6",
        "guards.layer_norms_every_steps=1", "checkpoint.keep_last=9",
    ]  # fmt: skip
    kinds = {
        **{f"zero-{stage}": ([f"engine.zero_stage={stage}"], {}) for stage in (1, 2, 3)},
        "cut": ([f"until_step={SAVED}"], {}),
        "nan": (["engine.fp16.initial_scale_power=8"], {"poison": 3}),
        "lasts": (["engine.fp16.max_overflows=2"], {}),
    }  # fmt: skip
    cases = {name: [*common, f"run={folder / name}", *more] for name, (more, _) in kinds.items()}
    cases["cut-on"] = [*common, f"run={folder / 'cut'}"]
    told = train_cases(folder / "ranks", 2, cases, {name: faults for name, (_, faults) in kinds.items()})
    return {name: (folder / name.removesuffix("-on"), told[name]) for name in cases}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_overflows_are_left_out_named_and_counted_at_every_stage(runs, stage):
    run, code = runs[f"zero-{stage}"]
    assert code == EXIT_DONE
    records = list(read_metrics(run / "metrics.jsonl"))
    steps = {record["step"]: record for record in records if "loss" in record}
    left_out = [step for step, record in steps.items() if record.get("skipped") == "overflow"]
    assert left_out[:6] == [1, 2, 3, 4, 5, 6]
    assert len(left_out) < STEPS
    for step, record in steps.items():
        if step in left_out:
            assert record["gradient_norm"] is None
            assert record["loss_scale"] == 0.5 * (steps[step - 1]["loss_scale"] if step > 1 else 2.0**POWER)
        else:
            assert 0.01 < record["gradient_norm"] < 100  # unscaled
            squares = sum(norm**2 for norm in record["gradient_norm_by_layer"].values())
            assert squares**0.5 == pytest.approx(record["gradient_norm"], rel=1e-3)
    assert steps[STEPS]["loss"] < steps[1]["loss"]
    assert [one["step"] for one in records if one.get("event") == "overflow"] == left_out
    assert not any(one.get("event") == "spike" for one in records)
    lines = ledger.steps(record for _, record in ledger.lines(run / "ledger.jsonl"))
    assert [step for step, line in lines.items() if line.get("skipped") == "overflow"] == left_out
    engine = json.loads((folder_of(run / "checkpoints", STEPS) / "state.json").read_text())["engine"]
    assert engine["skipped_updates"] == engine["loss_scale"]["overflows"] == len(left_out)
    assert engine["loss_scale"]["scale"] == steps[STEPS]["loss_scale"]


@pytest.mark.slow
def test_a_run_that_is_cut_among_its_overflows_goes_on_to_the_last_bit(runs):
    assert (runs["cut"][1], runs["cut-on"][1]) == (EXIT_GO_ON, EXIT_DONE)
    whole, cut = runs["zero-1"][0], runs["cut"][0]
    states = [state_of_checkpoint(Checkpoint(folder_of(run / "checkpoints", STEPS))) for run in (whole, cut)]
    assert states[0] == states[1]
    scales = [[(record["step"], record["loss_scale"], record["loss"]) for record in read_metrics(run / "metrics.jsonl")
               if "loss" in record] for run in (whole, cut)]  # fmt: skip
    assert scales[0] == scales[1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_at_once_and_so_does_an_overflow_that_lasts(runs):
    run, said = runs["nan"]
    assert said.startswith("step 3: the loss is nan and the norm of its gradient inf: on rank 1 no finite loss for")
    run, said = runs["lasts"]
    assert said.startswith("step 3: the loss is ")
    assert "first parameter with no finite gradient" in said
    assert not complete_steps(run / "checkpoints")
