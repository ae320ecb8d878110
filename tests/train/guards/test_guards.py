"""A loss or gradient that is not finite ends a run before its weights are touched, and it says where that came from."""

import json
import math
import re
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from common.errors import EXIT_DONE, EXIT_FLAKY, EXIT_GO_ON, HanseError
from tests.train.multirank import losses, train_cases
from tests.train.test_engine_config import configured
from tests.train.test_invariant import fingerprint
from train import ledger
from train.config import BatchConfig, DataConfig, SpikesConfig, TrainConfig
from train.guards.replicas import checksums, outvoted
from train.guards.rewind import skipped_in, target
from train.guards.spikes import Spikes, limit_of
from train.guards.times import Times, slow_ranks, summary_of
from train.ranks import Place, node_name
from train.run_folder import complete_steps, folder_of, read_metrics
from train.stopwatch import Stopwatch

STEPS, SEQUENCES = 20, 8
BAD = {"steep": [12 * SEQUENCES, 15 * SEQUENCES]}  # the samples of steps 13 to 15


def settings(tiny_settings, run, *more):
    return [
        *tiny_settings, f"run={run}", f"tokens={STEPS * SEQUENCES * 16}", "data.sequence_length=16",
        "evaluate.tokens_per_language=64", "evaluate.every_steps=100", "checkpoint.every_steps=5",
        "checkpoint.keep_last=9", "guards.spikes.sigma=30", "guards.spikes.window=8",
        "guards.layer_norms_every_steps=1", *more,
    ]  # fmt: skip


def state(run, step):
    return json.loads((folder_of(run / "checkpoints", step) / "state.json").read_text())


def by_step(run):
    return {record["step"]: record for record in read_metrics(run / "metrics.jsonl") if "loss" in record}


REWOUND = ("fp32-2", "fp32-3", "bf16-0", "bf16-3")
NANS, SKIPS = ("fp32-1", "fp32-3", "bf16-0", "bf16-1", "bf16-2"), ("fp32-0", "fp32-1", "bf16-2", "fp32-3")
REWINDS = ("determinism=D2", "guards.spikes.rewind_after=3", "guards.spikes.rewind_within=5")


def _kind(kind):
    precision, stage = kind.split("-")
    return [f"engine.precision={precision}", f"engine.zero_stage={stage}"]


@pytest.fixture(scope="module")
def runs(tiny_settings, tmp_path_factory):
    """{name: (run folder, how it ended)} of runs in which something goes wrong, on two ranks in one start."""
    folder = tmp_path_factory.mktemp("guards")
    kinds = {
        **{f"skip-{kind}": (_kind(kind), BAD) for kind in SKIPS},
        **{f"rewind-{kind}": ([*REWINDS, *_kind(kind)], BAD) for kind in REWOUND},
        "half": ([*REWINDS, *_kind(REWOUND[0]), "until_step=10"], BAD),
        "cut": ([*REWINDS, *_kind(REWOUND[0])], BAD),
        **{f"nan-{kind}": (_kind(kind), {"poison": 5}) for kind in NANS},
        "heals": ([], {"poison": 5, "heals": True}),
        "flip": (["guards.weights_every_steps=2", "guards.times_every_steps=2"], {"flip": 4, "slow": 1.0}),
    }
    cases = {name: settings(tiny_settings, folder / ("cut" if name == "half" else name), *more)
             for name, (more, _) in kinds.items()}  # fmt: skip
    told = train_cases(folder / "ranks", 2, cases, {name: faults for name, (_, faults) in kinds.items()})
    return {name: (folder / name, told[name]) for name in kinds}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NANS)
def test_not_a_number_stops_before_the_weights_and_names_parameter_and_documents(runs, kind):
    run, said = runs[f"nan-{kind}"]  # the program holds that the weights are as before
    assert isinstance(said, str)
    assert said.startswith("step 5: the loss is nan and the norm of its gradient inf: on rank 1 no finite loss for")
    # 8 sequences a step, 2 a micro-batch: those of rank 1 are 34, 35 and 38, 39; the second of each is poisoned
    assert re.findall(r"sample (\d+) \(", said) == ["35", "39"]
    assert re.search(r"\((fr|de|es|it): \S+, documents \d+ to \d+\)", said)
    assert "first parameter with no finite gradient, from the loss backwards: model." in said
    assert "Weights were not touched" in said
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert not complete_steps(run / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SKIPS)
def test_a_spike_changes_nothing_and_the_run_goes_on(runs, kind):
    run, code = runs[f"skip-{kind}"]  # the program holds that weights and moments are as before
    assert code == EXIT_DONE
    steps = by_step(run)
    assert [step for step, record in steps.items() if "skipped" in record] == [13, 14, 15]
    assert steps[13]["gradient_norm"] > 100 * steps[12]["gradient_norm"]
    assert steps[20]["loss"] < steps[1]["loss"]
    events = [record for record in read_metrics(run / "metrics.jsonl") if record.get("event") == "spike"]
    assert [(event["step"], event["of"]) for event in events] == [(step, "gradient_norm") for step in (13, 14, 15)]
    assert state(run, 15)["engine"] == {"skipped_updates": 3}  # Adam's bias correction counts updates
    ledgered = ledger.steps(record for _, record in ledger.lines(run / "ledger.jsonl"))
    assert [step for step, line in ledgered.items() if line.get("skipped") == "gradient_norm"] == [13, 14, 15]
    for record in steps.values():
        squares = sum(norm**2 for norm in record["gradient_norm_by_layer"].values())
        assert math.sqrt(squares) == pytest.approx(record["gradient_norm"], rel=1e-3)
        assert {"model.layers.0", "model.layers.1", "model.norm"} < record["gradient_norm_by_layer"].keys()


@pytest.mark.slow
def test_repeated_spikes_lead_back_and_past_the_bad_data_on_any_layout(runs, tiny_settings, tmp_path, hanse, capfd):
    assert {runs[f"rewind-{kind}"][1] for kind in REWOUND} == {EXIT_DONE}
    hashes = [fingerprint(runs[f"rewind-{kind}"][0]) for kind in REWOUND]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]  # back in memory is back, at any stage
    run, _ = runs["rewind-fp32-2"]
    assert state(run, 10)["skipped_samples"] == [[80, 120]]  # steps 11 to 15 were undone
    assert state(run, 10)["consumed_samples"] == 120
    assert state(run, STEPS)["consumed_samples"] == STEPS * SEQUENCES + 40
    records = [record for _, record in ledger.lines(run / "ledger.jsonl")]
    assert ledger.skipped(iter(records)) == [(80, 120)]
    found = ledger.steps(iter(records))
    assert [found[step]["samples"] for step in (10, 11)] == [[72, 80], [120, 128]]
    assert not any("skipped" in line for line in found.values())
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert hanse("verify", f"run={run}") == 0
    said = capfd.readouterr().out
    assert "steps 1 to 20, samples 0 to 200, without 80 to 120" in said
    assert ", 0 failed, " in said

    replay = [f"run={run}", f"output={tmp_path / 'again'}", "from_step=5"]
    assert hanse("reproduce", *replay, "to_step=12") == 2
    assert "replay from_step=10, or up to to_step=15 or more" in capfd.readouterr().err

    # As it was after the rewind, gone on with on one rank at ZeRO-3: the same to the last bit.
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for folder in (moved / "checkpoints").iterdir():
        if folder.name != "step-00000010":
            shutil.rmtree(folder)
    case = settings(tiny_settings, moved, *REWINDS, "engine.zero_stage=3")
    assert train_cases(tmp_path / "one", 1, {"moved": case}, {"moved": BAD}) == {"moved": EXIT_DONE}
    assert fingerprint(moved) == hashes[0]
    starts = [record for _, record in ledger.lines(moved / "ledger.jsonl") if record["kind"] == "start"]
    assert starts[-1]["skipped_samples"] == [[80, 120]]


@pytest.mark.slow
def test_a_start_may_rewind_to_the_step_that_it_began_with(runs):
    run, code = runs["cut"]
    assert (runs["half"][1], code) == (EXIT_GO_ON, EXIT_DONE)
    events = [(record["event"], record["step"]) for record in read_metrics(run / "metrics.jsonl")
              if record.get("event") in ("resume", "rewind")]  # fmt: skip
    assert events == [("resume", 10), ("rewind", 10)]
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert fingerprint(run) == fingerprint(runs[f"rewind-{REWOUND[0]}"][0])


@pytest.mark.slow
def test_machines_that_compute_wrongly_are_named(runs):
    run, said = runs["heals"]
    assert "step 5: the loss is nan" in said
    assert "computed again it is finite on every rank: suspect a machine, rank 1 on " in said
    assert sorted(losses(run)) == [1, 2, 3, 4]
    word = json.loads((run / "logs/fault.json").read_text())
    assert (word["exit_code"], word["nodes"], word["why"]) == (EXIT_FLAKY, [node_name()], said)
    run, said = runs["flip"]
    assert said.startswith("step 4: model.layers.1.mlp.up_proj.weight should be the same on all ranks and is not: ")
    assert "which one cannot be told" in said  # of two ranks
    reports = [record["rank_times"] for record in read_metrics(run / "metrics.jsonl") if "rank_times" in record]
    assert len(reports) == 1
    assert [(one["rank"], one["part"]) for one in reports[0]["slow"]] == [(1, "forward")]
    assert reports[0]["parts"]["forward"]["largest"] > 2  # two micro-batches a step


# --- the parts, without ranks ----------------------------------------------------------------------------------------


numbers = some.floats(0.01, 100)


@given(some.lists(numbers, min_size=8, max_size=40), some.floats(1, 10))
def test_the_limit_is_the_median_and_sigma_deviations(values, sigma):
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(np.array(values) - middle))
    assert limit_of(values, sigma) == pytest.approx(middle + sigma * max(deviation, 0.01 * middle))


def test_up_to_half_of_the_values_may_be_spikes_and_hardly_move_the_limit():
    quiet = [1.0, 1.1, 0.9, 1.05, 0.95] * 2
    assert limit_of([*quiet, *[1e6] * 4], 6) < 3


def test_values_that_hardly_differ_make_no_spikes():
    assert limit_of([1.0] * 10, 6) == pytest.approx(1.06)


def judged(spikes, values, first=1):
    return [step for step, value in enumerate(values, first) if spikes.note(step, value, 1.0)]


def test_nothing_is_judged_before_the_window_is_full_and_a_new_level_is_learnt():
    spikes = Spikes(SpikesConfig(sigma=6, window=8))
    assert judged(spikes, [9.0, *[1.0] * 7, 9.0, 1.0]) == [9]
    assert judged(spikes, [5.0] * 12, 11)[-1] < 16  # half a window later it is no spike any more
    assert spikes.largest_norm(1e9) == -math.inf


def test_a_stage_begins_with_an_empty_window_and_what_counts_towards_a_rewind_stays():
    spikes = Spikes(SpikesConfig(sigma=6, window=8, rewind_after=2))
    assert judged(spikes, [1.0] * 8 + [9.0]) == [9]
    spikes.begin_stage()
    assert judged(spikes, [5.0] * 8 + [5.1, 9.0], 10) == [19]  # another level is no spike
    assert spikes.rewind_due


def test_far_out_is_far_out_by_default():
    settings = configured().guards.spikes
    assert (settings.sigma, settings.window, settings.rewind_after) == (20, 128, 0)
    spikes = Spikes(settings)
    noise = np.random.default_rng(0).lognormal(0, 0.1, 2000)  # wider than the demo's gradient norm
    assert judged(spikes, noise) == []
    assert judged(spikes, [4.0], 2001) == [2001]


def test_spikes_count_towards_a_rewind_only_when_close_together():
    spikes = Spikes(SpikesConfig(sigma=6, window=8, rewind_after=2, rewind_within=3))
    assert judged(spikes, [1.0] * 8 + [9, 1, 1, 9]) == [9, 12]
    assert not spikes.rewind_due
    assert judged(spikes, [1, 9.0], 13) == [14]
    assert spikes.rewind_due


def test_a_run_that_goes_on_judges_as_if_it_had_not_been_stopped():
    settings = SpikesConfig(sigma=6, window=8, rewind_after=3)
    before = Spikes(settings)
    judged(before, [1.0, 1.1] * 6 + [9.0])
    after = Spikes(settings, json.loads(json.dumps(before.state()))["spikes"])
    assert (after.limit("loss"), after.recent) == (before.limit("loss"), [13])
    assert not Spikes(SpikesConfig()).state()


def test_the_checkpoint_to_go_back_to_is_older_than_the_first_spike():
    assert target([5, 10, 15], 13, 0) == 10
    assert target([5, 10, 15], 11, 0) == 10
    assert target([5, 10, 15], 10, 0) == 5
    assert target([5, 10, 15], 13, 5) == 5
    assert target([5], 3, 0) is None


ranges = some.lists(some.integers(0, 30), max_size=6, unique=True).map(
    lambda edges: [(8 * a, 8 * b) for a, b in zip(*[iter(sorted(edges)[: len(edges) // 2 * 2])] * 2, strict=True)]
)


@given(ranges)
def test_steps_take_the_samples_that_are_not_skipped_in_their_order_and_back(skipped):
    inside = {sample for start, stop in skipped for sample in range(start, stop)}
    left = [sample for sample in range(60 * 8) if sample not in inside]
    whole = TrainConfig(tokens=60 * 8, data=DataConfig(sequence_length=1), batch=BatchConfig(8, 1)).timeline
    for step in range(len(left) // 8):
        assert whole.first_sample(step, skipped) == left[step * 8]
    at = whole.steps_of(np.arange(60 * 8), skipped)
    assert [sample for sample in range(60 * 8) if at[sample] == 0] == sorted(inside)
    assert at[left].tolist() == [number // 8 + 1 for number in range(len(left))]


@pytest.mark.parametrize("skipped", [[[5, 3]], [[0, 8], [4, 12]], [[-1, 3]], ["x"], 7, [[1, 2, 3]], [[3, 3]]])
def test_a_state_whose_skipped_samples_make_no_sense_is_refused(tmp_path, skipped):
    with pytest.raises(HanseError, match="not sound"):
        skipped_in({"skipped_samples": skipped}, tmp_path)


def test_a_ledger_tells_what_is_skipped_as_the_run_stands_at_its_end():
    rewind = {"kind": "rewind", "step": 10}
    start = {"kind": "start", "step": 0}
    first, again = {**rewind, "samples": [80, 120]}, {**rewind, "step": 14, "samples": [152, 160]}
    assert ledger.skipped(iter([start, first, again])) == [(80, 120), (152, 160)]
    assert ledger.skipped(iter([start, first, {**rewind, "step": 5, "samples": [40, 200]}])) == [(40, 200)]
    assert ledger.skipped(iter([start, first, {**start, "step": 5}])) == []  # its checkpoint was lost
    assert ledger.skipped(iter([start, first, {**start, "step": 12, "skipped_samples": [[80, 120]]}])) == [(80, 120)]


def test_one_flipped_bit_changes_its_tensors_checksum_alone():
    weights = {"a": torch.randn(100).bfloat16(), "b": torch.randn(7, 3)}
    before = checksums(weights)
    weights["b"].view(torch.int32)[2, 1] ^= 1
    assert (checksums(weights) != before).tolist() == [False, True]


@pytest.mark.parametrize(("values", "ranks"), [([5, 5, 6, 5], [2]), ([5, 6], []), ([5, 6, 7, 8], []), ([1, 2, 2], [0])])
def test_the_rank_to_suspect_is_the_one_that_most_do_not_agree_with(values, ranks):
    assert outvoted(values) == ranks


def times(*ranks):
    return torch.tensor([(*one, 1e9 + rank) for rank, one in enumerate(ranks)], dtype=torch.float64).view(-1)


def test_a_rank_is_slow_when_it_is_so_by_ratio_and_by_a_share_of_the_step():
    nodes = ["n0", "n1", "n2", "n3"]
    told = times((1.0, 0.001), (1.1, 0.001), (2.0, 0.001), (0.9, 0.4))
    (one, other) = slow_ranks(told, nodes, ratio=1.5, step_seconds=4.0)
    assert str(one) == "rank 2 on n2: forward 2 s a step, the median rank 1 s"
    assert (other.rank, other.part) == (3, "data wait")
    assert not slow_ranks(times((1.0, 0.001), (1.0, 0.002)), nodes, ratio=1.5, step_seconds=4.0)  # a millisecond
    assert [one.rank for one in slow_ranks(times((1.0, 0), (2.0, 0)), nodes, ratio=1.5, step_seconds=4.0)] == [1]
    report = summary_of(told, nodes, [one])
    assert report["parts"]["forward"] == {"median": 1.0, "largest": 2.0, "rank": 2, "node": "n2"}
    assert report["slow"] == [{"rank": 2, "node": "n2", "part": "forward", "seconds": 2.0, "median": 1.0}]
    assert report["peak_memory_bytes"] == {"median": 1e9 + 1, "largest": 1e9 + 3, "rank": 3, "node": "n3"}


def test_times_are_reported_at_their_cadence_as_means_at_the_places_of_the_rank():
    watch = Stopwatch()
    clock = Times(Place(1, 3), 2, watch)
    with watch.part("forward"):
        time.sleep(0.02)
    assert len(clock.report(1)) == 0
    told = clock.report(2).view(3, 3)
    assert told[0].tolist() == told[2].tolist() == [0, 0, 0]
    assert told[1][0] >= 0.01
    assert told[1][2] > 1e6
    assert told[1][1] == 0
    with watch.part("data wait"):
        time.sleep(0.02)
    (forward, wait, _) = clock.report(4).view(3, 3)[1]
    assert wait >= 0.01
    assert forward == 0
