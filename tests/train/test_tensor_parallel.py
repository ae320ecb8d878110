"""Ranks that share matrices compute what one rank with whole ones does, and a run may go from one to the other."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from common.errors import EXIT_DONE, EXIT_GO_ON, ConfigError
from common.zero import states
from launch.local import run_ranks
from tests.train.multirank import configuration, evaluations, losses, train_cases
from tests.train.test_engine_config import configured, problems_of
from train import ledger
from train.checkpoint import Checkpoint
from train.config import ModelConfig, TrainConfig
from train.memory import VALUE_BYTES
from train.model import model_config
from train.plan_fit import layout_of, micro_batches, needs, stages_of, uneven
from train.plan_subject import subject_of
from train.run_folder import folder_of, read_metrics
from train.scaling import Work, network, step_seconds
from train.state_hash import state_of_checkpoint
from train.tensor_config import CUTTABLE
from train.tensor_parallel import check_model
from train.zero_config import deepspeed_config

STEPS, SAVED = 10, 5
PROGRAM = Path(__file__).with_name("tensor_program.py")
TOLERANCE = 1e-5  # relative, of a loss and of bits per byte in fp32; of a gradient's norm ten times that
TASKS, ITEMS = "tasks=[next_sentence,last_word]", "items_per_language=5"
SENT = {"sent": 3}  # the step of which it is kept what ranks sent
ROUNDED = 5e-3  # of a loss in bf16: sums over ranks are of rounded parts


def test_what_does_not_go_together_is_refused_with_all_that_is_wrong():
    parts = "engine.tensor_parallel="
    assert problems_of(f"{parts}0") == ["engine.tensor_parallel=0: must be 1 or more"]
    found = problems_of(
        f"{parts}4", "ranks=6", "engine.zero_stage=3", "engine.sequence_parallel=2", "engine.precision=fp16",
        "engine.offload_optimizer=cpu", "engine.compile=true", "optimizer.kind=muon", "determinism=D1",
        "model.architecture=olmo2", "model.settings.num_attention_heads=6", "model.settings.num_key_value_heads=2",
        "model.settings.intermediate_size=10",
    )  # fmt: skip
    mine = [line for line in found if line.startswith("engine.tensor_parallel=4: ")]
    for line, part in zip(mine, (
        "must divide ranks=6", "not with engine.zero_stage=3, set 1 or 2", "not with engine.sequence_parallel=2",
        "not with engine.precision=fp16, take bf16", "not with engine.offload_optimizer=cpu", "not with engine.compile",
        "not with optimizer.kind=muon, take adamw", "not with determinism=D1, set D0", "in olmo2 what is cut may meet",
        "num_attention_heads=6", "num_key_value_heads=2", "intermediate_size=10",
    ), strict=True):  # fmt: skip
        assert part in line


def test_what_only_the_models_own_defaults_tell_is_refused_before_it_is_built():
    config = configured("engine.tensor_parallel=2", "ranks=2")
    check_model(config, model_config(ModelConfig("mistral", {"num_key_value_heads": 2}), 99, 64), "bf16")
    with pytest.raises(ConfigError) as told:
        check_model(config, model_config(ModelConfig("mistral", {"num_key_value_heads": 1}), 99, 64), "fp16")
    assert told.value.problems[0] == "engine.tensor_parallel=2: must divide the model's num_key_value_heads=1"
    assert told.value.problems[1].startswith("engine.tensor_parallel=2: not in fp16, which engine.precision=auto")


def test_the_batch_is_that_of_the_groups():
    config = configured("engine.tensor_parallel=2", "ranks=8", "batch.global_batch_size=64",
                        "batch.micro_batch_size=4")  # fmt: skip
    told = deepspeed_config(config, 8, "fp32", 10**6)
    assert told["gradient_accumulation_steps"] == 4
    assert told["tensor_parallel"] == {"autotp_size": 2}
    assert "tensor_parallel" not in deepspeed_config(configured(), 8, "fp32", 10**6)


def test_a_plan_knows_the_parts_and_what_is_summed():
    sizes = ["model.settings={hidden_size: 64, intermediate_size: 160, num_hidden_layers: 3, num_attention_heads: 8, "
             "num_key_value_heads: 4}", "model.vocabulary_size=1000"]  # fmt: skip
    whole, shared = (subject_of(configured(f"engine.tensor_parallel={parts}", "ranks=8", *sizes)) for parts in (1, 4))
    layers = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert shared.parameters == whole.parameters == whole.held
    assert shared.held == whole.held - layers * 3 // 4
    assert shared.flops == whole.flops
    assert shared.activations.a_sequence < whole.activations.a_sequence
    assert layout_of(shared, 8, 1).ranks == 2
    assert needs(shared, 8, 1, 1).states == sum(states(shared.held, 2, 1, gradient_bytes=4))
    assert (stages_of(shared), micro_batches(shared, 8)[-1]) == ((1, 2), whole.config.batch.global_batch_size // 2)
    assert "train.engine.tensor_parallel=4 does not divide them" in str(uneven(shared, 1, 6))
    # a token: 2 sums of 64 values on the way, 2 on the way back, 3 layers, each sum twice the bytes of an all-to-all
    assert (shared.exchanged, shared.messages) == (2 * 4 * 64 * 3 * 2, 2 * 4 * 3)
    net = network("H100", 4, 400, 15e-6)
    alone = Work(1e9, 3, 1, 1, 0.1)
    work = replace(alone, sharing=4, exchanged=1e9, messages=24, matrices=True)
    sums = 1e9 * 3 / 4 / (0.8 * 450e9) + 24 * 3 * 15e-6
    # each of four holds its parts with one rank of the other node, and they have its network together
    holders = 2e9 / 2 / (0.8 * 50e9 / 4) + 2 * 15e-6
    assert step_seconds(work, 8, net) == pytest.approx(sums + 0.1 / 3 + max(0.2 / 3, 2 * holders) + holders)
    assert step_seconds(work, 4, net) == pytest.approx(sums + 0.1)
    assert net.apart(8) == replace(net, gpus_per_node=1, node=net.node / 4)


@pytest.fixture(scope="module")
def runs(tiny_settings, tmp_path_factory) -> Path:
    """A folder of runs: ``alone-*`` on one rank; ``two-*`` on a group of two; ``four`` on two groups of two, where
    ``again`` went on from step SAVED, ``by-four`` on a group of four; ``moved-*`` from step SAVED of another layout on:
    to one rank, and from it."""
    folder = tmp_path_factory.mktemp("parts")
    qwen = ["model.architecture=qwen3", "++model.settings.head_dim=16"]
    average = ["ema.decay=0.9", f"evaluate.{TASKS}", f"evaluate.{ITEMS}", "evaluate.tokens_per_language=1_000_000"]
    models = {"llama": average, "qwen3": [*qwen, "++model.settings.tie_word_embeddings=false"],
              "tied": [*qwen, "++model.settings.tie_word_embeddings=true", "optimizer.kind=ademamix"],
              "bf16": ["engine.precision=bf16"]}  # fmt: skip
    norms = "guards.layer_norms_every_steps=2"

    def case(run, stage, shared, *more):
        return [*tiny_settings, f"run={folder / run}", f"engine.zero_stage={stage}", "checkpoint.keep_last=9",
                f"tokens={STEPS * 8 * 64}", f"checkpoint.every_steps={SAVED}", f"evaluate.every_steps={SAVED}",
                "optimizer.gradient_clipping=0.5", "optimizer.weight_decay=0.3", f"state_hash_every_steps={SAVED}",
                "guards.weights_every_steps=1", f"engine.tensor_parallel={shared}", *more]  # fmt: skip

    def moved(there, run):
        shutil.copytree(folder / there, folder / run)
        shutil.rmtree(folder_of(folder / run / "checkpoints", STEPS))

    told = train_cases(folder / "1", 1, {f"alone-{key}": case(f"alone-{key}", 1, 1, norms, *more)
                                         for key, more in models.items()})  # fmt: skip
    moved("alone-llama", "moved-two")
    told |= train_cases(
        folder / "2", 2,
        {**{f"two-{key}": case(f"two-{key}", stage, 2, *([norms] if stage == 1 else []), *more)
            for (key, more), stage in zip(models.items(), (1, 2, 1, 2), strict=True)},
         "moved-two": case("moved-two", 2, 2, *average), "nan": case("nan", 1, 2),
         "spike": case("spike", 1, 2, "guards.spikes.sigma=6", "guards.spikes.window=8", "tokens=8192"),
         "recomputed": case("recomputed", 1, 2, "engine.recompute_every_layers=1", *average)},
        {"nan": {"poison": 3}, "spike": {"steep": [96, 97]}, "two-llama": SENT, "two-qwen3": SENT, "two-bf16": SENT,
         "recomputed": SENT},
    )  # fmt: skip
    moved("two-llama", "moved-one")
    told |= train_cases(folder / "1b", 1, {"moved-one": case("moved-one", 1, 1, *average)})
    moved("two-llama", "moved-four")
    told |= train_cases(folder / "4", 4, {
        "four": case("four", 1, 2, *average),
        "half": case("again", 1, 2, f"until_step={SAVED}", *average), "again": case("again", 1, 2, *average),
        "moved-four": case("moved-four", 2, 2, *average), "flip": case("flip", 1, 2),
        "each-norm": case("each-norm", 2, 2, *qwen),
    }, {"flip": {"flip": 3}, "four": SENT, "each-norm": SENT})  # fmt: skip
    by_four = case("by-four", 2, 4, "model.settings.num_key_value_heads=4", *average)
    told |= train_cases(folder / "4b", 4, {"by-four": by_four}, {"by-four": SENT})  # a process has one size of groups
    (folder / "told.json").write_text(json.dumps(told))
    return folder


RUNS = {"two-llama": "llama", "two-qwen3": "qwen3", "two-tied": "tied", "two-bf16": "bf16", "four": "llama",
        "recomputed": "llama", "moved-one": "llama", "moved-two": "llama", "moved-four": "llama"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_shared_matrices_learn_the_same(runs, name):
    """With clipping that bites and weight decay; norms are those of one rank, so what all hold is counted once."""
    alone, close = runs / f"alone-{RUNS[name]}", ROUNDED if name == "two-bf16" else TOLERANCE
    assert json.loads((runs / "told.json").read_text())[name] == EXIT_DONE
    expected, found = losses(alone), losses(runs / name)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=close)
    for step, values in evaluations(alone).items():
        assert evaluations(runs / name)[step] == pytest.approx(values, rel=close)
    was, now = (_steps(one) for one in (alone, runs / name))
    assert max(one["gradient_norm"] for one in was) > 0.5  # it is clipped
    assert [one["gradient_norm"] for one in now] == pytest.approx([one["gradient_norm"] for one in was], rel=10 * close)
    for one, other in zip(now, was, strict=True):
        assert one["loss_by_language"] == pytest.approx(other["loss_by_language"], rel=10 * close)
        assert one["consumed_tokens"] == other["consumed_tokens"]
        if "gradient_norm_by_layer" in one:
            assert one["gradient_norm_by_layer"] == pytest.approx(other["gradient_norm_by_layer"], rel=10 * close)
    assert any("gradient_norm_by_layer" in one for one in now) or name not in ("two-llama", "two-tied")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-llama", "two-tied", "four", "moved-two"])
def test_the_hash_that_was_taken_is_that_of_the_checkpoint_that_was_written(runs, name):
    """Two ways out of the parts, one by the ranks' memory and one by files, lead to the same whole tensors.

    And they are near those of one rank: a part in a wrong place errs by about 1. Rounding is seen in single weights
    of nearly no gradient, as Adam's kin divide by its size (AdEMAMix: 1e-4 of a matrix, by one weight of its 3,072).
    """
    roots = {record["step"]: record["root"] for _, record in ledger.lines(runs / name / "ledger.jsonl")
             if record["kind"] == "state"}  # fmt: skip
    alone = Checkpoint(folder_of(runs / f"alone-{RUNS[name]}/checkpoints", STEPS))
    for step in (SAVED, STEPS):
        checkpoint = Checkpoint(folder_of(runs / name / "checkpoints", step))
        assert checkpoint.shapes == alone.shapes
        assert state_of_checkpoint(checkpoint).root == roots[step]
    for part in ("model", "ema") if alone.averaged else ("model",):
        right, found = alone.weights(part), checkpoint.weights(part)
        apart = max(float((found[key] - right[key]).norm() / right[key].norm()) for key in right)
        assert apart < (1e-3 if name == "two-tied" else 1e-4)


@pytest.mark.slow
def test_the_same_layout_goes_on_bit_for_bit(runs):
    told = json.loads((runs / "told.json").read_text())
    assert (told["half"], told["again"]) == (EXIT_GO_ON, EXIT_DONE)
    assert losses(runs / "again") == losses(runs / "four")
    roots = [state_of_checkpoint(Checkpoint(folder_of(runs / one / "checkpoints", STEPS))).root
             for one in ("again", "four")]  # fmt: skip
    assert roots[0] == roots[1]


@pytest.mark.slow
def test_guards_see_what_happens_to_one_rank_of_a_group(runs):
    """Rank 1 alone has the fault; what it computes reaches rank 0 in the next sum."""
    told = json.loads((runs / "told.json").read_text())
    assert "step 3: the loss is nan" in told["nan"]
    assert "no finite loss for sample 17 (" in told["nan"]
    assert "step 3: model.layers.1.mlp.up_proj.weight should be the same on all ranks and is not" in told["flip"]
    assert told["spike"] == EXIT_DONE
    spikes = [record for record in read_metrics(runs / "spike/metrics.jsonl") if record.get("event") == "spike"]
    assert [one["step"] for one in spikes] == [13]


@pytest.mark.slow
def test_what_leaves_the_run_is_the_whole_model(runs, hanse, capsys):
    run = runs / "two-qwen3"
    assert hanse("export", f"run={run}") == 0
    weights = Checkpoint(folder_of(run / "checkpoints", STEPS)).weights()
    found = load_file(run / "export/model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    capsys.readouterr()
    assert hanse("generate", f"run={run}", "prompts=[le]", "max_new_tokens=3") == 0
    starts = [record for _, record in ledger.lines(run / "ledger.jsonl") if record["kind"] == "start"]
    assert (starts[0]["ranks"], starts[0]["tensor_parallel"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-llama", "four", "by-four"])
def test_what_is_asked_on_the_way_is_what_one_rank_finds_in_the_checkpoint(runs, hanse, name):
    assert hanse("evaluate", f"run={runs / name}", "step=all", "samples=0", TASKS, ITEMS) == 0
    asked = {record["step"]: record for record in read_metrics(runs / name / "metrics.jsonl") if "evaluation" in record}
    for step in (SAVED, STEPS):
        found = json.loads((runs / name / f"evaluations/step-{step:08d}.json").read_text())
        assert found["tasks"] == asked[step]["evaluation_tasks"]
        assert all(len(one) > 1 for one in found["tasks"].values())
        for language, rates in asked[step]["evaluation"].items():
            for key, value in rates.items():
                assert found["languages"][language][key] == pytest.approx(value, rel=TOLERANCE), (language, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-llama", "two-qwen3", "two-bf16", "recomputed", "four", "by-four", "each-norm"])
def test_a_plan_counts_what_ranks_really_send(runs, name):
    """In a step of a run, all that torch was given to send in the group, and to the holders of the same parts."""
    cases = [one for path in runs.glob("*/cases.json") for one in json.loads(path.read_text())]
    told = next(one["config"] for one in cases if one["name"] == name)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), told))
    subject, size, batch = subject_of(config), config.engine.tensor_parallel, config.batch
    holders = config.ranks_of_start // size
    accumulation = batch.global_batch_size // (batch.micro_batch_size * holders)
    sent = json.loads((runs / name / "sent.json").read_text())

    sums = {int(size): times for size, times in sent[",".join(map(str, range(size)))]["allreduce_"].items()}
    tokens, value = batch.micro_batch_size * config.data.sequence_length, VALUE_BYTES[subject.precision]
    state, of_heads = tokens * 48 * value, 16 * value  # 48: the layer's width; 16: a head's, whose norm is apart
    assert 2 * state * sums[state] == subject.exchanged * tokens * accumulation
    assert 2 * (sums[state] + sums.get(of_heads, 0)) == subject.messages * accumulation
    assert (of_heads in sums) == ("qwen3" in config.model.architecture)
    assert sum(each * times for each, times in sums.items() if each != state) < 0.01 * state * sums[state]

    if holders > 1:
        zero, whole = sent[",".join(map(str, range(0, size * holders, size)))], subject.held * value
        gathered = sum(int(each) * times for each, times in zero["send"].items())
        assert gathered == pytest.approx(whole * (holders - 1) / holders, rel=0.01)
        # DeepSpeed sums where a reduction would do; so does a plan (train/scaling.py).
        summed = sum(int(each) * times for each, times in zero["allreduce_"].items())
        assert summed == pytest.approx(whole * (accumulation if config.engine.zero_stage == 2 else 1), rel=0.01)


@pytest.mark.slow
def test_models_whose_matrices_are_shared_are_the_same_models(runs, tiny_settings, tmp_path):
    """Every architecture; ranges of parts; states that are restored, bit for bit, from and to whole matrices."""

    def case(ranks, stage, shared, checkpoint, *more):
        return {"checkpoint": str(folder_of(checkpoint / "checkpoints", SAVED)), "config": configuration(
            [*tiny_settings, f"run={tmp_path / 'none'}", f"ranks={ranks}", f"engine.zero_stage={stage}",
             f"engine.tensor_parallel={shared}", *more])}  # fmt: skip

    def of_ranks(ranks, size, cases):
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        command = [sys.executable, str(PROGRAM), str(size), str(tmp_path / "cases.json"), str(tmp_path / "found.json")]
        assert run_ranks(command, ranks, 1, tmp_path / f"logs-{ranks}") == 0
        return json.loads((tmp_path / "found.json").read_text())

    average = "ema.decay=0.9"
    found = of_ranks(2, 2, {"from-one": case(2, 2, 2, runs / "alone-llama", average),
                            "from-four": case(2, 1, 2, runs / "four", average)})  # fmt: skip
    states = list(found.pop("restored").values())
    assert set(CUTTABLE) < found.keys()
    for name, one in found.items():
        assert max(one["errors"].values()) < 2e-5, (name, one)
        # Of a rank's single key torch makes no copies for its queries, which a plan does not know.
        assert 0.9 * one["planned"] < one["kept"] <= one["planned"]
    assert found["own-keys"]["kept"] == found["own-keys"]["planned"]
    four = of_ranks(4, 4, {})
    assert max(max(one["errors"].values()) for name, one in four.items() if name != "restored") < 2e-5
    states += of_ranks(4, 2, {"two-to-four": case(4, 1, 2, runs / "two-llama", average)})["restored"].values()
    states += of_ranks(3, 1, {"two-to-three": case(3, 3, 1, runs / "two-llama", average,
                                                   "batch.global_batch_size=6")})["restored"].values()  # fmt: skip
    assert len(states) == 4
    assert all(was == now for was, now in states)


def _steps(run: Path) -> list[dict]:
    return [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
