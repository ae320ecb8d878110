"""A run goes on as if nothing had happened: bit for bit on the same layout, within rounding on any other."""

import json
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from common.errors import EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR
from tests.train.multirank import evaluations, losses, train_cases
from train.energy.totals import energy_totals
from train.run_folder import read_metrics

STEPS, SAVED = 16, 4  # optimizer steps of the whole run, and of the checkpoint that resumes start from
PRECISIONS, STAGES = ("fp32", "bf16"), (0, 1, 2, 3)
# Of all losses after a run's first move to another layout, and of its bits per byte at the end: relative.
TOLERANCE = {"fp32": 1e-6, "bf16": 3e-4}
# Four runs, each beginning on two ranks at its first stage. A start has all four, each at its next stage: every number
# of ranks meets every stage, and every stage comes after every other one (a row-complete Latin square).
RANKS, UNTIL = (2, 3, 1, 4, 2), (SAVED, 7, 10, 13, STEPS)
CHAINS = ((0, 1, 3, 2, 0), (1, 2, 0, 3, 1), (2, 3, 1, 0, 2), (3, 0, 2, 1, 3))


def up_to_the_checkpoint(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was when it had just saved step SAVED."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name != f"step-{SAVED:08d}":
            shutil.rmtree(folder)
    return copy


@pytest.fixture(scope="module")
def quiet(tiny_settings, tmp_path_factory):
    """{(precision, stage): a run on two ranks that nothing happens to}, and the settings of such a one."""

    def settings(run: Path, precision: str, stage: int) -> list[str]:
        length = {"fp32": 64, "bf16": 16}[precision]  # many a CPU takes 100 times longer for a product in bf16
        return [
            *tiny_settings, f"run={run}", f"engine.precision={precision}", f"engine.zero_stage={stage}",
            "batch.global_batch_size=12", "batch.micro_batch_size=1",  # which 1, 2, 3 and 4 ranks divide
            f"data.sequence_length={length}", f"tokens={STEPS * 12 * length}", f"evaluate.every_steps={STEPS}",
            f"evaluate.tokens_per_language={8 * length}", "optimizer.learning_rate=3e-3",
            f"checkpoint.every_steps={SAVED}", "checkpoint.keep_last=9",
        ]  # fmt: skip

    folder = tmp_path_factory.mktemp("quiet")
    runs = {(kind, stage): folder / f"{kind}-{stage}" for kind in PRECISIONS for stage in STAGES}
    cases = {run.name: settings(run, *kind) for kind, run in runs.items()}
    assert set(train_cases(folder / "ranks", 2, cases).values()) == {EXIT_DONE}
    return runs, settings


@pytest.mark.slow
def test_on_the_same_ranks_at_the_same_stage_losses_go_on_to_the_last_bit(quiet, tmp_path):
    whole, settings = quiet
    runs = {kind: up_to_the_checkpoint(run, tmp_path / run.name) for kind, run in whole.items()}
    cases = {run.name: settings(run, *kind) for kind, run in runs.items()}
    assert set(train_cases(tmp_path / "ranks", 2, cases).values()) == {EXIT_DONE}
    for kind, run in runs.items():
        assert losses(run) == losses(whole[kind])
        assert evaluations(run) == evaluations(whole[kind])


@pytest.mark.slow
def test_from_start_to_start_on_any_ranks_at_any_stage_losses_stay_those_of_a_run_that_never_moved(quiet, tmp_path):
    """All sixteen layouts in each precision, each from the checkpoint of other ranks at another stage."""
    assert {(ranks, stage) for row in CHAINS for ranks, stage in zip(RANKS[1:], row[1:], strict=True)} == {
        (ranks, stage) for ranks in (1, 2, 3, 4) for stage in STAGES
    }
    assert len({pair for row in CHAINS for pair in pairwise(row[:4])}) == 12
    whole, settings = quiet
    runs = {(kind, row): tmp_path / f"{kind}-{row[0]}" for kind in PRECISIONS for row in CHAINS}
    for (kind, row), run in runs.items():
        up_to_the_checkpoint(whole[kind, row[0]], run)
    for place, (ranks, until) in enumerate(zip(RANKS[1:], UNTIL[1:], strict=True), 1):
        cases = {
            run.name: [*settings(run, kind, row[place]), f"until_step={until}"] for (kind, row), run in runs.items()
        }
        told = train_cases(tmp_path / f"start-{place}", ranks, cases)
        assert set(told.values()) == {EXIT_DONE if until == STEPS else EXIT_GO_ON}
    for kind in PRECISIONS:
        never_moved = whole[kind, 1]
        expected, bits = losses(never_moved), evaluations(never_moved)[STEPS]
        assert expected.keys() == set(range(1, STEPS + 1))
        for row in CHAINS:
            run = runs[kind, row]
            resumed = [one for one in read_metrics(run / "metrics.jsonl") if one.get("event") == "resume"]
            assert [one["step"] for one in resumed] == list(UNTIL[:-1])
            found = losses(run)
            assert found.keys() == expected.keys()
            error = max(abs(found[step] / expected[step] - 1) for step in range(SAVED + 1, STEPS + 1))
            at_end = max(abs(one / bits[name] - 1) for name, one in evaluations(run)[STEPS].items())
            places = " -> ".join(f"{ranks} x ZeRO-{stage}" for ranks, stage in zip(RANKS, row, strict=True))
            print(f"{kind}: {places}: losses {error:.1e}, bits per byte {at_end:.1e}")
            assert max(error, at_end) < TOLERANCE[kind]


STEP_NAMES = f"step-{'[0-9]' * 8}/manifest.json"  # complete: no step-00000004.partial


@pytest.mark.slow
def test_whatever_ends_a_start_the_same_command_goes_on_bit_for_bit(tiny_settings, tmp_path, hanse, start):
    """One run, ended four ways; a start takes seconds, so they share it."""
    settings = [*tiny_settings, f"tokens={60 * 8 * 64}", "checkpoint.every_steps=8", "evaluate.every_steps=20"]
    assert hanse("train", f"run={tmp_path / 'quiet'}", *settings) == EXIT_DONE
    run = tmp_path / "run"

    # Ctrl-C: everything done is saved.
    command = start(run, settings)
    command.wait_for_step(3)
    command.process.send_signal(signal.SIGINT)
    assert command.end() == EXIT_GO_ON
    text = command.output.read_text()
    assert "Traceback" not in text
    assert "the same command goes on" in text
    stopped = max(losses(run))
    assert stopped < 60
    assert (run / f"checkpoints/step-{stopped:08d}/manifest.json").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["languages"]["fr"]["bits_per_byte"]) == (
        False,
        stopped,
        None,
    )

    # A killed rank: the run ends, and goes on from the last checkpoint.
    command = start(run, settings)
    command.wait_for_step(stopped + 9)  # one checkpoint at least was written in between
    command.ranks()[1].kill()
    assert command.end() not in (EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR)
    assert "rank 1 failed (killed by SIGKILL)" in command.output.read_text()
    killed = max(losses(run))
    (run / "checkpoints/step-00000099.partial").mkdir()  # as a kill in the middle of a checkpoint leaves it

    # Files: `save` asks for a checkpoint, `stop` for an end, and keeps later starts from training. Meanwhile the folder
    # is taken: the ranks are held still, so that no speed of theirs matters.
    command = start(run, [*settings, "checkpoint.every_steps=1000", "checkpoint.keep_last=9"])
    (run / "save").touch()
    command.wait_until(lambda: not (run / "save").exists())
    assert not list((run / "checkpoints").glob("*.partial"))
    for rank in command.ranks():
        rank.suspend()
    second = start(tmp_path / "second", [*settings, f"run={run}"])
    assert second.end() == EXIT_USER_ERROR
    assert "in use by another run" in second.output.read_text()
    (run / "stop").touch()
    for rank in command.ranks():
        rank.resume()
    assert command.end() == EXIT_GO_ON
    assert "going on from" in command.output.read_text()
    assert len(list((run / "checkpoints").glob(STEP_NAMES))) >= 2
    assert min(losses(run)) == 1
    command = start(run, settings)
    assert command.end() == EXIT_USER_ERROR
    assert "keeps the run stopped; delete it to go on" in command.output.read_text()
    (run / "stop").unlink()

    command = start(run, settings)
    assert command.end() == EXIT_DONE
    assert killed < 60
    assert losses(run) == losses(tmp_path / "quiet")
    records = read_metrics(run / "metrics.jsonl")
    assert [record["event"] for record in records if record.get("event") in ("start", "resume")] == (
        ["start"] + ["resume"] * 3
    )
    assert json.loads((run / "summary.json").read_text())["finished"]

    energy = energy_totals(run)  # of this machine, whatever it can tell
    assert (energy.starts, energy.killed) == (4, 1)
    went_on = [record["step"] for record in records if record.get("event") == "resume"][1]
    assert (energy.steps_kept, energy.steps_done) == (60, 60 + killed - went_on)
    assert energy.tokens_kept == records[-1]["step"] * 8 * 64
    assert 0 < energy.gap_seconds < energy.wall_seconds


@pytest.mark.slow
def test_killed_while_writing_or_damaged_it_goes_on_from_the_newest_sound_checkpoint(tiny_settings, tmp_path, start):
    """kill -9 with a checkpoint half written, then a flipped bit in the newest complete one: the same losses."""
    settings = [*tiny_settings, f"tokens={40 * 8 * 64}", "checkpoint.every_steps=4", "checkpoint.keep_last=9",
                "evaluate.every_steps=40"]  # fmt: skip
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    assert start(quiet, settings).end() == EXIT_DONE
    command = start(run, settings)
    command.wait_until(lambda: len(list((run / "checkpoints").glob(STEP_NAMES))) >= 2
                       and bool(list((run / "checkpoints").glob("*.partial"))))  # fmt: skip
    ranks = command.ranks()
    command.kill()
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    (run / "checkpoints/step-00000099.partial/model").mkdir(parents=True)  # whatever the kill has met
    half_written = {path.name for path in (run / "checkpoints").glob("*.partial")}
    newest = sorted((run / "checkpoints").glob(STEP_NAMES))[-1].parent
    before = sorted((run / "checkpoints").glob(STEP_NAMES))[-2].parent
    path = newest / "model/rank-00001.safetensors"  # rank 1 compares it
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)

    command = start(run, settings)
    assert command.end() == EXIT_DONE
    said = command.output.read_text()
    assert f"DAMAGED CHECKPOINT: {path}: is damaged" in said
    assert f"going on from {before.name} instead; the damaged one is kept as {newest.name}.damaged" in said
    assert f"going on from {before} (step {int(before.name[5:])})" in said
    assert (newest.parent / f"{newest.name}.damaged/model/rank-00001.safetensors").read_bytes() == data
    assert not half_written & {path.name for path in (run / "checkpoints").iterdir()}
    assert losses(run) == losses(quiet)
