"""Ranks that share sequences compute what ranks with whole ones do, and a run may go from one to the other."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import EXIT_DONE, ConfigError
from launch.local import run_ranks
from tests.train.multirank import evaluations, losses, train_cases
from tests.train.test_attention import PACKED, batch
from tests.train.test_engine_config import configured, problems_of
from train import ledger
from train.config import BatchConfig, ModelConfig, batch_problems
from train.memory import activations
from train.model import model_config
from train.plan_subject import exchanged
from train.ranks import Place
from train.run_folder import read_metrics
from train.scaling import Work, network, step_seconds
from train.sequence_config import SHAREABLE
from train.sequence_parallel import check_model
from train.zero_config import deepspeed_config

STEPS, SAVED = 6, 3
PROGRAM = Path(__file__).with_name("sequence_program.py")
TOLERANCE = 1e-5  # relative, of a loss and of bits per byte in fp32; of a gradient's norm ten times that


def test_what_does_not_go_together_is_refused_with_all_that_is_wrong():
    shared = "engine.sequence_parallel="
    assert problems_of(f"{shared}0") == ["engine.sequence_parallel=0: must be 1 or more"]
    found = problems_of(
        f"{shared}3", "ranks=4", "data.sequence_length=100", "determinism=D2", "threads_per_rank=1",
        "engine.precision=fp32", "model.attention=eager", "model.architecture=gemma3_text",
        "model.settings.num_attention_heads=4", "model.settings.num_key_value_heads=2",
        "stages=[{name: a, tokens: 100000}, {name: b, data: {sequence_length: 200}}]",
    )  # fmt: skip
    for line, part in zip(found, (
        "must divide ranks=4", "must divide data.sequence_length=100", "must divide stages.1.data.sequence_length=200",
        "not with determinism=D2", "not with model.attention=eager", "in gemma3_text positions may meet",
        "must divide the model's num_attention_heads=4", "num_key_value_heads=2, or be a multiple of it",
    ), strict=True):  # fmt: skip
        assert line.startswith("engine.sequence_parallel=3: ")
        assert part in line


def test_what_only_the_models_own_defaults_tell_is_refused_before_it_is_built():
    config = configured("engine.sequence_parallel=2", "data.sequence_length=64")
    check_model(config, model_config(ModelConfig("mistral", {"num_key_value_heads": 2}), 99, 64))
    narrow = ModelConfig("mistral", {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3,
                                     "sliding_window": 16})  # fmt: skip
    with pytest.raises(ConfigError) as told:
        check_model(config, model_config(narrow, 99, 64))
    for part, line in zip(("heads=9", "heads=3", "window=16"), told.value.problems, strict=True):
        assert part in line


def test_the_batch_is_that_of_the_groups():
    config = configured("engine.sequence_parallel=2", "ranks=8", "batch.global_batch_size=64",
                        "batch.micro_batch_size=4")  # fmt: skip
    told = deepspeed_config(config, 8, "fp32", 10**6)
    assert told["gradient_accumulation_steps"] == 4
    assert told["train_batch_size"] == 4 * 4 * 8  # DeepSpeed counts the slices of each rank
    assert batch_problems(BatchConfig(6, 1), 4, 2) == []
    assert "x ranks / (engine.sequence_parallel or tensor_parallel) = 1 x 4 / 2 = 2" in batch_problems(
        BatchConfig(7, 1), 4, 2
    )[0]  # fmt: skip
    assert [Place(rank, 4).data_parallel(2) for rank in range(4)] == [Place(0, 2)] * 2 + [Place(1, 2)] * 2


def test_slices_are_all_of_the_positions_and_know_the_documents_of_the_whole():
    whole = batch(np.random.default_rng(0), PACKED)
    slices = [whole.slice(number, 3) for number in range(3)]
    for name in ("input_ids", "labels", "positions"):
        assert np.array_equal(np.concatenate([getattr(one, name) for one in slices], 1), getattr(whole, name))
    assert all(one.documents is whole.documents and one.packed for one in slices)
    assert whole.slice(0, 1) is whole


def test_a_plan_knows_the_slice_and_what_is_exchanged():
    settings = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8,
                "num_key_value_heads": 2}  # fmt: skip
    config = model_config(ModelConfig("llama", settings), 200, 64)
    one, four = (activations(config, 64, "bf16", 0, slices) for slices in (1, 4))
    mask = 2 * 64 * 64  # bytes a sequence, which every rank holds whole
    again = 2 * 3 * 64 * 64 / 4  # results of attention: as computed, and as they arrived
    assert four.a_sequence - mask - again == pytest.approx((one.a_sequence - mask) / 4, rel=0.02)
    assert four.targets == one.targets / 4
    train = configured("engine.sequence_parallel=4", "ranks=4", "data.sequence_length=64",
                       "engine.recompute_every_layers=1")  # fmt: skip
    # a token: queries, results of 8 heads of 8, keys and values of 4 instead of 2, 3 layers, 3 passes; a quarter
    assert exchanged(config, train, "bf16") == ((2 * 8 + 2 * 4) * 8 * 3 * 3 * 2 / 4, 2 * 3 * 3)
    net = network("H100", 4, 400, 15e-6)
    alone, shared = Work(1e9, 3, 1, 1, 1.0), Work(1e9, 3, 1, 1, 1.0, sharing=4, exchanged=1e9, messages=12)
    assert step_seconds(shared, 8, net) - step_seconds(alone, 8, net) == pytest.approx(
        1e9 * 3 / 4 / (0.8 * 450e9) + 12 * 3 * 15e-6
    )
    every_second = configured("engine.sequence_parallel=4", "ranks=4", "engine.recompute_every_layers=2")
    assert exchanged(config, every_second, "bf16")[1] == 2 * (2 * 3 + 2)
    assert net.all_to_all(1e9, 8, 1) == pytest.approx(1e9 * 7 / 8 / (0.8 * 12.5e9) + 7 * 15e-6)


@pytest.mark.slow
def test_models_whose_sequences_are_shared_are_the_same_models(tmp_path):
    """Every architecture, every back end, keys fewer than ranks; on two ranks, packed documents and whole ones."""
    code = run_ranks([sys.executable, str(PROGRAM), str(tmp_path / "found.json")], 2, 1, tmp_path / "logs")
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(SHAREABLE) < found.keys()
    for name, one in found.items():
        assert max(one["errors"]) < 2e-5, (name, one["errors"])
    assert found["own-keys"]["kept"] == found["own-keys"]["planned"]
    # Of a rank's single key torch makes no copies for its queries, which a plan does not know.
    assert 0.9 * found["llama"]["planned"] < found["llama"]["kept"] < found["llama"]["planned"]


@pytest.fixture(scope="module")
def runs(tiny_settings, tmp_path_factory) -> Path:
    """A folder of runs on two ranks: whole sequences (``alone``), shared ones (``shared``), one with a fault; and
    of shared ones that go on from step SAVED, ``moved-*``: with whole sequences, and on two groups of two ranks."""
    folder = tmp_path_factory.mktemp("shared")

    def case(run, stage, shared, *more):
        return [*tiny_settings, f"run={folder / run}", f"engine.zero_stage={stage}", "checkpoint.keep_last=9",
                f"tokens={STEPS * 8 * 64}", f"checkpoint.every_steps={SAVED}", f"evaluate.every_steps={SAVED}",
                f"engine.sequence_parallel={shared}", *more]  # fmt: skip

    first = {"alone": case("alone", 1, 1), "shared": case("shared", 3, 2),
             "nan": case("nan", 1, 2), "half": case("moved-alone", 1, 2, f"until_step={SAVED}"),
             "moved-alone": case("moved-alone", 3, 1)}  # fmt: skip
    told = train_cases(folder / "two", 2, first, {"nan": {"poison": 3}})
    shutil.copytree(folder / "shared", folder / "moved-four")
    shutil.rmtree(folder / f"moved-four/checkpoints/step-{STEPS:08d}")
    told |= train_cases(folder / "four", 4, {"moved-four": case("moved-four", 0, 2)})
    (folder / "told.json").write_text(json.dumps(told))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "moved-alone", "moved-four"])
def test_shared_sequences_teach_the_same(runs, name):
    assert json.loads((runs / "told.json").read_text())[name] == EXIT_DONE
    expected, found = losses(runs / "alone"), losses(runs / name)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=TOLERANCE)
    for step, values in evaluations(runs / "alone").items():
        assert evaluations(runs / name)[step] == pytest.approx(values, rel=TOLERANCE)
    was, now = (_steps(runs / one) for one in ("alone", name))
    assert [one["gradient_norm"] for one in now] == pytest.approx(
        [one["gradient_norm"] for one in was], rel=10 * TOLERANCE
    )
    assert [one["consumed_tokens"] for one in now] == [one["consumed_tokens"] for one in was]
    for one, other in zip(now, was, strict=True):
        assert one["loss_by_language"] == pytest.approx(other["loss_by_language"], rel=10 * TOLERANCE)


def _steps(run: Path) -> list[dict]:
    return [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]


@pytest.mark.slow
def test_starts_tell_how_sequences_were_shared(runs):
    starts = [record for _, record in ledger.lines(runs / "moved-four/ledger.jsonl") if record["kind"] == "start"]
    assert [(one["ranks"], one["zero_stage"], one["sequence_parallel"]) for one in starts] == [(2, 3, 2), (4, 0, 2)]
    alone = [record for _, record in ledger.lines(runs / "alone/ledger.jsonl") if record["kind"] == "start"]
    assert "sequence_parallel" not in alone[0]
    steps = [ledger.steps(record for _, record in ledger.lines(runs / name / "ledger.jsonl")) for name in
             ("alone", "moved-four")]  # fmt: skip
    assert [one["batch"] for one in steps[0].values()] == [one["batch"] for one in steps[1].values()]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_sequences_of_the_group(runs):
    """Rank 1 alone has the fault, in its slice of each second sequence."""
    told = json.loads((runs / "told.json").read_text())["nan"]
    assert "step 3: the loss is nan" in told
    assert "on rank 1 no finite loss for sample 17 (" in told
    assert "from the loss backwards: model.norm.weight" in told
    assert all(f"sample {number} (" in told for number in (19, 21, 23))
