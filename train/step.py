"""One optimizer step: its gradient, what the ranks agree on before the update, and what is written about it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.consumed import consumed
from train.engine import Engine
from train.evaluate import all_reduce_sum
from train.guards.finite import due
from train.guards.times import slow_ranks, summary_of
from train.requests import Requests
from train.setup import Run
from train.state_hash import append_state
from train.stopwatch import Stopwatch, memory_bytes
from train.stream import MicroBatch

OVERFLOW = "overflow"  # why a step was skipped, where it was neither loss nor gradient_norm


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


def accumulate(engine: Engine, batch: Batch, languages: int, watch: Stopwatch) -> torch.Tensor:
    """The gradient of this rank's micro-batches, towards the mean over all labels of the step, ready for the update.

    Returns:
        float64 of shape (languages, 2): this rank's negative log-likelihood in nats, and its labels, a language.
    """
    losses = []
    for turn, part in enumerate(batch.micro_batches, 1):
        with watch.part("forward"):
            total, nll = engine.forward(part)
        losses.append(nll)  # where they were made: to look at them here is to wait for a GPU
        with watch.part("backward"):
            engine.backward(total, batch.targets)
            if turn < len(batch.micro_batches):
                engine.end_micro_batch()
    sums = torch.zeros(languages, 2, dtype=torch.float64)
    sources = torch.from_numpy(np.concatenate([part.sources for part in batch.micro_batches]))
    labels = torch.cat([torch.from_numpy(part.labels >= 0).sum(1) for part in batch.micro_batches])
    sums.index_add_(0, sources, torch.stack((torch.cat(losses).cpu(), labels), 1).double())
    sums *= engine.tensor.index == 0  # others of the group have the same; not set to 0: NaN is to be seen
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
    with run.watch.part("communication"):
        told = all_reduce_sum(torch.cat((mine.view(-1), flags, times)), run.engine)
    sums, flags, times = told.split((mine.numel(), len(flags), len(times)))
    stop, save, written = flags.tolist()
    return Agreed(sums.view_as(mine), bool(stop), bool(save), written == run.place.ranks, times)


def note_step(
    run: Run, step: int, batch: Batch, *, told: Agreed, spike: tuple[str, float] | None, values: dict[str, Any]
) -> None:
    """Write a step into ledger and metrics, and say what about it was unusual (a spike, slow ranks). Collective."""
    config, seconds, stage = run.config, values["seconds"], run.config.timeline.at(step - 1)
    scale, skipped = run.engine.loss_scale, {"skipped": spike[0]} if spike else {}
    if run.engine.overflowed:
        skipped = {"skipped": OVERFLOW}
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
        **run.utilisation(run.flops_per_token(stage) * stage.tokens_per_step / seconds),
        "memory_bytes": memory_bytes(),
        **({"gradient_norm": None} if run.engine.overflowed else {}),
        **({"loss_scale": scale.scale} if scale else {}),
        **skipped,
        **note_state(run, step),
        **({"gradient_norm_by_layer": run.engine.layer_norms} if run.engine.layer_norms else {}),
    })  # fmt: skip
    if spike:
        what, limit = spike
        run.metrics.event(step, "spike", of=what, value=values[what], limit=limit)
        run.metrics.say(f"step {step}: SPIKE: {what.replace('_', ' ')} {values[what]:.4g}, above {limit:.4g}: "
                        "this step changes nothing")  # fmt: skip
    if run.engine.overflowed and scale:
        run.metrics.event(step, OVERFLOW, loss_scale=scale.scale, in_a_row=scale.in_a_row)
        run.metrics.say(f"step {step}: overflow of fp16: nothing is changed, the loss scale is {scale.scale:g} now")
    note_times(run, step, told.times, seconds)
    note_consumed(run, step)


def note_times(run: Run, step: int, told: torch.Tensor, step_seconds: float) -> None:
    """Tell of the ranks' own times, and name slow ones, where a report was due."""
    if len(told):
        nodes = run.watchdog.nodes
        slow = slow_ranks(told, nodes, ratio=run.config.guards.slow_ratio, step_seconds=step_seconds)
        run.metrics.ranks(step, summary_of(told, nodes, slow))
        for one in slow[:4]:
            run.metrics.say(f"step {step}: SLOW: {one}")


def note_consumed(run: Run, step: int) -> None:
    """Tell what was drawn of each language and source so far, where a report is due and at the end."""
    if run.place.first and (due(step, run.config.guards.times_every_steps) or step == run.config.steps):
        run.metrics.consumed(step, *consumed(run.config, run.data.windows_at, run.data.sources, step, run.skipped))


def note_state(run: Run, step: int) -> dict[str, float]:
    """After the steps that ask for it, hash weights and moments and bind the hash into the ledger; what it took."""
    if run.hasher is None or not (due(step, run.config.state_hash_every_steps) or step == run.config.steps):
        return {}
    begun = time.perf_counter()
    with run.watch.part("state hash"):
        state = run.hasher.take()
        if state and run.ledger:
            append_state(run.folder.states, step, state)
            run.ledger.write("state", {"step": step, "root": state.root})
    return {"state_hash_seconds": time.perf_counter() - begun}
