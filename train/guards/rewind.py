"""Back to a checkpoint before a series of spikes, and on past the data that came with them.

The weights become those of the checkpoint, the next step takes the samples after the last spike: what lies between is
drawn, not learnt, as Chowdhery et al. did by hand (PaLM, arXiv 2204.02311, section 5.1). The order of data stays a
function of seed and sample number; the ranges that a run went past stand in its checkpoints, and in its ledger.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from common.errors import HanseError
from train.checkpoint import Checkpoint
from train.ranks import together
from train.run_folder import complete_steps, folder_of

if TYPE_CHECKING:
    from train.setup import Run

UNDONE = ".undone"  # ending of a checkpoint that the run went back before


def skipped_in(state: Mapping[str, Any], path: Path) -> list[tuple[int, int]]:
    """The ranges of samples that the run of a checkpoint's ``state`` went past.

    Raises:
        HanseError: they are no ascending ranges.
    """
    found = state.get("skipped_samples", [])
    try:
        ranges = [(int(start), int(stop)) for start, stop in found]
    except (TypeError, ValueError):
        ranges = [(0, 0)]  # which is none
    end = 0
    for start, stop in ranges:
        if not end <= start < stop:
            raise HanseError(f"{path}: skipped_samples are no ascending ranges of samples; the checkpoint is not sound")
        end = stop
    return ranges


def target(steps: Sequence[int], first_spike: int, margin: int) -> int | None:
    """The step of the checkpoint to go back to: the newest one ``margin`` steps and one before the first spike."""
    return max((step for step in steps if step < first_spike - margin), default=None)


def rewind(run: Run, step: int) -> dict[str, Any]:
    """Undo the steps since before the last spikes, of which ``step`` is the last. Collective.

    No checkpoint may be in the making. The caller writes the one gone back to anew, which then tells a later start what
    to go past.

    Returns:
        ``state.json`` of the checkpoint gone back to; its ``step`` is the one to go on after.

    Raises:
        HanseError: it went back as often as it may, or no checkpoint is old enough.
    """
    settings, spikes = run.config.guards.spikes, run.spikes
    series, rewinds, stream = list(spikes.recent), spikes.rewinds + 1, run.data.stream
    back = _agree(run, target(complete_steps(run.folder.checkpoints), series[0], settings.rewind_margin))
    with together(run.place):
        _refuse(run, step, back, rewinds)
        found = Checkpoint(folder_of(run.folder.checkpoints, back))
        found.verify(run.place.rank, run.place.ranks)
        found.restore(run.engine)
    run.engine.spread_masters()
    spikes.load(found.state.get("spikes", {}))
    spikes.recent, spikes.rewinds = [], rewinds
    passed = stream.go_back(step, back, skipped_in(found.state, found.folder))
    with together(run.place):
        if run.place.first:
            _tell(run, step, back, passed, series)
    return found.state


def _agree(run: Run, found: int | None) -> int:
    """Rank 0's answer on all ranks, which may see another state of a shared folder; -1: none."""
    told = [-1 if found is None else found]
    if run.place.ranks > 1:
        dist.broadcast_object_list(told)
    return told[0]


def _refuse(run: Run, step: int, back: int, rewinds: int) -> None:
    settings, series = run.config.guards.spikes, run.spikes.recent
    what = f"step {step}: the loss or gradient norm had {len(series)} spikes since step {series[0]}"
    advice = ("their updates were left out, and the newest checkpoint holds none of them: look at the data of these "
              "steps, or go on from there in another run=... with a lower optimizer.learning_rate")  # fmt: skip
    if rewinds > settings.max_rewinds:
        raise HanseError(f"{what}, after {rewinds - 1} rewinds (guards.spikes.max_rewinds={settings.max_rewinds}); "
                         f"{advice}")  # fmt: skip
    if back < 0:
        margin = f", by {settings.rewind_margin} steps" if settings.rewind_margin else ""
        raise HanseError(f"{what}, and no checkpoint is older than these{margin}; {advice}")


def _tell(run: Run, step: int, back: int, passed: Sequence[tuple[int, int]], series: Sequence[int]) -> None:
    """Note the rewind, and put later checkpoints where no start finds them."""
    for later in complete_steps(run.folder.checkpoints):
        if later > back:
            folder = folder_of(run.folder.checkpoints, later)
            aside = folder.with_name(folder.name + UNDONE)
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
    samples, *others = map(list, passed)
    if run.ledger:
        facts = {"further_samples": others} if others else {}
        run.ledger.write("rewind", {"step": back, "samples": samples, "spikes": list(series), **facts})
        run.ledger.sync()
    run.folder.cut_metrics(back)
    run.metrics.back(back)
    run.metrics.event(back, "rewind", undone_to=step, samples=samples, spikes=list(series))
    without = " and ".join(f"{start} to {stop - 1}" for start, stop in passed)
    run.metrics.say(f"REWIND: {len(series)} spikes in steps {series[0]} to {step}: back to step {back}, and on without "
                    f"samples {without}; later checkpoints are kept as *{UNDONE}")  # fmt: skip
