"""``hanse launch --multirun``: combinations of values -> one array of jobs, an element a combination.

An element is a job like any other, in a run folder of its own inside the sweep's: it has its own starts, its own
checkpoints and its own end, and all that tells about a run tells about it. The array only says which is whose. Launched
again, with the same values or with more, a sweep leaves out what is done and what is in the queue.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import EXIT_DONE, EXIT_GO_ON, ConfigError, HanseError
from common.files import read_json, write_json, write_text
from common.terminal import duration, many, next_step, say, short_path, table
from launch import slurm
from launch.config import LaunchConfig
from launch.job import Job, ranks_per_node, work_out
from launch.progress import look, steps_asked
from launch.render import job_folders, next_folder, render, who, write_folder
from launch.site import resolve
from launch.submit import is_here, of_the_site, refuse_if_in_use, start_here
from launch.sweep_record import Sweep, folder_name, is_sweep
from launch.verb import answer_of, overrides

Answer = tuple[dict[str, Any] | None, list[str]]  # a configuration of hanse train, and what is wrong with it


@dataclass
class Element:
    """One combination; ``values`` are of the keys under ``train``."""

    values: dict[str, str]
    config: LaunchConfig
    train: list[str]  # the command line of hanse train
    name: str = ""
    job: Job | None = None
    folder: Path = field(default_factory=Path)  # of its next job
    state: str = ""  # why it is left out; empty: it is launched


class SweepLaunch:
    """Takes the combinations, as :class:`common.verbs.Verb` gives them, and launches them together."""

    def __init__(self) -> None:
        self.elements: list[Element] = []
        self.problems: dict[str, None] = {}  # in order, each once
        self.why = ""

    def add(self, values: Mapping[str, str], config: LaunchConfig) -> None:
        """Take a combination. What is wrong is told by :meth:`run`, together."""
        config.site, self.why = resolve(config.site)
        self.problems |= dict.fromkeys([*config.site.problems(), *_not_for_an_array(values, config)])
        ranks = config.nodes * (ranks_per_node(config, config.site) or 1)
        train = [*overrides(config.train), f"ranks={ranks}", *of_the_site(config)]
        inside = {key.removeprefix("train."): value for key, value in values.items()}
        self.elements.append(Element(inside, config, train))

    def run(self, problems: Sequence[str]) -> int:
        """Launch; the exit code.

        Raises:
            HanseError: everything that speaks against one or all of the elements, before anything is submitted.
        """
        self.problems = dict.fromkeys(problems) | self.problems
        names = {str((element.config.train.get("name"), element.config.train.get("run"))) for element in self.elements}
        if len(names) > 1:
            self.problems["train.name, train.run: they name the sweep, whose elements are named by their values; give "
                          "all the same"] = None  # fmt: skip
        if not self.elements:
            raise ConfigError(list(self.problems))
        folder, here = self._work_out()
        waiting = [element for element in self.elements if not element.state]
        _show(self.elements, folder, self.why)
        if not waiting:
            say("nothing to launch: every element is done or in the queue")
            next_step(f"hanse report run={short_path(folder, Path.cwd())}")
            return EXIT_DONE
        record = Sweep.read(folder).runs if is_sweep(folder) else {}
        Sweep(folder, record | {element.name: element.values for element in self.elements}).write()
        for element in waiting:
            assert element.job is not None
            write_folder(element.job, element.folder)
        if self.elements[0].config.site.scheduler == "none":
            return EXIT_DONE if waiting[0].config.dry_run else _one_after_the_other(waiting, folder)
        return _submit(waiting, folder, here=here)

    def _work_out(self) -> tuple[Path, bool]:
        """Make a job of each element, and find out which are to be left out; the sweep's folder, and whether this
        machine is the site.
        """
        site = self.elements[0].config.site
        here = is_here(site)
        first, wrong = answer_of("train", self.elements[0].train)
        if first is None:
            raise ConfigError([*self.problems, *wrong])
        folder = Path.cwd() / first["run"]
        if (folder / "config.yaml").exists() or (job_folders(folder) and not is_sweep(folder)):
            raise HanseError(f"{folder}: holds a run, and a sweep needs a folder of its own; set another train.run")
        known = {str(values): name for name, values in (Sweep.read(folder).runs if is_sweep(folder) else {}).items()}
        for element in self.elements:
            taken = {*known.values(), *(one.name for one in self.elements)}
            element.name = known.get(str(element.values)) or folder_name(element.values, taken)
        answers = _ask(self.elements, Path(first["run"]))
        for element, (train, wrong) in zip(self.elements, answers, strict=True):
            try:
                element.job = work_out(element.config, site, train, wrong, Path.cwd(), here=here)
                element.state = state_of(element.job)
                if not element.state:
                    refuse_if_in_use(element.job.run)
            except ConfigError as error:
                self.problems |= dict.fromkeys(error.problems)
            except HanseError as error:
                self.problems[str(error)] = None
            else:
                element.folder = next_folder(element.job.run)
        if self.problems:
            raise ConfigError(list(self.problems))
        return folder, here


def _not_for_an_array(values: Mapping[str, str], config: LaunchConfig) -> list[str]:
    """All elements of an array ask for the same, so only training can differ."""
    found = [f"{key}: an array asks for the same for all its elements: sweep keys of train., launch once for each value"
             for key in values if not key.startswith("train.")]  # fmt: skip
    if config.task != "train":
        found.append(f"task={config.task}: only training is swept")
    return found


def _ask(elements: Sequence[Element], base: Path) -> list[Answer]:
    """The configuration of every element, resolved and checked by ``hanse train`` itself."""
    commands = [[*element.train, f'run="{base / element.name}"'] for element in elements]
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        return list(pool.map(lambda command: answer_of("train", command), commands))


def state_of(job: Job) -> str:
    """Why a job is not to be launched: its run is ``done``, or its last job is still in the queue; empty otherwise."""
    progress = look(job.run)
    if progress.done and steps_asked(job.train) in (None, progress.steps):
        return "done"
    jobs = [folder for folder in job_folders(job.run) if (folder / "job.json").is_file()]
    number = str(read_json(jobs[-1] / "job.json", "job record")["job_id"]) if jobs else ""
    live = slurm.queued([number]) if number and slurm.available() else {}
    return f"job {number}, {live[number].state.lower()}" if live else ""


def _show(elements: Sequence[Element], folder: Path, why: str) -> None:
    job = elements[0].job
    assert job is not None
    waiting = sum(not element.state for element in elements)
    nodes = job.config.nodes + job.config.spare_nodes
    hours = job.seconds / 3600 * nodes * (job.gpus_per_node or 1) * waiting
    at_once = f", at most {job.config.at_once} at a time" if job.config.at_once else ""
    say(f"{job.site.title} (site={job.site.name}, {why})")
    say(f"  sweep         {len(elements)} runs in {short_path(folder, Path.cwd())}/, {waiting} to launch{at_once}")
    queue = job.config.queue or job.site.queue
    asked = f"{many(nodes, 'node')} x {many(job.ranks_per_node, 'rank')} each"
    say(f"  asks for      {asked}" + (f"; queue {queue}" if queue else ""))
    if job.seconds:
        say(f"  time          {duration(job.seconds)} a start, at most {hours:,.0f} "
            f"{'GPU' if job.gpus_per_node else 'node'}-hours for one start of each")  # fmt: skip
    for warning in job.warnings:
        say(f"  warning       {warning}")
    keys = list(elements[0].values)
    table("", ["run", *keys, "state"], [
        [element.name, *(element.values[key] for key in keys), element.state or "to launch"] for element in elements
    ])  # fmt: skip


def _submit(elements: Sequence[Element], folder: Path, *, here: bool) -> int:
    job = elements[0].job
    assert job is not None
    place = next_folder(folder)
    array = f"0-{len(elements) - 1}" + (f"%{job.config.at_once}" if job.config.at_once else "")
    for name, text in render(job, place, ["array.sbatch"], array=array).items():
        write_text(place / name, text)
    write_text(place / "elements", "".join(f"{element.folder}\n" for element in elements))
    script = place / "array.sbatch"
    against = slurm.test_only(script) if slurm.available() and here else None
    if against:
        raise HanseError(f"Slurm would not take this array: {against}; the script is {script}")
    if job.config.dry_run:
        say(f"\ndry run: nothing was submitted; the script is {script}, those of the elements in their run folders")
        next_step("the same command without dry_run=true")
        return EXIT_DONE
    if not (slurm.available() and here):
        raise HanseError(f"site={job.site.name}: not this machine, or no Slurm on it; launch on its login node, or add "
                         "dry_run=true")  # fmt: skip
    number = slurm.submit(script)
    record = {"submitted": time.time(), "user": who(), "site": job.site.name}
    for index, element in enumerate(elements):
        write_json(element.folder / "job.json", {"job_id": f"{number}_{index}", **record})
    write_json(place / "job.json", {"job_id": number, **record})
    say(f"submitted: array {number} of {many(len(elements), 'job')}; each has its log in its run folder, under jobs/")
    next_step(
        f"hanse status run={short_path(folder, Path.cwd())}",
        f"hanse report run={short_path(folder, Path.cwd())}   (a page, at any time)",
    )
    return EXIT_DONE


def _one_after_the_other(elements: Sequence[Element], folder: Path) -> int:
    """Without a scheduler: train each here. One that fails does not keep the others from their turn."""
    codes: Counter[int] = Counter()
    for number, element in enumerate(elements, 1):
        assert element.job is not None
        say(f"\n{number} of {len(elements)}: {element.name}")
        code = start_here(element.job, element.folder)
        codes[code] += 1
        if code == EXIT_GO_ON:  # somebody stopped it: that means the sweep
            say("stopped; the same command goes on")
            return EXIT_GO_ON
        if code:
            say(f"{element.name}: ended with exit code {code}")
    say(f"{codes[EXIT_DONE]} of {len(elements)} done")
    next_step(f"hanse report run={short_path(folder, Path.cwd())}")
    return max(codes)
