"""The training loop: draw a batch, forward, backward, step, log, evaluate, checkpoint, stop when told."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from common.errors import EXIT_DONE, EXIT_GO_ON, FlakyError
from train import outcome
from train.checkpoint_writer import Written
from train.config import TrainConfig
from train.determinism import enforce
from train.energy.recorder import EnergyRecorder
from train.engine import Engine, initialise_ranks
from train.evaluate import LanguageLoss, all_reduce_sum
from train.guards.finite import due, stop_unless_alike, stop_unless_finite
from train.guards.rewind import rewind
from train.guards.times import Times, slow_ranks, summary_of
from train.guards.watchdog import Watchdog, leave_word
from train.metrics import StepClock
from train.ranks import Place, nodes_of, together
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
        guards = config.guards
        with Watchdog(folder.path / "logs", place, nodes_of(place), guards.watchdog_seconds,
                      guards.watchdog_slow_seconds) as watchdog:  # fmt: skip
            energy = EnergyRecorder(config.energy, place, folder, device)  # reads the counters from here on
            run = set_up(config, place, folder, device, watchdog)
            return EXIT_DONE if run is None else _loop(run, energy, started)
    except FlakyError as error:  # on rank 0, for all
        leave_word(folder.path / "logs", error.exit_code, error.nodes, str(error))
        raise
    finally:
        holder.__exit__(None, None, None)


def _loop(run: Run, energy: EnergyRecorder, started: float) -> int:
    config, metrics, engine, writer, watchdog = run.config, run.metrics, run.engine, run.writer, run.watchdog
    requests, clock = Requests(run.folder, config.checkpoint.every_minutes), StepClock()
    times = Times(run.place, config.guards.times_every_steps)
    losses: dict[str, LanguageLoss] = {}
    step, batches, stop = run.first_step, prefetched(run, run.first_step), False
    energy.begin(run)
    while step < config.steps and not stop:
        enter_stage(run, step)
        batch, waited = next(batches)
        step_started, rate = time.perf_counter() - waited, learning_rate(step, config)
        mine = accumulate(engine, batch, len(run.data.languages), times)
        told = agree(run, requests, mine, times.report(step + 1, waited))
        loss = float(told.sums[:, 0].sum()) / batch.targets
        made = engine.update(rate, largest_norm=run.spikes.largest_norm(loss),
                             layers=due(step + 1, config.guards.layer_norms_every_steps))  # fmt: skip
        norm = engine.gradient_norm()
        stop_unless_finite(run, step, batch.micro_batches, mine, loss=loss, norm=norm)
        step += 1
        stop_unless_alike(run, step)
        spike = run.spikes.note(step, loss, norm)
        assert made == (spike is None), "the engine and the guard judge by the same numbers"
        seconds = time.perf_counter() - step_started
        clock.add(seconds, waited)
        energy.tick()
        note_step(run, step, batch, told=told, spike=spike, values={
            "learning_rate": rate, "loss": loss, "gradient_norm": norm, "seconds": seconds, "data_wait_seconds": waited,
        })  # fmt: skip
        if run.spikes.rewind_due:
            batches.close()
            step = go_back(run, requests, step, started)
            batches = prefetched(run, step)
            continue

        last, stop = step == config.steps, told.stop or step == config.until_step
        measured = evaluated(run, step, last=last)
        losses = measured or losses
        saving = time.perf_counter()
        if told.written:
            note_checkpoint(run, requests, writer.advance())
        if last or stop or told.save or step % config.checkpoint.every_steps == 0:
            finish_writing(run, requests)  # one at a time
            state = checkpoint_state(run, step, run.seconds_before + time.monotonic() - started)
            writer.begin(engine, state | _bits_per_byte(measured))
            requests.granted()
            energy.record("checkpoint", step)
        if last or stop or not config.checkpoint.asynchronous:
            finish_writing(run, requests)
        clock.saving(time.perf_counter() - saving)
        watchdog.step(step)

    with watchdog.slowly("finishing"):
        metrics.close(step)
        energy.record("end", step)
        if run.place.first:
            outcome.finish(run, step, losses, clock, run.seconds_before + time.monotonic() - started)
    return EXIT_DONE if step == config.steps else EXIT_GO_ON


def enter_stage(run: Run, step: int) -> None:
    """Make the engine ready for the step after ``step`` steps; tell of a stage that begins with it."""
    stage = run.config.timeline.at(step)
    run.engine.set_batch(stage.batch)
    run.engine.set_rope(run.data.models[stage.rope_theta])
    if stage.number and step == stage.first_step:
        run.metrics.event(step, "stage", stage=stage.name)
        run.metrics.say(f"step {step + 1}: {stage.told}")


def accumulate(engine: Engine, batch: Batch, languages: int, times: Times) -> torch.Tensor:
    """The gradient of this rank's micro-batches, towards the mean over all labels of the step, ready for the update.

    Returns:
        float64 of shape (languages, 2): this rank's negative log-likelihood in nats, and its labels, a language.
    """
    sums = torch.zeros(languages, 2, dtype=torch.float64)
    for turn, part in enumerate(batch.micro_batches, 1):
        with times.forward():
            total, nll = engine.forward(part)
        engine.backward(total, batch.targets)
        if turn < len(batch.micro_batches):
            engine.end_micro_batch()
        labels = torch.from_numpy(part.labels >= 0).sum(1)
        sums.index_add_(0, torch.from_numpy(part.sources), torch.stack((nll.cpu(), labels), 1).double())
    return sums


@dataclass(frozen=True)
class Agreed:
    """What all ranks know just before an update.

    Attributes:
        sums: of all ranks, as of :func:`accumulate`; ``times``: as of :meth:`train.guards.times.Times.report`.
        stop, save: whether any rank was told to; ``written``: whether no rank has work on a checkpoint in hand.
    """

    sums: torch.Tensor
    stop: bool
    save: bool
    written: bool
    times: torch.Tensor


def agree(run: Run, requests: Requests, mine: torch.Tensor, times: torch.Tensor) -> Agreed:
    """Sum over the ranks: the only communication of a step that is not ZeRO's; the update may depend on it."""
    run.watchdog.at("agreeing on the loss")
    flags = torch.cat((requests.pending(run.place), torch.tensor([run.writer.done_here()])))
    told = all_reduce_sum(torch.cat((mine.view(-1), flags, times)), run.engine)
    sums, flags, times = told.split((mine.numel(), len(flags), len(times)))
    stop, save, written = flags.tolist()
    return Agreed(sums.view_as(mine), bool(stop), bool(save), written == run.place.ranks, times)


def note_step(
    run: Run, step: int, batch: Batch, *, told: Agreed, spike: tuple[str, float] | None, values: dict[str, float]
) -> None:
    """Write a step into ledger and metrics, and say what about it was unusual (a spike, slow ranks). Collective."""
    config, seconds, stage = run.config, values["seconds"], run.config.timeline.at(step - 1)
    skipped = {"skipped": spike[0]} if spike else {}
    if run.ledger:
        exact = {key: values[key] for key in ("learning_rate", "loss", "gradient_norm")}
        run.ledger.write("step", {"step": step, "samples": batch.samples, "batch": batch.sha256, **exact, **skipped})
    run.metrics.step({
        "step": step,
        **config.timeline.name(step),
        "consumed_tokens": config.timeline.tokens(step),
        "loss_by_language": {name: float(nll / labels) for name, (nll, labels)
                             in zip(run.data.languages, told.sums, strict=True) if labels},
        **values,
        "tokens_per_second": stage.tokens_per_step / seconds,
        "mfu": run.flops_per_token(stage) * stage.tokens_per_step / seconds / run.peak,
        **skipped,
        **note_state(run, step),
        **({"gradient_norm_by_layer": run.engine.layer_norms} if run.engine.layer_norms else {}),
    })  # fmt: skip
    if spike:
        what, limit = spike
        run.metrics.event(step, "spike", of=what, value=values[what], limit=limit)
        run.metrics.say(f"step {step}: SPIKE: {what.replace('_', ' ')} {values[what]:.4g}, above {limit:.4g}: "
                        "this step changes nothing")  # fmt: skip
    note_times(run, step, told.times, seconds)


def go_back(run: Run, requests: Requests, step: int, started: float) -> int:
    """Rewind (train/guards/rewind.py) and save the checkpoint gone back to with what to go past; its step."""
    with run.watchdog.slowly("going back to an earlier checkpoint"):
        note_checkpoint(run, requests, run.writer.wait())
        before = rewind(run, step)
        state = checkpoint_state(run, before["step"], run.seconds_before + time.monotonic() - started)
        run.writer.begin(run.engine, {key: before[key] for key in ("bits_per_byte",) if key in before} | state)
        note_checkpoint(run, requests, run.writer.wait())
    return int(before["step"])


def note_times(run: Run, step: int, told: torch.Tensor, step_seconds: float) -> None:
    """Tell of the ranks' own times, and name slow ones, where a report was due."""
    if len(told):
        nodes = run.watchdog.nodes
        slow = slow_ranks(told, nodes, ratio=run.config.guards.slow_ratio, step_seconds=step_seconds)
        run.metrics.ranks(step, summary_of(told, nodes, slow))
        for one in slow[:4]:
            run.metrics.say(f"step {step}: SLOW: {one}")


def checkpoint_state(run: Run, step: int, wall_seconds: float) -> dict[str, Any]:
    """``state.json`` of a step's checkpoint (docs/how/checkpoint-format.md)."""
    config, data = run.config, run.data
    return {
        "step": step,
        # All that the order of data needs to go on:
        "consumed_samples": config.timeline.first_sample(step, run.skipped),
        **({"skipped_samples": run.skipped.copy()} if run.skipped else {}),
        "consumed_tokens": config.timeline.tokens(step),
        **config.timeline.name(step),
        "seed": config.seed,
        "precision": run.precision,
        "ranks": run.place.ranks,
        "zero_stage": config.engine.zero_stage,
        "engine": run.engine.state(),
        **run.spikes.state(),
        "data_merkle_root": data.manifest.merkle_root,
        "tokenizer_sha256": data.manifest.tokenizer_sha256,
        "model": data.models[config.timeline.at(max(step - 1, 0)).rope_theta].to_dict(),
        "wall_seconds": wall_seconds,
    }


def _bits_per_byte(losses: dict[str, LanguageLoss]) -> dict[str, Any]:
    """What tells the best checkpoint, for those that were evaluated."""
    return {"bits_per_byte": {name: loss.bits_per_byte for name, loss in losses.items()}} if losses else {}


def evaluated(run: Run, step: int, *, last: bool) -> dict[str, LanguageLoss]:
    """Where it is due, measure the validation loss of every language, and tell of it; {} where it is not."""
    if not (last or due(step, run.config.evaluate.every_steps)):
        return {}
    with run.watchdog.slowly("evaluating"):
        losses = run.evaluation.run(run.engine, run.place)
    run.metrics.evaluation(step, losses)
    return losses


def note_state(run: Run, step: int) -> dict[str, float]:
    """After the steps that ask for it, hash weights and moments and bind the hash into the ledger; what it took."""
    if run.hasher is None or not (due(step, run.config.state_hash_every_steps) or step == run.config.steps):
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


def finish_writing(run: Run, requests: Requests) -> None:
    """Wait for the checkpoint that is being written, if one is."""
    with run.watchdog.slowly("waiting for a checkpoint"):
        note_checkpoint(run, requests, run.writer.wait())


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


def prefetched(run: Run, done: int) -> Generator[tuple[Batch, float], None, None]:
    """Step after step, from the one after ``done``: its batch, and the seconds that were spent waiting for it.

    A thread builds a step's batch while the step before is computed.
    """
    config, stream, place = run.config, run.data.stream, run.place

    def build(step: int) -> Batch:
        samples = stream.span(step)
        mine = stream.step(step, rank=place.rank, ranks=place.ranks)
        sha256 = stream.fingerprint(samples) if place.first else None
        return Batch(mine, stream.targets(samples), (samples.start, samples.stop), sha256)

    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = thread.submit(build, done)
        for step in range(done, config.steps):
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
