"""``hanse launch``: a site, a request and a training configuration -> a job folder, shown, and a job in the queue."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from common.errors import ConfigError, HanseError
from common.files import read_json, write_json
from common.terminal import duration, many, next_step, say, short_path
from launch import data_job, slurm
from launch.config import LaunchConfig
from launch.job import Job, ranks_per_node, work_out
from launch.local import run_ranks
from launch.progress import look
from launch.render import job_folders, next_folder, who, write_folder
from launch.site import Site, detect, resolve
from launch.sweep_record import is_sweep
from launch.verb import configuration_of


def run(config: LaunchConfig) -> int:
    """Render a job and submit it; with ``dry_run`` only render it.

    Raises:
        HanseError: everything that speaks against the job, found before anything is submitted.
    """
    why = at_its_site(config)
    site, here = config.site, is_here(config.site)
    if config.task == "corpus":
        return data_job.run(config, why, here=here)
    job = job_of(config, here=here)
    if is_sweep(job.run):
        raise HanseError(f"{job.run}: holds a sweep; launch it with --multirun, or name another folder with train.run=")
    refuse_if_in_use(job.run)
    folder = next_folder(job.run)
    write_folder(job, folder)
    _show(job, folder, why)
    if site.scheduler == "none":
        return 0 if config.dry_run else start_here(job, folder)
    return _submit(job, folder, here=here)


def check(config: LaunchConfig) -> None:
    """All that :func:`run` looks for before it writes anything.

    Raises:
        HanseError: everything that speaks against the job.
    """
    at_its_site(config)
    here = is_here(config.site)
    if config.task == "corpus":
        data_job.work_out(config, *configuration_of("corpus", config.corpus), here=here)
    else:
        for warning in job_of(config, here=here).warnings:
            print(f"hanse launch: {warning}", file=sys.stderr)


def at_its_site(config: LaunchConfig) -> str:
    """Put the facts of the site into the configuration; how it was found.

    Raises:
        HanseError: nobody knows where this is, or something is wrong with the site's facts.
    """
    config.site, why = resolve(config.site)
    if problems := config.site.problems():
        raise ConfigError(problems)
    return why


def job_of(config: LaunchConfig, *, here: bool) -> Job:
    """The job of a training.

    Raises:
        ConfigError: everything that speaks against it (:func:`launch.job.work_out`).
    """
    ranks = config.nodes * (ranks_per_node(config, config.site) or 1)
    train, wrong = configuration_of("train", config.train, f"ranks={ranks}", *of_the_site(config))
    return work_out(config, config.site, train, wrong, Path.cwd(), here=here)


def is_here(site: Site) -> bool:
    """Whether this machine is the site."""
    return site.scheduler == "none" or site.name in detect() or (site.name == "slurm" and slurm.available())


def of_the_site(config: LaunchConfig) -> list[str]:
    """What the site knows that ``hanse train`` should, where the launch does not say otherwise."""
    said = OmegaConf.select(OmegaConf.create(config.train), "energy") or {}
    known = config.site.country and not ("country" in said or "grid" in said)
    return [f"energy.country={config.site.country}"] if known else []


def refuse_if_in_use(run: Path) -> None:
    """Make sure that no live job writes into a run folder; clear away what a dead one left.

    Raises:
        HanseError: a job of an earlier launch is still in the queue, or somebody keeps the run stopped.
    """
    submitted = [
        read_json(folder / "job.json", "job record") for folder in job_folders(run) if (folder / "job.json").is_file()
    ]
    lock = run / "in-use.json"
    holder = str((read_json(lock, "record of who uses the folder") if lock.is_file() else {}).get("slurm_job_id") or "")
    numbers = [str(record["job_id"]) for record in submitted] + [holder] * bool(holder)
    live = slurm.queued(numbers) if numbers and slurm.available() else {}
    if live:
        number, job = next(iter(live.items()))
        raise HanseError(f"{run}: in use by job {number} ({job.state.lower()}); watch it with 'hanse status run={run}',"
                         f" stop it with 'scancel {number}', or name another folder with train.run=...")  # fmt: skip
    if holder and slurm.available():
        lock.unlink(missing_ok=True)  # its job is gone, killed without a word
    if (run / "stop").exists():
        text = (run / "stop").read_text(encoding="utf-8", errors="replace")
        if text.startswith("hanse:"):
            (run / "stop").unlink()
        else:
            raise HanseError(f"{run / 'stop'}: this file keeps the run stopped; delete it to go on")


def _show(job: Job, folder: Path, why: str) -> None:
    say(f"{job.site.title} (site={job.site.name}, {why})")
    for what, value in summary(job, folder):
        say(f"  {what:13s} {value}")
    for note in job.site.notes:
        say(f"  note          {note}")
    for warning in job.warnings:
        say(f"  warning       {warning}")


def summary(job: Job, folder: Path) -> Iterator[tuple[str, str]]:
    """What a person should see before hours are spent, as (what, value)."""
    config, train = job.config, job.train
    software = config.software
    per_step = train["batch"]["global_batch_size"] * train["data"]["sequence_length"]
    spare = f" + {config.spare_nodes} spare" if config.spare_nodes else ""
    nodes = f"{config.nodes}{spare} nodes" if spare else many(config.nodes, "node")
    cpus = f", {job.cpus_per_rank} CPUs each" if job.cpus_per_rank else ""
    queue = config.queue or job.site.queue
    hours = job.seconds / 3600 * (config.nodes + config.spare_nodes) * (job.gpus_per_node or 1)
    unit = "GPU-hours" if job.gpus_per_node else "node-hours"
    yield "run", f"{train['name']} in {short_path(job.run, job.work_folder)}"
    where = f"; queue {queue}" if queue else ""
    yield "asks for", f"{nodes} x {many(job.ranks_per_node, 'rank')}{cpus}{where}"
    if job.seconds:
        most = f"{duration(job.seconds)} and at most {hours:,.0f} {unit} a start"
        yield "time", f"{most}, again until its tokens are used up"
    stages = [stage["name"] for stage in train.get("stages") or []]
    steps = (
        f"in {len(stages)} stages: {', '.join(stages)}" if stages else f"= {int(train['tokens']) // per_step:,} steps"
    )
    yield "budget", f"{int(train['tokens']):,} tokens {steps}"
    yield "a step", job.arithmetic + (" (at first)" if stages else "")
    done = look(job.run)
    if done.checkpoint_step:
        left = f"; {duration(done.seconds_left)} left at its last speed" if done.seconds_left else ""
        yield "goes on", f"after step {done.checkpoint_step:,}{left}"
    yield "software", " in ".join(filter(None, (software.archive or software.venv or sys.prefix, software.container)))
    yield "job folder", short_path(folder, job.work_folder)


def _head(script: Path) -> str:
    lines = script.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#SBATCH"))


def _submit(job: Job, folder: Path, *, here: bool) -> int:
    script = folder / "job.sbatch"
    if slurm.available() and here:
        against = slurm.test_only(script)
        if against:
            raise HanseError(f"Slurm would not take this job: {against}; the script is {script}")
    if job.config.dry_run:
        say(f"\n{_head(script)}\n\ndry run: nothing was submitted; the whole script is {script}")
        next_step("the same command without dry_run=true")
        return 0
    if not slurm.available():
        raise HanseError(f"there is no Slurm on this machine (no sbatch); the job folder is ready: {folder}. Copy it "
                         f"to {job.site.name} or launch there; dry_run=true stops here without a message")  # fmt: skip
    if not here:
        raise HanseError(f"site={job.site.name}: this machine is not it; launch on its login node, or add dry_run=true")
    number = slurm.submit(script)
    write_json(folder / "job.json", {"job_id": number, "submitted": time.time(), "user": who(), "site": job.site.name})
    say(f"submitted: job {number}, its log will be {folder}/slurm-{number}.log")
    next_step(f"hanse status run={job.train['run']}", f"touch {job.train['run']}/save   (checkpoint and go on)",
              f"touch {job.train['run']}/stop   (checkpoint and stop)")  # fmt: skip
    return 0


def start_here(job: Job, folder: Path) -> int:
    """Without a scheduler: the ranks on this machine, as ``hanse train`` starts them."""
    command = [sys.executable, "-m", "train.start", str(folder / "train.yaml")]
    return run_ranks(command, job.ranks, job.cpus_per_rank or 1, job.run / "logs")
