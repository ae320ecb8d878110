"""Real ranks train in stages: other mixtures, longer sequences, larger batches; stopped, moved, and changed."""

import json
import shutil
from pathlib import Path

import pytest

from common.errors import EXIT_DONE
from tests.train.mixed import parted
from tests.train.multirank import losses, train_cases
from train import ledger
from train.energy.totals import energy_totals
from train.run_folder import RunFolder, read_metrics

BASE = "{name: base, tokens: 2048}"  # 4 steps of 8 sequences of 64 tokens
LONG = ("{name: long, tokens: 2048, data: {sequence_length: 128, mixture: {fr: 1, de: 3}}, "
        "batch: {global_batch_size: 4, micro_batch_size: 1}}")  # fmt: skip
BIG = ("{name: big, data: {sequence_length: 64, mixture: {it/books: 2, es: 1}}, "  # of the two sources of it
       "batch: {global_batch_size: 16, micro_batch_size: 2}, "
       "schedule: {decay_fraction: 1, decay: linear}}")  # fmt: skip
STEPS = 12
SAVED = {"exact": 6, "changed": 6, "fast-1": 9, "fast-3": 9}  # in the middle of the second stage, and of the third
KINDS = {"exact": ("determinism=D2", "engine.zero_stage=2"), "fast-1": ("engine.zero_stage=1",),
         "fast-3": ("engine.zero_stage=3",)}  # fmt: skip


def stages(*parts):
    return f"stages=[{', '.join(parts)}]"


@pytest.fixture(scope="module")
def runs(tiny_settings, tiny_data, tmp_path_factory) -> Path:
    """A folder of finished runs: KINDS on two ranks; then on one, from their checkpoint in a later stage."""
    folder = tmp_path_factory.mktemp("stages")
    shards = parted(tiny_data / "shards", folder / "shards", "it")

    def case(run, *more):
        return [*tiny_settings, f"run={folder / run}", f"data.shards={shards}", "tokens=8192",
                "schedule.decay_fraction=0", "checkpoint.every_steps=3", "checkpoint.keep_last=9",
                "evaluate.every_steps=99", stages(BASE, LONG, BIG), *more]  # fmt: skip

    cases = {name: case(name, *more) for name, more in KINDS.items()}
    assert train_cases(folder / "two", 2, cases) == dict.fromkeys(cases, EXIT_DONE)
    for name in (*KINDS, "changed"):
        copy = folder / ("changed" if name == "changed" else f"{name}-moved")
        shutil.copytree(folder / ("exact" if name == "changed" else name), copy)
        for checkpoint in (copy / "checkpoints").iterdir():
            if checkpoint.name > f"step-{SAVED[name]:08d}":
                shutil.rmtree(checkpoint)
    exact = KINDS["exact"][0]
    cases = {f"{name}-moved": case(f"{name}-moved", *more) for name, more in KINDS.items()}
    cases["exact-moved"] = case("exact-moved", exact, "engine.zero_stage=3")
    other = "{name: other, data: {mixture: {es: 1}}}"
    cases["unasked"] = case("changed", exact, stages(BASE, LONG, other))
    cases["past"] = case("changed", exact, stages(BASE, other), "change_stages=true")
    cases["asked"] = case("changed", exact, stages(BASE, LONG, other), "change_stages=true", "tokens=9216")
    told = train_cases(folder / "one", 1, cases)
    (folder / "told.json").write_text(json.dumps(told))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_a_stage_and_moved_to_other_ranks_it_goes_on_the_same(runs, kind):
    expected, found = losses(runs / kind), losses(runs / f"{kind}-moved")
    assert expected.keys() == found.keys() == set(range(1, STEPS + 1))
    assert [found[step] for step in expected] == pytest.approx(
        list(expected.values()), rel=0 if kind == "exact" else 1e-3
    )
    # However gradients are accumulated and shared out, they are those of the same batches.
    assert list(expected.values()) == pytest.approx(list(losses(runs / "exact").values()), rel=1e-3)
    spans = [
        line["samples"] for line in ledger.steps(r for _, r in ledger.lines(runs / kind / "ledger.jsonl")).values()
    ]
    assert [stop - start for start, stop in spans] == [8] * 4 + [4] * 4 + [16] * 4
    again = ledger.steps(r for _, r in ledger.lines(runs / f"{kind}-moved/ledger.jsonl"))
    assert [line["samples"] for line in again.values()] == spans


@pytest.mark.slow
def test_metrics_count_tokens_and_tell_the_stage(runs):
    told = {record["step"]: record for record in read_metrics(runs / "exact/metrics.jsonl") if "loss" in record}
    assert [told[step]["stage"] for step in (1, 4, 5, 8, 9, 12)] == ["base", "base", "long", "long", "big", "big"]
    assert [told[step]["consumed_tokens"] for step in (4, 5, 8, 9, 12)] == [2048, 2560, 4096, 5120, 8192]
    assert set(told[5]["loss_by_language"]) <= {"fr", "de"}
    assert set(told[9]["loss_by_language"]) <= {"it", "es"}
    last = [record for record in read_metrics(runs / "exact/metrics.jsonl") if "consumed" in record][-1]
    languages, italian = last["consumed"], last["consumed_by_source"]["it"]
    assert last["step"] == STEPS
    assert sum(one["tokens"] for one in italian.values()) == pytest.approx(languages["it"]["tokens"], abs=1)
    named = 43 * 64  # of the last stage; both sources have nearly as much text, and share what came before
    before = languages["it"]["tokens"] - named
    assert before > 0
    assert italian["books"]["tokens"] - italian["web"]["tokens"] == pytest.approx(named, abs=64 + before / 4)
    assert [told[step]["learning_rate"] for step in (8, 9, 12)] == [0.01, 0.0075, 0]
    summary = json.loads((runs / "exact/summary.json").read_text())
    energy = energy_totals(runs / "exact")
    assert summary["consumed_tokens"] == energy.tokens_kept == 8192
    started = json.loads((runs / "exact/energy.jsonl").read_text().splitlines()[0])["run"]
    (_, base, per_token), (_, _, of_long), _ = started["stages"]
    assert base == started["tokens_per_step"] == 512
    assert energy.flops_kept == 6144 * per_token + 2048 * of_long


@pytest.mark.slow
def test_papers_of_a_run_in_stages_hold(runs, hanse, capfd):
    assert hanse("verify", f"run={runs / 'exact-moved'}") == 0
    assert "8,192 in ledger, metrics and 4 checkpoints" in capfd.readouterr().out
    assert hanse("report", f"run={runs / 'exact-moved'}", f"output={runs / 'report.html'}") == 0
    assert "Stage long, from step 5: a step is 512 tokens" in (runs / "report.html").read_text()


@pytest.mark.slow
def test_a_change_of_what_is_to_come_is_made_when_asked_for_and_leaves_a_trace(runs, hanse, capfd):
    told, run = json.loads((runs / "told.json").read_text()), RunFolder(runs / "changed")
    assert "change_stages=true" in told["unasked"]
    assert "6 steps are done, and can no longer be changed: step 5 took 4 sequences of 128 tokens" in told["past"]
    assert told["asked"] == EXIT_DONE
    assert list(losses(run.path).values())[:6] == list(losses(runs / "exact").values())[:6]
    changes = [record for _, record in ledger.lines(run.ledger) if record["kind"] == "stages"]
    assert [record["step"] for record in changes] == [6]
    assert changes[0]["changes"]["tokens"] == [8192, 9216]
    events = [record for record in read_metrics(run.metrics) if "stages_changed" in record]
    assert events[0]["stages_changed"]["stages.2.name"] == ["big", "other"]
    assert [one.name for one in run.read_config().stages] == ["base", "long", "other"]
    before = RunFolder(runs / "changed")
    before.config = run.path / "config.before-step-00000006.yaml"
    assert [one.name for one in before.read_config().stages] == ["base", "long", "big"]
    assert hanse("verify", f"run={run.path}") == 0
    capfd.readouterr()
    changed = run.path / "config.yaml"
    changed.write_text(changed.read_text().replace("9216", "9300"))
    assert hanse("verify", f"run={run.path}") == 2
    assert "locked with another configuration" in capfd.readouterr().out
