"""A disk that gets full under a training: one clear line, nothing lost, and the same command goes on afterwards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from common.errors import EXIT_DONE, EXIT_USER_ERROR
from tests.disk import fill, small_disk
from tests.train.command import Command
from tests.train.multirank import losses
from train.checkpoint import Checkpoint
from train.run_folder import complete_steps, folder_of


def line_of(command: Command) -> str:
    """The one line with which a start ended for want of room."""
    assert command.end() == EXIT_USER_ERROR
    text = command.output.read_text()
    assert "Traceback" not in text
    (line,) = re.findall("^hanse train: .*No space left on device.*", text, re.MULTILINE)
    assert text.rstrip().endswith(line)
    return line


def whole_steps(run: Path) -> list[int]:
    """Steps of complete checkpoints, after comparing all their hashes; nothing else beside them has a good name."""
    steps = complete_steps(run / "checkpoints")
    others = {path.name for path in (run / "checkpoints").iterdir()} - {f"step-{step:08d}" for step in steps}
    assert all(name.endswith(".partial") for name in others)  # one that was being written when the start ended
    for step in steps:
        Checkpoint(folder_of(run / "checkpoints", step)).verify()
    return steps


@pytest.mark.slow
def test_a_full_disk_ends_a_start_in_one_line_and_the_same_command_goes_on(tiny_settings, tiny_run, tmp_path, start):
    size = sum(path.stat().st_size for path in folder_of(tiny_run / "checkpoints", 12).rglob("*")) // 1024  # kB
    disk = tmp_path / "disk"
    settings = [*tiny_settings, "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    with small_disk(disk) as set_size:
        set_size(int(2.5 * size))
        run = disk / "run"

        # Full while checkpointing: of the third checkpoint nothing stays.
        said = line_of(start(run, settings, tmp_path / "first.out"))
        assert f"{run}/checkpoints/step-00000012.partial/" in said
        assert whole_steps(run) == [4, 8]
        assert max(losses(run)) == 12

        # Full to the last byte: not even a start can be noted down.
        filler = fill(disk)
        assert str(run) in line_of(start(run, settings, tmp_path / "second.out"))
        assert whole_steps(run) == [4, 8]

        # Full in the middle of training: the next line of metrics.jsonl, or the heartbeat, does not fit.
        filler.unlink()
        shutil.rmtree(folder_of(run / "checkpoints", 8))
        command = start(run, settings, tmp_path / "third.out")
        command.wait_until(lambda: {5} < losses(run).keys() and 12 not in losses(run))
        filler = fill(disk)
        assert str(run) in line_of(command)
        assert 4 in whole_steps(run)

        filler.unlink()
        set_size(8 * size)
        command = start(run, settings, tmp_path / "fourth.out")
        assert command.end() == EXIT_DONE
        assert whole_steps(run) == [4, 8, 12]
        assert losses(run) == losses(tiny_run)
