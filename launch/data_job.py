"""``hanse launch task=corpus``: an array of jobs, one node each, that annotate their shares of the files; then one job
that does what is left of that and puts the corpus together. Without it the corpus is no corpus, with it nothing is
missing: which elements of the array were killed, and when, does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.errors import ConfigError, HanseError
from common.files import write_json, write_text
from common.terminal import duration, next_step, say
from launch import slurm
from launch.config import LaunchConfig
from launch.job import Job, request_problems
from launch.render import next_folder, render, who
from launch.site import Queue, Site
from launch.verb import configuration_of

SCRIPTS = ("corpus.sbatch", "environment.sh", "node.sh")


def run(config: LaunchConfig, why: str, *, here: bool) -> int:
    """Render the jobs of a corpus and submit them; with ``dry_run`` only render them.

    Raises:
        HanseError: everything that speaks against them, found before anything is submitted.
    """
    corpus, wrong = configuration_of("corpus", config.corpus)
    job = work_out(config, corpus, wrong, here=here)
    folder = next_folder(job.run)
    refuse_if_running(folder)
    assert corpus is not None
    write_folder(job, config, corpus, folder)
    say(f"{job.site.title} (site={job.site.name}, {why})")
    for what, value in summary(job, config, folder):
        say(f"  {what:13s} {value}")
    return submit(job, config, folder, here=here)


def work_out(config: LaunchConfig, corpus: dict[str, Any] | None, wrong: list[str], *, here: bool) -> Job:
    """One element of the array as a job of one node with all its CPUs.

    Raises:
        ConfigError: everything that would make Slurm refuse it, keep it waiting for ever, or waste its hours.
    """
    site: Site = config.site
    one = replace(config, nodes=1, spare_nodes=0, launcher="torchrun", life=replace(config.life, node_checks=False))
    queue = site.queues.get(config.queue or site.queue or "") or Queue()
    gpus = queue.gpus if queue.gpus is not None else site.node.gpus
    hours = config.hours if config.hours is not None else queue.max_hours
    problems = [
        *wrong,
        *request_problems(
            one, site, queue, hours=hours, ranks=config.ranks_per_node or gpus or 1, gpus=gpus, here=here
        ),
    ]
    if site.scheduler == "none":
        problems.append(f"site={site.name}: there is no scheduler; 'hanse corpus' does the same on this machine")
    if problems or corpus is None:
        raise ConfigError(problems)
    return Job(
        name=corpus["name"], site=site, config=one, train={}, queue=queue, seconds=round((hours or 0) * 3600),
        ranks_per_node=config.ranks_per_node or gpus or 1, gpus_per_node=gpus or 0,
        cpus_per_rank=config.threads_per_rank or site.node.cpus_per_gpu, work_folder=Path.cwd(),
        run=Path.cwd() / Path(corpus["output"]).parent,
    )  # fmt: skip


def refuse_if_running(folder: Path) -> None:
    """Make sure that no earlier launch of the same corpus still works.

    Raises:
        HanseError: one does.
    """
    for path in folder.parent.glob("*/job.json"):
        record = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(record, dict)
        numbers = [str(number) for number in record["job_ids"]]
        if slurm.available() and slurm.queued(numbers):
            raise HanseError(f"{folder.parent.parent}: jobs {', '.join(numbers)} make this corpus; wait for them, or "
                             f"stop them with 'scancel {' '.join(numbers)}'")  # fmt: skip


def write_folder(job: Job, config: LaunchConfig, corpus: dict[str, Any], folder: Path) -> None:
    """Write everything the jobs read; ``corpus``, the resolved configuration, is frozen as an experiment."""
    for name, text in render(job, folder, SCRIPTS, workers=config.nodes).items():
        write_text(folder / name, text)
    frozen = "# @package _global_\n" + OmegaConf.to_yaml(
        OmegaConf.create({key: value for key, value in corpus.items() if key != "experiment"})
    )
    write_text(folder / "configs/experiment/frozen/corpus.yaml", frozen)
    write_text(folder / "launch.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))


def summary(job: Job, config: LaunchConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """What a person should see before hours are spent, as (what, value)."""
    array = f"{config.nodes} jobs of one node, then " if config.nodes > 1 else ""
    yield "corpus", f"{job.name} in {job.run}"
    yield "asks for", f"{array}one job of one node; queue {job.config.queue or job.site.queue}"
    yield "time", f"{duration(job.seconds)} a start; a job that is not done then goes on by itself"
    yield "job folder", str(folder)


def submit(job: Job, config: LaunchConfig, folder: Path, *, here: bool) -> int:
    """Submit the array and what follows it; the exit code.

    Raises:
        HanseError: Slurm refuses, or is not here.
    """
    script = folder / "corpus.sbatch"
    array = [f"--array=0-{config.nodes - 1}"] if config.nodes > 1 else []
    if slurm.available() and here:
        against = slurm.test_only(script, *array)
        if against:
            raise HanseError(f"Slurm would not take this job: {against}; the script is {script}")
    if config.dry_run:
        say(f"dry run: nothing was submitted; the script is {script}")
        next_step("the same command without dry_run=true")
        return 0
    if not (slurm.available() and here):
        raise HanseError(f"site={job.site.name}: not this machine, or no Slurm on it; launch on its login node, or add "
                         "dry_run=true")  # fmt: skip
    numbers = [slurm.submit(script, *array)]
    if array:
        numbers.append(slurm.submit(script, f"--dependency=afterany:{numbers[0]}"))
    write_json(folder / "job.json", {"job_ids": numbers, "submitted": time.time(), "user": who(),
                                     "site": job.site.name})  # fmt: skip
    say(f"submitted: {' then '.join(f'job {number}' for number in numbers)}; logs: {folder}/slurm-*.log")
    next_step("squeue --me", "hanse tokenizer ...  when the last one is done")
    return 0
