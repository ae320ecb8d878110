"""The jobs that make a corpus: one node each, an array with what ends it, frozen in a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from common.errors import ConfigError, HanseError
from launch import data_job, slurm
from launch.data_job import SCRIPTS, refuse_if_running, submit, work_out, write_folder
from launch.render import render
from launch.site import Queue
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
    text = render(job, folder, ["corpus.sbatch"], workers=3, ray=False)["corpus.sbatch"]
    line = next(one for one in text.splitlines() if one.startswith("share="))
    for number, share in (("2", "worker=2/3"), (None, "")):
        command = ["bash", "-uc", f"{line}; echo ${{share:+worker=$share}}"]
        variables = {"SLURM_ARRAY_TASK_ID": number} if number else {}
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
        assert said.stdout.strip() == share


@pytest.mark.parametrize("site", ["lumi", "juwels_booster", "slurm"])
def test_duplicates_are_looked_for_by_ray_in_the_last_job_alone(launched, site, tmp_path):
    job, config, _ = launched(site, ranks_per_node=1, ray_nodes=4)
    assert data_job.ray_nodes(config, CORPUS, job.queue) == 4
    folder = tmp_path / "ray"
    write_folder(job, config, CORPUS, folder, ray=True)
    for name in (*SCRIPTS, "ray.sh"):
        subprocess.run(["bash", "-n", folder / name], check=True)
        if shutil.which("shellcheck"):
            answer = subprocess.run(
                ["shellcheck", "-e", "SC1091", folder / name], check=False, capture_output=True, text=True
            )
            assert answer.returncode == 0, answer.stdout
    text = (folder / "corpus.sbatch").read_text()
    assert text.index('if [ -z "$share" ]; then') < text.index("RAY_AUTH_MODE=token") < text.index("-m hanse corpus")
    assert ("${first}i" in text) == (site == "juwels_booster"), "the name in the fast network"


def test_only_the_last_job_gets_the_nodes_of_ray(launched, monkeypatch):
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "test_only", lambda script, *options: None)
    monkeypatch.setattr(slurm, "submit", lambda script, *options: asked.append(options) or str(40 + len(asked)))
    assert submit(*launched("slurm", ranks_per_node=1), here=True, ray=4) == 0
    assert asked == [("--array=0-2",), ("--dependency=afterany:41", "--nodes=4")]


def test_as_many_machines_as_hold_the_sketches_of_the_input(launched, tmp_path):
    _, config, _ = launched("lumi", queue="small-g")
    (tmp_path / "text/deep").mkdir(parents=True)
    for name in ("text/a.jsonl", "text/deep/b.jsonl.zst"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**12)  # a hole: no disk
    assert data_job.text_bytes({"path": str(tmp_path / "text")}) == 4e12
    assert data_job.text_bytes({"path": str(tmp_path / "text/*.jsonl")}) == 1e12
    assert data_job.text_bytes({"path": None}) == data_job.text_bytes({"path": "nowhere"}) == 0
    needed = 4e12 * data_job.SKETCH_SHARE / (512e9 * data_job.OBJECT_SHARE)
    corpus = {"sources": {"a": {"path": str(tmp_path / "text")}}}
    assert data_job.ray_nodes(config, corpus, Queue()) == -(-needed // 1)
    assert data_job.ray_nodes(config, corpus, Queue(max_nodes=3)) == 3
    assert data_job.ray_nodes(config, {"sources": {}}, Queue()) == 1
