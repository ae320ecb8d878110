"""A process finds its place among the ranks in the variables of torchrun, hanse or srun."""

import pytest

from common.errors import EXIT_USER_ERROR, FlakyError, HanseError
from train.ranks import Place, find_place, first_host, together, torchrun_variables


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("", ""),
        ("lrdn0001", "lrdn0001"),
        ("nid[005001-005004,007]", "nid005001"),
        ("jwb[0097,0099].juwels", "jwb0097.juwels"),
        ("a1,b[2-3]", "a1"),
        ("as01r1b[01-02],as02r[1-2]", "as01r1b01"),
    ],
)
def test_first_host_of_a_slurm_node_list(nodes, host):
    assert first_host(nodes) == host


def test_srun_makes_ranks_and_a_batch_script_does_not():
    step = {"SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}
    assert find_place(step) == Place(3, 8)
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}) is None
    assert find_place({}) is None
    assert find_place({**step, "RANK": "1", "WORLD_SIZE": "2"}) == Place(1, 2)


def test_all_tasks_of_a_job_agree_on_address_and_port_and_keep_what_is_set():
    environments = [
        {"SLURM_JOB_ID": "4711", "SLURM_LOCALID": str(local), "SLURM_STEP_NODELIST": "nid[01-02]"} for local in (0, 1)
    ]
    for rank, environment in enumerate(environments):
        torchrun_variables(Place(rank, 2), environment)
    for key in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        assert environments[0][key] == environments[1][key]
    assert environments[0]["MASTER_ADDR"] == "nid01"
    assert [environment["LOCAL_RANK"] for environment in environments] == ["0", "1"]
    kept = {"MASTER_PORT": "29500"}
    torchrun_variables(Place(0, 1), kept)
    assert kept["MASTER_PORT"] == "29500"


def test_missing_shards_are_told_before_any_rank_starts(hanse, tmp_path, capfd):
    settings = ["name=x", f"run={tmp_path / 'run'}", f"data.shards={tmp_path / 'nowhere'}", "tokens=10_000_000"]
    assert hanse("train", *settings) == EXIT_USER_ERROR
    assert "no shards manifest ('hanse tokenize' writes one)" in capfd.readouterr().err
    assert not list((tmp_path / "run").iterdir())


def test_an_error_keeps_its_kind_among_the_ranks():
    for error in (HanseError("wrong"), FlakyError("broken", ["nid7"])):
        with pytest.raises(HanseError) as told, together(Place(0, 1)):
            raise error
        assert (type(told.value), str(told.value)) == (type(error), str(error))
        assert getattr(told.value, "nodes", ()) == getattr(error, "nodes", ())
