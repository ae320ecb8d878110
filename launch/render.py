"""A job -> its folder: the batch script, what it sources and starts, the resolved configurations.

    runs/NAME/jobs/0001/  job.sbatch  environment.sh  node.sh  rank.sh  train.yaml  launch.yaml
                          job.json     written when it is submitted: its number, when, by whom
                          starts.jsonl one line for the begin and the end of every start
                          starts/N/    node reports, verdict, decision of start N
                          slurm-ID.log what all starts printed

A folder that was submitted is never written again: a job reads its files anew at every start.
"""

from __future__ import annotations

import getpass
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from omegaconf import OmegaConf

from common.errors import EXIT_GO_ON
from common.files import write_text
from launch.job import Job

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("job.sbatch", "environment.sh", "node.sh", "rank.sh")
ARCHIVE_IN_CONTAINER = "/user-software"
CHECK_SECONDS = 600  # for all nodes together; a node that has not reported by then is a bad one


def job_folders(run: Path) -> list[Path]:
    """The job folders of a run, in the order they were made."""
    return sorted(path for path in (run / "jobs").glob("[0-9]*") if path.is_dir())


def next_folder(run: Path) -> Path:
    """Where the next job of a run belongs: a new folder, or the last one if it was never submitted."""
    folders = job_folders(run)
    if folders and not (folders[-1] / "job.json").exists():
        return folders[-1]
    return run / "jobs" / f"{int(folders[-1].name) + 1 if folders else 1:04d}"


def write_folder(job: Job, folder: Path) -> None:
    """Write everything a job reads into ``folder``."""
    for name, text in scripts(job, folder).items():
        write_text(folder / name, text)
    write_text(folder / "train.yaml", OmegaConf.to_yaml(OmegaConf.create(job.train)))
    write_text(folder / "launch.yaml", OmegaConf.to_yaml(OmegaConf.structured(job.config)))


def scripts(job: Job, folder: Path) -> dict[str, str]:
    """{file name: text} of the scripts of a training job in ``folder``."""
    return render(job, folder, SCRIPTS)


def render(job: Job, folder: Path, names: Iterable[str], **more: Any) -> dict[str, str]:
    """{file name: text} of templates; ``more``: values that only some of them need."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (shell, not HTML: the filters below quote)
    )  # fmt: skip
    environment.filters |= {"q": lambda value: shlex.quote(str(value)), "qq": double_quoted}
    values = {**_values(job, folder), **more}
    return {name: environment.get_template(f"{name}.j2").render(values) for name in names}


def double_quoted(value: object) -> str:
    """A shell word in which only variables are expanded."""
    escaped = re.sub(r'[\\"`]|\$(?=\()', lambda match: "\\" + match[0], str(value))
    return f'"{escaped}"'


def _values(job: Job, folder: Path) -> dict[str, Any]:
    software, life = job.config.software, job.config.life
    bound = bool(software.container and (software.archive or "").endswith((".sqsh", ".squashfs")))
    step = "".join(f" {option}" for option in job.site.step.options)
    environment = f" --environment={shlex.quote(software.container)}" if (
        software.container and job.site.container.command == "environment") else ""  # fmt: skip
    binding = f" \\\n    --cpu-bind=mask_cpu:{','.join(job.cpu_masks)}" if job.cpu_masks else ""
    return {
        "job": job, "life": life, "software": software, "folder": folder,
        "exit_go_on": EXIT_GO_ON, "check_seconds": CHECK_SECONDS,
        "decide_seconds": min(30, life.signal_seconds // 2),
        "watch_seconds": max(1, min(10, int(life.hang_minutes * 60 / 4))),
        "setup": [*job.site.setup, *software.setup],
        "variables": {**job.site.environment, **software.environment},
        "step": step, "environment_option": environment, "binding": binding,
        "tasks": job.config.nodes if job.config.launcher == "torchrun" else job.ranks,
        "python": _python(job, bound), "launch_python": sys.executable, "container_takes_archive": bound,
        "container_options": _container_options(job, bound),
    }  # fmt: skip


def _python(job: Job, bound: bool) -> str:
    software = job.config.software
    if bound:
        return f"{ARCHIVE_IN_CONTAINER}/bin/python"
    if software.venv:
        return f"{software.venv}/bin/python"
    return "python3" if software.container else sys.executable


def _container_options(job: Job, bound: bool) -> str:
    software, site = job.config.software, job.site
    binds = [*site.container.binds, str(job.work_folder), "$HANSE_LOCAL", *software.binds]
    if bound:
        binds.append(f"{software.archive}:{ARCHIVE_IN_CONTAINER}:image-src=/")
    options = [*site.container.options, f"--pwd={shlex.quote(str(job.work_folder))}"]
    return "".join(f" {option}" for option in [*options, *(f"-B {double_quoted(bind)}" for bind in binds)])


def who() -> str:
    """The name of the user, for ``job.json``."""
    return getpass.getuser()
