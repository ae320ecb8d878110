"""A run in stages: exact counts, one order of data that any step can begin with, and back from documents to steps."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.shards import ShardsManifest
from tests.train.test_stream import Shard
from train.change import Change, past_differences
from train.config import BatchConfig, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from train.lock import config_sha256
from train.order import RunStream, drawn_in, open_stream, pieces_of, stage_draws, windows_of
from train.run_folder import RunFolder
from train.schedule import learning_rate
from train.stage_config import StageBatch, StageConfig, StageData, StageSchedule
from train.stream import Source, Stream

LANGUAGES = ("de", "es", "fr")


def staged(stages, tokens, *, length=4, size=2, seed=1, **more):
    return TrainConfig(
        tokens=tokens, seed=seed, data=DataConfig(sequence_length=length, **more.pop("data", {})),
        batch=BatchConfig(size, 1), optimizer=OptimizerConfig(learning_rate=0.5),
        schedule=more.pop("schedule", ScheduleConfig(0, 0.0)), stages=stages, ranks=1, **more,
    )  # fmt: skip


def stage(name, tokens=None, *, length=None, size=None, mixture=None, **more):
    return StageConfig(name, tokens, StageData(length, mixture), StageBatch(size), **more)


@st.composite
def runs(draw):
    """A run of one to four stages over shards in memory: (configuration, sources by length)."""
    lengths = draw(st.lists(st.sampled_from([2, 3, 6]), min_size=1, max_size=4))
    shards = {name: [Shard(draw(st.lists(st.integers(1, 9), min_size=7, max_size=9))) for _ in range(2)]
              for name in LANGUAGES}  # fmt: skip
    for name, held in shards.items():
        for number, shard in enumerate(held):
            shard.prefix = Path(f"{name}{number}")
    mixtures = st.fixed_dictionaries({name: st.integers(0, 4) for name in LANGUAGES}).filter(
        lambda one: any(one.values())
    )
    stages = [stage(f"s{number}", draw(st.integers(40, 70)), length=length, size=draw(st.integers(1, 5)),
                    mixture=draw(st.none() | mixtures)) for number, length in enumerate(lengths)]  # fmt: skip
    tokens = sum(one.tokens for one in stages)
    stages[-1].tokens = None
    config = staged(stages, tokens, length=2, seed=draw(st.integers(0, 99)), data={"mixture": draw(mixtures)})
    sources = {length: {name: Source(name, held, length, f"{config.seed}/{length}") for name, held in shards.items()}
               for length in set(lengths)}  # fmt: skip
    return config, sources


def stream_of(config, sources, skipped=()):
    pieces = pieces_of(config, windows_at(sources))
    streams = [Stream([sources[piece.stages[0].length][name] for name in LANGUAGES],
                      [piece.weights.get(name, 0) for name in LANGUAGES]) for piece in pieces]  # fmt: skip
    return RunStream(config.timeline, streams, skipped)


def windows_at(sources):
    return lambda length: {name: source.windows for name, source in sources[length].items()}


@given(runs())
@settings(max_examples=25, deadline=None)
def test_the_order_is_a_partition_with_exact_counts_that_any_step_can_begin_with(run):
    config, sources = run
    line, stream = config.timeline, stream_of(*run)
    taken, drawn, consumed, tokens = Counter(), [], 0, 0
    for step in range(line.steps):
        here = line.at(step)
        fresh = stream_of(*run)  # what a start that knows nothing but the step would draw
        assert fresh.span(step) == range(consumed, consumed + here.size) == stream.span(step)
        assert line.tokens(step) == tokens == line.tokens_of(consumed)
        for number in fresh.span(step):
            source, window = fresh.sample(number)
            drawn.append((source.name, source.length, window))
            taken[here.number, source.name] += 1
            assert source.length == here.length
        rows = np.concatenate([part.input_ids for part in fresh.step(step, rank=0, ranks=1)])
        assert rows.shape == (here.size, here.length)
        consumed, tokens = consumed + here.size, tokens + here.tokens_per_step
    assert (consumed, tokens) == (line.samples, line.tokens(line.steps))
    assert config.tokens - line.stages[-1].tokens_per_step < tokens <= config.tokens
    # Each source's windows of a length come in one order that has no end: all once before any a second time.
    for name, length in {(name, length) for name, length, _ in drawn}:
        windows = [window for one, of, window in drawn if (one, of) == (name, length)]
        whole = sources[length][name]
        assert windows == [whole.drawn(k) for k in range(len(windows))]
    # Counts by arithmetic, as asked for and after any number of steps.
    for one, piece, counts in stage_draws(config, windows_at(sources), line.steps):
        assert counts == {name: taken[one.number, name] for name in piece.weights}
    for steps in (0, 1, line.steps // 2, line.steps):
        told = drawn_in(config, windows_at(sources), steps)
        assert sum(one.tokens for one in told.values()) == line.tokens(steps)
        assert {name: one.samples for name, one in told.items() if one.samples} == Counter(
            name for name, _, _ in drawn[: line.sample(steps)]
        )
    # Shares are within a sample of those asked for, over every piece.
    for piece in pieces_of(config, windows_at(sources)):
        samples = sum(one.samples for one in piece.stages)
        total = sum(piece.mixture.weights)
        for name, weight in zip(piece.weights, piece.mixture.weights, strict=True):
            assert abs(sum(taken[one.number, name] for one in piece.stages) - samples * weight / total) < 1


@given(runs(), st.data())
@settings(max_examples=25, deadline=None)
def test_steps_that_held_a_token_are_those_that_drew_it_also_after_rewinds(run, data):
    """Goes back twice, as a run does before spikes, and past what it drew: also over the borders of stages."""
    config, sources = run
    line, stream, saved, learnt, step = config.timeline, stream_of(*run), {}, {}, 0
    for last in (False, False, True):
        stop = line.steps if last else data.draw(st.integers(step + 1, line.steps), label="spike")
        for number in range(step, stop):
            saved[number] = stream.skipped
            learnt[number] = [draw_of(stream, sample) for sample in stream.span(number)]
        if last:
            break
        step = min(data.draw(st.integers(0, stop - 1), label="back"), line.steps - 1)
        drawn = {draw_of(stream, sample) for sample in range(stream.span(stop - 1).stop)}
        stream.go_back(stop, step, saved[step])
        stream = stream_of(*run, stream.skipped)  # what a start from the checkpoint knows
        again = {draw_of(stream, sample) for number in range(step, line.steps) for sample in stream.span(number)}
        assert not drawn & again  # it goes past all that was drawn, wherever that lay
    skipped, end = stream.skipped, line.end(line.steps, stream.skipped)
    every = [draw_of(stream, sample) for sample in range(end)]
    for name, length in {draw[:2] for draw in every}:  # and nothing is left out that was not gone past
        assert [k for one, of, k in every if (one, of) == (name, length)] == list(
            range(sum((one, of) == (name, length) for one, of, _ in every))
        )
    spans = [stream.span(number) for number in range(line.steps)]
    assert [[every[sample] for sample in span] for span in spans] == [learnt[number] for number in range(line.steps)]
    inside = {sample for start, stop in skipped for sample in range(start, stop)}
    whole = [sample for span in spans for sample in span]
    assert sorted([*whole, *inside]) == list(range(end))  # nothing twice, nothing missing
    assert line.steps_of(np.array(whole), skipped).tolist() == [n + 1 for n, span in enumerate(spans) for _ in span]
    assert not line.steps_of(np.array(sorted(inside), dtype=np.int64), skipped).any()
    told = drawn_in(config, windows_at(sources), line.steps, skipped)
    assert {name: one.samples for name, one in told.items() if one.samples} == Counter(
        name for draws in learnt.values() for name, _, _ in draws
    )
    for number in range(len(LANGUAGES)):
        shard = stream.sources[number].shards[1]
        first, last = int(shard.document_starts[2]), int(shard.document_starts[3])
        expected = []
        for sample in range(end):
            held, window = stream.sample(sample)
            where, start = held.place(window)
            if where is shard and start < last and start + held.length >= first:
                expected.append(sample)
        assert stream.holding(number, shard.prefix, first, last, end).tolist() == expected


def draw_of(stream, sample):
    """(source, length of its windows, which of its draws) of a sample."""
    piece, local = stream.piece(sample)
    source, k = piece.mixture.draw(local)
    return piece.sources[source].name, piece.length, piece.before[source] + k


def test_growing_batches_leave_the_order_as_it_is():
    shards = {name: [Shard([9] * 6)] for name in LANGUAGES}
    ramp = staged([stage("small", 40), stage("more", 80, size=4), stage("full", size=8)], 400)
    level = staged([], 400)
    sources = {4: {name: Source(name, held, 4, 1) for name, held in shards.items()}}
    one, other = stream_of(ramp, sources), stream_of(level, sources)
    assert [s.size for s in ramp.timeline] == [2, 4, 8]
    assert [one.sample(n) for n in range(ramp.timeline.samples)] == [
        other.sample(n) for n in range(ramp.timeline.samples)
    ]


def test_a_stage_sets_what_holds_from_there_on():
    config = staged([stage("base", 80), stage("long", 160, length=8, rope_theta=1e6), stage("end", mixture={"fr": 1})],
                    400, data={"mixture_rule": "temperature"})  # fmt: skip
    base, long, end = config.timeline
    assert (base.length, long.length, end.length) == (4, 8, 8)
    assert (base.rope_theta, long.rope_theta, end.rope_theta) == (None, 1e6, 1e6)
    assert (base.data.mixture_rule, end.data.mixture_rule) == ("temperature", "proportional")
    assert end.data.mixture == {"fr": 1}


def test_rates_of_stages_meet_and_a_new_schedule_goes_on_from_where_the_rate_is():
    config = staged(
        [stage("base", 400), stage("more", 400, size=4), stage("again", 400, learning_rate=0.25,
         schedule=StageSchedule(warmup_steps=10)), stage("anneal", schedule=StageSchedule(0, 1.0, "linear"))],
        1600, schedule=ScheduleConfig(10, 0.5, "linear", 0.2),
    )  # fmt: skip
    rates = [learning_rate(step, config) for step in range(config.steps)]
    first, more, again, anneal = config.timeline
    assert rates[9 : first.stop_step - 1] == [0.5] * (first.steps - 10)  # half of the tokens of both are in the decay
    assert rates[more.stop_step - 1] == pytest.approx(0.1)
    falling = rates[more.first_step : more.stop_step]
    assert np.diff(falling) == pytest.approx(-0.4 * 16 / 400)  # by tokens, whatever a step holds
    assert rates[again.first_step + 9] == 0.25
    assert rates[again.first_step] == pytest.approx(0.1 + 0.15 / 10)
    assert rates[anneal.first_step] == pytest.approx(0.25 * (1 - 1 / anneal.steps))
    assert rates[-1] == 0


def test_unimax_counts_what_earlier_stages_drew():
    windows = {"de": 10, "fr": 1000}
    stages = [stage("a", 4 * 30, mixture={"de": 1, "fr": 1}),
              StageConfig("b", None, StageData(mixture_rule="unimax", max_epochs=2.0))]  # fmt: skip
    config = staged(stages, 4 * 130)
    one, other = pieces_of(config, lambda length: windows)
    assert one.mixture.drawn(30) == [15, 15]
    assert other.weights == {"de": 5, "fr": 95}


@pytest.mark.parametrize(("stages", "message"), [
    ([stage("a", 80), stage("a")], "name"),
    ([stage("a"), stage("b")], "tokens: must be set"),
    ([stage("a", 80), stage("b", 80)], "tokens: must be null"),
    ([stage("a", 400), stage("b")], "less than one step"),
    ([stage("a", 80), stage("b", size=0)], "batch.global_batch_size=0"),
    ([stage("a", 80), stage("b", mixture={"fr": -1})], "a weight is a finite number"),
    ([stage("a", 80), stage("b", schedule=StageSchedule(9, 0.9))] , "do not fit"),
    ([stage("a", 80, schedule=StageSchedule(0, 1.0)), stage("b", schedule=StageSchedule())], "has fallen to 0"),
])  # fmt: skip
def test_stages_that_cannot_be_are_told(stages, message):
    config = staged(stages, 400, name="x", run="x", checkpoint=None, evaluate=None)
    from train.stages import stage_problems

    assert message in "; ".join(stage_problems(config))


def test_only_what_is_still_to_come_can_be_changed(tmp_path):
    windows = lambda length: dict.fromkeys(LANGUAGES, 100)  # noqa: E731
    before = staged([], 400)  # 50 steps
    anneal = stage("anneal", mixture={"fr": 1}, size=4, schedule=StageSchedule(0, 1.0))
    now = replace(before, tokens=480, stages=[stage("base", 200), anneal])
    assert list(past_differences(before, now, 25, windows)) == []
    Change(before, now, {}).check(25, windows)
    with pytest.raises(HanseError, match=r"step 26 took 2 sequences .* now take 4"):
        Change(before, now, {}).check(26, windows)
    same_size = replace(now, stages=[stage("base", 200), stage("anneal", mixture={"fr": 1})])
    assert "drawn other samples" in "; ".join(past_differences(before, same_size, 26, windows))
    cooled = replace(now, stages=[stage("base", 200), stage("anneal", schedule=StageSchedule(0, 1.0))])
    assert "step 26 was made at learning rate 0.5" in "; ".join(past_differences(before, cooled, 26, windows))


def test_a_change_must_be_asked_for_and_micro_batches_need_not(tiny_config):
    folder = RunFolder(tiny_config.run)
    folder.path.mkdir()
    split = [stage("a", 6 * 8 * 64), stage("b")]
    folder.keep_config(tiny_config)
    with pytest.raises(HanseError, match=r"stages\.0\.tokens was None.*change_stages=true"):
        folder.check_config(replace(tiny_config, stages=split))
    with pytest.raises(HanseError, match="seed was 0, now 1") as told:
        folder.check_config(replace(tiny_config, stages=split, seed=1, change_stages=True))
    assert "change_stages" not in str(told.value)
    asked = folder.check_config(replace(tiny_config, stages=split, change_stages=True))
    assert asked.differs["stages.0.tokens"] == (None, 6 * 8 * 64)
    other = replace(tiny_config, stages=[split[0], replace(split[1], batch=StageBatch(None, 1))])
    folder.keep_config(replace(tiny_config, stages=split))
    assert folder.check_config(other) is None
    assert config_sha256(other) == config_sha256(replace(tiny_config, stages=split)) != config_sha256(tiny_config)
    schedules = [replace(tiny_config, stages=[split[0], replace(split[1], schedule=one)])
                 for one in (None, StageSchedule(), StageSchedule(0, 1.0))]  # fmt: skip
    assert len({config_sha256(one) for one in schedules}) == 3


def test_stages_of_real_shards_name_themselves_in_errors(tiny_data):
    manifest = ShardsManifest.read(tiny_data / "shards")
    config = staged([stage("base", 800), stage("more", mixture={"xx": 1})], 1600)
    with pytest.raises(HanseError, match=r"stages\.1 \(more\): data\.mixture: no training shards for xx"):
        open_stream(manifest, config)
    with pytest.raises(HanseError, match=r"stages\.1 \(more\): data\.sequence_length=10000000"):
        open_stream(manifest, staged([stage("base", 800), stage("more", length=10**7)], 10**9))
    stream = open_stream(manifest, staged([stage("base", 800), stage("long", length=64)], 10**5))
    assert stream.sources[0].windows == windows_of(manifest, "concatenate")(4)[stream.sources[0].name]
