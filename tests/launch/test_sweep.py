"""A sweep: its combinations, its array, what it leaves out when launched again, and the one table and page of all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from common.configuration import combinations
from common.errors import ConfigError, HanseError
from launch import slurm, sweep
from launch.progress import launched, look
from launch.sweep_record import Sweep, folder_name
from launch.watch import run as status
from tests.launch.conftest import launch_config

BITS = {"de": 2.0, "fr": 1.5}


def test_combinations_are_those_of_hydra_the_last_key_varying_fastest():
    made = combinations(["a.b=1,2", "--check", "c=choice(x,y)", "d=[1,2]", "e=it's"])
    assert [values for values, _ in made] == [
        {"a.b": "1", "c": "x"}, {"a.b": "1", "c": "y"}, {"a.b": "2", "c": "x"}, {"a.b": "2", "c": "y"},
    ]  # fmt: skip
    assert made[0][1] == ["a.b=1", "--check", "c=x", "d=[1,2]", "e=it's"]
    assert [values for values, _ in combinations(["x=range(1,4)"])] == [{"x": "1"}, {"x": "2"}, {"x": "3"}]
    with pytest.raises(ConfigError, match="a list of values"):
        combinations(["x=interval(0,1)"])


def test_a_folder_is_named_by_its_values_whatever_joins_the_sweep_later():
    assert folder_name({"optimizer.learning_rate": "0.001", "seed": "1"}, []) == "learning_rate-0.001_seed-1"
    assert folder_name({"data.mixture": "{fr: 1, de: 2}"}, []) == "mixture--fr-1-de-2"
    assert folder_name({"a.size": "1", "b.size": "2"}, []) == "a.size-1_b.size-2"
    taken = folder_name({"x": "1"}, ["x-1"])
    assert taken.startswith("x-1-")
    assert len(folder_name({"x": "1" * 300}, [])) <= 100


@pytest.fixture(scope="module")
def launched_sweep(tmp_path_factory, hanse):
    """A sweep of four rendered at LUMI, by the command itself; its folder, and the command."""
    folder = tmp_path_factory.mktemp("sweep") / "lr"
    command = ["launch", "--multirun", "site=lumi", "account=project_462000001", "hours=1", "train.name=x",
               "train.tokens=1e9", f"train.run={folder}", "train.batch.global_batch_size=64",
               "train.optimizer.learning_rate=1e-3,2e-3", "train.seed=0,1", "at_once=2", "dry_run=true"]  # fmt: skip
    assert hanse(*command) == 0
    return folder, command


@pytest.mark.slow
def test_one_array_whose_elements_are_jobs_of_their_own(launched_sweep):
    folder, _ = launched_sweep
    script = folder / "jobs/0001/array.sbatch"
    text = script.read_text()
    for option in ("--array=0-3%2", "--time=01:00:00", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@300"):
        assert f"#SBATCH {option}\n" in text
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-e", "SC1091", script], check=True)
    places = [Path(line) for line in (folder / "jobs/0001/elements").read_text().splitlines()]
    trained = [yaml.safe_load((place / "train.yaml").read_text()) for place in places]
    assert [(one["optimizer"]["learning_rate"], one["seed"]) for one in trained] == [
        (0.001, 0), (0.001, 1), (0.002, 0), (0.002, 1),
    ]  # fmt: skip
    assert [Path(one["run"]) for one in trained] == [place.parents[1] for place in places]
    assert all((place / "job.sbatch").is_file() for place in places)
    assert Sweep.read(folder).keys == ["optimizer.learning_rate", "seed"]
    assert launched(folder.parent) == sorted(place.parents[1] for place in places)


@pytest.mark.slow
def test_the_array_hands_over_to_the_element_and_its_log(launched_sweep, tmp_path):
    folder, _ = launched_sweep
    job = tmp_path / "run/jobs/0001"
    job.mkdir(parents=True)
    (job / "job.sbatch").write_text('echo "element $SLURM_ARRAY_TASK_ID, process $$"\n')
    (tmp_path / "elements").write_text(f"/nowhere\n{job}\n")
    text = (folder / "jobs/0001/array.sbatch").read_text().replace(str(folder / "jobs/0001"), str(tmp_path))
    for index, code in (("1", 0), ("0", 2)):
        variables = {"SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": "77", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash", "-c", text], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout
    assert "element 1, process" in (job / "slurm-77.log").read_text()
    assert "no job.sbatch in '/nowhere'" in done.stdout


@pytest.mark.slow
def test_everything_wrong_with_all_of_them_is_told_at_once(hanse, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = ["launch", "--multirun", "site=lumi", "account=wrong", "hours=100", "train.name=x",
               "train.batch.global_batch_size=64,63", "nodes=1,2", "--dry-run"]  # fmt: skip
    assert hanse(*command) == 2
    said = capfd.readouterr().err
    for part in ("nodes: an array asks for the same", "hours=100: the queue allows 48", "account=wrong",
                 "global_batch_size=63: not a multiple"):  # fmt: skip
        assert part in said, part
    assert not any(tmp_path.iterdir())


@pytest.fixture
def sweep_folder(tmp_path):
    """A sweep of three: one done, one running, one that crashed before its first step."""
    folder = tmp_path / "runs/lr"
    runs = {}
    for index, (rate, steps, kind) in enumerate((("0.01", 20, "done"), ("0.02", 12, ""), ("0.03", 0, "crash"))):
        name = folder_name({"optimizer.learning_rate": rate}, runs)
        runs[name] = {"optimizer.learning_rate": rate}
        job = folder / name / "jobs/0001"
        job.mkdir(parents=True)
        train = {"tokens": 20 * 8 * 64, "batch": {"global_batch_size": 8}, "data": {"sequence_length": 64}}
        (job / "train.yaml").write_text(yaml.safe_dump(train))
        life = {"max_starts": 50, "max_failures": 3, "backoff_seconds": 0, "exclude_after": 2}
        (job / "launch.yaml").write_text(yaml.safe_dump({"life": life, "exclude": []}))
        (job / "job.json").write_text(json.dumps({"job_id": f"77_{index}"}))
        start = {"life": 0, "begun": 1.0, "nodes": "n1", "first_step": 0, "kind": kind, "ended": 2.0, "step": steps}
        (job / "starts.jsonl").write_text(json.dumps(start) + "\n")
        lines = [{"step": step, "loss": 9 - step / 10} for step in range(1, steps + 1)]
        lines += [{"step": 10, "evaluation": {name: {"bits_per_byte": bits * 3} for name, bits in BITS.items()}}]
        if steps == 20:
            lines += [
                {
                    "step": 20,
                    "evaluation": {name: {"bits_per_byte": bits} for name, bits in BITS.items()},
                    "evaluation_tasks": {"last_word": {name: {"accuracy": 0.125} for name in BITS}},
                }
            ]
            (folder / name / "checkpoints/step-00000020").mkdir(parents=True)
            (folder / name / "checkpoints/step-00000020/manifest.json").touch()
        if steps:
            (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Sweep(folder, runs).write()
    return folder


def test_status_has_one_line_for_a_sweep_and_a_line_for_each_run_when_asked(
    sweep_folder, monkeypatch, capsys, tmp_path
):
    live = {"77_1": slurm.QueuedJob("77_1", "RUNNING", "None", "n1", "N/A", "1:00:00")}
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queued", lambda numbers: live)
    from launch.config import StatusConfig

    assert status(StatusConfig(runs=str(tmp_path / "runs"), every_seconds=1, hang_minutes=1e9)) == 0
    overall = capsys.readouterr().out
    for part in ("lr (3 runs)", " 77 ", "1 done", "1 running", "1 crash", f"hanse status run={sweep_folder}"):
        assert part in overall, part
    assert status(StatusConfig(runs="x", run=str(sweep_folder), every_seconds=1, hang_minutes=1e9)) == 0
    alone = capsys.readouterr().out.splitlines()
    assert "last word" in alone[0]
    assert next(line for line in alone if line.startswith("learning_rate-0.01")).split()[-2:] == ["1.750", "12.5%"]
    assert "12 of 20" in next(line for line in alone if line.startswith("learning_rate-0.02"))
    assert any("lr/learning_rate-0.03: start 0 ended: a rank failed" in line for line in alone)


def test_the_page_shows_what_is_done_and_names_the_rest(hanse, sweep_folder, capsys):
    assert hanse("report", f"run={sweep_folder}") == 0
    told = capsys.readouterr().out
    assert "1 of 3 runs done" in told
    page = (sweep_folder / "sweep.html").read_text()
    assert "Least mean bits per byte: 1.750 with optimizer.learning_rate 0.01" in page
    assert "Not in the picture: learning_rate-0.02, step 12 of 20: running" in page
    assert "Not in the picture: learning_rate-0.03, step 0 of 20: a rank failed" in page
    assert page.count("<figure") == 1 + len(BITS)
    assert "http" not in page.replace("http-equiv", "")


def test_what_is_done_or_in_the_queue_is_not_launched_again(sweep_folder, monkeypatch, job, train):
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queued", lambda numbers: {
        one: slurm.QueuedJob(one, "PENDING", "", "", "", "") for one in numbers if one == "77_1"})  # fmt: skip
    train |= {"tokens": 20 * 8 * 64, "batch": {"global_batch_size": 8, "micro_batch_size": 1},
              "data": {"shards": "x", "sequence_length": 64}}  # fmt: skip
    states = []
    for rate in ("0.01", "0.02", "0.03"):
        train["run"] = str(sweep_folder / f"learning_rate-{rate}")
        states.append(sweep.state_of(job("lumi")))
    assert states == ["done", "job 77_1, pending", ""]
    train |= {"tokens": 40 * 8 * 64, "run": str(sweep_folder / "learning_rate-0.01")}
    assert sweep.state_of(job("lumi")) == "", "a larger budget is not used up"


def test_here_they_run_one_after_the_other_and_a_stop_ends_all(sweep_folder, monkeypatch, capsys):
    codes = iter([1, 0, 75])
    monkeypatch.setattr(sweep, "start_here", lambda job, folder: next(codes))
    elements = [sweep.Element({}, launch_config("local"), [], f"run-{number}", job=object()) for number in range(4)]  # type: ignore[arg-type]
    assert sweep._one_after_the_other(elements, sweep_folder) == 75
    said = capsys.readouterr().out
    assert "run-0: ended with exit code 1" in said
    assert "3 of 4: run-2" in said
    assert "run-3" not in said


def test_a_record_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text(
        json.dumps({"format": "hanse-sweep-1", "runs": [{"run": "../x", "values": {}}]})
    )
    with pytest.raises(HanseError, match="not a record of a sweep"):
        Sweep.read(tmp_path)


def test_an_array_lives_as_long_as_one_of_its_elements(monkeypatch):
    answer = (
        "12_0|RUNNING|None|n1|N/A|1:00|12|13\n12_1|PENDING|Resources||N/A|1:00|12|12\n9|RUNNING|None|n2|N/A|1|9|9\n"
    )
    monkeypatch.setattr(slurm, "_run", lambda command: subprocess.CompletedProcess(command, 0, answer, ""))
    live = slurm.queued(["12", "12_1", "13", "9", "8"])
    assert {name: one.state for name, one in live.items()} == {
        "12": "RUNNING", "12_1": "PENDING", "13": "RUNNING", "9": "RUNNING",
    }  # fmt: skip


def test_progress_names_a_run_of_a_sweep_after_both(sweep_folder):
    seen = look(sweep_folder / "learning_rate-0.01")
    assert (seen.name, seen.told, seen.bits_per_byte) == ("lr/learning_rate-0.01", "done", BITS)
