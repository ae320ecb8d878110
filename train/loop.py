"""The training loop: draw a batch, forward, backward, step, log, evaluate, checkpoint, stop when told."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from common.errors import EXIT_DONE, EXIT_GO_ON
from train import outcome
from train.checkpoint_writer import Written
from train.config import TrainConfig
from train.determinism import enforce
from train.engine import Engine, initialise_ranks
from train.evaluate import LanguageLoss, all_reduce_sum
from train.guards import stop_unless_finite
from train.metrics import StepClock
from train.ranks import Place, together
from train.run_folder import RunFolder
from train.schedule import learning_rate
from train.setup import Run, set_up
from train.state_hash import append_state
from train.stream import MicroBatch


def train(config: TrainConfig, place: Place) -> int:
    """Run or go on with a run, as one of its ranks.

    Returns:
        0 when the budget of tokens is used up, 75 when the run was told to stop and saved its state.

    Raises:
        HanseError: wrong input, on every rank alike; nothing already written is lost.
    """
    device = initialise_ranks(place)
    try:
        return train_as_rank(config, place, device)
    finally:
        dist.destroy_process_group()


def train_as_rank(config: TrainConfig, place: Place, device: torch.device) -> int:
    """:func:`train` among ranks that have found each other."""
    started = time.monotonic()
    enforce(config.determinism)
    folder = RunFolder(config.run)
    with together(place):
        holder = folder.in_use() if place.first else nullcontext()
        holder.__enter__()
    try:
        run = set_up(config, place, folder, device)
        return EXIT_DONE if run is None else _loop(run, started)
    finally:
        holder.__exit__(None, None, None)


def _loop(run: Run, started: float) -> int:
    config, metrics, engine, writer = run.config, run.metrics, run.engine, run.writer
    requests, clock = Requests(run.folder, config.checkpoint.every_minutes), StepClock()
    losses: dict[str, LanguageLoss] = {}
    step = run.first_step
    for batch, waited in prefetched(run):
        step_started, rate = time.perf_counter() - waited, learning_rate(step, config)
        sums = train_step(engine, batch.micro_batches, batch.targets, rate, len(run.data.languages))
        told = torch.cat((sums.view(-1), requests.pending(run.place), torch.tensor([writer.done_here()])))
        told = all_reduce_sum(told, engine)  # the only communication that is not ZeRO's
        sums, (stop, save, written) = told[:-3].view_as(sums), told[-3:].tolist()
        loss, norm = float(sums[:, 0].sum()) / batch.targets, engine.gradient_norm()
        stop_unless_finite(run, step, batch.micro_batches, loss, norm)
        step += 1
        if run.ledger:
            run.ledger.write("step", {"step": step, "samples": batch.samples, "batch": batch.sha256,
                                      "learning_rate": rate, "loss": loss, "gradient_norm": norm})  # fmt: skip
        seconds = time.perf_counter() - step_started
        clock.add(seconds, waited)
        hashing = note_state(run, step)
        metrics.step({
            "step": step,
            "consumed_tokens": step * config.tokens_per_step,
            "loss": loss,
            "loss_by_language": {name: float(nll / labels) for name, (nll, labels)
                                 in zip(run.data.languages, sums, strict=True) if labels},
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": seconds,
            "data_wait_seconds": waited,
            "tokens_per_second": config.tokens_per_step / seconds,
            "mfu": run.flops_per_token * config.tokens_per_step / seconds / run.peak,
            **hashing,
        })  # fmt: skip

        last, stop = step == config.steps, stop or step == config.until_step
        evaluate = last or step % config.evaluate.every_steps == 0
        if evaluate:
            losses = run.evaluation.run(engine, run.place)
            metrics.evaluation(step, losses)
        saving = time.perf_counter()
        if written == run.place.ranks:
            note_checkpoint(run, requests, writer.advance())
        if last or stop or save or step % config.checkpoint.every_steps == 0:
            note_checkpoint(run, requests, writer.wait())  # one at a time
            state = checkpoint_state(run, step, run.seconds_before + time.monotonic() - started)
            writer.begin(engine, state | _bits_per_byte(losses if evaluate else {}))
            requests.granted()
        if last or stop or not config.checkpoint.asynchronous:
            note_checkpoint(run, requests, writer.wait())
        clock.saving(time.perf_counter() - saving)
        if stop:
            break

    metrics.close(step)
    if run.place.first:
        outcome.finish(run, step, losses, clock, run.seconds_before + time.monotonic() - started)
    return EXIT_DONE if step == config.steps else EXIT_GO_ON


def train_step(engine: Engine, batch: list[MicroBatch], targets: int, rate: float, languages: int) -> torch.Tensor:
    """One optimizer step on this rank's micro-batches, towards the mean over the ``targets`` labels of all ranks.

    Returns:
        float64 of shape (languages, 2): this rank's negative log-likelihood in nats, and its labels, a language.
    """
    sums = torch.zeros(languages, 2, dtype=torch.float64)
    for part in batch:
        total, nll = engine.forward(part)
        engine.backward(total, targets)
        engine.end_micro_batch(rate)
        labels = torch.from_numpy(part.labels >= 0).sum(1)
        sums.index_add_(0, torch.from_numpy(part.sources), torch.stack((nll.cpu(), labels), 1).double())
    return sums


def checkpoint_state(run: Run, step: int, wall_seconds: float) -> dict[str, Any]:
    """``state.json`` of a step's checkpoint (docs/how/checkpoint-format.md)."""
    config, data = run.config, run.data
    return {
        "step": step,
        "consumed_samples": step * config.batch.global_batch_size,  # all that the order of data needs to go on
        "consumed_tokens": step * config.tokens_per_step,
        "seed": config.seed,
        "precision": run.precision,
        "ranks": run.place.ranks,
        "zero_stage": config.engine.zero_stage,
        "engine": run.engine.state(),
        "data_merkle_root": data.manifest.merkle_root,
        "tokenizer_sha256": data.manifest.tokenizer_sha256,
        "model": data.model.to_dict(),
        "wall_seconds": wall_seconds,
    }


def _bits_per_byte(losses: dict[str, LanguageLoss]) -> dict[str, Any]:
    """What tells the best checkpoint, for those that were evaluated."""
    return {"bits_per_byte": {name: loss.bits_per_byte for name, loss in losses.items()}} if losses else {}


def note_state(run: Run, step: int) -> dict[str, float]:
    """After the steps that ask for it, hash weights and moments and bind the hash into the ledger; what it took."""
    every = run.config.state_hash_every_steps
    if run.hasher is None or (step % every and step != run.config.steps):
        return {}
    begun = time.perf_counter()
    state = run.hasher.take()
    if state and run.ledger:
        append_state(run.folder.states, step, state)
        run.ledger.write("state", {"step": step, "root": state.root})
    return {"state_hash_seconds": time.perf_counter() - begun}


def note_checkpoint(run: Run, requests: Requests, written: Written | None) -> None:
    """Tell of a checkpoint that is complete now, if one is."""
    if written and run.ledger:
        run.ledger.write("checkpoint", {"step": written.step, "merkle_root": written.merkle_root})
        run.ledger.sync()
    if written:
        run.metrics.event(written.step, "checkpoint", path=written.folder.name, bytes=written.bytes,
                          stall_seconds=written.stall_seconds, write_seconds=written.write_seconds)  # fmt: skip
        requests.saved(run.place)


@dataclass(frozen=True)
class Batch:
    """What a step is made of.

    Attributes:
        micro_batches: this rank's, in the order they are run.
        targets: labels of all ranks; ``samples``: the first of the step in the order of data, and the first after it.
        sha256: of all samples' ids and document borders, on rank 0, for the ledger.
    """

    micro_batches: list[MicroBatch]
    targets: int
    samples: tuple[int, int]
    sha256: str | None


def prefetched(run: Run) -> Iterator[tuple[Batch, float]]:
    """Step after step: its batch, and the seconds that were spent waiting for it.

    A thread builds a step's batch while the step before is computed.
    """
    config, stream, place, size = run.config, run.data.stream, run.place, run.config.batch.global_batch_size

    def build(step: int) -> Batch:
        samples = range(step * size, (step + 1) * size)
        mine = stream.step(samples.start, global_batch=size, micro_batch=config.batch.micro_batch_size,
                           rank=place.rank, ranks=place.ranks)  # fmt: skip
        sha256 = stream.fingerprint(samples) if place.first else None
        return Batch(mine, stream.targets(samples), (samples.start, samples.stop), sha256)

    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = thread.submit(build, run.first_step)
        for step in range(run.first_step, config.steps):
            asked = time.perf_counter()
            batch = ahead.result()
            waited = time.perf_counter() - asked
            if step + 1 < config.steps:
                ahead = thread.submit(build, step + 1)
            yield batch, waited


class Requests:
    """What people, Slurm, other programs and the clock ask of a run: after the step, save; or save and stop.

    SIGINT or SIGTERM to any rank stops it; a second one ends that process at once. So does a file ``stop`` in the run
    folder, which stays there and keeps later starts from training; a file ``save`` is removed when its checkpoint is
    complete. Only rank 0 looks for files and at the clock.
    """

    def __init__(self, folder: RunFolder, every_minutes: float) -> None:
        self.folder, self.every_seconds = folder, 60 * every_minutes or math.inf
        self._signalled = self._granted = False
        self._begun = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signalled = True

    def pending(self, place: Place) -> torch.Tensor:
        """(stop, save) as 0 or 1, float64."""
        stop = self._signalled or (place.first and self.folder.stop_file.exists())
        asked = not self._granted and self.folder.save_file.exists()
        save = place.first and (asked or time.monotonic() - self._begun > self.every_seconds)
        return torch.tensor([stop, save], dtype=torch.float64)

    def granted(self) -> None:
        """A checkpoint was begun."""
        self._begun, self._granted = time.monotonic(), self.folder.save_file.exists()

    def saved(self, place: Place) -> None:
        """It is complete: the file that asked for one has done its work."""
        if place.first and self._granted:
            self.folder.save_file.unlink(missing_ok=True)
        self._granted = False
