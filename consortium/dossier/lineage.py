"""What a model was made from: its run, the runs before it, averaged checkpoints; and what all of them add up to.

A checkpoint knows its parents by the SHA-256 of their ``manifest.json``; the folders given are searched for those. Each
run counts once, as far as the latest of its checkpoints that the model comes from, however many ways lead there. Two
runs with one lock are one run here: a contribution is known by its lock as well as the folder that it was copied from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, sha256_file
from consortium.dossier.evidence import Citation, Paper
from train import ledger, lock
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.guards.rewind import skipped_in
from train.model import flops_per_token
from train.run_folder import RunFolder, complete_steps, folder_of, read_metrics

MANIFEST = "manifest.json"
LOCKED = ("code", "distributions", "machine", "layout")  # what a dossier tells of a lock
INIT = "init"  # the role of the checkpoint that a run began with; the others are those of averages


@dataclass(frozen=True)
class Segment:
    """A run as far as one of its checkpoints; or a checkpoint alone, of which only itself is known.

    Attributes:
        folder: the run's, None for a checkpoint alone; ``trained``: whether it was trained, not averaged.
        parents: {"manifest_sha256", "role"} of what it was made from.
    """

    checkpoint: Checkpoint
    folder: RunFolder | None
    config: TrainConfig | None
    parents: tuple[dict[str, Any], ...]
    trained: bool

    @property
    def name(self) -> str:
        return self.config.name if self.config else self.checkpoint.folder.resolve().name

    @property
    def step(self) -> int:
        return int(self.checkpoint.state["step"])

    @property
    def identity(self) -> str:
        """What tells a run from others."""
        if self.folder and self.folder.lock.is_file():
            return sha256_file(self.folder.lock)
        return os.path.realpath(self.folder.path) if self.folder else self.manifest.sha256

    @cached_property
    def manifest(self) -> Paper:
        return Paper.read(self.checkpoint.folder / MANIFEST, "checkpoint manifest")

    @cached_property
    def state(self) -> Paper:
        return Paper.read(self.checkpoint.folder / "state.json", "checkpoint state")

    @cached_property
    def configuration(self) -> Paper | None:
        return Paper.of(self.folder.config) if self.folder else None

    @cached_property
    def lock(self) -> Paper | None:
        if not self.folder or not self.folder.lock.is_file():
            return None
        paper = Paper.read(self.folder.lock, "lock of this run")
        told = paper.content if isinstance(paper.content, dict) else {}
        if told.get("format") != lock.FORMAT or not all(isinstance(told.get(key), dict) for key in LOCKED):
            raise HanseError(f"{paper.path}: not a lock of format {lock.FORMAT}")
        return paper

    @cached_property
    def ledger(self) -> Paper | None:
        return Paper.of(self.folder.ledger) if self.folder and self.folder.ledger.is_file() else None

    @cached_property
    def metrics(self) -> Paper | None:
        return Paper.of(self.folder.metrics) if self.folder and self.folder.metrics.is_file() else None

    @cached_property
    def energy(self) -> Paper | None:
        path = self.folder.path / "energy.jsonl" if self.folder else None
        return Paper.of(path) if path and path.is_file() else None

    @property
    def sequence_length(self) -> int:
        """Tokens; of a checkpoint alone, those of its model's context."""
        if self.config:
            return self.config.data.sequence_length
        return int(self.checkpoint.state["model"]["max_position_embeddings"])

    @property
    def samples(self) -> int:
        """Samples that this run itself learnt from on the way to the checkpoint: not those it went past."""
        passed = sum(stop - start for start, stop in self.skipped)
        return int(self.checkpoint.state["consumed_samples"]) - passed if self.trained else 0

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """Ranges of samples that the run went past (:mod:`train.guards.rewind`)."""
        return skipped_in(self.checkpoint.state, self.checkpoint.folder)

    @property
    def tokens(self) -> int:
        """Tokens that this run itself consumed on the way to the checkpoint, those done twice counted once."""
        return self.config.timeline.tokens_of(self.samples) if self.config else self.samples * self.sequence_length

    @cached_property
    def flops(self) -> int:
        """Model FLOPs of :attr:`tokens` (:func:`train.model.flops_per_token`)."""
        model = self.checkpoint.state["model"]
        if not self.config:
            return flops_of(model, self.sequence_length) * self.tokens
        taken = self.config.timeline.taken(self.step) if self.trained else []
        return sum(tokens * flops_of(model, stage.length) for stage, tokens in taken if tokens)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """All lines of the ledger; its chain is checked."""
        return [record for _, record in ledger.lines(self.folder.ledger)] if self.folder else []

    @property
    def starts(self) -> int:
        return sum(record["kind"] == "start" for record in self.records)

    @property
    def repeated_steps(self) -> int:
        """Steps that were done again because a crash had lost them."""
        return sum(record["kind"] == "step" for record in self.records) - len(ledger.steps(iter(self.records)))

    def cite_tokens(self) -> Iterator[Citation]:
        """Where the tokens stand, after the papers were found to agree on them.

        Raises:
            HanseError: the ledger, the metrics and the checkpoint tell of different numbers.
        """
        yield self.state.at("consumed_samples")
        if self.configuration:
            yield self.configuration.at("data.sequence_length")
        if not (self.trained and self.folder and self.config):
            return
        line = self.config.timeline
        if self.ledger and self.records:
            steps = ledger.steps(iter(self.records))
            spans = {step: line.span(step - 1, self.skipped) for step in range(1, self.step + 1)}
            taken = [step for step, span in spans.items()
                     if step in steps and steps[step]["samples"] == [span.start, span.stop]]  # fmt: skip
            if len(taken) != self.step or self.samples != line.sample(self.step):
                raise HanseError(
                    f"{self.ledger.path}: does not hold steps 1 to {self.step} with the samples that "
                    f"{self.checkpoint.folder} counts; 'hanse verify run={self.folder.path}' says more"
                )
            last = max(number for number, one in enumerate(self.records, 1)
                       if one["kind"] == "step" and one["step"] == self.step)  # fmt: skip
            yield self.ledger.at(f"line {last}")
        if self.metrics:
            told = [(number, one["consumed_tokens"]) for number, one in enumerate(read_metrics(self.metrics.path), 1)
                    if one["step"] == self.step and "consumed_tokens" in one]  # fmt: skip
            if told and told[-1][1] != line.tokens(self.step):
                raise HanseError(
                    f"{self.metrics.path}: line {told[-1][0]} tells of {told[-1][1]} tokens, the checkpoint of "
                    f"{line.tokens(self.step)}; 'hanse verify run={self.folder.path}' says more"
                )
            if told:
                yield self.metrics.at(f"line {told[-1][0]}")


def flops_of(model: dict[str, Any], sequence_length: int) -> int:
    """Model FLOPs of a training token of the model with this ``transformers`` configuration."""
    from transformers import AutoConfig

    from train.model import shape_of_model

    values = dict(model)
    try:
        shape = shape_of_model(AutoConfig.for_model(values.pop("model_type"), **values))
    except Exception as error:  # transformers validates with exceptions of many types
        raise HanseError(f"state.json of a checkpoint: no model that transformers knows "
                         f"({' '.join(str(error).split())})") from None  # fmt: skip
    return flops_per_token(shape, sequence_length)


@dataclass(frozen=True)
class Lineage:
    """A model and all that it comes from.

    Attributes:
        segments: that of the model first; each run once.
        lost: "ROLE SHA256" of parents that were not found.
    """

    segments: tuple[Segment, ...]
    lost: tuple[str, ...]

    @property
    def head(self) -> Segment:
        """The run, or averaged checkpoint, that is the model."""
        return self.segments[0]

    @property
    def trained(self) -> tuple[Segment, ...]:
        """All runs."""
        return tuple(one for one in self.segments if one.trained)

    @property
    def name(self) -> str:
        return self.head.name

    @property
    def version(self) -> str:
        return f"step-{self.head.step:08d}-{self.head.checkpoint.manifest['merkle_root'][:12]}"


def trace(start: Path, places: Iterable[Path] = (), step: int | None = None) -> Lineage:
    """Follow a run's checkpoint back to where its weights came from.

    Args:
        start: a run folder, or a checkpoint's.
        places: folders in which parents are looked for, links not followed.
        step: of the checkpoint; None: the latest.

    Raises:
        HanseError: there is no such checkpoint, or it is damaged.
    """
    head = open_segment(_checkpoint_of(start, step))
    known: dict[str, Path] = {}
    for sha256, folder in _manifests([start, *places]):
        known.setdefault(sha256, folder)
    found: dict[str, Segment] = {}
    lost: list[str] = []
    pending = [head]
    seen = {head.manifest.sha256}
    while pending:
        segment = pending.pop()
        before = found.get(segment.identity)
        if before is None or before.step < segment.step:
            found[segment.identity] = segment
        for parent in segment.parents:
            sha256 = str(parent["manifest_sha256"])
            if sha256 in seen:
                continue
            seen.add(sha256)
            if sha256 in known:
                pending.append(open_segment(known[sha256]))
            else:
                lost.append(f"{parent.get('role', 'parent')} {sha256}")
    others = [one for key, one in found.items() if key != head.identity]
    return Lineage((head, *sorted(others, key=lambda one: (one.name, one.step))), tuple(lost))


def open_segment(folder: Path) -> Segment:
    """The segment that ends with a checkpoint."""
    checkpoint = Checkpoint(folder)
    run = _run_of(folder)
    config = run.read_config() if run else None
    told = [*checkpoint.manifest.get("parents", [])]
    if run and run.lock.is_file():
        told += read_json(run.lock, "lock of this run").get("parents", [])
    if not all(isinstance(one, dict) and isinstance(one.get("manifest_sha256"), str) for one in told):
        raise HanseError(f"{folder / MANIFEST}: 'parents' must be a list of {{manifest_sha256, role}}")
    parents = {one["manifest_sha256"]: one for one in told}
    averaged = "method" in checkpoint.manifest or any(one.get("role", INIT) != INIT for one in parents.values())
    return Segment(checkpoint, run, config, tuple(parents.values()), trained=not averaged)


def _run_of(checkpoint: Path) -> RunFolder | None:
    """The run folder that a checkpoint lies in; or the contribution to a registry, which holds papers of one."""
    if (checkpoint.parent.parent / "config.yaml").is_file():
        return RunFolder(checkpoint.parent.parent)
    contribution = RunFolder(checkpoint.parent)
    contribution.config = checkpoint.parent / "config.json"  # which YAML reads, too
    return contribution if contribution.config.is_file() and contribution.lock.is_file() else None


def _checkpoint_of(start: Path, step: int | None) -> Path:
    if (start / MANIFEST).is_file():
        return start
    run = RunFolder(start)
    steps = complete_steps(run.checkpoints)
    if not steps:
        raise HanseError(f"run={start}: no complete checkpoint here; a dossier describes one")
    if step is not None and step not in steps:
        raise HanseError(f"step={step}: no checkpoint of that step in {run.checkpoints}; "
                         f"there {'are' if len(steps) > 1 else 'is'} {', '.join(map(str, steps))}")  # fmt: skip
    return folder_of(run.checkpoints, step if step is not None else steps[-1])


def _manifests(places: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """(sha256 of the manifest, folder) of every checkpoint under some folders."""
    for place in places:
        if not place.is_dir():
            raise HanseError(f"{place}: no such folder; parents and registry are folders that hold checkpoints")
        for folder, folders, files in os.walk(place):
            folders[:] = [one for one in folders if one not in ("model", "optimizer", "wandb", "logs")]
            path = Path(folder) / MANIFEST
            if MANIFEST in files and not path.is_symlink() and (Path(folder) / "state.json").is_file():
                yield sha256_file(path), path.parent
