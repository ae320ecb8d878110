"""What the engine does in fp16, with moments elsewhere, and with layers compiled, recomputed or given another rotary
embedding: runs on two ranks, all in one start."""

import json
from pathlib import Path

import pytest

from common.errors import EXIT_DONE, EXIT_GO_ON
from tests.train.multirank import losses, train_cases
from train import ledger, ops
from train.checkpoint import Checkpoint
from train.run_folder import complete_steps, folder_of, read_metrics
from train.state_hash import State, state_of_checkpoint

STEPS, SAVED, POWER = 18, 6, 28
COMMON = ["data.sequence_length=16", "evaluate.tokens_per_language=64", "evaluate.every_steps=100",
          "checkpoint.keep_last=9"]  # fmt: skip
FP16 = [  # the scale begins far too large
    *COMMON, "engine.precision=fp16", f"tokens={STEPS * 8 * 16}", f"checkpoint.every_steps={SAVED}",
    f"engine.fp16.initial_scale_power={POWER}", "engine.fp16.loss_scale_window=3", "guards.layer_norms_every_steps=1",
]  # fmt: skip
SWAPPED, HALF = 6, 3
LARGE = [  # a rank's share of the matrices is above the megabyte from which on states are swapped, of the norms below
    *COMMON, "model.settings.hidden_size=256", "model.settings.intermediate_size=512", "engine.zero_stage=3",
    f"tokens={SWAPPED * 8 * 16}", f"checkpoint.every_steps={HALF}",
]  # fmt: skip
SHORT = [*COMMON, f"tokens={SWAPPED * 8 * 16}", f"checkpoint.every_steps={HALF}"]
DISK, CPU_ADAM = (ops.compiled(name) for name in (ops.SWAPPING, ops.HOST_ADAM))  # which takes minutes


def disk_cases(folder):
    memory, disk = ["engine.offload_optimizer=cpu"], ["engine.offload_optimizer=nvme", "state_hash_every_steps=0",
                                                      f"engine.nvme_path={folder / 'nvme'}"]  # fmt: skip
    return {
        "memory": [*LARGE, *memory], "disk": [*LARGE, *disk],
        "moved": [*LARGE, *disk, f"until_step={HALF}"], "moved on": LARGE,
        "back": [*LARGE, *memory, f"until_step={HALF}"], "back on": [*LARGE, *disk],
    }  # fmt: skip


def cpu_adam_cases(folder):
    """By DeepSpeed's AdamW; at ZeRO 3, where async_io is compiled, also with moments on a disk."""
    host = [*SHORT, "engine.offload_optimizer=cpu", "engine.offload_adamw=deepspeed"]
    cases = {f"cpu_adam-{stage}": [*host, f"engine.zero_stage={stage}"] for stage in (1, 2, 3)}
    third = cases["cpu_adam-3"]
    cases |= {"cpu_adam-cut": [*third, f"until_step={HALF}"], "cpu_adam-cut on": third}
    if DISK:
        disk = disk_cases(folder)
        cases["cpu_adam-memory"], cases["cpu_adam-disk"] = (
            [*disk[place], "engine.offload_adamw=deepspeed"] for place in ("memory", "disk")
        )
    return cases


def stages(theta):
    """Two stages of three steps, the second perhaps with a rotary embedding of its own."""
    return [*SHORT, "schedule.warmup_steps=1",
            f"stages=[{{name: first, tokens: {HALF * 8 * 16}}}, {{name: second, rope_theta: {theta}}}]"]  # fmt: skip


def short_cases():
    hosted, compiled = ["engine.offload_optimizer=cpu"], [*SHORT, "engine.compile=true"]
    parameters = [*LARGE, *hosted, "engine.offload_parameters=cpu"]  # of SHORT's matrices ZeRO 3 would cut one
    return {
        "zero-1": SHORT, "hosted-1": [*SHORT, *hosted],
        "zero-2": [*SHORT, "engine.zero_stage=2"], "hosted-2": [*SHORT, "engine.zero_stage=2", *hosted],
        "zero-3": [*SHORT, "engine.zero_stage=3"],
        "large-3": LARGE, "hosted-3": [*LARGE, *hosted],
        "parameters": parameters, "parameters-cut": [*parameters, f"until_step={HALF}"],
        "parameters-cut on": parameters, "parameters-moved": [*LARGE, f"until_step={HALF}"],
        "parameters-moved on": parameters,
        "recomputed-3": [*SHORT, "engine.zero_stage=3", "engine.recompute_every_layers=1"],
        "compiled": compiled, "compiled-cut": [*compiled, f"until_step={HALF}"], "compiled-cut on": compiled,
        "theta": stages(50_000), "theta-cut": [*stages(50_000), f"until_step={HALF + 1}"],
        "theta-cut on": stages(50_000), "no-theta": stages("null"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_settings, tmp_path_factory):
    """{name: (run folder, how it ended)}; "NAME on" and "NAME again" go on with a run that was stopped."""
    folder = tmp_path_factory.mktemp("engine")
    kinds = {
        **{f"fp16-{stage}": [*FP16, f"engine.zero_stage={stage}"] for stage in (1, 2, 3)},
        **{name: [*FP16, f"until_step={SAVED}"] for name in ("cut", "cut again")}, "cut on": FP16,
        "nan": [*FP16, "engine.fp16.initial_scale_power=8"],
        "lasts": [*FP16, "engine.fp16.max_overflows=2"],
        **short_cases(),
        **(disk_cases(folder) if DISK else {}),
        **(cpu_adam_cases(folder) if CPU_ADAM else {}),
    }  # fmt: skip
    places = {name: folder / name.partition(" ")[0] for name in kinds}
    cases = {name: [*tiny_settings, f"run={places[name]}", *more] for name, more in kinds.items()}
    told = train_cases(folder / "ranks", 2, cases, {"nan": {"poison": 3}})
    return {name: (places[name], told[name]) for name in kinds}


def state_at(run: Path, step: int) -> State:
    return state_of_checkpoint(Checkpoint(folder_of(run / "checkpoints", step)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_overflows_are_left_out_named_and_counted_at_every_stage(runs, stage):
    run, code = runs[f"fp16-{stage}"]
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
    codes = {name: runs[name][1] for name in ("cut", "cut again", "cut on")}
    assert codes == {"cut": EXIT_GO_ON, "cut again": EXIT_DONE, "cut on": EXIT_DONE}
    starts = [
        record["step"] for _, record in ledger.lines(runs["cut"][0] / "ledger.jsonl") if record["kind"] == "start"
    ]
    assert starts == [0, SAVED]  # the command that stopped it does nothing when given again
    whole, cut = runs["fp16-1"][0], runs["cut"][0]
    assert state_at(whole, STEPS) == state_at(cut, STEPS)
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


@pytest.mark.slow
@pytest.mark.skipif(not DISK, reason="async_io is not compiled here: train once with engine.offload_optimizer=nvme")
def test_moments_on_a_disk_are_those_in_memory_and_a_checkpoint_goes_on_either_way(runs):
    codes = {name: runs[name][1] for name in disk_cases(Path())}
    assert codes == {"memory": EXIT_DONE, "disk": EXIT_DONE, "moved": EXIT_GO_ON, "moved on": EXIT_DONE,
                     "back": EXIT_GO_ON, "back on": EXIT_DONE}  # fmt: skip
    memory, disk, moved, back = (runs[name][0] for name in ("memory", "disk", "moved", "back"))
    assert max(path.stat().st_size for path in (disk.parent / "nvme").rglob("*.swp")) >= 1 << 20
    for run in (disk, back):
        assert losses(run) == losses(memory)
        assert state_at(run, SWAPPED) == state_at(memory, SWAPPED)
    first, other = losses(memory), losses(moved)
    assert max(abs(other[step] / first[step] - 1) for step in first) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_moments_in_host_memory_are_those_beside_the_weights(runs, stage):
    """On two ranks to rounding only."""
    here, hosted = (runs[f"{kind}-{stage}"] for kind in ("zero", "hosted"))
    assert (here[1], hosted[1]) == (EXIT_DONE, EXIT_DONE)
    expected, found = losses(here[0]), losses(hosted[0])
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-6
    weights, others = (Checkpoint(folder_of(run / "checkpoints", SWAPPED)).weights() for run, _ in (here, hosted))
    assert all(float((others[name] - one).norm() / one.norm()) < 1e-4 for name, one in weights.items())


@pytest.mark.slow
@pytest.mark.skipif(not CPU_ADAM, reason="CPUAdam is not compiled: train once with engine.offload_adamw=deepspeed")
def test_deepspeeds_cpu_adam_learns_as_torchs_adamw_and_its_run_goes_on_to_the_last_bit(runs):
    for stage in (1, 2, 3):
        (here, _), (hosted, code) = runs[f"zero-{stage}"], runs[f"cpu_adam-{stage}"]
        assert code == EXIT_DONE
        expected, found = losses(here), losses(hosted)
        assert 0 < max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-6, "another kernel, as right"
        weights, others = (Checkpoint(folder_of(run / "checkpoints", SWAPPED)).weights() for run in (here, hosted))
        assert all(float((others[name] - one).norm() / one.norm()) < 1e-4 for name, one in weights.items())
    (cut, code), (whole, _) = runs["cpu_adam-cut"], runs["cpu_adam-3"]
    assert (code, runs["cpu_adam-cut on"][1]) == (EXIT_GO_ON, EXIT_DONE)
    assert losses(cut) == losses(whole)
    assert state_at(cut, SWAPPED) == state_at(whole, SWAPPED)
    if DISK:
        assert state_at(runs["cpu_adam-disk"][0], SWAPPED) == state_at(runs["cpu_adam-memory"][0], SWAPPED)


@pytest.mark.slow
def test_parameters_in_host_memory_are_those_beside_the_moments_and_a_cut_run_goes_on_to_the_last_bit(runs):
    """Held to moments alone in host memory to the last bit; to nothing there, and from there, to rounding."""
    names = ("large-3", "hosted-3", "parameters", "parameters-cut on", "parameters-moved on")
    assert [runs[name][1] for name in names] == [EXIT_DONE] * len(names)
    assert [runs[name][1] for name in ("parameters-cut", "parameters-moved")] == [EXIT_GO_ON] * 2
    whole, hosted, parameters, cut, moved = (runs[name][0] for name in names)
    for run in (parameters, cut):
        assert losses(run) == losses(hosted)
        assert state_at(run, SWAPPED) == state_at(hosted, SWAPPED)
    expected = losses(whole)
    for found in (losses(parameters), losses(moved)):
        assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-6


@pytest.mark.slow
def test_layers_that_are_computed_again_at_zero_3_change_no_loss(runs):
    whole, again = runs["zero-3"], runs["recomputed-3"]
    assert (whole[1], again[1]) == (EXIT_DONE, EXIT_DONE)
    assert losses(again[0]) == losses(whole[0])
    assert state_at(again[0], SWAPPED) == state_at(whole[0], SWAPPED)


@pytest.mark.slow
def test_compiled_layers_learn_the_same_and_a_run_of_them_goes_on_to_the_last_bit(runs):
    (plain, _), (compiled, code) = runs["zero-1"], runs["compiled"]
    assert (code, runs["compiled-cut"][1], runs["compiled-cut on"][1]) == (EXIT_DONE, EXIT_GO_ON, EXIT_DONE)
    begun = next(one for one in read_metrics(compiled / "metrics.jsonl") if one.get("event") == "start")
    assert begun["compiled"] is True
    made = [one["step"] for one in read_metrics(compiled / "metrics.jsonl") if one.get("event") == "compiled"]
    assert made == [1, SWAPPED], "for the first step and the evaluation, and never again"
    expected, found = losses(plain), losses(compiled)
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-5
    assert losses(runs["compiled-cut"][0]) == found
    assert state_at(runs["compiled-cut"][0], SWAPPED) == state_at(compiled, SWAPPED)


@pytest.mark.slow
def test_a_stage_has_its_own_rotary_embedding_also_after_a_resume_in_its_middle(runs):
    (own, code), (none, _), (cut, _) = runs["theta"], runs["no-theta"], runs["theta-cut"]
    assert (code, runs["theta-cut"][1], runs["theta-cut on"][1]) == (EXIT_DONE, EXIT_GO_ON, EXIT_DONE)
    found, without = losses(own), losses(none)
    assert [step for step in found if found[step] != without[step]] == [*range(HALF + 1, SWAPPED + 1)]
    assert losses(cut) == found
    assert state_at(cut, SWAPPED) == state_at(own, SWAPPED)
