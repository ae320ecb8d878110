"""Energy of a run: however it is cut into starts it adds up, what was lost is counted, what is guessed is called so."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from common.errors import HanseError
from launch.local import run_ranks
from tests.train.energy.trees import Machine, cray, mi250x, rapl
from train.config import BatchConfig, DataConfig, TrainConfig
from train.energy.config import EnergyConfig, FactorConfig
from train.energy.grid import GridFactor, country_factors
from train.energy.page import energy_line, energy_note, energy_rows
from train.energy.recorder import EnergyRecorder
from train.energy.slurm import ask
from train.energy.totals import energy_totals
from train.ranks import Place
from train.run_folder import RunFolder

CPU = SimpleNamespace(type="cpu")
STEP_SECONDS, SET_UP_SECONDS, TOKENS, FLOPS = 7, 20, 512, 1000


class NoCounters(Machine):
    def show(self) -> None:
        pass


def plain(root: Path) -> Machine:
    return NoCounters(root)


class Crash(Exception):
    """A start that is killed."""


def start(
    folder: RunFolder, machine: Machine, first: int, last: int, *, every: int = 4, crash: bool = False,
    config: EnergyConfig | None = None,
) -> int:  # fmt: skip
    """Train from step ``first`` to step ``last`` as the loop does; the step to go on from.

    A start that is killed says nothing more after its last step.
    """
    recorder = EnergyRecorder(config or EnergyConfig(), Place(0, 1), folder, CPU, root=machine.root, clock=machine)
    folder.cut_metrics(first)
    machine.advance(SET_UP_SECONDS)
    whole = TrainConfig(tokens=10**6 * TOKENS, data=DataConfig(sequence_length=1), batch=BatchConfig(TOKENS, 1))
    recorder.begin(SimpleNamespace(first_step=first, config=whole, flops_per_token=lambda stage: FLOPS, parameters=100))
    saved = first
    for step in range(first + 1, last + 1):
        machine.advance(STEP_SECONDS)
        recorder.tick()
        with folder.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0, "time": machine.time()}) + "\n")
        if step % every == 0 or (step == last and not crash):
            recorder.record("checkpoint", step)
            saved = step
    if not crash:
        recorder.record("end", last)
    return saved


def new_run(folder: Path) -> RunFolder:
    folder.mkdir(parents=True)
    return RunFolder(folder)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "100")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def small_cray(root: Path) -> Machine:
    machine = cray(root)
    machine.watts = {"energy": 2100}  # fewer files to write
    return machine


def small_rapl(root: Path) -> Machine:
    machine = rapl(root)
    machine.watts = {"intel-rapl:0": 3000}  # wraps every 87 s
    for zone in machine.root.glob("sys/class/powercap/*"):
        if zone.name != "intel-rapl:0":
            zone.unlink()
    for limit in machine.root.glob("sys/devices/**/constraint_0_max_power_uw"):
        limit.write_text("1600000000\n")
    return machine


WATTS = {small_cray: 2100, small_rapl: 3000, plain: 350}
MACHINES = some.sampled_from(sorted(WATTS, key=lambda kind: kind.__name__))


@settings(deadline=None, max_examples=25)
@given(kind=MACHINES, cuts=some.lists(some.integers(1, 19), unique=True, max_size=4), pause=some.integers(0, 5000),
       every=some.sampled_from([4, 100]))  # fmt: skip
def test_any_split_into_starts_gives_the_totals_of_one_start(kind, cuts, pause, every):
    """Up to the set-up, which every start pays; while the run waits between two starts, nothing is counted."""
    with tempfile.TemporaryDirectory() as place:
        machine, step = kind(Path(place) / "machine"), 0
        run = new_run(Path(place) / "run")
        for last in (*sorted(cuts), 20):
            step = start(run, machine, step, last, every=every)
            machine.advance(pause)
        totals = energy_totals(run.path)
    seconds = 20 * STEP_SECONDS + (len(cuts) + 1) * SET_UP_SECONDS
    assert totals.joules == WATTS[kind] * seconds
    assert totals.how == ("estimated" if kind is plain else "measured")
    assert (totals.wall_seconds, totals.gap_seconds, totals.killed) == (seconds, 0, 0)
    assert (totals.steps_kept, totals.steps_done, totals.starts) == (20, 20, len(cuts) + 1)
    assert (totals.tokens_kept, totals.tokens_done) == (20 * TOKENS, 20 * TOKENS)
    assert totals.flops == totals.flops_kept == 20 * TOKENS * FLOPS
    assert totals.joules_per_token == totals.joules / totals.tokens_kept


@settings(deadline=None, max_examples=25)
@given(kind=MACHINES, ends=some.lists(some.tuples(some.integers(1, 8), some.booleans()), max_size=4))
def test_whatever_kills_it_all_that_was_spent_is_counted_and_no_token_twice(kind, ends):
    with tempfile.TemporaryDirectory() as place:
        machine, step, done, covered = kind(Path(place) / "machine"), 0, 0, 0
        run = new_run(Path(place) / "run")
        for steps, crash in ends:
            last = min(step + steps, 19)
            done += last - step
            went_on = start(run, machine, step, last, crash=crash)
            covered += SET_UP_SECONDS + (went_on - step) * STEP_SECONDS
            step = went_on
            machine.advance(1000)  # until somebody starts it again: not its energy
        start(run, machine, step, 20)
        totals = energy_totals(run.path)
    done += 20 - step
    covered += SET_UP_SECONDS + (20 - step) * STEP_SECONDS
    killed = [steps for steps, crash in ends if crash]
    seconds = (len(ends) + 1) * SET_UP_SECONDS + done * STEP_SECONDS
    assert totals.killed == len(killed)
    assert totals.wall_seconds == seconds
    assert totals.joules == pytest.approx(WATTS[kind] * seconds, rel=1e-9)  # its power is even: the guess is right
    assert totals.gap_seconds == seconds - covered
    if kind is not plain:
        assert totals.measured_joules == WATTS[kind] * covered
    assert (totals.steps_kept, totals.steps_done) == (20, done)
    assert totals.tokens_kept == 20 * TOKENS
    assert any("trained again after a crash" in note for note in totals.notes) == (done > 20)
    assert any("did not end in good order" in note for note in totals.notes) == bool(killed)


def test_a_line_cut_short_by_the_crash_is_left_out_and_the_next_start_goes_on(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 9, crash=True)
    whole = run.energy.read_bytes()
    run.energy.write_bytes(whole[:-40])  # the record of step 8
    totals = energy_totals(run.path)
    assert totals.measured_joules == 2100 * (SET_UP_SECONDS + 4 * STEP_SECONDS)
    assert totals.estimated_joules == 2100 * 5 * STEP_SECONDS
    assert totals.how == "partly estimated (42%)"
    assert "the last one may still be running" in " ".join(totals.notes)
    start(run, machine, 4, 20)
    assert energy_totals(run.path).joules == 2100 * (2 * SET_UP_SECONDS + (9 + 16) * STEP_SECONDS)


def test_killed_before_its_first_checkpoint_it_takes_the_power_of_the_others(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 8)
    start(run, machine, 8, 11, crash=True)
    start(run, machine, 8, 20)
    totals = energy_totals(run.path)
    assert (totals.gap_seconds, totals.estimated_joules) == (3 * STEP_SECONDS, 2100 * 3 * STEP_SECONDS)


def test_a_start_that_fails_before_it_trains_stretches_no_gap(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 6, crash=True)
    for _ in range(2):
        machine.advance(10_000)  # in the queue
        EnergyRecorder(EnergyConfig(), Place(0, 1), run, CPU, root=machine.root, clock=machine)
        run.cut_metrics(4)
        run.heartbeat.write_text(json.dumps({"time": machine.time()}))  # and there it ends
    start(run, machine, 4, 20)
    totals = energy_totals(run.path)
    assert (totals.gap_seconds, totals.starts, totals.killed) == (2 * STEP_SECONDS, 2, 1)
    assert (totals.steps_kept, totals.steps_done) == (20, 22)


def test_a_run_that_goes_on_from_another_folder_counts_only_its_own(tmp_path):
    machine = cray(tmp_path / "machine")
    parent, child, whole = (new_run(tmp_path / name) for name in ("parent", "child", "whole"))
    start(parent, machine, 0, 12)
    start(child, machine, 12, 20)
    start(whole, machine, 0, 20)
    one, two, both = (energy_totals(run.path) for run in (parent, child, whole))
    assert one.tokens_kept + two.tokens_kept == both.tokens_kept
    assert one.flops + two.flops == both.flops
    assert one.joules + two.joules == both.joules + 2100 * SET_UP_SECONDS


def test_emissions_follow_each_start_s_place_and_name_their_source(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    market = FactorConfig(0.0, 2025, "guarantees of origin of the site")
    start(run, machine, 0, 10, config=EnergyConfig(country="FI", pue=1.04, market=market))
    start(run, machine, 10, 20, config=EnergyConfig(country="DE", pue=1.2, market=market))
    totals = energy_totals(run.path)
    kwh = 2100 * (SET_UP_SECONDS + 10 * STEP_SECONDS) / 3.6e6
    assert totals.kg_co2e == pytest.approx(kwh * 1.04 * 0.0792 + kwh * 1.2 * 0.381)
    assert totals.kg_co2e_market == 0
    assert totals.pue == pytest.approx(1.12)
    assert totals.facility_joules == pytest.approx(totals.joules * 1.12)
    assert [(factor.country, factor.year) for factor in totals.grid] == [("FI", 2023), ("DE", 2023)]
    assert all("Our World in Data" in factor.source for factor in totals.grid)


def test_what_the_starts_did_not_say_is_asked_for_or_given_later(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 10)
    totals = energy_totals(run.path)
    assert (totals.kg_co2e, totals.pue, totals.facility_joules) == (None, None, None)
    text = " ".join(totals.notes)
    assert "No PUE was given (energy.pue)" in text
    assert "No grid factor was given (energy.country or energy.grid)" in text
    later = energy_totals(run.path, pue=1.5, grid=GridFactor(0.1, 2024, "the site"))
    assert later.kg_co2e == pytest.approx(totals.joules * 1.5 / 3.6e6 * 0.1)
    assert not any("was given" in note for note in later.notes)


def shown(totals) -> Iterable[str]:
    """Every text and JSON number in which a number that stems from energy is shown."""
    told = totals.to_json()
    yield from (f"{key} {value}" for key, value in told.items() if isinstance(value, dict) and "how" in value)
    yield energy_line(told)
    for name, value in energy_rows(totals):
        if any(f" {unit}" in value for unit in ("J", "kJ", "MWh", "kgCO2e")):
            yield f"{name} {value}"


def test_without_counters_every_number_that_is_shown_says_estimated(tmp_path):
    machine, run = plain(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 20, config=EnergyConfig(country="IT", pue=1.1, market=FactorConfig(0.2, 2024, "contract")))
    totals = energy_totals(run.path)
    assert (totals.coverage, totals.measured_joules) == (("estimated",), 0)
    texts = list(shown(totals))
    assert len(texts) >= 7 + 1 + 6
    assert [text for text in texts if "estimated" not in text] == []
    assert "Estimated as rated power times time: 100 threads at 3.5 W" in energy_note(totals)


def test_gpus_whose_power_nobody_knows_give_no_number(tmp_path, monkeypatch):
    import train.energy.recorder

    monkeypatch.setattr(train.energy.recorder, "_who", lambda device: {"node": "n1", "gpu": "", "name": "MI250X"})
    machine, run = plain(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 8)
    totals = energy_totals(run.path)
    assert (totals.joules, totals.how) == (None, "not known")
    assert totals.devices == {"MI250X": pytest.approx((SET_UP_SECONDS + 8 * STEP_SECONDS) / 3600)}
    assert "energy: not known" in energy_line(totals.to_json())
    assert all(value.startswith("not known") for _, value in energy_rows(totals)[:5])
    start(run, machine, 8, 16, config=EnergyConfig(gpu_watts=500))
    totals = energy_totals(run.path)
    assert totals.how == "estimated, incomplete"
    assert any("the true energy is higher" in note for note in totals.notes)

    machine, run = mi250x(tmp_path / "machines"), new_run(tmp_path / "measured")
    start(run, machine, 0, 8)
    totals = energy_totals(run.path)
    assert (totals.how, totals.coverage, totals.sources) == (
        "measured",
        ("GPUs only",),
        {"AMD gpu_metrics": pytest.approx(2000 * (SET_UP_SECONDS + 8 * STEP_SECONDS), rel=1e-6)},
    )
    assert any("Only GPUs were counted" in note for note in totals.notes)
    assert any("4 of 8 dies say 0" in note for note in totals.notes)


def test_a_counter_that_is_gone_at_the_end_is_said(tmp_path):
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    advance = machine.advance
    gone_at = machine.now + SET_UP_SECONDS + 10 * STEP_SECONDS

    def lose_it(seconds: int) -> None:
        advance(seconds)
        if machine.now >= gone_at:
            (machine.root / "sys/cray/pm_counters/energy").unlink()

    machine.advance = lose_it
    start(run, machine, 0, 20)
    totals = energy_totals(run.path)
    assert totals.joules == 2100 * (SET_UP_SECONDS + 8 * STEP_SECONDS)
    assert any("energy could not be read at last: what it counted since is missing" in note for note in totals.notes)


def test_slurm_s_accounting_stands_in_where_nothing_could_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    machine, run = plain(tmp_path / "machine"), new_run(tmp_path / "run")
    began = machine.now
    step = start(run, machine, 0, 10, crash=True)
    second = machine.now + 500
    machine.advance(500)
    start(run, machine, step, 20)
    machine.advance(50)
    rows = [f"77|99999|{began - 60}|{machine.now}|1|COMPLETED", f"77.2|123456|{began - 5}|{began + 200}|1|FAILED",
            f"77.2|234567|{second - 5}|{machine.now}|1|COMPLETED", "77.2|1|Unknown|Unknown|1|RUNNING"]  # fmt: skip
    sacct = tmp_path / "bin/sacct"
    sacct.parent.mkdir()
    sacct.write_text(
        "#!/bin/sh\n[ \"$SLURM_TIME_FORMAT\" = %s ] || exit 1\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n"
    )
    sacct.chmod(stat.S_IRWXU)
    before = energy_totals(run.path)
    monkeypatch.setenv("PATH", f"{sacct.parent}:/usr/bin:/bin")
    ask(run)
    totals = energy_totals(run.path)
    assert before.how == "estimated"
    assert (totals.how, totals.joules) == ("measured", 123456 + 234567)
    assert totals.sources == {"Slurm's accounting": 123456 + 234567}
    assert totals.coverage == ("as the site has set up Slurm's accounting",)

    sacct.write_text(sacct.read_text().replace("234567", "4294967294").replace("123456", "0"))  # NO_VAL, not gathered
    (run.path / "energy.slurm.json").unlink()
    ask(run)
    assert energy_totals(run.path).how == "estimated"


def test_slurm_s_accounting_that_disagrees_with_the_counters_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    machine, run = cray(tmp_path / "machine"), new_run(tmp_path / "run")
    start(run, machine, 0, 10)
    key = f"77.0@{machine.now - 10 * STEP_SECONDS}"
    (run.path / "energy.slurm.json").write_text(json.dumps({"steps": {key: {"joules": 1.0}}}))
    totals = energy_totals(run.path)
    assert totals.joules == 2100 * (SET_UP_SECONDS + 10 * STEP_SECONDS)
    assert any("Slurm's accounting says 1 J of step 77.0, the counters say 1.89e+05 J" in note for note in totals.notes)


@pytest.mark.parametrize("change", ["edit", "other format", "end", "lost"])
def test_a_ledger_that_was_edited_or_is_another_s_is_refused_in_one_line(tmp_path, change):
    run = new_run(tmp_path / "run")
    start(run, cray(tmp_path / "machine"), 0, 10)
    text = run.energy.read_text()
    if change == "edit":
        text = text.replace('"joules": 10', '"joules": 20', 1).replace('"joules": 4', '"joules": 5', 1)
    elif change == "other format":
        text = text.splitlines()[0].replace("hanse.energy/1", "hanse.energy/9") + "\n"
    else:
        text = json.dumps({"previous": "0" * 64, "kind": change, "step": 3, "at": {"time": 1.0}}) + "\n"
    run.energy.write_text(text)
    with pytest.raises(HanseError, match=r"energy\.jsonl"):
        energy_totals(run.path)


WRONG = some.sampled_from([None, -1, True, float("nan"), float("inf"), 10**400, 1e308, "", "x", [], {}, [1], {"a": 1}])


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from leaves(inner, (*path, key))


@settings(deadline=None, max_examples=200)
@given(data=some.data(), wrong=WRONG)
def test_a_stranger_s_ledger_gives_finite_numbers_or_one_error(data, wrong, tmp_path_factory):
    """One value anywhere in a sound ledger is replaced, the chain made anew."""
    run = RunFolder(tmp_path_factory.getbasetemp() / "stranger")
    if not (run.path / "sound").exists():
        machine, place = cray(run.path / "machine"), EnergyConfig(country="FI", pue=1.1)
        start(run, machine, 0, 6, config=place, crash=True)
        start(run, machine, 4, 8, config=place)
        run.energy.rename(run.path / "sound")
    records = [json.loads(line) for line in (run.path / "sound").read_text().splitlines()]
    path = data.draw(some.sampled_from(list(leaves(records))))
    holder = records
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = wrong
    run.energy.unlink(missing_ok=True)
    previous = "0" * 64
    with run.energy.open("w") as file:
        for record in records:
            line = json.dumps(record | {"previous": previous} if isinstance(record, dict) else record)
            previous = hashlib.sha256(line.encode()).hexdigest()
            file.write(line + "\n")
    with suppress(HanseError):
        totals = energy_totals(run.path)
        json.dumps(totals.to_json(), allow_nan=False)
        energy_rows(totals)
        energy_note(totals)
        energy_line(totals.to_json())


def test_a_run_without_a_ledger_says_so(tmp_path):
    totals = energy_totals(tmp_path)
    assert (totals.joules, totals.how, totals.starts) == (None, "not known", 0)
    assert "no energy.jsonl" in totals.notes[0]


def test_every_country_of_the_table_has_a_year_and_a_source():
    for country, factor in country_factors().items():
        assert len(country) == 2
        assert 0 < factor.kg_co2e_per_kwh < 1
        assert factor.year >= 2023
        assert factor.source


@pytest.mark.slow
def test_one_rank_a_node_reads_and_each_node_is_counted_once(tmp_path):
    """Three ranks over gloo on two nodes, which are names: four times the energy is what a reader a rank would say."""
    roots, run = [tmp_path / "n0", tmp_path / "n1"], new_run(tmp_path / "run")
    for root in roots:
        cray(root)
    program = Path(__file__).with_name("program.py")
    command = [sys.executable, str(program), *map(str, (run.path, *roots))]
    assert run_ranks(command, 3, 1, tmp_path / "logs") == 0
    totals = energy_totals(run.path)
    assert (totals.how, totals.joules) == ("measured", 1000 + 2000)
    assert list(totals.devices) == ["CPU node"]
    assert totals.device_hours == pytest.approx(2 * totals.wall_seconds / 3600)
    assert "rank 1 reads: False" in (tmp_path / "logs/rank-00001.log").read_text()
    assert "rank 2 reads: True" in (tmp_path / "logs/rank-00002.log").read_text()
