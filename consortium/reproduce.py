"""``hanse reproduce``: a segment of a run computed again from a checkpoint, here, and compared step by step."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import EXIT_DONE, EXIT_GO_ON, EXIT_USER_ERROR, HanseError
from common.files import write_json
from common.terminal import say
from consortium import attestation
from consortium.attestation import SHOWN, VALUES, Replay
from consortium.config import ReproduceConfig
from consortium.keys import load_private
from train import ledger, start
from train.attention_config import for_reading
from train.checkpoint import PARTS, Checkpoint
from train.config import TrainConfig
from train.engine_config import EngineConfig
from train.local_start import REPLAY
from train.run_folder import RunFolder, complete_steps, folder_of
from train.state_hash import tensors_under

MARGIN = 10  # the band is this many times what two replays differ by: they are one draw of the noise
LEAST = 2.0**-23  # relative: the resolution of fp32, of which losses and norms are made

Steps = Mapping[int, Mapping[str, Any]]
Band = Mapping[int, Mapping[str, float]]  # {step: {value: largest relative difference that is accepted}}


def run(config: ReproduceConfig) -> int:
    """Replay and compare; 0 if it is the same, or close enough where bits cannot be asked for, 2 if it is not."""
    original, again = RunFolder(config.run), RunFolder(config.output)
    trained, theirs = original.read_config(), _steps(original)
    first, last = _segment(config, original, theirs)
    _check_subject(config, original, last)
    if again.path.exists() and any(again.path.iterdir()):
        raise HanseError(f"{again.path}: holds something already; name an empty output=...")
    replayed = _prepared(config, trained, original, (first, last))
    other = _other_layout(replayed) if config.measure_noise else None  # refused, if at all, before anything is computed
    ours = _replay(replayed, original, again, first)
    band: Band = {step: dict.fromkeys(VALUES, config.tolerance) for step in range(first + 1, last + 1)}
    if other:
        band = noise_band(ours, _replay(other, original, RunFolder(again.path / "noise"), first), first, last)
    found = compare(theirs, ours, first, last, band)
    found["band"] = {"measured": bool(other), "at_the_last_step": dict(band[last])}
    found["states"] = compare_states(original, again, first, last)
    found["differing_tensors"] = differing_tensors(original, again, last)
    told = attestation.describe(Replay(original, again, first, last), trained, found)
    write_json(again.path / "reproduction.json", told)
    attestation.tell(told)
    say(f"wrote {again.path / 'reproduction.json'}")
    if config.key:
        subject = folder_of(original.checkpoints, last)
        say(f"signed {attestation.sign(subject, load_private(Path(config.key)), told, again.path)}: about {subject}")
    return EXIT_USER_ERROR if told["outcome"] == "differs" else EXIT_DONE


def _segment(config: ReproduceConfig, original: RunFolder, known: Steps) -> tuple[int, int]:
    """(step of the checkpoint to start from, or 0 for the very beginning; last step to compare)."""
    steps = [0, *complete_steps(original.checkpoints)]
    if config.from_step not in steps:
        raise HanseError(f"from_step={config.from_step}: no checkpoint of that step in {original.checkpoints}; "
                         f"possible: {', '.join(map(str, steps))} (0: from scratch)")  # fmt: skip
    last = max(known, default=0) if config.to_step is None else config.to_step
    missing = next((step for step in range(config.from_step + 1, last + 1) if step not in known), None)
    if missing or not last:
        raise HanseError(f"{original.ledger}: knows no step {missing or config.from_step + 1}; "
                         + (f"its last one is {max(known)}" if known else "it holds none"))  # fmt: skip
    _refuse_part_of_a_rewind(original, config.from_step, last)
    return config.from_step, last


def _check_subject(config: ReproduceConfig, original: RunFolder, last: int) -> None:
    """What is to be signed must be there, and the key readable, before hours are spent.

    Raises:
        HanseError: the run kept no checkpoint of the last step, or the key cannot be used.
    """
    if config.key:
        load_private(Path(config.key))
        steps = complete_steps(original.checkpoints)
        if last not in steps:
            raise HanseError(f"key={config.key}: what is signed is the checkpoint of the last step, and the run kept "
                             f"none of step {last}; it has {', '.join(map(str, steps)) or 'none'}")  # fmt: skip
        Checkpoint(folder_of(original.checkpoints, last)).verify()


def _steps(folder: RunFolder) -> dict[int, dict[str, Any]]:
    return ledger.steps(record for _, record in ledger.lines(folder.ledger))


def _prepared(
    config: ReproduceConfig, trained: TrainConfig, original: RunFolder, segment: tuple[int, int]
) -> TrainConfig:
    """The configuration of the replay."""
    data = replace(trained.data, shards=config.shards or trained.data.shards,
                   tokenizer=config.tokenizer or trained.data.tokenizer)  # fmt: skip
    return replace(
        trained, run=config.output, data=data,
        model=replace(trained.model, attention=for_reading(trained.model.attention)),  # others promise no bits
        until_step=segment[1], **_on_ranks(
            trained.engine if config.zero_stage is None else replace(trained.engine, zero_stage=config.zero_stage),
            config.ranks or trained.ranks,
        ),
        lock=str(original.lock) if config.lock and original.lock.is_file() else None,
        track=replace(trained.track, wandb="disabled", tensorboard=False), profile=False,
    )  # fmt: skip


def _on_ranks(engine: EngineConfig, ranks: int) -> dict[str, Any]:
    """``ranks`` and ``engine`` of a replay: where they cannot share sequences or matrices as the run's did, none do."""
    shared = engine.sequence_parallel if ranks % engine.sequence_parallel == 0 else 1
    parts = engine.tensor_parallel if ranks % engine.tensor_parallel == 0 and engine.zero_stage in (1, 2) else 1
    return {"ranks": ranks, "engine": replace(engine, sequence_parallel=shared, tensor_parallel=parts)}


def _other_layout(config: TrainConfig) -> TrainConfig:
    """The same replay with sums taken in another order: with half the micro-batch, or twice, or on one rank.

    Raises:
        HanseError: the run promises bits, or there is no such layout.
    """
    if config.determinism != "D0":
        raise HanseError(f"measure_noise=true: the run was made at determinism={config.determinism}, which promises "
                         "bits; leave it out")  # fmt: skip
    size, ranks = config.batch.micro_batch_size, config.ranks
    for micro_batch, on in ((size // 2, ranks), (2 * size, ranks), (size, 1)):
        other = replace(config, run=str(Path(config.run) / "noise"), **_on_ranks(config.engine, on),
                        batch=replace(config.batch, micro_batch_size=micro_batch))  # fmt: skip
        shared = other.engine.sharing
        if micro_batch and (micro_batch, on) != (size, ranks) and not other.timeline.problems(on, shared):
            return other
    raise HanseError(f"measure_noise=true: a batch of {config.batch.global_batch_size} on {ranks} ranks can be summed "
                     "in one way only; set tolerance=... instead")  # fmt: skip


def _replay(config: TrainConfig, original: RunFolder, again: RunFolder, first: int) -> dict[int, dict[str, Any]]:
    """Train the segment in ``again``, from the original's checkpoint of step ``first``; its steps.

    Raises:
        HanseError: that checkpoint is damaged, or the training failed or was stopped.
    """
    if first:
        checkpoint = Checkpoint(folder_of(original.checkpoints, first))
        checkpoint.verify()
        shutil.copytree(checkpoint.folder, folder_of(again.checkpoints, first))
    os.environ[REPLAY] = "1"
    try:
        code = start.run(config)
    finally:
        del os.environ[REPLAY]
    if code not in (EXIT_DONE, EXIT_GO_ON):
        raise HanseError(f"{again.path}: the replay ended with exit code {code}; its logs are in {again.path / 'logs'}")
    steps = _steps(again)
    if config.until_step not in steps:
        raise HanseError(f"{again.path}: the replay was stopped after step {max(steps, default=first)} of "
                         f"{config.until_step}: nothing is compared")  # fmt: skip
    return steps


def noise_band(ours: Steps, other: Steps, first: int, last: int) -> dict[int, dict[str, float]]:
    """What may be noise, from two replays that differ in the order of their sums only.

    At each step and of each value: ``MARGIN`` times the largest relative difference between the two up to that step
    (differences grow as weights part), where the resolution of fp32 counts as the least that two replays differ by:
    in the first steps they often do not, by chance.
    """
    largest, found = dict.fromkeys(VALUES, LEAST), {}
    for step in range(first + 1, last + 1):
        for key in VALUES:
            largest[key] = max(largest[key], _apart(ours[step][key], other[step][key]))
        found[step] = {key: MARGIN * value for key, value in largest.items()}
    return found


def _apart(one: str, other: str) -> float:
    """Relative difference of two hexadecimal floats; 1 where one is infinite, the norm of an overflow in fp16."""
    a, b = float.fromhex(one), float.fromhex(other)
    largest = max(abs(a), abs(b))
    return 0.0 if a == b else 1.0 if math.isinf(largest) else abs(a - b) / largest


def _number(text: str) -> float | None:
    """A hexadecimal float; None if it is infinite, which JSON has no word for."""
    value = float.fromhex(text)
    return value if math.isfinite(value) else None


def _refuse_part_of_a_rewind(original: RunFolder, first: int, last: int) -> None:
    """A run goes back when it has seen the spikes: a replay that begins before must go that far, or see other data."""
    for _, record in ledger.lines(original.ledger):
        if record["kind"] == "rewind" and first < record["step"] < last < record["spikes"][-1]:
            raise HanseError(f"to_step={last}: the run went back from step {record['spikes'][-1]} to {record['step']} "
                             f"because of spikes; replay from_step={record['step']}, or up to "
                             f"to_step={record['spikes'][-1]} or more")  # fmt: skip


def compare(theirs: Steps, ours: Steps, first: int, last: int, band: Band | None = None) -> dict[str, Any]:
    """What differs between two ledgers in steps ``first + 1 .. last``, and whether all of it is within the band.

    Raises:
        HanseError: a step saw another batch: that is no difference of the computation.
    """
    differing: list[dict[str, Any]] = []
    within, largest = True, 0.0
    for step in range(first + 1, last + 1):
        one, other = theirs[step], ours[step]
        if one["batch"] != other["batch"]:
            raise HanseError(f"step {step}: another batch was drawn; the shards here are not those of the run")
        if one.get("skipped") != other.get("skipped"):
            differing.append({"step": step, "value": "skipped", "theirs": one.get("skipped"),
                              "ours": other.get("skipped")})  # fmt: skip
            within = False
        for key in VALUES:
            apart = _apart(one[key], other[key])
            if apart:
                differing.append({"step": step, "value": key, "theirs": _number(one[key]), "ours": _number(other[key]),
                                  "relative": apart})  # fmt: skip
                largest, within = max(largest, apart), within and apart <= (band[step][key] if band else 0.0)
    return {
        "first_differing_step": differing[0]["step"] if differing else None,
        "differing_steps": len({one["step"] for one in differing}),
        "largest_relative_difference": largest,
        "within_band": within,
        "differences": differing[:SHOWN],
    }


def compare_states(original: RunFolder, again: RunFolder, first: int, last: int) -> dict[str, Any]:
    """Roots of weights and moments, where both ledgers hold one: between checkpoints, the first that differs, and what
    in it; the state parted after ``last_equal`` (the start of the segment, if none is)."""
    theirs, ours = (ledger.steps((record for _, record in ledger.lines(folder.ledger)), "state")
                    for folder in (original, again))  # fmt: skip
    common = [step for step in sorted(theirs.keys() & ours.keys()) if first < step <= last]
    differing = [step for step in common if theirs[step]["root"] != ours[step]["root"]]
    found: dict[str, Any] = {"compared": common, "differing": len(differing)}
    if differing:
        step = differing[0]
        one, other = (tensors_under(folder.states, roots[step]["root"])
                      for folder, roots in ((original, theirs), (again, ours)))  # fmt: skip
        names = [name for name in one if one[name] != other.get(name)] if one and other else None
        found |= {"first_differing": step, "last_equal": max((s for s in common if s < step), default=first),
                  "tensors": names and names[:SHOWN], "differing_tensors": names and len(names)}  # fmt: skip
    return found


def differing_tensors(original: RunFolder, again: RunFolder, step: int) -> list[dict[str, Any]]:
    """Tensors of the two checkpoints of a step that are not equal bit for bit, in the model's order.

    Reads no further than the twentieth. Nothing where one of the runs kept no checkpoint of that step.
    """
    if step not in complete_steps(original.checkpoints) or step not in complete_steps(again.checkpoints):
        return []
    one, other = (Checkpoint(folder_of(folder.checkpoints, step)) for folder in (original, again))
    found: list[dict[str, Any]] = []
    for part in PARTS:
        mine, yours = one.slices(part), other.slices(part)
        for name, spans in mine.items():
            size = max((span.stop for span in spans), default=0)
            a, b = torch.empty(size), torch.empty(size)
            one.read(spans, 0, size, a)
            other.read(yours[name], 0, size, b)
            unequal = np.flatnonzero(a.numpy().view(np.int32) != b.numpy().view(np.int32))
            if len(unequal):
                found.append({"tensor": name, "elements": int(size), "differing": len(unequal),
                              "first": int(unequal[0]), "largest_difference": float((a - b).abs().max())})  # fmt: skip
            if len(found) == SHOWN:
                return found
    return found
