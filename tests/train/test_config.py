"""Everything wrong with a training configuration is told at once, with the key and what to do."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EXIT_USER_ERROR
from tests.train.test_engine_config import configured


def refused(hanse, capsys, *arguments: str) -> str:
    assert hanse("train", *arguments) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_all_problems_of_the_values_are_told_at_once(hanse, capsys, tiny_settings, tmp_path):
    text = refused(
        hanse, capsys, *tiny_settings, f"run={tmp_path}", "engine.zero_stage=4", "optimizer.betas=[0.9]",
        "data.mixture={fr: -1, de: 0}", "schedule.decay=step", "optimizer.learning_rate=0", "track.wandb=maybe",
    )  # fmt: skip
    assert "problems in the configuration" in text
    for part in (
        "engine.zero_stage=4: one of 0, 1, 2, 3", "optimizer.betas=[0.9]", "data.mixture.fr=-1",
        "at least one language",
        "schedule.decay=step: one of linear, 1-sqrt, cosine", "optimizer.learning_rate=0", "track.wandb=maybe",
    ):  # fmt: skip
        assert part in text


# One fault each, none of which makes another one right or another's words different.
FAULTS = {
    "seed": -1, "until_step": 0, "name": "/x", "data.temperature": 0.0, "data.packing": "tight", "ema.decay": 1.0,
    "checkpoint.every_steps": 0, "evaluate.every_steps": 0, "optimizer.weight_decay": -1.0, "loss.z_weight": -1.0,
    "engine.zero_stage": 7, "engine.precision": "fp8", "engine.offload_parameters": "cpu", "guards.slow_ratio": 0.5,
    "track.wandb": "maybe", "model.vocabulary_size": 0, "engine.sequence_parallel": 3, "engine.hpz_partition_size": 3,
    # of stages, of the arithmetic of steps, and of profiles: what is counted
    "stages.0.rope_theta": -1.0, "stages.1.data.mixture_rule": "all", "stages.0.data.temperature": -1.0,
    "stages.1.data.mixture": {"fr": -1.0}, "schedule.warmup_steps": 10**9, "profiling.steps": 0,
    "profiling.after_steps": 0, "profiling.ranks": [9],
}  # fmt: skip
# These leave nothing to count steps by, or no ranks to share them among: what hangs on it cannot be told beside them.
COUNTED = ("stages.0.data.temperature", "stages.1.data.mixture", "schedule.warmup_steps")
UNCOUNTABLE = {"tokens": 0, "data.sequence_length": 0, "batch.micro_batch_size": 0, "stages.0.tokens": 0,
               "stages.1.tokens": 5, "stages.1.batch.global_batch_size": -1}  # fmt: skip
OTHERS = {"ranks": 0, "optimizer.learning_rate": 0.0, "schedule.decay": "step", "batch.global_batch_size": 7,
          "engine.tensor_parallel": 5, "stages.1.learning_rate": 0.0}  # fmt: skip
STAGES = "stages=[{name: a, tokens: 2000000}, {name: b, data: {temperature: 2.0}}]"


@pytest.fixture(scope="module")
def sound():
    return configured(STAGES, "tokens=10000000", "profile=true", "data.mixture_rule=temperature")


def faulty(config, faults):
    """The problems of a copy of ``config`` with these values."""
    config = deepcopy(config)
    for counted in ("timeline", "courses"):
        config.__dict__.pop(counted, None)
    for key, value in faults.items():
        *path, name = key.split(".")
        owner = config
        for part in path:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        setattr(owner, name, value)
    return config.problems()


def some(faults):
    return st.sets(st.sampled_from(sorted(faults))).map(lambda keys: {key: faults[key] for key in keys})


@given(some(FAULTS))
def test_what_is_told_of_each_fault_alone_is_told_of_all_of_them_together(sound, faults):
    together = faulty(sound, faults)
    for key, value in faults.items():
        alone = faulty(sound, {key: value})
        assert alone
        assert set(alone) <= set(together), key
    assert faults or together == []


@given(some(FAULTS), some({**UNCOUNTABLE, **OTHERS}))
def test_where_nothing_can_be_counted_the_other_faults_are_told_nevertheless(sound, faults, worse):
    together = faulty(sound, {**faults, **worse})
    for key, value in faults.items():
        if key not in (*COUNTED, "engine.sequence_parallel", "engine.hpz_partition_size", "profiling.ranks"):
            assert set(faulty(sound, {key: value})) <= set(together), key
    for key, value in worse.items():
        if key in UNCOUNTABLE:
            assert {line for line in faulty(sound, {key: value}) if line.startswith(key)} <= set(together), key
    assert len(set(together)) == len(together)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["batch.global_batch_size=7"],
            "not a multiple of batch.micro_batch_size x ranks = 2 x 2 = 4; nearest: 4 or 8",
        ),
        (["ranks=3", "batch.micro_batch_size=3"], "3 x 3 = 9; nearest: 9"),
        (["ranks=3"], "2 x 3 = 6; nearest: 6 or 12; or 2 or 4 ranks"),
        (["tokens=511"], "less than one step, which takes batch.global_batch_size x data.sequence_length = 512 tokens"),
        (["schedule.warmup_steps=11"], "do not fit into the 12 steps"),
        (["batch.globl_batch_size=8"], "did you mean 'batch.global_batch_size'?"),
        (["batch.micro_batch_size=many"], "batch.micro_batch_size"),
        (["model=llama-9b"], "model"),
        (["name=../elsewhere"], "name=../elsewhere: folders are named by it"),
        (["profile=true", "profiling.steps=0"], "profiling.steps=0: must be 1 or more"),
        (["profile=true", "profiling.ranks=[2]"], "profiling.ranks=[2]: some of the ranks 0 to 1"),
    ],
)
def test_impossible_arithmetic_and_unknown_keys(hanse, capsys, tiny_settings, tmp_path, overrides, message):
    assert message in refused(hanse, capsys, *tiny_settings, f"run={tmp_path / 'run'}", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", [{"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "3"},
                                      {"RANK": "0", "WORLD_SIZE": "3"}])  # fmt: skip
def test_under_a_launcher_the_ranks_are_those_it_started(hanse, capsys, tiny_settings, tmp_path, monkeypatch, launcher):
    for key, value in launcher.items():
        monkeypatch.setenv(key, value)
    three = ["batch.global_batch_size=9", "batch.micro_batch_size=1", "engine.sequence_parallel=3"]
    ours = [*tiny_settings, *three, "data.sequence_length=63", "model.settings.num_attention_heads=3",
            "model.settings.num_key_value_heads=3", f"run={tmp_path / 'run'}"]  # fmt: skip
    assert hanse("train", "--check", *ours) == 0  # by ranks=2 both would be wrong
    text = refused(hanse, capsys, *ours, "engine.sequence_parallel=1", "batch.global_batch_size=8")
    assert "1 x 3 = 3; nearest: 6 or 9" in text
    assert "must divide ranks=3" in refused(hanse, capsys, *ours, "engine.sequence_parallel=2")
    hpz = [*ours, "engine.zero_stage=3", "engine.sequence_parallel=1"]
    assert hanse("train", "--check", *hpz, "engine.hpz_partition_size=3") == 0
    text = refused(hanse, capsys, *hpz, "engine.hpz_partition_size=2")
    assert "engine.hpz_partition_size=2: must divide ranks=3; it is the number of GPUs of a node" in text


def test_a_run_as_what_to_begin_with_is_answered_with_its_newest_checkpoint(hanse, capsys, tiny_settings, tmp_path):
    for step in (5, 10):
        (tmp_path / f"first/checkpoints/step-{step:08d}").mkdir(parents=True)
        (tmp_path / f"first/checkpoints/step-{step:08d}/manifest.json").touch()
    ours = [*tiny_settings, f"run={tmp_path / 'run'}", f"init_from={tmp_path / 'first'}", "--check"]
    newest = tmp_path / "first/checkpoints/step-00000010"
    said = f"init_from={tmp_path / 'first'}: is a run; name one of its checkpoints, e.g. init_from={newest}"
    assert said in refused(hanse, capsys, *ours)
