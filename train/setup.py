"""From a configuration to everything a training loop needs: data, model, engine, and the checkpoint it goes on from."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.configuration import differences
from common.errors import HanseError
from common.files import read_json, sha256_file, write_json
from common.terminal import say
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths, tokenizer_sha256
from train import lock, outcome, sequence_parallel, tensor_parallel
from train.ability import agree_on_attention, agree_on_compiling
from train.attention import ways as attention_ways
from train.checkpoint import DAMAGED, Checkpoint, Damaged
from train.checkpoint_writer import Writer
from train.config import TrainConfig
from train.engine import Engine
from train.evaluate import Evaluation
from train.guards.rewind import skipped_in
from train.guards.spikes import Spikes
from train.guards.watchdog import Watchdog
from train.initial import open_initial
from train.ledger import Ledger
from train.materialise import Beginning, begin
from train.metrics import Metrics
from train.model import (
    compile_layers,
    compiles,
    flops_per_token,
    model_config,
    parameter_counts,
    recompute_activations,
    with_rope_theta,
)
from train.order import RunStream, WindowsAt, open_stream, windows_of
from train.pools import parts_of_languages, sources_in
from train.precision import agree as agree_on_precision
from train.precision import peaks_of_all
from train.ranks import Place, gathered, together
from train.retention import sweep
from train.run_folder import RunFolder, complete_steps, folder_of
from train.stages import Stage
from train.state_hash import StateHasher
from train.stopwatch import Stopwatch
from train.stream import open_sources
from train.task_evaluation import TaskEvaluation, open_tasks
from train.validate import owes_evaluation
from train.weights import Weights


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, on one rank.

    Attributes:
        first_step: optimizer steps done before this start; ``seconds_before``: wall-clock seconds spent on them.
        owes_evaluation: whether that of ``first_step`` is still to be made (train/validate.py).
        parameters: of the model; ``flops``: model FLOPs of one training token, by the length of the sequences.
        tasks: asked beside each evaluation; None: none are.
        watch: tells where this rank's time goes.
        hasher: of weights and moments, for the ledger; None: never.
        peak: measured FLOP/s of all ranks together in ``precision``; ``sheet_peak``: in bf16 by the data sheets of
            their GPUs, None where they are not known.
    """

    config: TrainConfig
    place: Place
    folder: RunFolder
    data: Data
    engine: Engine
    evaluation: Evaluation
    tasks: TaskEvaluation | None
    metrics: Metrics
    ledger: Ledger | None
    hasher: StateHasher | None
    writer: Writer
    watchdog: Watchdog
    watch: Stopwatch
    spikes: Spikes
    precision: str
    parameters: int
    flops: dict[int, int]
    peak: float
    sheet_peak: float | None
    first_step: int
    owes_evaluation: bool
    seconds_before: float

    @property
    def reader(self) -> Place:
        """This rank among those that read different samples."""
        return self.place.data_parallel(self.config.engine.sharing)

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """Ranges of samples that the run went past (train/guards/rewind.py)."""
        return self.data.stream.skipped

    def flops_per_token(self, stage: Stage) -> int:
        """Model FLOPs of one training token."""
        return self.flops[stage.length]

    def utilisation(self, flops_per_second: float) -> dict[str, float]:
        """MFU of the measured peak, and that of the data sheets where they are known."""
        of_sheet = {"mfu_data_sheet": flops_per_second / self.sheet_peak} if self.sheet_peak else {}
        return {"mfu": flops_per_second / self.peak, **of_sheet}

    def work(self, step: int) -> tuple[int, int]:
        """(tokens, model FLOPs) of this start's steps until ``step``."""
        line = self.config.timeline
        parts = [(stage, tokens - before) for (stage, tokens), (_, before)
                 in zip(line.taken(step), line.taken(self.first_step), strict=True)]  # fmt: skip
        return sum(part for _, part in parts), sum(part * self.flops_per_token(stage) for stage, part in parts)


def set_up(config: TrainConfig, place: Place, folder: RunFolder, device: torch.device, watchdog: Watchdog) -> Run | int:
    """Open everything; the exit code where the run has come as far as it is to go already. Collective.

    Raises:
        HanseError: wrong input, on every rank alike.
    """
    with together(place):
        data = open_data(config)
        change = folder.check_config(config) if place.first else None
    resumed = open_checkpoint(folder, data, place)
    initial, parents = open_initial(config, resumed, data.model, data.manifest.tokenizer_sha256, place)
    first_step = resumed.state["step"] if resumed else 0
    if (code := outcome.nothing_to_do(config, folder, first_step, speaks=place.first)) is not None:
        return code

    precision, peaks = agree_on_precision(asked_precision(config, resumed), device)
    attention = choose_attention(config, data, precision, device, place)
    with together(place):
        sequence_parallel.check_model(config, data.model)
        tensor_parallel.check_model(config, data.model, precision)
        if change:
            change.check(first_step, data.windows_at)
        beginning = begin_model(config, data, attention, resumed, initial)
        model = beginning.model
        compiled = compiles(config, model, device)
    compiled = agree_on_compiling(place, compiled)
    with together(place):
        if compiled:
            compile_layers(model)
    parameters = parameter_counts(model)[0]
    flops = {stage.length: flops_per_token(model, stage.length) for stage in config.timeline}
    engine = Engine(config, model, place.ranks, precision, beginning.land)
    engine.mark = watchdog.at
    ledger = None
    with together(place):
        if resumed:
            resumed.restore(engine)
            data.stream.skip(skipped_in(resumed.state, resumed.folder))
        if initial:
            initial.restore(engine)
        if place.first:
            now = lock.describe(
                config, data.manifest, place, precision, parents, attention=attention, compiled=compiled
            )
            passed = data.stream.skipped
            facts = {"parameters": parameters, "flops_per_token": flops[config.timeline.at(first_step).length],
                     **({"skipped_samples": passed} if passed else {})}  # fmt: skip
            ledger = open_ledger(config, folder, now, first_step, facts)
            if change:
                change.note(folder, ledger, first_step, (lock.config_sha256(change.before), now["config_sha256"]))
            folder.keep_config(config)
            folder.cut_metrics(first_step)
            sweep_checkpoints(folder)
    metrics = Metrics(folder, config, first_step=first_step, speaks=place.first)
    metrics.say(
        outcome.opening(
            config,
            place,
            parameters=parameters,
            precision=precision,
            attention=attention,
            compiled=compiled,
            peaks=peaks,
            resumed=resumed,
            initial=initial,
        )
    )
    peak, sheet_peak = peaks_of_all(place, peaks[precision], device)
    metrics.event(first_step, "resume" if resumed else "start", ranks=place.ranks, zero_stage=config.engine.zero_stage,
                  precision=precision, attention=attention, compiled=compiled, peak_flops_per_second=peaks,
                  peak_of_all_ranks=peak, host=platform.node(),
                  **({"data_sheet_peak_of_all_ranks": sheet_peak} if sheet_peak else {}),
                  **({"stages_changed": change.told} if change else {}))  # fmt: skip
    tasks, told = open_tasks(config, data.manifest, place, list(data.validation))
    if told:
        metrics.say(told)
    return Run(
        config=config,
        place=place,
        folder=folder,
        data=data,
        engine=engine,
        evaluation=Evaluation(data.validation, config.evaluate.tokens_per_language, config.batch.micro_batch_size,
                              data.token_bytes, by_source=True),
        tasks=tasks,
        metrics=metrics,
        ledger=ledger,
        hasher=StateHasher(engine, place) if config.state_hash_every_steps else None,
        writer=Writer(folder.checkpoints, place, config.checkpoint, {"parents": parents} if parents else None),
        watchdog=watchdog,
        watch=Stopwatch.of_training(),
        spikes=Spikes(config.guards.spikes, resumed.state.get("spikes") if resumed else None),
        precision=precision,
        parameters=parameters,
        flops=flops,
        peak=peak,
        sheet_peak=sheet_peak,
        first_step=first_step,
        owes_evaluation=resumed is not None and owes_evaluation(folder, resumed.state, place),
        seconds_before=resumed.state["wall_seconds"] if resumed else 0.0,
    )  # fmt: skip


def choose_attention(config: TrainConfig, data: Data, precision: str, device: torch.device, place: Place) -> str:
    """The back end of all ranks. Collective.

    Raises:
        HanseError: what is asked for cannot be had on some rank.
    """
    with together(place):
        ways = attention_ways(config, data.model, precision, device)
    return agree_on_attention(place, ways)


def sweep_checkpoints(folder: RunFolder) -> None:
    """Delete what interrupted starts left of checkpoints, and tell of what cannot be."""
    for path, why in sweep(folder.checkpoints).items():
        say(f"CANNOT DELETE {path} ({why}), which an interrupted start left")


def begin_model(
    config: TrainConfig, data: Data, attention: str, resumed: Checkpoint | None, initial: Weights | None
) -> Beginning:
    """The model of this start, without memory yet.

    Raises:
        HanseError: the weights are those of another model.
    """
    saved = resumed.reader() if resumed else initial.read_whole if initial else None
    fresh = initial is not None and not initial.complete
    beginning = begin(data.model, config.seed, attention, config.model.init, saved, fresh=fresh)
    if resumed:
        resumed.check_model({name: tuple(one.shape) for name, one in beginning.model.named_parameters()})
    if initial:
        initial.check_constants(beginning.model)
    if config.engine.recompute_every_layers:
        recompute_activations(beginning.model, config.engine.recompute_every_layers)
    return beginning


def open_ledger(
    config: TrainConfig, folder: RunFolder, now: dict[str, Any], first_step: int, facts: dict[str, Any]
) -> Ledger:
    """Write the lock at a first start, and the ledger's line of this one, whose lock would be ``now``, with ``facts``.

    Raises:
        HanseError: this start would not repeat the run whose lock it is held to, or the ledger is damaged.
    """
    if config.lock:
        for line in lock.hold_to(Path(config.lock), now):
            say(f"lock: {line}")
    if not folder.lock.is_file():
        write_json(folder.lock, now)
    differs = differences(read_json(folder.lock, "lock of this run"), now)
    ledger = Ledger(folder.ledger)
    ledger.write("start", {
        "step": first_step, "lock": sha256_file(folder.lock), **now["layout"], **facts,
        "differs": {key: here for key, (_, here) in differs.items()},
    })  # fmt: skip
    return ledger


@dataclass(frozen=True)
class Data:
    """Everything read from the shards folder; ``models``: configurations of ``transformers``, by ``rope_theta``;
    ``windows_at``: windows of each language, and of parts that are drawn from, for one epoch, by their length."""

    manifest: ShardsManifest
    stream: RunStream
    validation: dict[str, Any]
    token_bytes: np.ndarray
    models: dict[float | None, Any]
    windows_at: WindowsAt

    @property
    def model(self) -> Any:
        """The ``transformers`` configuration that the run begins with."""
        return self.models[None]

    @cached_property
    def sources(self) -> dict[str, dict[str, int]]:
        """{language: {source: tokens}} of the training text."""
        return sources_in(self.manifest)

    @property
    def training(self) -> dict[str, Any]:
        """{language: one of its sources, which has all of its shards}."""
        return {source.language: source for source in self.stream.sources}

    @property
    def languages(self) -> list[str]:
        """The languages of the training sources, in the order of their numbers."""
        return self.stream.languages


def open_data(config: TrainConfig) -> Data:
    """Open shards and tokenizer, and check that they belong together.

    Raises:
        HanseError: something is missing, damaged, or not what the manifest describes.
    """
    settings = config.data
    manifest = ShardsManifest.read(Path(settings.shards))
    tokenizer = Path(settings.tokenizer) / "tokenizer.json"
    if tokenizer_sha256(tokenizer) != manifest.tokenizer_sha256:
        raise HanseError(
            f"{tokenizer}: not the tokenizer that the shards in {settings.shards} were written with (its sha256 is not "
            "the one in their manifest); set data.tokenizer, or run 'hanse tokenize' again"
        )
    length, hashes, end = settings.sequence_length, settings.verify_hashes, manifest.end_of_document_id
    longest = max(stage.length for stage in config.timeline)
    stream = open_stream(manifest, config, hashes=hashes)
    validation = open_sources(manifest, "validation", length, config.seed, hashes=hashes)
    model = model_config(config.model, manifest.vocabulary_size, longest, bos_token_id=end, eos_token_id=end)
    thetas = dict.fromkeys([None, *(stage.rope_theta for stage in config.timeline)])
    models = {theta: with_rope_theta(model, theta) for theta in thetas}
    return Data(manifest, stream, validation, token_byte_lengths(tokenizer), models,
                windows_of(manifest, settings.packing, parts_of_languages(config)))  # fmt: skip


def open_checkpoint(folder: RunFolder, data: Data, place: Place) -> Checkpoint | None:
    """The newest complete checkpoint whose hashes are right; None in a fresh folder. Collective.

    Damaged ones newer than that are set aside, loudly; where none is sound, nothing is moved.

    Raises:
        HanseError: the only one there is is damaged, or it belongs to other data.
    """
    damaged: list[tuple[Path, str]] = []
    for step in reversed(complete_steps(folder.checkpoints)):
        path = folder_of(folder.checkpoints, step)
        found, damage = verified(path, place)
        if found is None:
            damaged.append((path, damage))
            continue
        with together(place):
            if found.state["data_merkle_root"] != data.manifest.merkle_root:
                raise HanseError(
                    f"{path}: trained on other shards than those in {data.manifest.folder} (their Merkle roots "
                    "differ); set data.shards to the ones it was trained on, or name another run=..."
                )
            if place.first:
                for bad, why in damaged:
                    set_aside(bad, why, path)
        return found
    with together(place):
        if damaged:
            raise HanseError(damaged[0][1])
    return None


def verified(path: Path, place: Place) -> tuple[Checkpoint | None, str]:
    """The checkpoint, each rank having compared its share of the hashes; or None, and what some rank found wrong."""
    found, damage = None, ""
    with together(place):
        try:
            found = Checkpoint(path)
            found.verify(place.rank, place.ranks)
        except Damaged as error:
            found, damage = None, str(error)
    damage = next(filter(None, gathered(place, damage)), "")
    return (None if damage else found), damage


def set_aside(folder: Path, why: str, instead: Path) -> None:
    """Keep a damaged checkpoint under another name, and say so."""
    aside = folder.with_name(folder.name + DAMAGED)
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)
    say(f"DAMAGED CHECKPOINT: {why.partition(';')[0]}\n  going on from {instead.name} instead; the damaged one is kept "
        f"as {aside.name}, delete it when it was looked at")  # fmt: skip


def asked_precision(config: TrainConfig, resumed: Checkpoint | None) -> str:
    """As configured; where that is ``auto``, a run that goes on keeps its own."""
    asked = config.engine.precision
    return str(resumed.state["precision"]) if resumed and asked == "auto" else asked
