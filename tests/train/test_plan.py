"""A plan says what training would need: its arithmetic is that of the engine, its memory that of tensors."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory import on_ranks
from common.errors import EXIT_DONE, EXIT_USER_ERROR
from tests.train.test_engine_config import configured
from train.config import ModelConfig
from train.hardware import GPUS, data_sheet_peak, find_gpu
from train.loss import rows_at_once
from train.memory import Layout, activations, buffers, memory, on_host, saved_bytes, states
from train.model import PackedLanguageModel, build_model, model_config, recompute_activations
from train.plan_fit import choose, layout_of, micro_batches, room, stages_of, uneven
from train.plan_subject import find_machine, subject_of
from train.plan_time import predicted, timing
from train.verb_config import PlanConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
ARCHITECTURES = ("llama", "qwen3", "mistral", "apertus", "olmo2")
REQUEST = ["train.name=x", "train.model=llama3-8b", "train.tokens=2e12", "train.data.sequence_length=4096",
           "train.batch.global_batch_size=1024", "train.batch.micro_batch_size=1"]  # fmt: skip


def small(architecture, key_value_heads=2):
    settings = {**SETTINGS, "num_key_value_heads": key_value_heads}
    return model_config(ModelConfig(architecture, settings), 200, 48, pad_token_id=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("every", [0, 1, 2])
def test_activations_counted_without_memory_are_those_kept_with_it(architecture, every):
    config = small(architecture)
    planned = activations(config, 48, "fp32", every)
    module = PackedLanguageModel(build_model(config, 0))
    whole = saved_bytes(module, 2, 48, "cpu")
    if every:
        recompute_activations(module.model, every)
    kept = saved_bytes(module, 2, 48, "cpu")
    inputs = kept - planned.fixed
    of_one_layer = (whole - kept) / -(-3 // every) if every else 0
    assert planned.fixed + 2 * planned.a_sequence == pytest.approx(planned.fixed + inputs + of_one_layer, rel=1e-4)
    assert every == 0 or kept < 0.75 * whole


def test_without_a_mask_neither_it_nor_repeated_keys_are_counted():
    config, length = small("llama"), 48
    with_one, without = (activations(config, length, "bf16", masked=masked) for masked in (True, False))
    mask, layers = 2 * length * length, config.num_hidden_layers
    keys = 2 * config.hidden_size // config.num_attention_heads * config.num_key_value_heads  # and values
    repeated = layers * 2 * length * keys * (config.num_attention_heads // config.num_key_value_heads - 1)
    assert with_one.a_sequence - without.a_sequence == pytest.approx(mask + repeated, rel=0.02)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_activations_change_no_bit_of_the_gradient(architecture):
    ids = torch.randint(0, 200, (2, 48))
    documents = (torch.arange(48) > 20).long().expand(2, 48)
    positions = torch.cat([torch.arange(21), torch.arange(27)]).expand(2, 48)
    found = []
    for every in (0, 1, 2):
        module = PackedLanguageModel(build_model(small(architecture), 0))
        if every:
            recompute_activations(module.model, every)
        module(ids, positions, ids, documents)[0].backward()
        found.append({name: one.grad for name, one in module.named_parameters()})
    for other in found[1:]:
        assert all(torch.equal(other[name], gradient) for name, gradient in found[0].items())


@given(st.integers(1, 10**12), st.integers(1, 512), st.sampled_from(["bf16", "fp32"]))
def test_states_follow_the_zero_paper(parameters, ranks, precision):
    """All stages agree on one rank; each shares out what the one before does and more; nothing is lost."""
    value = {"bf16": 2, "fp32": 4}[precision]
    found = {stage: states(parameters, Layout(ranks, stage, precision)) for stage in (0, 1, 2, 3)}
    assert found[1][0] == found[2][0] == value * parameters == pytest.approx(found[3][0] * ranks)
    assert found[1][1] == value * parameters == pytest.approx(found[2][1] * ranks) == pytest.approx(found[3][1] * ranks)
    assert len({found[stage][2] for stage in (1, 2, 3)}) == 1
    assert (*found[0][:2], found[0][2]) == (*found[1][:2], pytest.approx(found[1][2] * ranks))
    assert sum(found[0]) >= sum(found[1]) >= sum(found[2]) >= sum(found[3])
    if ranks == 1:
        assert found[0] == found[1] == found[2] == found[3]


def test_exact_sums_take_eight_bytes_and_eight_more_of_the_own_share():
    """What a rank holds at D2, in place of the gradients of the weights' type (train/invariant.py)."""
    for stage, precision, expected in (
        (1, "fp32", 8 + 8 / 4),
        (1, "bf16", 8 + 8 / 4),
        (2, "bf16", 8 / 4),
        (3, "fp32", 8 / 4 + 4 / 4),
        (3, "bf16", 8 / 4 + 2 / 4),
    ):
        layout = Layout(4, stage, precision, accumulated=precision, exact=True, largest=2 * 10**5)
        assert states(10**6, layout)[1] == expected * 10**6
        assert buffers(10**6, layout) >= 2 * 8 * 2 * 10**5  # a gradient as numbers and as integers
    subject = subject_of(configured("determinism=D2", "engine.precision=bf16", "threads_per_rank=1"))
    assert layout_of(subject, 8, 2).exact
    assert subject.largest == 32_768 * 256  # the embedding


def test_memory_grows_with_the_micro_batch_by_its_activations():
    counted = activations(small("llama"), 48, "bf16")
    one, two = (memory(10**6, counted, Layout(4, 2, "bf16"), size) for size in (1, 2))
    assert two.activations - one.activations == counted.a_sequence
    assert two.total - one.total >= counted.a_sequence
    assert one.total == one.states + one.buffers + one.activations + one.head


def test_a_head_that_is_fused_holds_some_rows_of_logits_and_any_other_all():
    some = activations(small("llama"), 48, "bf16")
    whole = replace(some, fused=False)
    for sequences in (100, 1_000_000):
        tokens = sequences * 48
        assert memory(10**6, whole, Layout(4, 2, "bf16"), sequences).head == 12 * tokens * whole.vocabulary
        rows = rows_at_once("cuda", some.vocabulary, tokens)
        assert memory(10**6, some, Layout(4, 2, "bf16"), sequences).head == 2 * rows * some.vocabulary
    assert rows < tokens


@pytest.mark.parametrize("path", sorted((CONFIGS / "site").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_gpu_of_every_site_is_known(path):
    name = yaml.safe_load(path.read_text()).get("node", {}).get("gpu")
    assert name is None or find_gpu(name)[0].split()[0] in name


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM-64GB", "NVIDIA GH200 480GB", "AMD Instinct MI250X", "h100"])
def test_a_gpu_is_found_by_the_name_its_driver_gives(name):
    assert find_gpu(name)[0].split()[0].lower() in name.lower()


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA L40S", "",
                                  "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])  # fmt: skip
def test_another_part_of_the_same_family_is_not_taken_for_it(name):
    assert find_gpu(name) is None
    assert data_sheet_peak(["NVIDIA H100 80GB HBM3", name]) is None


def test_the_peak_of_all_ranks_is_the_sum_of_theirs_or_not_known():
    assert data_sheet_peak(["NVIDIA H100 80GB HBM3"] * 4) == 4 * 989.4e12
    assert data_sheet_peak(["AMD Instinct MI250X"] * 8) == 8 * 191.5e12
    assert data_sheet_peak(["NVIDIA A100-SXM4-40GB", "NVIDIA H200"]) == 312e12 + 989.4e12
    assert data_sheet_peak(["NVIDIA H100 80GB HBM3", None]) is None
    assert data_sheet_peak([None, None]) is None


def test_a_plan_adds_up_and_is_written_for_programs(hanse, tmp_path, capsys):
    output = tmp_path / "plan.json"
    more = ["train.model.attention=flex", "site=lumi", "nodes=[1,16]", "pue=1.2"]  # of the model that was chosen
    assert hanse("plan", *REQUEST, *more, f"output={output}") == EXIT_DONE
    plan = json.loads(output.read_text())
    assert plan["parameters"] == 8_030_261_248
    assert (plan["gpu"]["name"], plan["gpu"]["memory_gb"], plan["gpus_per_node"]) == ("MI250X GCD", 64, 8)
    for one in plan["times"]:
        assert one["tokens_per_second"] * one["seconds"] == pytest.approx(2e12)
        assert one["gpu_hours"] == pytest.approx(one["ranks"] * one["seconds"] / 3600)
        used = one["tokens_per_second"] * plan["flops_per_token"]
        assert used / (one["ranks"] * GPUS["MI250X GCD"].bf16_flops) == pytest.approx(plan["mfu"])
        assert one["facility_mwh"] == pytest.approx(1.2 * one["mwh"])
    assert plan["storage_gb_per_second"] == 240  # of the site
    assert plan["checkpoint_write_seconds"] == pytest.approx(12 * plan["parameters"] / 240e9)
    assert plan["fits"]["1"]["stage"] > plan["fits"]["16"]["stage"]  # more GPUs, less on each
    said = capsys.readouterr().out
    assert "hanse launch site=lumi nodes=1 train.engine.zero_stage=3" in said
    assert "MI250X GCD 64 GB" in said
    assert "checkpoint 96.4 GB, 0.402 s to write at 240 GB/s" in said


# Dense bf16 TFLOP/s as the makers' data sheets print them, so that a peak that is wrong in the table is seen here.
# NVIDIA prints Hopper's with sparsity (1,979), which is twice the dense one.
SHEETS = {
    "A100": 312,  # A100 Tensor Core GPU data sheet: bfloat16 on Tensor Cores, without sparsity
    "H100": 1979 / 2,  # H100 Tensor Core GPU data sheet, SXM
    "H200": 1979 / 2,  # H200 Tensor Core GPU data sheet, SXM
    "GH200": 1979 / 2,  # GH200 Grace Hopper Superchip data sheet (rounded to 990 where it prints the dense rate)
    "MI250X GCD": 383 / 2,  # Instinct MI250X data sheet: peak bfloat16, of its two dies together
    "MI300A": 980.6,  # Instinct MI300A data sheet: peak bfloat16
}


def test_peaks_are_those_of_the_data_sheets():
    assert {name: gpu.bf16_flops / 1e12 for name, gpu in GPUS.items()} == pytest.approx(SHEETS, rel=1e-3)


def planned(*overrides, nodes, **more):
    """(subject, what fits, times) of a plan for H100s, four a node."""
    config = PlanConfig(gpu="H100", gpus_per_node=4, **more)
    subject, machine = subject_of(configured(*overrides)), find_machine(config)
    fits = {one: choose(subject, 4 * one, room(config, machine.memory_gb)) for one in nodes}
    return subject, fits, [timing(config, subject, machine, 0.4, nodes=one, choice=fits[one]) for one in nodes]


def test_a_model_that_is_that_of_weights_is_planned(tmp_path):
    shape = model_config(ModelConfig("qwen3", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                                               "num_attention_heads": 4, "head_dim": 8}), 99, 64)  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape.to_dict()))
    subject = subject_of(configured("model=from_checkpoint", f"init_from={tmp_path}"))
    assert (subject.config.model.architecture, subject.layers) == ("qwen3", 3)
    assert subject.parameters > 3 * 3 * 32 * 48


def test_gpus_that_do_not_divide_a_step_are_told_apart_from_those_it_does_not_fit_on():
    subject, fits, _ = planned("batch.global_batch_size=1024", "tokens=100000000", nodes=(3, 4, 512))
    assert [fits[nodes] is None for nodes in (3, 4, 512)] == [True, False, True]
    assert uneven(subject, 4, 4) is None
    assert uneven(subject, 3, 4) == (
        "3 nodes, 12 GPUs: steps of 1,024 sequences do not divide among them; what would do: "
        "global_batch_size=1020 or 1032; nodes=2 or 4"
    )
    assert uneven(subject, 512, 4).endswith("global_batch_size=2048; nodes=256")
    shared = subject_of(configured("engine.sequence_parallel=2", "ranks=2", "model.settings.num_key_value_heads=2"))
    assert uneven(shared, 1, 3).startswith("1 node, 3 GPUs: train.engine.sequence_parallel=2 does not divide them")
    assert micro_batches(shared, 8) == [1, 2, 4, 8]  # 32 sequences, four groups
    node = subject_of(configured("engine.zero_stage=3", "engine.hpz_partition_size=4", "ranks=4"))
    assert uneven(node, 2, 1).startswith("2 nodes, 2 GPUs: train.engine.hpz_partition_size=4 does not divide them")
    assert micro_batches(node, 8) == [1, 2, 4]


@pytest.mark.parametrize(
    ("asked", "stages"),
    [
        ([], (0, 1, 2, 3)),
        (["engine.offload_optimizer=cpu"], (1, 2, 3)),
        (["engine.offload_optimizer=cpu", "engine.offload_parameters=cpu"], (3,)),
        (["engine.offload_optimizer=nvme", "engine.nvme_path=/scratch", "state_hash_every_steps=0"], (3,)),
        (["engine.quantized_weights=true"], (3,)),
    ],
)
def test_only_stages_that_have_what_is_asked_for_are_offered(asked, stages):
    assert stages_of(subject_of(configured("engine.zero_stage=3", *asked))) == stages


@given(st.integers(1, 96), st.integers(1, 64))
def test_what_would_do_does(size, nodes):
    """The batch sizes and numbers of nodes that are proposed do divide."""
    alone = SimpleNamespace(sequence_parallel=1, tensor_parallel=1, sharing=1, hpz_partition_size=1)
    subject = SimpleNamespace(config=SimpleNamespace(timeline=[SimpleNamespace(size=size)], engine=alone))
    said = uneven(subject, nodes, 2)
    if said is None:
        assert size % (2 * nodes) == 0
        return
    batches, _, numbers = said.partition("global_batch_size=")[2].partition("; nodes=")
    assert all(int(one) % (2 * nodes) == 0 for one in batches.split(" or "))
    assert all(size % (2 * int(one)) == 0 for one in numbers.split(" or ") if one)


STAGES = "stages=[{name: wide, tokens: 2000000000, batch: {global_batch_size: 2048}}, {name: long, data: " \
         "{sequence_length: 4096}, batch: {global_batch_size: 256, micro_batch_size: 1}}]"  # fmt: skip


def test_every_stage_is_planned_with_its_own_batch_and_sequences():
    """The run's own batch, which no stage uses here, has no part in it."""
    shape = ["tokens=3000000000", "data.sequence_length=1024"]
    _, fits, (one, many) = planned(*shape, STAGES, nodes=(1, 64), network_gbit=400.0)
    assert [stage.name for stage in many.stages] == ["wide", "long"]
    for time in (one, many):
        assert sum(stage.seconds for stage in time.stages) == pytest.approx(time.seconds)
        shares = [stage.efficiency[0] for stage in time.stages]
        assert min(shares) <= time.efficiency[0] <= max(shares) <= 1 + 1e-9
        assert time.efficiency[1] <= time.efficiency[0] <= time.efficiency[2]
    for number, override in enumerate(("batch.global_batch_size=2048", "batch.global_batch_size=256")):
        length, tokens = (1024, 2_000_000_000) if number == 0 else (4096, 1_000_000_000)
        alone = subject_of(configured(override, f"tokens={tokens}", f"data.sequence_length={length}"))
        machine = find_machine(PlanConfig(gpu="H100", gpus_per_node=4, network_gbit=400.0))
        share = predicted(alone, machine, 0.4, fits[64], next(iter(alone.config.timeline)))
        assert many.stages[number].efficiency == pytest.approx(share)


def test_what_is_drawn_is_shown_with_its_repetition(hanse, tiny_settings, capsys):
    train = [f"train.{one}" for one in tiny_settings]
    rule = ["train.data.mixture_rule=unimax", "train.data.max_epochs=6", f"train.tokens={250 * 8 * 64}"]
    assert hanse("plan", *train, *rule, "nodes=[1]", "gpus_per_node=2", "storage_gb_per_second=0.001") == EXIT_DONE
    said = capsys.readouterr().out
    assert re.search(r"checkpoint (\S+) MB, \1 s to write at 0.001 GB/s", said)  # the site says nothing
    assert "language   asked  obtained" in said
    assert "WARNING: it: " in said
    assert "epochs; beyond 4 repeated text teaches ever less" in said


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_would_help(hanse, capsys):
    request = [one.replace("llama3-8b", "llama3-70b") for one in REQUEST]
    assert hanse("plan", *request, "gpu=A100", "nodes=[1]") == EXIT_DONE
    said = capsys.readouterr().out
    assert "hanse launch" not in said
    assert "next: more nodes" in said


def test_weights_that_each_node_holds_once_more_are_planned_at_stage_3(hanse, tmp_path, capsys):
    found = {}
    for size in (1, 4):
        output = tmp_path / f"{size}.json"
        more = ["train.engine.zero_stage=3", f"train.engine.hpz_partition_size={size}", "site=leonardo", "nodes=[16]"]
        assert hanse("plan", *REQUEST, *more, f"output={output}") == EXIT_DONE
        found[size] = json.loads(output.read_text())
    assert (found[4]["storage_gb_per_second"], found[4]["checkpoint_write_seconds"]) == (None, None)
    weights = found[4]["fits"]["16"]["memory"]["weights"]
    assert weights == pytest.approx(2 * found[4]["parameters"] * (1 / 64 + 1 / 4))
    assert found[4]["fits"]["16"]["stage"] == 3
    assert found[1]["fits"]["16"]["stage"] < 3  # what is not asked for at stage 3 alone goes lower where it fits
    said = capsys.readouterr().out
    assert "weights at 3 and once more / 4; fits" in said
    assert "to write" not in said


@pytest.mark.slow
def test_a_real_run_tells_what_share_of_the_peak_it_reached(hanse, tiny_run, tiny_settings, tmp_path, capsys):
    output, train = tmp_path / "plan.json", [f"train.{one}" for one in tiny_settings]
    more = ["nodes=[1]", "gpus_per_node=2", "gpu=A100", f"output={output}"]
    assert hanse("plan", *train, *more, f"measured_in={tiny_run}") == EXIT_DONE
    plan, summary = json.loads(output.read_text()), json.loads((tiny_run / "summary.json").read_text())
    rate = summary["tokens_per_second"] * summary["flops_per_token"] / summary["ranks"]
    assert plan["mfu"] == pytest.approx(rate / 312e12)
    assert plan["mfu_is"] == f"measured in {tiny_run}"
    assert plan["times"][0]["tokens_per_second"] == pytest.approx(summary["tokens_per_second"])  # on as many ranks
    assert f"(measured in {tiny_run})" in capsys.readouterr().out
    assert plan["flops_per_token"] == summary["flops_per_token"]


@pytest.mark.parametrize(
    ("wrong", "messages"),
    [
        (["gpu=B300", "nodes=[0]", "mfu=1.5", "measured_in=nowhere"],
         ["gpu=B300: one of A100, H100", "nodes=[0]: whole numbers of 1 or more", "mfu=1.5: a share",
          "measured_in=nowhere: no run folder"]),
        (["train.batch.micro_batch_size=0"], ["train.batch.micro_batch_size=0: must be 1 or more"]),
        (["site=local"], ["site=local: the peak of its GPU (none) is not known"]),
    ],
)  # fmt: skip
def test_nonsense_is_refused(hanse, capfd, wrong, messages):
    assert hanse("plan", *REQUEST, *wrong) == EXIT_USER_ERROR
    said = capfd.readouterr().err
    assert all(message in said for message in messages)


@pytest.mark.slow
def test_states_are_planned_within_a_tenth_of_what_lies_in_real_ranks():
    """And nothing rises above all that is planned, neither in the passes nor in the update itself."""
    cases = [(0, "fp32", "D0", "adamw"), (0, "bf16", "D0", "muon"), (1, "fp32", "D0", "muon"),
             (1, "fp32", "D0", "adamw"), (3, "fp32", "D0", "adamw"), (1, "bf16", "D0", "adamw"),
             (2, "bf16", "D0", "adamw"), (3, "bf16", "D0", "adamw"), (1, "bf16", "D2", "adamw"),
             (2, "fp32", "D2", "adamw"), (3, "fp32", "D2", "adamw"), (2, "fp32", "D0", "ademamix")]  # fmt: skip
    for case, found in zip(cases, on_ranks(2, "llama-3m", cases), strict=True):
        assert found["found"] - found["bucket"] == pytest.approx(found["states_planned"], rel=0.1), case
        assert max(found["passes"], found["update"]) < 1.1 * sum(found["planned"].values()), case


def test_what_is_offloaded_lies_in_host_memory_and_nowhere_else():
    kept = activations(small("llama"), 48, "bf16")
    here = Layout(4, 3, "bf16", accumulated="fp32")
    there = Layout(4, 3, "bf16", accumulated="fp32", offloaded=("optimizer", "weights"))
    before, after = (memory(10**6, kept, layout, 1) for layout in (here, there))
    assert (before.optimizer, before.weights, before.gradients) == (3e6, 0.5e6, 1e6)
    assert (after.optimizer, after.weights) == (0, 0)
    assert on_host(10**6, there) == before.optimizer + before.weights + before.gradients
    assert on_host(10**6, here) == 0


@pytest.mark.slow
def test_a_plan_knows_what_the_optimizer_and_the_average_keep(hanse, tmp_path):
    found = {}
    cases = {name: [f"train.optimizer.kind={name}"] for name in ("adamw", "muon", "ademamix")}
    for name, more in {**cases, "averaged": ["train.ema.decay=0.999"]}.items():
        output = tmp_path / f"{name}.json"
        request = [*REQUEST[:1], "train.model=llama-20m", *REQUEST[2:], *more, f"output={output}"]
        assert hanse("plan", *request) == EXIT_DONE
        plan = json.loads(output.read_text())
        found[name] = plan["checkpoint_bytes"] / plan["parameters"]
    assert (found["adamw"], found["ademamix"], found["averaged"]) == (12, 16, 16)
    assert 8 < found["muon"] < 12  # no second moment of the matrices between the embeddings


@pytest.mark.parametrize(("said", "meant", "wrong"), [
    (4, [4], False), ([1, 16], [1, 16], False), (0, [0], True), ([], [], True), ("many", ["many"], True),
    ([1.5], [1.5], True),
])  # fmt: skip
def test_nodes_are_one_number_or_several(said, meant, wrong):
    config = PlanConfig(nodes=said)
    assert config.nodes == meant
    assert [line.partition("=")[0] for line in config.problems()] == ["nodes"] * wrong
