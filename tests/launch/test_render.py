"""Job folders: what every site's scripts say, and that a shell understands them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.render import SCRIPTS, double_quoted, job_folders, next_folder, scripts, write_folder
from launch.site import site_names

GOLDEN = Path(__file__).parent / "golden"
SITES = [name for name in site_names() if name != "local"]
FOLDER = Path("/scratch/voyage/runs/voyage/jobs/0001")
# One way of running at each site that its machine is known for.
REQUESTS = {
    "lumi": {"software__container": "/appl/local/laifs/containers/x.sif", "software__archive": "/scratch/venv.sqsh"},
    "jupiter": {"software__container": "/e/project1/hanse.sif", "spare_nodes": 1},
    "juwels_booster": {"launcher": "torchrun"},
    "alps_clariden": {"software__container": "hanse.toml"},
    "leonardo": {"software__archive": "/leonardo_work/venv.tar"},
    "slurm": {"ranks_per_node": 4, "life__node_checks": False},
}
TELLING = re.compile(
    r"^(#SBATCH|export|MASTER|module|ulimit|\. |tar|unsquashfs|  .*exec|"
    r"  \"\$HANSE|timeout|srun|  --| *--|hanse_python)"
)


@pytest.fixture
def rendered(job, monkeypatch):
    monkeypatch.setattr("launch.render.sys.executable", "/scratch/venv/bin/python")

    def render(site: str) -> dict[str, str]:
        nodes = 1 if site == "discoverer_plus" else 4
        return scripts(job(site, nodes=nodes, **{"hours": 1.5, **REQUESTS.get(site, {})}), FOLDER)

    return render


@pytest.mark.parametrize("site", SITES)
def test_scripts_say_what_they_said_when_they_were_read_by_a_person(rendered, site):
    """``HANSE_UPDATE_GOLDEN=1 pytest`` writes them anew: read the difference before you commit it."""
    texts = rendered(site)
    lines = [line for name in SCRIPTS for line in [f"== {name}", *filter(TELLING.match, texts[name].splitlines())]]
    found = "\n".join(lines) + "\n"
    path = GOLDEN / f"{site}.txt"
    if os.environ.get("HANSE_UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("site", SITES)
def test_a_shell_understands_the_scripts(rendered, site, tmp_path):
    for name, text in rendered(site).items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        subprocess.run(["bash", "-n", path], check=True)
        if shutil.which("shellcheck"):
            answer = subprocess.run(["shellcheck", "-e", "SC1091", path], check=False, capture_output=True, text=True)
            assert answer.returncode == 0, answer.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine (Debian: shellcheck)")
def test_shellcheck_finds_a_fault_in_a_script(rendered, tmp_path):
    path = tmp_path / "broken.sh"
    path.write_text(rendered("lumi")["rank.sh"] + "\nrm -rf $NOT_QUOTED/x\n", encoding="utf-8")
    assert subprocess.run(["shellcheck", path], check=False, capture_output=True).returncode != 0


@pytest.mark.slow
def test_every_site_keeps_its_job_across_failures(rendered):
    for site in SITES:
        text = rendered(site)["job.sbatch"]
        for option in ("--requeue", "--open-mode=append", "--signal=B:USR1@300"):
            assert f"#SBATCH {option}" in text, site
        assert text.count("scontrol requeue") == 2  # in the one function, and in the words above it
        assert "sbatch " not in re.sub(r"#.*", "", text), "a script never submits"


def test_values_reach_the_shell_as_they_are(tmp_path):
    awkward = "a \"b\" `c` $(d) \\e 'f' ^LL128"
    said = subprocess.run(
        ["bash", "-c", f"printf %s {double_quoted(awkward)}"], capture_output=True, text=True, check=True
    )
    assert said.stdout == awkward
    expanded = subprocess.run(
        ["bash", "-c", f"X=1; printf %s {double_quoted('$X')}"], capture_output=True, text=True, check=True
    )
    assert expanded.stdout == "1"


def test_a_submitted_folder_is_never_written_again(job, tmp_path):
    made = job("slurm", ranks_per_node=1, hours=1, folder=tmp_path)
    first = next_folder(made.run)
    write_folder(made, first)
    assert next_folder(made.run) == first, "a dry run leaves nothing behind but its folder"
    (first / "job.json").write_text("{}")
    second = next_folder(made.run)
    assert [second.name, first.name] == ["0002", "0001"]
    write_folder(made, second)
    assert job_folders(made.run) == [first, second]
    assert {*SCRIPTS, "train.yaml", "launch.yaml"} == {path.name for path in second.iterdir()}


def test_folders_with_a_space_in_their_name_stay_one_word(job):
    folder = Path("/scratch/my voyage")
    made = job("leonardo", nodes=4, folder=folder)
    lines = scripts(made, folder / "jobs/0001")["job.sbatch"].splitlines()
    assert "#SBATCH --output='/scratch/my voyage/jobs/0001/slurm-%j.log'" in lines
    assert "#SBATCH --chdir='/scratch/my voyage'" in lines


def test_no_site_binds_the_jobs_own_folder_below_another_folder_that_takes_its_place(job):
    """A container finds no place for a folder inside one that comes from elsewhere (/dev/shm as $TMPDIR)."""
    for site in SITES:
        made = job(site, nodes=1 if site == "discoverer_plus" else 4, hours=1, ranks_per_node=4)
        local = made.site.node_local or ""
        moved = [bind.partition(":")[2] for bind in made.site.container.binds if ":" in bind]
        assert not any(local.startswith(inside) for inside in moved), site
