"""The training loop: draw a batch, forward, backward, step, log, evaluate, checkpoint, stop when told."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist

from common.errors import EXIT_DONE, EXIT_GO_ON, FlakyError
from train import outcome
from train.checkpoint_writer import Written
from train.compiling import Compilations
from train.config import TrainConfig
from train.determinism import enforce
from train.energy.recorder import EnergyRecorder
from train.engine import initialise_ranks
from train.guards.finite import due, stop_unless_alike, stop_unless_finite
from train.guards.rewind import rewind
from train.guards.times import Times
from train.guards.watchdog import Watchdog, leave_word
from train.metrics import StepClock
from train.profile import Tracer
from train.ranks import Place, nodes_of, together
from train.requests import Requests
from train.run_folder import RunFolder
from train.schedule import learning_rate
from train.setup import Run, set_up
from train.step import Batch, accumulate, agree, note_step
from train.validate import KEPT, Measured, evaluated, make_up

Batches = Generator[tuple[Batch, float], None, None]


def train(config: TrainConfig, place: Place) -> int:
    """Run or go on with a run, as one of its ranks.

    Returns:
        0 when the budget of tokens is used up, or the run is where it was told to stop already; 75 when it was told
        to stop and saved its state.

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
            return run if isinstance(run, int) else _loop(run, energy, started)
    except FlakyError as error:  # on rank 0, for all
        leave_word(folder.path / "logs", error.exit_code, error.nodes, str(error))
        raise
    finally:
        holder.__exit__(None, None, None)


def _loop(run: Run, energy: EnergyRecorder, started: float) -> int:
    config, metrics, engine, writer, watchdog = run.config, run.metrics, run.engine, run.writer, run.watchdog
    requests = Requests(run.folder, config.checkpoint.every_minutes)
    clock, compilations = StepClock(), Compilations(metrics)
    watch, times, tracer = run.watch, Times(run.place, config.guards.times_every_steps, run.watch), Tracer(run)
    energy.begin(run)
    step, batches, stop = run.first_step, prefetched(run, run.first_step), make_up(run, requests).left
    while step < config.steps and not stop:
        enter_stage(run, step)
        batch, waited = next(batches)
        step_started, rate = time.perf_counter() - waited, learning_rate(step, config)
        mine = accumulate(engine, batch, len(run.data.languages), watch)
        told = agree(run, requests, mine, times.report(step + 1))
        loss = float(told.sums[:, 0].sum()) / batch.targets
        stop_unless_alike(run, step + 1)  # before the update, which gathers the weights anew
        with watch.part("update"):
            made = engine.update(rate, largest_norm=run.spikes.largest_norm(loss),
                                 layers=due(step + 1, config.guards.layer_norms_every_steps))  # fmt: skip
        norm = engine.gradient_norm()
        stop_unless_finite(run, step, batch, mine, loss=loss, norm=norm)
        step += 1
        spike = None if engine.overflowed else run.spikes.note(step, loss, norm)
        assert made == (spike is None and not engine.overflowed), "the engine and the guard judge by the same numbers"
        seconds, parts = time.perf_counter() - step_started, watch.lap()
        clock.add(seconds, waited, parts)
        tracer.step(step, parts)
        energy.tick()
        note_step(run, step, batch, told=told, spike=spike, values={
            "learning_rate": rate, "loss": loss, "gradient_norm": norm, "seconds": seconds, "data_wait_seconds": waited,
            "seconds_by_part": {part: round(value, 6) for part, value in parts.items()},
        })  # fmt: skip
        if run.spikes.rewind_due:
            batches.close()
            step, batches = go_back(run, requests, step, started)
            continue

        last = step == config.steps
        measured = evaluated(run, requests, step) if last or due(step, config.evaluate.every_steps) else Measured()
        stop = told.stop or measured.left or step == config.until_step
        compilations.step(step)
        if told.written:
            note_checkpoint(run, requests, writer.advance())
        if last or stop or told.save or step % config.checkpoint.every_steps == 0:
            state = checkpoint_state(run, step, run.seconds_before + time.monotonic() - started)
            begin_writing(run, requests, state | measured.state)
            energy.record("checkpoint", step)
        if last or stop or not config.checkpoint.asynchronous:
            finish_writing(run, requests)
        watchdog.step(step)

    with watchdog.slowly("finishing"):
        clock.end(watch.lap())
        tracer.close()
        metrics.close(step)
        energy.record("end", step)
        if run.place.first and clock.steps:
            outcome.finish(run, step, clock, run.seconds_before + time.monotonic() - started)
    return EXIT_DONE if step == config.steps else EXIT_GO_ON


def keep_what_is_there() -> None:
    """Spare the collector of reference cycles what a start and its first step have made, which stays to the end.

    Going through it takes a third of a second on a CPU, more where kernels were compiled, whenever a rank has made
    enough other objects; all ranks wait for that one.
    """
    gc.collect()
    gc.freeze()


def enter_stage(run: Run, step: int) -> None:
    """Make all ready for the step after ``step`` steps; tell of a stage that begins with it."""
    if step == run.first_step + 1:
        keep_what_is_there()
    stage = run.config.timeline.at(step)
    run.engine.set_batch(stage.batch)
    run.engine.set_rope(run.data.models[stage.rope_theta])
    if stage.number and step == stage.first_step:
        run.spikes.begin_stage()
        run.metrics.event(step, "stage", stage=stage.name)
        run.metrics.say(f"step {step + 1}: {stage.told}")


def go_back(run: Run, requests: Requests, step: int, started: float) -> tuple[int, Batches]:
    """Rewind (train/guards/rewind.py), save the checkpoint gone back to with what to go past; its step and batches."""
    with run.watchdog.slowly("going back to an earlier checkpoint"):
        note_checkpoint(run, requests, run.writer.wait())
        before = rewind(run, step)
        state = checkpoint_state(run, before["step"], run.seconds_before + time.monotonic() - started)
        run.writer.begin(run.engine, {key: before[key] for key in KEPT if key in before} | state)
        note_checkpoint(run, requests, run.writer.wait())
    return int(before["step"]), prefetched(run, int(before["step"]))


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


def note_checkpoint(run: Run, requests: Requests, written: Written | None) -> None:
    """Tell of a checkpoint that is complete now, if one is."""
    if written and run.ledger:
        run.ledger.write("checkpoint", {"step": written.step, "merkle_root": written.merkle_root})
        run.ledger.sync()
    if written:
        left = {"not_deleted": written.not_deleted} if written.not_deleted else {}
        run.metrics.event(written.step, "checkpoint", path=written.folder.name, bytes=written.bytes,
                          stall_seconds=written.stall_seconds, write_seconds=written.write_seconds, **left)  # fmt: skip
        for folder, why in written.not_deleted.items():
            run.metrics.say(f"step {written.step}: CANNOT DELETE {folder} ({why}), which is not to be kept; it is "
                            "tried again after each checkpoint")  # fmt: skip
        requests.saved(run.place)


def begin_writing(run: Run, requests: Requests, state: dict[str, Any]) -> None:
    """Begin the checkpoint of this moment, once the one before is complete."""
    finish_writing(run, requests)  # one at a time
    with run.watch.part("checkpoint"):
        run.writer.begin(run.engine, state)
    requests.granted()


def finish_writing(run: Run, requests: Requests) -> None:
    """Wait for the checkpoint that is being written, if one is."""
    with run.watchdog.slowly("waiting for a checkpoint"), run.watch.part("checkpoint"):
        note_checkpoint(run, requests, run.writer.wait())


def prefetched(run: Run, done: int) -> Batches:
    """Step after step, from the one after ``done``: its batch, and the seconds that were spent waiting for it.

    A thread builds a step's batch while the step before is computed.
    """
    config, stream, reader, group = run.config, run.data.stream, run.reader, run.engine.group

    def build(step: int) -> Batch:
        samples = stream.span(step)
        whole = stream.step(step, rank=reader.rank, ranks=reader.ranks)
        mine = [one.slice(group.index, group.size) for one in whole]
        sha256 = stream.fingerprint(samples) if run.place.first else None
        return Batch(mine, stream.targets(samples), (samples.start, samples.stop), sha256)

    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = thread.submit(build, done)
        for step in range(done, config.steps):
            asked = time.perf_counter()
            with run.watch.part("data wait"):
                batch = ahead.result()
            waited = time.perf_counter() - asked
            if step + 1 < config.steps:
                ahead = thread.submit(build, step + 1)
            yield batch, waited
