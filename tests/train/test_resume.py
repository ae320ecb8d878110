"""A run goes on as if nothing had happened: bit for bit on the same layout, within rounding on any other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR
from tests.train.multirank import evaluations, losses, train_cases
from train.run_folder import read_metrics

STEPS, SAVED = 30, 10  # optimizer steps of the whole run, and of the checkpoint that resumes start from
TOLERANCE = 1e-3  # relative, over the 20 losses after the resume


def up_to_the_checkpoint(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was when it had just saved step SAVED."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name != f"step-{SAVED:08d}":
            shutil.rmtree(folder)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_on_any_layout(tiny_settings, tmp_path, precision):
    common = [
        *tiny_settings, f"tokens={STEPS * 8 * 64}", f"engine.precision={precision}", "optimizer.learning_rate=3e-3",
        f"checkpoint.every_steps={SAVED}", "checkpoint.keep_last=9", f"evaluate.every_steps={STEPS}",
    ]  # fmt: skip

    def case(run: Path, stage: int) -> list[str]:
        return [*common, f"run={run}", f"engine.zero_stage={stage}"]

    quiet = {stage: tmp_path / f"quiet-{stage}" for stage in (1, 2, 3)}
    cases = {f"{stage}": case(run, stage) for stage, run in quiet.items()}
    assert set(train_cases(tmp_path / "quiet", 2, cases).values()) == {EXIT_DONE}

    # (ranks, stage) -> the run whose checkpoint it starts from: its own layout, and each stage from another
    starts = {(2, 1): 1, (2, 2): 2, (2, 3): 3, (1, 1): 3, (1, 2): 1, (1, 3): 2, (4, 1): 2, (4, 2): 3, (4, 3): 1}
    for ranks in (1, 2, 4):
        runs = {stage: tmp_path / f"{ranks}-{stage}" for stage in (1, 2, 3)}
        for stage, run in runs.items():
            up_to_the_checkpoint(quiet[starts[ranks, stage]], run)
        cases = {f"{stage}": case(run, stage) for stage, run in runs.items()}
        assert set(train_cases(tmp_path / f"ranks-{ranks}", ranks, cases).values()) == {EXIT_DONE}
        for stage, run in runs.items():
            expected, found = losses(quiet[starts[ranks, stage]]), losses(run)
            assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
            after = range(SAVED + 1, STEPS + 1)
            if ranks == 2:
                assert [found[step] for step in after] == [expected[step] for step in after]
                assert evaluations(run) == evaluations(quiet[stage])
            else:
                error = max(abs(found[step] / expected[step] - 1) for step in after)
                print(f"{precision}: 2 ranks ZeRO-{starts[ranks, stage]} -> {ranks} ranks ZeRO-{stage}: {error:.1e}")
                assert error < TOLERANCE


class Command:
    """``hanse train`` as a process of its own, as a person or Slurm starts it."""

    def __init__(self, run: Path, settings: list[str]):
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        self.output = run.with_suffix(".out")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hanse", "train", f"run={run}", *settings], stdout=self.output.open("w"),
            stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2], start_new_session=True,
        )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        """Return when metrics.jsonl holds this step."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if (self.run / "metrics.jsonl").is_file() and step in losses(self.run):
                return
            time.sleep(0.02)
        pytest.fail(f"step {step} never came: {self.output.read_text()[-2000:]}")

    def children(self) -> list[int]:
        """The ranks, in order."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return sorted(map(int, listed.stdout.split()))

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(300)


@pytest.fixture(scope="module")
def long_settings(tiny_settings):
    """Steps enough to be interrupted between two of them."""
    return [*tiny_settings, f"tokens={40 * 8 * 64}", "checkpoint.every_steps=8", "evaluate.every_steps=20"]


@pytest.fixture(scope="module")
def quiet_losses(long_settings, tmp_path_factory, hanse):
    run = tmp_path_factory.mktemp("quiet") / "run"
    assert hanse("train", f"run={run}", *long_settings) == EXIT_DONE
    return losses(run)


@pytest.mark.slow
def test_interrupt_saves_and_the_same_command_goes_on_bit_for_bit(long_settings, quiet_losses, tmp_path):
    run = tmp_path / "run"
    command = Command(run, long_settings)
    command.wait_for_step(3)
    command.process.send_signal(signal.SIGINT)
    assert command.end() == EXIT_GO_ON
    text = command.output.read_text()
    assert "Traceback" not in text
    assert "the same command goes on" in text
    stopped = max(losses(run))
    assert stopped < 40
    assert (run / f"checkpoints/step-{stopped:08d}/manifest.json").is_file()
    command = Command(run, long_settings)
    assert command.end() == EXIT_DONE
    assert losses(run) == quiet_losses
    assert [record["event"] for record in read_metrics(run / "metrics.jsonl") if record.get("event") == "resume"]


@pytest.mark.slow
def test_killed_rank_ends_the_run_and_the_next_start_goes_on_bit_for_bit(long_settings, quiet_losses, tmp_path):
    run = tmp_path / "run"
    command = Command(run, long_settings)
    command.wait_for_step(12)
    os.kill(command.children()[1], signal.SIGKILL)
    assert command.end() not in (EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR)
    assert "rank 1 failed (killed by SIGKILL)" in command.output.read_text()
    (run / "checkpoints/step-00000099.partial").mkdir()  # as a kill in the middle of a checkpoint leaves it
    command = Command(run, long_settings)
    assert command.end() == EXIT_DONE
    assert losses(run) == quiet_losses
    assert not list((run / "checkpoints").glob("*.partial"))


@pytest.mark.slow
def test_files_ask_for_a_checkpoint_and_for_a_stop(long_settings, quiet_losses, tmp_path):
    run = tmp_path / "run"
    command = Command(run, [*long_settings, "checkpoint.every_steps=1000", "checkpoint.keep_last=9"])
    command.wait_for_step(1)
    (run / "save").touch()
    deadline = time.monotonic() + 120
    while (run / "save").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list((run / "checkpoints").glob("step-*/manifest.json"))
    (run / "stop").touch()
    assert command.end() == EXIT_GO_ON
    command = Command(run, long_settings)
    assert command.end() == EXIT_USER_ERROR
    assert "keeps the run stopped; delete it to go on" in command.output.read_text()
    (run / "stop").unlink()
    command = Command(run, long_settings)
    command.wait_for_step(max(losses(run)))
    second = Command(run.parent / "second", [*long_settings, f"run={run}"])
    assert second.end() == EXIT_USER_ERROR
    assert "in use by another run" in second.output.read_text()
    assert command.end() == EXIT_DONE
    assert losses(run) == quiet_losses
