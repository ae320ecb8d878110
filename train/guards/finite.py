"""What a run refuses to go on with, and what it can say about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.errors import FlakyError, HanseError
from train.order import RunStream
from train.ranks import gathered, together

if TYPE_CHECKING:
    from train.setup import Run
    from train.step import Batch


def due(step: int, every_steps: int) -> bool:
    """Whether something is done after this step; ``every_steps`` 0: never."""
    return bool(every_steps) and step % every_steps == 0


def stop_unless_finite(run: Run, step: int, batch: Batch, mine: torch.Tensor, *, loss: float, norm: float) -> None:
    """Stop if a step's loss or gradient is not finite, and that is no overflow of fp16 (:mod:`train.fp16`).

    Collective, with the same loss and norm on every rank.

    The engine has left weights and moments as they were (``check_grad_overflow``), so the step can be computed once
    more, slowly, looking at everything.

    Args:
        mine: this rank's part of the loss, any shape.

    Raises:
        HanseError: naming the documents whose loss, and the first parameter whose gradient, is not finite.
        FlakyError: computed again everything is finite; naming the machines whose part of the loss was not.
    """
    if math.isfinite(loss) and (math.isfinite(norm) or run.engine.overflowed):
        return
    with run.watchdog.slowly("looking for what is not finite"):
        found = look_again(run, step, batch)
    with together(run.place):
        if found:
            raise HanseError(f"{_what(step, loss, norm)}: {found}. {_ADVICE}")
    ranks = [rank for rank, finite in enumerate(gathered(run.place, bool(mine.isfinite().all()))) if not finite]
    with together(run.place):
        raise flaky(f"{_what(step, loss, norm)}, but computed again it is finite on every rank", run, ranks)


def flaky(what: str, run: Run, ranks: Sequence[int]) -> FlakyError:
    """The error of machines that compute wrongly: those of ``ranks``."""
    where = ", ".join(f"rank {rank} on {run.watchdog.nodes[rank]}" for rank in ranks)
    return FlakyError(
        f"{what}: suspect a machine, {where or 'which one cannot be told'}. The last checkpoint is sound: the same "
        "command goes on, better on other machines",
        sorted({run.watchdog.nodes[rank] for rank in ranks}),
    )


def stop_unless_alike(run: Run, step: int) -> None:
    """Stop if the weights that ranks hold alike are not (:mod:`train.guards.replicas`); collective.

    Looks in every ``guards.weights_every_steps``-th step; in others nobody waits for anything. To be called between
    the gradient and the update of ``step``, counted from 1: the update ends with the owners' weights on every rank,
    so that afterwards a copy that had changed is right again, and only what was computed with it is wrong.

    Raises:
        FlakyError: naming the first such parameter, and the ranks that differ from most.
    """
    if not due(step, run.config.guards.weights_every_steps):
        return
    found = run.engine.tensor.differing(run.engine.replicated())
    with together(run.place):
        if found:
            name = next(iter(found))
            raise flaky(f"step {step}: {name}{f' and {len(found) - 1} more' if len(found) > 1 else ''} should be the "
                        "same on all ranks and is not", run, found[name])  # fmt: skip


_ADVICE = ("Weights were not touched; the last checkpoint is sound. Look at these documents, or go on from that "
           "checkpoint in another run=... with a lower optimizer.learning_rate")  # fmt: skip


def _what(step: int, loss: float, norm: float) -> str:
    return f"step {step + 1}: the loss is {loss:.6g} and the norm of its gradient {norm:.6g}"


def look_again(run: Run, step: int, batch: Batch) -> str:
    """Compute this rank's part of a step once more; what in it is not finite, in words, or nothing. Collective."""
    names: list[str] = []
    handles = [parameter.register_hook(_watch(run.engine.names[id(parameter)], names))
               for parameter in run.engine.engine.module.parameters()]  # fmt: skip
    sequences = []
    for turn, part in enumerate(batch.micro_batches):
        total, nll = run.engine.forward(part)
        sequences += [(turn, place) for place in torch.nonzero(~nll.isfinite()).flatten().tolist()]
        run.engine.backward(total, batch.targets)
    for handle in handles:
        handle.remove()
    in_group = run.engine.group.total(torch.tensor(len(sequences), device=run.engine.engine.device))
    if run.engine.tensor.total(in_group) and not sequences:
        return ""  # what is not finite here came from a rank that shares the sequence
    told = []
    if sequences:
        told.append("no finite loss for " + "; ".join(
            documents_of(run.data.stream, sample_number(run, step, *where)) for where in sequences[:4]))  # fmt: skip
        told[-1] += f" and {len(sequences) - 4} more sequences" if len(sequences) > 4 else ""
    if names:
        told.append(f"first parameter with no finite gradient, from the loss backwards: {names[0]}")
    return f"on rank {run.place.rank} " + "; ".join(told) if told else ""


def _watch(name: str, names: list[str]) -> Any:
    def look(gradient: torch.Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            names.append(name)

    return look


def sample_number(run: Run, step: int, turn: int, place: int) -> int:
    """The number in the order of data of a sequence of this rank's micro-batches."""
    return run.data.stream.rank_samples(step, run.reader.rank, run.reader.ranks)[turn][place]


def documents_of(stream: RunStream, sample: int) -> str:
    """Where a sample's text lies: its source, its shard, and the numbers of its documents there, counted from 0."""
    held, window = stream.sample(sample)
    _, documents = held.window(window)
    numbers = [number for number in np.unique(documents).tolist() if number >= 0]
    shard, _ = held.place(window)
    told = ", ".join(map(str, numbers))
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        told = f"{numbers[0]} to {numbers[-1]}"
    return f"sample {sample} ({held.name}: {shard.prefix.name}, documents {told})"
