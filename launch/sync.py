"""``hanse sync``: what compute nodes could not send, sent from a login node by the tools that are made for it.

The commands are shown before they run. wandb marks each start of a run that is uploaded (``NAME.wandb.synced`` beside
its log), rsync and rclone compare what is there: run the same command again after an interruption, and it goes on. Of
the start that was being uploaded, wandb sends all steps again, with the same numbers and values.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from common.errors import EXIT_CRASH, HanseError
from common.terminal import say
from launch.config import SyncConfig
from launch.sweep_record import Sweep, is_sweep, name_of, run_folders


def run(config: SyncConfig) -> int:
    """Upload offline wandb runs, and copy checkpoints if asked.

    Returns:
        0 when everything is there, 1 when a command failed (its own message stands above).

    Raises:
        HanseError: there is nothing to send, or the tool is missing.
    """
    folders = run_folders(Path(config.runs), "config.yaml")
    if config.run:
        sweep = Sweep.read(Path(config.run)).runs if is_sweep(Path(config.run)) else {}
        folders = [Path(config.run) / name for name in sweep] or [Path(config.run)]
    commands = [
        (command, folder)
        for folder in folders
        for command in [*wandb_commands(folder, config), *copy_commands(folder, config)]
    ]
    if not commands:
        say(f"nothing to send: no offline wandb run that is not uploaded in {config.run or config.runs}")
        return 0
    failed = []
    for command, folder in commands:
        say(f"$ {shlex.join(command)}")
        if not config.dry_run and _start(command, folder):
            failed.append(command)
    if failed:
        say(f"{len(failed)} of {len(commands)} failed; the same command tries those again")
    return EXIT_CRASH if failed else 0


def offline_runs(folder: Path) -> list[Path]:
    """The offline wandb runs of a run folder that were not uploaded whole, oldest first."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [path for path in found if path.is_dir() and any(
        not log.with_name(f"{log.name}.synced").exists() for log in path.glob("run-*.wandb"))]  # fmt: skip


def wandb_commands(folder: Path, config: SyncConfig) -> list[list[str]]:
    """One ``wandb sync`` for all offline runs of a folder: starts of one run share an id, it sends them in order."""
    paths = [str(path) for path in offline_runs(folder)]
    goal = [word for flag, value in (("--project", config.project), ("--entity", config.entity)) if value
            for word in (flag, value)]  # fmt: skip
    return [[sys.executable, "-m", "wandb", "sync", *goal, *paths]] if paths else []


def copy_commands(folder: Path, config: SyncConfig) -> list[list[str]]:
    """rsync or rclone for the complete checkpoints of a run folder."""
    source = folder / "checkpoints"
    if not config.checkpoints or not source.is_dir():
        return []
    goal = f"{config.checkpoints.rstrip('/')}/{name_of(folder)}/checkpoints"
    if config.tool == "rclone":
        return [["rclone", "copy", "--checksum", "--exclude", "*.partial/**", str(source), goal]]
    return [
        ["rsync", "-a", "--mkpath", "--partial", "--info=progress2", "--exclude=*.partial", f"{source}/", f"{goal}/"]
    ]


def _start(command: list[str], folder: Path) -> int:
    """Run a command with the terminal; wandb is told that it may go online here and keeps its logs by the run."""
    settings = {"WANDB_MODE": "online", "WANDB_SILENT": "false", "WANDB_DIR": str(folder)}
    try:
        return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode
    except FileNotFoundError:
        raise HanseError(
            f"{command[0]}: not on this machine; install it, or show the commands with dry_run=true"
        ) from None
