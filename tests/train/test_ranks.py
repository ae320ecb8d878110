"""A process finds its place among the ranks in the variables of torchrun, hanse or srun."""

import multiprocessing
from datetime import timedelta

import pytest
import torch.distributed as dist

from common.errors import EXIT_CRASH, EXIT_FLAKY, EXIT_USER_ERROR, FlakyError, HanseError
from train.ability import agree_on_attention, agree_on_compiling
from train.ranks import Place, find_place, first_host, node_name, together, torchrun_variables


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


def _rank(rank, meeting, sections, told):
    """A rank of the test below, in a process of its own."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))  # fmt: skip
    for section in sections:
        try:
            with together(Place(rank, 2)):
                if rank in section:
                    raise section[rank]
            told.put((rank, None, "", 0))
        except Exception as error:
            told.put((rank, type(error).__name__, str(error), getattr(error, "exit_code", None)))
    flash, flex = "flash_attention_2", {0: "", 1: "wants a compiler; take sdpa"}[rank]
    chosen = [
        agree_on_attention(Place(rank, 2), {"flex": flex, flash: "", "sdpa": ""}),
        agree_on_attention(Place(rank, 2), {"flex": flex, flash: "is not installed" * (1 - rank), "sdpa": ""}),
        agree_on_attention(Place(rank, 2), {"sdpa": ""} if rank == 0 else {"flex": "", "sdpa": ""}),
        agree_on_attention(Place(rank, 2), {"varlen": "", "sdpa": ""}),
        agree_on_compiling(Place(rank, 2), rank == 0), agree_on_compiling(Place(rank, 2), True),
    ]  # fmt: skip
    told.put((rank, *chosen))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_what_ends_one_rank_ends_all_at_once_and_all_do_what_each_can(tmp_path, capfd):
    sections = [{1: OSError(5, "Input/output error", "old")}, {0: RuntimeError("a bug")}, {},
                {0: HanseError("wrong"), 1: KeyError("x")}, {1: FlakyError("broken", ["nid7"])}]  # fmt: skip
    context = multiprocessing.get_context("fork")  # which has torch already
    told = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, tmp_path / "meeting", sections, told)) for rank in (0, 1)]
    for one in ranks:
        one.start()
    found = [told.get(timeout=60) for _ in range(2 * len(sections) + 2)]
    for one in ranks:
        one.join()
        assert one.exitcode == 0
    first, second = ([told for at, *told in found if at == rank] for rank in (0, 1))
    broken = (f"rank 1 on {node_name()} failed: OSError: [Errno 5] Input/output error: 'old'; its traceback stands in "
              "its own output (logs/rank-*.log of ranks that were started here)")  # fmt: skip
    assert (first[0], second[0][0]) == (["RankFailed", broken, EXIT_CRASH], "OSError")
    assert first[1][:2] == ["RuntimeError", "a bug"]
    assert (second[1][0], second[1][2]) == ("ToldElsewhere", EXIT_CRASH)
    assert first[2] == second[2] == [None, "", 0]
    assert (first[3], second[3][0]) == (["HanseError", "wrong", EXIT_USER_ERROR], "KeyError")
    assert first[4] == ["FlakyError", "broken", EXIT_FLAKY]
    assert second[4] == ["ToldElsewhere", "broken", EXIT_FLAKY]
    assert first[5] == second[5] == ["flash_attention_2", "sdpa", "sdpa", "varlen", False, True]
    assert capfd.readouterr().out.splitlines() == [
        f"attention flash_attention_2 on all ranks, not flex: not on {node_name()} (wants a compiler)",
        f"attention sdpa on all ranks, not flex: not on {node_name()} (wants a compiler)",
        f"attention sdpa on all ranks, not flex: not on {node_name()} (it is no choice there)",
        f"no layers are compiled on any rank: not on {node_name()} (torch's compiler wants Triton and a C compiler)",
    ]
