"""``hanse launch task=corpus``: an array of jobs, one node each, that annotate their shares of the files; then one job
that does what is left of that and puts the corpus together. Without it the corpus is no corpus, with it nothing is
missing: which elements of the array were killed, and when, does not matter.
"""

from __future__ import annotations

import glob
import math
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
# For Ray: memory for signatures, keys and buckets, in bytes a byte of text (240 + 320 + 24 of a document of 2 kB), and
# how many bytes of text a compressed byte is.
SKETCH_SHARE, COMPRESSION = 0.3, 3.0
COMPRESSED = (".zst", ".gz", ".parquet", ".bz2", ".xz")
OBJECT_SHARE = 0.3  # of a machine's memory that Ray gives to objects
MOST_RAY_NODES = 64


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
    ray = ray_nodes(config, corpus, job.queue) if corpus["dedup"]["engine"] == "ray" else 0
    write_folder(job, config, corpus, folder, ray=bool(ray))
    say(f"{job.site.title} (site={job.site.name}, {why})")
    for what, value in summary(job, config, folder, ray):
        say(f"  {what:13s} {value}")
    return submit(job, config, folder, here=here, ray=ray)


def ray_nodes(config: LaunchConfig, corpus: dict[str, Any], queue: Queue) -> int:
    """Machines that look for duplicates: as asked for, else as many as hold the sketches of all the input that lies on
    the file system; at most what the queue gives.
    """
    if config.ray_nodes:
        return config.ray_nodes
    memory = config.site.node.memory_gb
    if not memory:
        return 1
    needed = SKETCH_SHARE * sum(map(text_bytes, corpus["sources"].values()))
    most = min(queue.max_nodes or MOST_RAY_NODES, MOST_RAY_NODES)
    return max(1, min(math.ceil(needed / (OBJECT_SHARE * memory * 1e9)), most))


def text_bytes(source: dict[str, Any]) -> float:
    """About how much text a source has; 0 where it is not on the file system."""
    if not source.get("path"):
        return 0.0
    found = [Path(name) for name in glob.glob(str(source["path"]), recursive=True)]
    files = [file for path in found for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sum(file.stat().st_size * (COMPRESSION if file.suffix in COMPRESSED else 1) for file in files)


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


def write_folder(
    job: Job, config: LaunchConfig, corpus: dict[str, Any], folder: Path, *, ray: bool = False
) -> None:  # fmt: skip
    """Write everything the jobs read; ``corpus``, the resolved configuration, is frozen as an experiment."""
    scripts = [*SCRIPTS, *(["ray.sh"] if ray else [])]
    for name, text in render(job, folder, scripts, workers=config.nodes, ray=ray).items():
        write_text(folder / name, text)
    frozen = "# @package _global_\n" + OmegaConf.to_yaml(
        OmegaConf.create({key: value for key, value in corpus.items() if key != "experiment"})
    )
    write_text(folder / "configs/experiment/frozen/corpus.yaml", frozen)
    write_text(folder / "launch.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))


def summary(job: Job, config: LaunchConfig, folder: Path, ray: int) -> Iterator[tuple[str, str]]:
    """What a person should see before hours are spent, as (what, value)."""
    array = f"{config.nodes} jobs of one node, then " if config.nodes > 1 else ""
    yield "corpus", f"{job.name} in {job.run}"
    last = "one node" if not ray else f"{ray} {'node' if ray == 1 else 'nodes'} with Ray"
    yield "asks for", f"{array}one job of {last}; queue {job.config.queue or job.site.queue}"
    yield "time", f"{duration(job.seconds)} a start; a job that is not done then goes on by itself"
    yield "job folder", str(folder)


def submit(job: Job, config: LaunchConfig, folder: Path, *, here: bool, ray: int = 0) -> int:
    """Submit the array and what follows it; the exit code.

    Raises:
        HanseError: Slurm refuses, or is not here.
    """
    script = folder / "corpus.sbatch"
    array = [f"--array=0-{config.nodes - 1}"] if config.nodes > 1 else []
    last = [f"--nodes={ray}"] if ray > 1 else []
    if slurm.available() and here:
        against = slurm.test_only(script, *(array or last)) or slurm.test_only(script, *last)
        if against:
            raise HanseError(f"Slurm would not take this job: {against}; the script is {script}")
    if config.dry_run:
        say(f"dry run: nothing was submitted; the script is {script}")
        next_step("the same command without dry_run=true")
        return 0
    if not (slurm.available() and here):
        raise HanseError(f"site={job.site.name}: not this machine, or no Slurm on it; launch on its login node, or add "
                         "dry_run=true")  # fmt: skip
    numbers = [slurm.submit(script, *(array or last))]
    if array:
        numbers.append(slurm.submit(script, f"--dependency=afterany:{numbers[0]}", *last))
    write_json(folder / "job.json", {"job_ids": numbers, "submitted": time.time(), "user": who(),
                                     "site": job.site.name})  # fmt: skip
    say(f"submitted: {' then '.join(f'job {number}' for number in numbers)}; logs: {folder}/slurm-*.log")
    next_step("squeue --me", "hanse tokenizer ...  when the last one is done")
    return 0
