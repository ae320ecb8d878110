"""``hanse reproduce``: a segment of a run computed again from a checkpoint, here, and compared step by step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR, HanseError
from common.files import sha256_file, write_json
from common.terminal import say
from consortium.config import ReproduceConfig
from train import ledger, start
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.run_folder import RunFolder, complete_steps, folder_of

FORMAT = "hanse.reproduction/1"


def run(config: ReproduceConfig) -> int:
    """Replay and compare; 0 if it is the same, or close enough where bits cannot be asked for, 2 if it is not."""
    original, again = RunFolder(config.run), RunFolder(config.output)
    trained = original.read_config()
    first, last = _segment(config, original)
    theirs = _steps(original)
    code = start.run(_prepared(config, trained, original, again, (first, last)))
    if code not in (EXIT_DONE, EXIT_GO_ON):
        raise HanseError(f"{again.path}: the replay ended with exit code {code}; its logs are in {again.path / 'logs'}")
    result = compare(theirs, _steps(again), first, last)
    tensors = differing_tensors(original, again, last)
    exact = not result["differing_steps"] and not tensors
    close = result["largest_relative_difference"] <= config.tolerance
    told = {"format": FORMAT, "run": config.run, "ledger_sha256": sha256_file(original.ledger), "first_step": first + 1,
            "last_step": last, "determinism": trained.determinism, "bitwise": exact, "tolerance": config.tolerance,
            "within_tolerance": close, **result, "differing_tensors": tensors,
            "compared_state": last in complete_steps(original.checkpoints)}  # fmt: skip
    write_json(again.path / "reproduction.json", told)
    _tell(told, again.path / "reproduction.json")
    return EXIT_DONE if exact or (close and trained.determinism == "D0") else EXIT_USER_ERROR


def _segment(config: ReproduceConfig, original: RunFolder) -> tuple[int, int]:
    """(step of the checkpoint to start from, or 0 for the very beginning; last step to compare)."""
    steps = [0, *complete_steps(original.checkpoints)]
    if config.from_step not in steps:
        raise HanseError(f"from_step={config.from_step}: no checkpoint of that step in {original.checkpoints}; "
                         f"possible: {', '.join(map(str, steps))} (0: from scratch)")  # fmt: skip
    return config.from_step, config.to_step


def _steps(folder: RunFolder) -> dict[int, dict[str, Any]]:
    return ledger.steps(record for _, record in ledger.lines(folder.ledger))


def _prepared(
    config: ReproduceConfig, trained: TrainConfig, original: RunFolder, again: RunFolder, segment: tuple[int, int]
) -> TrainConfig:  # fmt: skip
    """The configuration of the replay, in a folder that holds the checkpoint it starts from.

    Raises:
        HanseError: the folder holds something, or the ledger does not know the segment.
    """
    first, last = segment
    if again.path.exists() and any(again.path.iterdir()):
        raise HanseError(f"{again.path}: holds something already; name an empty output=...")
    known = _steps(original)
    missing = [step for step in range(first + 1, last + 1) if step not in known]
    if missing:
        raise HanseError(f"{original.ledger}: knows no step {missing[0]}; "
                         + (f"its last one is {max(known)}" if known else "it holds none"))  # fmt: skip
    _refuse_part_of_a_rewind(original, first, last)
    if first:
        checkpoint = Checkpoint(folder_of(original.checkpoints, first))
        checkpoint.verify()
        shutil.copytree(checkpoint.folder, folder_of(again.checkpoints, first))
    data = replace(trained.data, shards=config.shards or trained.data.shards,
                   tokenizer=config.tokenizer or trained.data.tokenizer)  # fmt: skip
    return replace(
        trained, run=str(again.path), data=data, until_step=last, ranks=config.ranks or trained.ranks,
        engine=replace(trained.engine, zero_stage=config.zero_stage or trained.engine.zero_stage),
        lock=str(original.lock) if config.lock and original.lock.is_file() else None,
        track=replace(trained.track, wandb="disabled"),
    )  # fmt: skip


def _refuse_part_of_a_rewind(original: RunFolder, first: int, last: int) -> None:
    """A run goes back when it has seen the spikes: a replay that begins before must go that far, or see other data."""
    for _, record in ledger.lines(original.ledger):
        if record["kind"] == "rewind" and first < record["step"] < last < record["spikes"][-1]:
            raise HanseError(f"to_step={last}: the run went back from step {record['spikes'][-1]} to {record['step']} "
                             f"because of spikes; replay from_step={record['step']}, or up to "
                             f"to_step={record['spikes'][-1]} or more")  # fmt: skip


def compare(theirs: Mapping[int, Any], ours: Mapping[int, Any], first: int, last: int) -> dict[str, Any]:
    """What differs between two ledgers in steps ``first + 1 .. last``."""
    differing, largest = [], 0.0
    for step in range(first + 1, last + 1):
        one, other = theirs[step], ours[step]
        if one["batch"] != other["batch"]:
            raise HanseError(f"step {step}: another batch was drawn; the shards here are not those of the run")
        if one.get("skipped") != other.get("skipped"):
            differing.append({"step": step, "value": "skipped", "theirs": one.get("skipped"),
                              "ours": other.get("skipped")})  # fmt: skip
        for key in ("loss", "gradient_norm", "learning_rate"):
            a, b = float.fromhex(one[key]), float.fromhex(other[key])
            if a != b:
                differing.append({"step": step, "value": key, "theirs": a, "ours": b})
                largest = max(largest, abs(a - b) / max(abs(a), abs(b)))
    return {
        "first_differing_step": differing[0]["step"] if differing else None,
        "differing_steps": len({one["step"] for one in differing}),
        "largest_relative_difference": largest,
        "differences": differing[:20],
    }


def differing_tensors(original: RunFolder, again: RunFolder, step: int) -> list[dict[str, Any]]:
    """Tensors of the two checkpoints of a step that are not equal bit for bit, in the model's order; the first twenty.

    Nothing where one of the runs kept no checkpoint of that step.
    """
    if step not in complete_steps(original.checkpoints) or step not in complete_steps(again.checkpoints):
        return []
    one, other = (Checkpoint(folder_of(folder.checkpoints, step)) for folder in (original, again))
    found: list[dict[str, Any]] = []
    for part in ("model", "optimizer"):
        mine, yours = one.slices(part), other.slices(part)
        for name, spans in mine.items():
            size = max((span.stop for span in spans), default=0)
            a, b = torch.empty(size), torch.empty(size)
            one.read(spans, 0, size, a)
            other.read(yours[name], 0, size, b)
            unequal = np.flatnonzero(a.numpy().view(np.int32) != b.numpy().view(np.int32))
            if len(unequal) and len(found) < 20:
                found.append({"tensor": name, "elements": int(size), "differing": len(unequal),
                              "first": int(unequal[0]), "largest_difference": float((a - b).abs().max())})  # fmt: skip
    return found


def _tell(told: Mapping[str, Any], path: Path) -> None:
    segment = f"steps {told['first_step']} to {told['last_step']}"
    state = "weights and moments" if told["compared_state"] else "no checkpoint of the last step to compare"
    if told["bitwise"]:
        say(f"{segment}: the same to the last bit (batches, losses, gradient norms; {state})")
    else:
        if told["first_differing_step"]:
            say(f"{segment}: the first that differs is {told['first_differing_step']}, {told['differing_steps']} do, "
                f"by {told['largest_relative_difference']:.1e} relative at most")  # fmt: skip
        for tensor in told["differing_tensors"][:1]:
            say(f"first tensor that differs: {tensor['tensor']}, {tensor['differing']:,} of {tensor['elements']:,} "
                f"elements, by {tensor['largest_difference']:.1e} at most")  # fmt: skip
        if told["determinism"] == "D0":
            say(f"the run was made at determinism=D0, which promises no bits; "
                f"{'within' if told['within_tolerance'] else 'beyond'} tolerance={told['tolerance']}")  # fmt: skip
        else:
            say(f"the run was made at determinism={told['determinism']}: on its hardware and software this must not be")
    say(f"wrote {path}")
