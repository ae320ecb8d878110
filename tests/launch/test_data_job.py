"""The jobs that make a corpus: one node each, an array with what ends it, frozen in a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from common.errors import ConfigError, HanseError
from launch import slurm
from launch.data_job import SCRIPTS, refuse_if_running, submit, work_out, write_folder
from launch.render import render
from tests.launch.conftest import launch_config

CORPUS = {"name": "web", "output": "data/web/corpus", "sources": {"b": {"path": "b"}, "a": {"path": "a"}}}


@pytest.fixture
def launched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(site: str, **keys):
        config = launch_config(site, **{"task": "corpus", "hours": 2, "nodes": 3, **keys})
        job = work_out(config, CORPUS, [], here=False)
        folder = job.run / "jobs/0001"
        write_folder(job, config, CORPUS, folder)
        return job, config, folder

    return make


@pytest.mark.parametrize("site", ["lumi", "leonardo", "alps_clariden", "vega"])
def test_an_element_has_one_whole_node_and_a_shell_understands_its_script(launched, site, tmp_path):
    job, _, folder = launched(site)
    text = (folder / "corpus.sbatch").read_text()
    gpus, cpus = job.site.node.gpus, job.site.node.cpus_per_gpu
    for option in ("--nodes=1", "--ntasks-per-node=1", f"--cpus-per-task={gpus * cpus}", "--requeue"):
        assert f"#SBATCH {option}" in text
    assert "sbatch " not in re.sub(r"#.*", "", text), "a script never submits"
    assert text.count("scontrol requeue") == 1
    for name in SCRIPTS:
        subprocess.run(["bash", "-n", folder / name], check=True)
        if shutil.which("shellcheck"):
            answer = subprocess.run(
                ["shellcheck", "-e", "SC1091", folder / name], check=False, capture_output=True, text=True
            )
            assert answer.returncode == 0, answer.stdout


def test_what_the_corpus_is_made_of_is_frozen_in_its_order(launched):
    _, _, folder = launched("lumi")
    frozen = yaml.safe_load((folder / "configs/experiment/frozen/corpus.yaml").read_text())
    assert frozen == CORPUS
    assert list(frozen["sources"]) == ["b", "a"], "the order decides which of two duplicates stays"


def test_more_elements_than_a_job_may_have_nodes_are_no_problem_but_a_long_limit_is(launched):
    launched("lumi", queue="small-g", nodes=50)
    with pytest.raises(ConfigError, match="the queue allows 72"):
        launched("lumi", queue="small-g", hours=100)
    with pytest.raises(ConfigError, match="no scheduler"):
        launched("local")


def test_an_array_is_followed_by_one_job_and_one_node_needs_no_array(launched, monkeypatch):
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "test_only", lambda script, *options: None)
    monkeypatch.setattr(slurm, "submit", lambda script, *options: asked.append(options) or str(40 + len(asked)))
    assert submit(*launched("slurm", ranks_per_node=1), here=True) == 0
    assert asked == [("--array=0-2",), ("--dependency=afterany:41",)]
    asked.clear()
    job, config, folder = launched("slurm", ranks_per_node=1, nodes=1)
    assert submit(job, config, folder, here=True) == 0
    assert asked == [()]
    monkeypatch.setattr(slurm, "queued", lambda numbers: {"41": None} if "41" in numbers else {})
    with pytest.raises(HanseError, match="scancel 41"):
        refuse_if_running(Path(folder.parent / "0002"))


def test_the_share_of_an_element_is_its_number_of_all_and_the_last_job_has_none(launched):
    job, _, folder = launched("slurm", ranks_per_node=1)
    line = next(one for one in render(job, folder, ["corpus.sbatch"], workers=3)["corpus.sbatch"].splitlines()
                if one.startswith("share="))  # fmt: skip
    for number, share in (("2", "worker=2/3"), (None, "")):
        command = ["bash", "-uc", f"{line}; echo ${{share:+worker=$share}}"]
        variables = {"SLURM_ARRAY_TASK_ID": number} if number else {}
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
        assert said.stdout.strip() == share
