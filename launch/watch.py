"""``hanse status``: one screen of what every job is doing, and what a person should know about it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import HanseError
from common.terminal import console, count, duration, many, say, table
from launch import slurm
from launch.config import StatusConfig
from launch.life import KINDS
from launch.progress import Progress, launched, look
from launch.slurm import QueuedJob
from launch.sweep_record import Sweep, is_sweep

OF_SWEEP = ("run", "job", "state", "starts", "step", "loss")
COLUMNS = ("run", "job", "state", "starts", "step", "loss", "tokens/s", "MFU", "left", "checkpoint", "next stop")


def run(config: StatusConfig) -> int:
    """Show the state of all launched runs, or of one; with ``watch`` until interrupted.

    Raises:
        HanseError: there is nothing to show, or Slurm does not answer (while watching, it is asked again).
    """
    requeued: set[str] = set()
    try:
        _look_once(config, requeued)
        while config.watch:
            time.sleep(config.every_seconds)
            try:
                _look_once(config, requeued)
            except HanseError as error:
                say(str(error))
    except KeyboardInterrupt:
        if not config.watch:
            raise
    return 0


def _look_once(config: StatusConfig, requeued: set[str]) -> None:
    seen = [look(path) for path in _folders(config)]
    live = slurm.queued(one.job for one in seen if one.job) if slurm.available() else {}
    if config.watch:
        console.clear()
        say(f"{time.strftime('%F %T')}, every {duration(config.every_seconds)}; Ctrl+C ends this, not the jobs\n")
    show(seen, live, config)
    for one in hung(seen, live, config.hang_minutes * 60):
        if config.requeue_hung and one.job and f"{one.job}/{len(one.starts)}" not in requeued:
            requeued.add(f"{one.job}/{len(one.starts)}")  # once a start, whatever Slurm makes of it
            slurm.requeue(one.job)
            say(f"{one.name}: job {one.job} was put back into the queue")


def _folders(config: StatusConfig) -> list[Path]:
    if config.run is not None and is_sweep(Path(config.run)):
        return [Path(config.run) / name for name in Sweep.read(Path(config.run)).runs]
    if config.run is not None:
        found = [Path(config.run)] if (Path(config.run) / "jobs").is_dir() else []
        if not found:
            raise HanseError(f"run={config.run}: never launched (no jobs/ in it); 'hanse launch' does that")
    else:
        found = launched(Path(config.runs))
        if not found:
            raise HanseError(f"runs={config.runs}: no launched runs below it; 'hanse launch' makes one")
    return found


def show(seen: list[Progress], live: Mapping[str, QueuedJob], config: StatusConfig) -> None:
    """Print the table, and below it what needs words. Of all runs, a sweep is one line; alone, a line each run."""
    alone = config.run is not None
    if alone and is_sweep(Path(str(config.run))):
        show_sweep(seen, live)
        told = seen
    else:
        told = [one for one in seen if alone or not is_sweep(one.run.parent)]
        sweeps: dict[Path, list[Progress]] = {}
        for one in seen:
            if one not in told:
                sweeps.setdefault(one.run.parent, []).append(one)
        rows = [row(one, live.get(one.job or "")) for one in told]
        table("", COLUMNS, rows + [sweep_row(folder, runs, live) for folder, runs in sweeps.items()])
        for folder in sweeps:
            say(f"{folder.name}: a sweep, each of its runs: hanse status run={folder}")
    for one in told:
        for line in remarks(one, live.get(one.job or ""), config.hang_minutes * 60):
            say(f"{one.name}: {line}")
        if len(told) == 1 and alone:
            history(one)


def show_sweep(seen: list[Progress], live: Mapping[str, QueuedJob]) -> None:
    """Print the runs of a sweep, those with the least mean bits per byte at the end of their budget first."""
    languages = sorted({language for one in seen for language in one.bits_per_byte})
    ordered = sorted(seen, key=lambda one: (not one.done, mean_bits(one)))
    tasks = sorted({task for one in seen for task in one.tasks})
    rows = []
    for one in ordered:
        bits = [f"{one.bits_per_byte[name]:.3f}" if name in one.bits_per_byte else "" for name in languages]
        mean = f"{mean_bits(one):.3f}" if one.bits_per_byte else ""
        rows.append([one.run.name, *row(one, live.get(one.job or ""))[1 : len(OF_SWEEP)], *bits, mean,
                     *(f"{one.tasks[task]:.1%}" if task in one.tasks else "" for task in tasks)])  # fmt: skip
    table("", [*OF_SWEEP, *languages, "mean bits per byte", *(task.replace("_", " ") for task in tasks)], rows)


def sweep_row(folder: Path, runs: list[Progress], live: Mapping[str, QueuedJob]) -> list[str]:
    """A sweep in one line of the table of all runs."""
    states = Counter(state(one, live.get(one.job or "")) for one in runs)
    jobs = sorted({(one.job or "").partition("_")[0] for one in runs} - {""})
    told = ", ".join(f"{number} {name}" for name, number in states.most_common())
    losses = [one.loss for one in runs if one.loss is not None]
    starts = sum(len(one.starts) for one in runs)
    return [f"{folder.name} ({many(len(runs), 'run')})", " ".join(jobs), told, str(starts or ""), "",
            f"{min(losses):.3f}" if losses else "", *[""] * (len(COLUMNS) - 6)]  # fmt: skip


def mean_bits(one: Progress) -> float:
    """Mean over the languages of the last validation; infinite where there was none."""
    found = one.bits_per_byte.values()
    return sum(found) / len(found) if found else float("inf")


def row(one: Progress, job: QueuedJob | None) -> list[str]:
    """One line of the table."""

    def known(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    speed = one.tokens_per_second
    return [
        one.name, one.job or "", state(one, job), str(len(one.starts) or ""),
        "" if one.step is None else f"{one.step:,}" + known(one.steps, " of {:,}"), known(one.loss, "{:.3f}"),
        count(speed) if speed else "", known(one.mfu, "{:.0%}") + known(one.mfu_data_sheet, " (sheet {:.0%})"),
        duration(one.seconds_left) if one.seconds_left else "",
        f"{one.checkpoint_step:,}" if one.checkpoint_step else "", job.left if job and job.state == "RUNNING" else "",
    ]  # fmt: skip


def state(one: Progress, job: QueuedJob | None) -> str:
    """The state in one word: Slurm's while the job is in its queue, else how the last start ended."""
    if job is not None:
        return job.state.lower()
    if one.job is None:
        return "done" if one.done else "not submitted"
    last = one.starts[-1].kind if one.starts else ""
    return last or (slurm.ended(one.job) or "gone").lower()


def hung(seen: list[Progress], live: Mapping[str, QueuedJob], limit_seconds: float) -> Iterator[Progress]:
    """Runs whose job runs without a sign of life, since it began or since the last one."""
    for one in seen:
        job = live.get(one.job or "")
        if job is None or job.state != "RUNNING" or not one.starts or one.starts[-1].kind:
            continue
        running = time.time() - one.starts[-1].begun
        if min(running, one.silent_seconds if one.silent_seconds is not None else running) > limit_seconds:
            yield one


def remarks(one: Progress, job: QueuedJob | None, limit_seconds: float) -> Iterator[str]:
    """What the table cannot say."""
    if job is not None and job.state == "PENDING":
        meaning = slurm.explain(job.reason)
        when = f", expected {job.start}" if job.start not in ("N/A", "") and slurm.NEVER not in meaning else ""
        yield f"{job.reason}: {meaning}{when}" if meaning != job.reason else f"waits ({job.reason}){when}"
        if slurm.NEVER in meaning and "until" not in meaning:
            yield f"scancel {job.number}, change the request, launch again"
    if list(hung([one], {one.job: job} if one.job and job else {}, limit_seconds)):
        yield (f"hung: no sign of life for {duration(one.silent_seconds or 0)}; 'scontrol requeue {one.job}', or "
               "'hanse status requeue_hung=true'")  # fmt: skip
    last = one.starts[-1] if one.starts else None
    if last is not None and last.kind not in ("", "done"):
        blamed = f", first on {last.blamed}" if last.blamed else ""
        yield f"start {last.life} ended: {KINDS.get(last.kind, last.kind)}{blamed}"
    if one.failures > 1:
        yield f"{one.failures} starts in a row without a new checkpoint"
    if one.bits_per_byte and not is_sweep(one.run.parent):  # whose table has them
        right = "".join(f", {task.replace('_', ' ')} {share:.1%}" for task, share in one.tasks.items())
        languages = many(len(one.bits_per_byte), "language")
        yield f"last evaluation, mean of {languages}: {mean_bits(one):.3f} bits per byte{right}"
    yield from one.slow
    if one.bad_nodes:
        yield f"does without {', '.join(one.bad_nodes)}"
    if (one.run / "stop").exists():
        yield f"kept stopped by {one.run / 'stop'}: delete it to go on"


def history(one: Progress) -> None:
    """Every start of the newest job."""
    table(f"starts of job {one.job}", ["start", "began", "nodes", "took", "steps", "ended"], [
        [start.life, time.strftime("%F %T", time.localtime(start.begun)), start.nodes,
         duration((start.ended or time.time()) - start.begun),
         f"{start.first_step} to {start.step if start.kind else '...'}", KINDS.get(start.kind, "running")]
        for start in one.starts
    ])  # fmt: skip
