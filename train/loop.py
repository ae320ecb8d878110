"""The training loop, top to bottom: draw a batch, forward, backward, step, log, evaluate, checkpoint, stop when told."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.errors import EXIT_DONE, EXIT_GO_ON, HanseError
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths, tokenizer_sha256
from train import checkpoint as checkpoints
from train import outcome
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.engine import Engine, initialise_ranks
from train.evaluate import Evaluation, LanguageLoss, all_reduce_sum
from train.metrics import Metrics, StepClock
from train.model import build_model, flops_per_token, model_config, parameter_counts
from train.precision import choose, measured_peaks
from train.ranks import Place, together
from train.run_folder import RunFolder
from train.schedule import learning_rate
from train.stream import MicroBatch, Stream, open_sources, open_stream


def train(config: TrainConfig, place: Place) -> int:
    """Run or go on with a run, as one of its ranks.

    Returns:
        0 when the budget of tokens is used up, 75 when a signal stopped the run after a checkpoint.

    Raises:
        HanseError: wrong input, on every rank alike; nothing already written is lost.
    """
    started = time.monotonic()
    device = initialise_ranks(place)
    folder = RunFolder(config.run)
    with together(place):
        holder = folder.in_use() if place.first else nullcontext()
        holder.__enter__()
    try:
        return _train(config, place, folder, device, started)
    finally:
        holder.__exit__(None, None, None)
        dist.destroy_process_group()


def _train(config: TrainConfig, place: Place, folder: RunFolder, device: torch.device, started: float) -> int:
    with together(place):
        data = open_data(config)
        resumed = open_checkpoint(folder, data, place)
        if place.first:
            folder.keep_config(config)
    first_step = resumed.state["step"] if resumed else 0
    if first_step >= config.steps:
        if place.first:
            outcome.already_done(config, folder, first_step)
        return EXIT_DONE

    peaks = measured_peaks(device)
    precision = agree_on_precision(config, resumed, peaks)
    with together(place):
        model = build_model(data.model, config.seed, config.model.attention)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if resumed:
            resumed.check_model(shapes)
            model.load_state_dict(resumed.weights(), strict=False)  # tied weights have one name
    parameters, flops = parameter_counts(model)[0], flops_per_token(model, config.data.sequence_length)
    engine = Engine(config, model, place.ranks, precision)
    if resumed:
        with together(place):
            resumed.restore(engine)
    evaluation = Evaluation(data.validation, config.evaluate.tokens_per_language, config.batch.micro_batch_size,
                            data.token_bytes)  # fmt: skip
    if place.first:
        folder.cut_metrics(first_step)
    metrics = Metrics(folder, config, first_step=first_step, speaks=place.first)
    metrics.say(outcome.opening(config, place, parameters, precision, peaks, resumed))
    metrics.event(first_step, "resume" if resumed else "start", ranks=place.ranks, zero_stage=config.engine.zero_stage,
                  precision=precision, peak_flops_per_second=peaks, host=platform.node())  # fmt: skip

    peak = sum_over_ranks(peaks[precision], engine)
    stop, clock = StopSignal(), StepClock()
    losses: dict[str, LanguageLoss] = {}
    seconds_before = resumed.state["wall_seconds"] if resumed else 0.0
    batches = prefetch(config, data.stream, place, first_step)
    step = first_step
    while step < config.steps:
        step_started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - step_started

        # One global mean over all labels of the step, however they are spread over ranks and micro-batches.
        targets = round(sum_over_ranks(sum(part.targets for part in batch), engine))
        sums = torch.zeros(len(data.languages) + 1, 2, dtype=torch.float64)
        rate = learning_rate(step, config)
        for part in batch:
            nll = engine.forward(part)
            engine.backward(nll, targets)
            engine.end_micro_batch(rate)
            sums[:-1, 0].index_add_(0, torch.from_numpy(part.sources), nll.detach().double().cpu())
            sums[:-1, 1].index_add_(0, torch.from_numpy(part.sources), torch.from_numpy(part.labels >= 0).sum(1).double())
        sums[-1, 0] = float(stop.asked)
        sums = all_reduce_sum(sums, engine)
        step += 1

        seconds = time.perf_counter() - step_started
        clock.add(seconds, waited)
        metrics.step({
            "step": step,
            "consumed_tokens": step * config.tokens_per_step,
            "loss": float(sums[:-1, 0].sum()) / targets,
            "loss_by_language": {name: float(nll / labels) for name, (nll, labels)
                                 in zip(data.languages, sums[:-1], strict=True) if labels},
            "learning_rate": rate,
            "gradient_norm": engine.gradient_norm(),
            "seconds": seconds,
            "data_wait_seconds": waited,
            "tokens_per_second": config.tokens_per_step / seconds,
            "mfu": flops * config.tokens_per_step / seconds / peak,
        })  # fmt: skip

        last, asked = step == config.steps, float(sums[-1, 0]) > 0
        if last or step % config.evaluate.every_steps == 0:
            losses = evaluation.run(engine, place)
            metrics.evaluation(step, losses)
        if last or asked or step % config.checkpoint.every_steps == 0:
            wall = seconds_before + time.monotonic() - started
            state = checkpoint_state(config, data, step, precision, place, wall)
            path = checkpoints.save(engine, folder.checkpoints, state, place)
            metrics.event(step, "checkpoint", path=path.name)
            if place.first:
                checkpoints.prune(folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_every_steps)
        if asked:
            break

    metrics.close()
    if place.first:
        unigram = evaluation.unigram(data.training, data.manifest.vocabulary_size)
        values = outcome.summary(
            config, folder, data, step=step, losses=losses, unigram=unigram, clock=clock, flops_per_token=flops,
            peak=peak, parameters=parameters, wall_seconds=seconds_before + time.monotonic() - started,
            ranks=place.ranks, precision=precision,
        )  # fmt: skip
        folder.update_summary(values)
        outcome.closing(config, folder, values)
    return EXIT_DONE if step == config.steps else EXIT_GO_ON


@dataclass(frozen=True)
class Data:
    """Everything read from the shards folder."""

    manifest: ShardsManifest
    stream: Stream
    validation: dict[str, Any]
    token_bytes: np.ndarray
    model: Any

    @property
    def training(self) -> dict[str, Any]:
        return {source.name: source for source in self.stream.sources}

    @property
    def languages(self) -> list[str]:
        """Names of the training sources, in the order of their numbers."""
        return [source.name for source in self.stream.sources]


def open_data(config: TrainConfig) -> Data:
    """Open shards and tokenizer, and check that they belong together.

    Raises:
        HanseError: something is missing, damaged, or not what the manifest describes.
    """
    settings = config.data
    manifest = ShardsManifest.read(Path(settings.shards))
    tokenizer = Path(settings.tokenizer) / "tokenizer.json"
    if tokenizer_sha256(tokenizer) != manifest.tokenizer_sha256:
        raise HanseError(f"{tokenizer}: not the tokenizer that the shards in {settings.shards} were written with (its "
                         "sha256 is not the one in their manifest); set data.tokenizer, or run 'hanse tokenize' again")  # fmt: skip
    stream = open_stream(manifest, settings.sequence_length, config.seed, settings.mixture, hashes=settings.verify_hashes)
    validation = open_sources(manifest, "validation", settings.sequence_length, config.seed, hashes=settings.verify_hashes)
    model = model_config(config.model, manifest.vocabulary_size, settings.sequence_length,
                         bos_token_id=manifest.end_of_document_id, eos_token_id=manifest.end_of_document_id)  # fmt: skip
    return Data(manifest, stream, validation, token_byte_lengths(tokenizer), model)


def open_checkpoint(folder: RunFolder, data: Data, place: Place) -> Checkpoint | None:
    """The latest complete checkpoint, verified; None in a fresh folder.

    Raises:
        HanseError: it is damaged, or belongs to other data.
    """
    steps = checkpoints.complete_steps(folder.checkpoints)
    if not steps:
        return None
    found = Checkpoint(checkpoints.folder_of(folder.checkpoints, steps[-1]))
    found.verify(place.rank, place.ranks)
    if found.state["data_merkle_root"] != data.manifest.merkle_root:
        raise HanseError(f"{found.folder}: trained on other shards than those in {data.manifest.folder} (their Merkle "
                         "roots differ); set data.shards to the ones it was trained on, or name another run=...")  # fmt: skip
    return found


def checkpoint_state(
    config: TrainConfig, data: Data, step: int, precision: str, place: Place, wall_seconds: float
) -> dict[str, Any]:
    """What a checkpoint says of itself; the order of data needs ``consumed_samples`` alone."""
    return {
        "step": step,
        "consumed_samples": step * config.batch.global_batch_size,
        "consumed_tokens": step * config.tokens_per_step,
        "seed": config.seed,
        "precision": precision,
        "ranks": place.ranks,
        "zero_stage": config.engine.zero_stage,
        "data_merkle_root": data.manifest.merkle_root,
        "tokenizer_sha256": data.manifest.tokenizer_sha256,
        "model": data.model.to_dict(),
        "wall_seconds": wall_seconds,
    }


def agree_on_precision(config: TrainConfig, resumed: Checkpoint | None, peaks: dict[str, float]) -> str:
    """One precision for all ranks: a run that goes on keeps its own, else rank 0's measurement decides."""
    asked = config.engine.precision
    if asked == "auto" and resumed:
        return str(resumed.state["precision"])
    chosen = [choose(asked, peaks)]
    dist.broadcast_object_list(chosen)
    return chosen[0]


def prefetch(config: TrainConfig, stream: Stream, place: Place, first_step: int) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches, step after step, built by a thread while the step before is computed."""
    size = config.batch.global_batch_size

    def build(step: int) -> list[MicroBatch]:
        return stream.step(step * size, global_batch=size, micro_batch=config.batch.micro_batch_size,
                           rank=place.rank, ranks=place.ranks)  # fmt: skip

    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = thread.submit(build, first_step)
        for step in range(first_step, config.steps):
            batch = ahead.result()
            if step + 1 < config.steps:
                ahead = thread.submit(build, step + 1)
            yield batch


def sum_over_ranks(value: float, engine: Engine) -> float:
    """The sum of a number over the ranks."""
    return float(all_reduce_sum(torch.tensor([value], dtype=torch.float64), engine)[0])


class StopSignal:
    """SIGINT or SIGTERM: finish the step, save, leave. A second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True
