"""Which checkpoints are kept, and how the others go.

What cannot be deleted is no reason to end a run whose newest checkpoint is complete (another program reads an old one
from a shared disk, somebody took a right away): it is told of, and tried again after the next one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.errors import HanseError
from common.files import PARTIAL, read_json
from train.config import CheckpointConfig
from train.run_folder import complete_steps, folder_of

GOING = f".deleted{PARTIAL}"  # ending of a checkpoint that is being deleted


def prune(checkpoints: Path, policy: CheckpointConfig) -> tuple[list[int], dict[str, str]]:
    """Delete checkpoints that the policy does not keep, and what is left of earlier ones.

    Returns:
        The steps deleted, and {what could not be deleted: why}.
    """
    left = sweep(checkpoints, f"*{GOING}")
    try:
        steps = not_kept(checkpoints, policy)
    except (HanseError, OSError) as error:
        return [], {**left, str(checkpoints): _reason(error)}
    deleted = []
    for step in steps:
        folder = folder_of(checkpoints, step)
        try:
            remove(folder)
            deleted.append(step)
        except OSError as error:
            left[str(folder)] = _reason(error)
    return deleted, left


def not_kept(checkpoints: Path, policy: CheckpointConfig) -> list[int]:
    """Steps of the complete checkpoints that the policy does not keep."""
    steps = complete_steps(checkpoints)
    kept = set(steps[-policy.keep_last :])
    kept |= {step for step in steps if policy.keep_every_steps and step % policy.keep_every_steps == 0}
    if policy.keep_best:
        kept |= set(best_steps(checkpoints)[: policy.keep_best])
    return [step for step in steps if step not in kept]


def remove(folder: Path) -> None:
    """Delete a checkpoint, never leaving half of one under a good name."""
    _delete(folder.rename(folder.with_name(folder.name + GOING)))


def sweep(checkpoints: Path, pattern: str = f"*{PARTIAL}") -> dict[str, str]:
    """Delete what interrupted starts left of checkpoints; {what could not be deleted: why}."""
    left = {}
    for path in sorted(checkpoints.glob(pattern)):
        try:
            _delete(path)
        except OSError as error:
            left[str(path)] = _reason(error)
    return left


def _delete(path: Path) -> None:
    """Delete a folder as far as it can be.

    Raises:
        OSError: something in it is still there.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        shutil.rmtree(path)  # which names what is in the way


def _reason(error: Exception) -> str:
    file = getattr(error, "filename", None)
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{text}: {file}" if file else text


def best_steps(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints that were evaluated when they were saved, the best first.

    The measure is the mean over the languages of the validation bits per byte.
    """
    scores = []
    for step in complete_steps(checkpoints):
        found = read_json(folder_of(checkpoints, step) / "state.json", "checkpoint state").get("bits_per_byte")
        if found:
            scores.append((sum(found.values()) / len(found), step))
    return [step for _, step in sorted(scores)]
