"""``hanse verify``: a run's papers, checkpoints and data checked against each other; what could not be is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import EXIT_USER_ERROR, HanseError
from common.files import read_json, sha256_file
from common.terminal import say
from consortium.config import VerifyConfig
from data_pipelines.shards import ShardsManifest
from train import ledger
from train.config import TrainConfig
from train.lock import FORMAT, config_sha256
from train.run_folder import RunFolder, complete_steps, folder_of, read_metrics
from train.stream import Stream, first_sample, open_stream


class Unknown(Exception):  # noqa: N818
    """Something that cannot be checked here, and why."""


@dataclass(frozen=True)
class Evidence:
    """What a run folder holds, read once.

    Attributes:
        records: all lines of the ledger; ``steps``: the line of each step, as it stands at the end.
    """

    folder: RunFolder
    config: TrainConfig
    shards: Path
    records: list[dict[str, Any]]
    steps: dict[int, dict[str, Any]]
    batches: int


def run(config: VerifyConfig) -> int:
    """Check everything; 0 if nothing is wrong, 2 otherwise."""
    folder = RunFolder(config.run)
    trained = folder.read_config()
    rows, wrong = [], 0
    try:
        records = [record for _, record in ledger.lines(folder.ledger)]
    except HanseError as error:
        say(f"WRONG  ledger: {error}")
        return EXIT_USER_ERROR
    evidence = Evidence(folder, trained, Path(config.shards or trained.data.shards), records,
                        ledger.steps(iter(records)), config.batches)  # fmt: skip
    for name, check in CHECKS:
        try:
            rows.append((name, "ok", check(evidence)))
        except Unknown as reason:
            rows.append((name, "not checked", str(reason)))
        except HanseError as error:
            wrong += 1
            rows.append((name, "WRONG", str(error)))
    for name, outcome, found in rows:
        say(f"{outcome:12s} {name:15s} {found}")
    unchecked = sum(row[1] == "not checked" for row in rows)
    say(f"{len(rows) - wrong - unchecked} checks passed, {wrong} failed, {unchecked} could not be made")
    return EXIT_USER_ERROR if wrong else 0


def chain(evidence: Evidence) -> str:
    """Every line of the ledger follows from the one before."""
    if not evidence.records:
        raise Unknown("no ledger.jsonl in the run folder")
    starts = sum(record["kind"] == "start" for record in evidence.records)
    return f"{len(evidence.records)} lines in one chain, {starts} starts, {len(evidence.steps)} steps"


def lock(evidence: Evidence) -> str:
    """The lock is the one that the ledger begins with, and speaks of this configuration."""
    path = evidence.folder.lock
    if not path.is_file():
        raise Unknown("no run.lock.json in the run folder")
    value = read_json(path, "lock of this run")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise HanseError(f"{path}: not a lock of format {FORMAT}")
    if value.get("config_sha256") != config_sha256(evidence.config):
        raise HanseError(f"{path}: locked with another configuration than {evidence.folder.config} is now")
    named = {record.get("lock") for record in evidence.records if record["kind"] == "start"}
    if named and named != {sha256_file(path)}:
        raise HanseError(f"{path}: not the file that the ledger names")
    return f"code {value['code']['sha256'][:12]}, determinism {value['determinism']}, {value['precision']}"


def whole(evidence: Evidence) -> str:
    """No step is missing or doubled, and each took the samples that come next."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    size, passed = evidence.config.batch.global_batch_size, ledger.skipped(iter(evidence.records))
    for number, step in enumerate(sorted(evidence.steps), 1):
        first = first_sample(step - 1, size, passed)
        if step != number or evidence.steps[step]["samples"] != [first, first + size]:
            raise HanseError(f"{evidence.folder.ledger}: step {number} is missing or took other samples than those "
                             "that come next in the order of data")  # fmt: skip
    end = first_sample(len(evidence.steps) - 1, size, passed) + size
    left_out = sum("skipped" in line for line in evidence.steps.values())
    return (f"steps 1 to {len(evidence.steps)}, samples 0 to {end}"
            + "".join(f", without {start} to {stop}" for start, stop in passed)
            + (f", {left_out} steps without an update" if left_out else ""))  # fmt: skip


def metrics(evidence: Evidence) -> str:
    """``metrics.jsonl`` tells the losses that the ledger holds."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    told = {record["step"]: record for record in read_metrics(evidence.folder.metrics) if "loss" in record}
    for step, line in evidence.steps.items():
        if step not in told or told[step]["loss"] != float.fromhex(line["loss"]):
            raise HanseError(f"{evidence.folder.metrics}: the loss of step {step} is not the one in the ledger")
    return f"{len(told)} losses, equal to the last bit"


def data(evidence: Evidence) -> str:
    """The shards here are those that the run was locked to, every file of them."""
    manifest = _manifest(evidence)
    if evidence.folder.lock.is_file():
        locked = read_json(evidence.folder.lock, "lock of this run").get("data_merkle_root")
        if locked != manifest.merkle_root:
            raise HanseError(f"{manifest.folder}: not the shards of this run (their Merkle roots differ)")
    for entry in manifest.shards:
        manifest.open(entry, hashes=True)
    return f"{len(manifest.shards)} shards, Merkle root {manifest.merkle_root[:12]}"


def batches(evidence: Evidence) -> str:
    """Steps spread over the run are drawn again from the shards: the same tokens in the same order."""
    if not evidence.steps:
        raise Unknown("the ledger holds no step")
    stream, known = _stream(evidence), sorted(evidence.steps)
    every = max(1, math.ceil(len(known) / max(evidence.batches, 1)))
    drawn = known[::every][: evidence.batches]
    for step in drawn:
        line = evidence.steps[step]
        if stream.fingerprint(range(*line["samples"])) != line["batch"]:
            raise HanseError(f"{evidence.folder.ledger}: step {step} saw another batch than its samples hold")
    return f"{len(drawn)} of {len(known)} steps drawn again"


def checkpoints(evidence: Evidence) -> str:
    """Every file of every checkpoint has its hash, and the ledger knows the checkpoint's Merkle root."""
    from train.checkpoint import Checkpoint  # brings torch

    steps = complete_steps(evidence.folder.checkpoints)
    if not steps:
        raise Unknown("no complete checkpoint in the run folder")
    written = {(one["step"], one["merkle_root"]) for one in evidence.records if one["kind"] == "checkpoint"}
    size = 0
    for step in steps:
        checkpoint = Checkpoint(folder_of(evidence.folder.checkpoints, step))
        checkpoint.verify()
        for part in ("model", "optimizer"):
            checkpoint.slices(part)
        size += sum(entry["bytes"] for entry in checkpoint.files.values())
        if written and (step, checkpoint.manifest["merkle_root"]) not in written:
            raise HanseError(f"{checkpoint.folder}: the ledger knows no checkpoint with this Merkle root")
    return f"{len(steps)} complete ({', '.join(map(str, steps[-4:]))}), {size / 1e6:.1f} MB hashed"


def _manifest(evidence: Evidence) -> ShardsManifest:
    if not evidence.shards.is_dir():
        raise Unknown(f"no shards in {evidence.shards}; set shards=... to where they are now")
    return ShardsManifest.read(evidence.shards)


def _stream(evidence: Evidence) -> Stream:
    settings = evidence.config.data
    return open_stream(_manifest(evidence), settings.sequence_length, evidence.config.seed, settings.mixture)


CHECKS: tuple[tuple[str, Callable[[Evidence], str]], ...] = (
    ("ledger", chain),
    ("lock", lock),
    ("order of steps", whole),
    ("metrics", metrics),
    ("data", data),
    ("batches", batches),
    ("checkpoints", checkpoints),
)
