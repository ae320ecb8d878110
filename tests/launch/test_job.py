"""The arithmetic of a job, and everything that speaks against one, told at once."""

from __future__ import annotations

import subprocess

import pytest

from common.errors import ConfigError
from launch import verb
from launch.config import LaunchConfig, LifeConfig
from launch.job import least_parameters, state_bytes


def problems(job, *arguments, **keys) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job(*arguments, **keys)
    return caught.value.problems


def test_a_whole_node_gets_one_rank_a_gpu_and_the_sites_masks(job):
    made = job("lumi", nodes=32)
    assert (made.ranks, made.gpus_per_node, made.cpus_per_rank, made.time_limit) == (256, 8, 7, "48:00:00")
    assert len(made.cpu_masks) == 8
    assert made.arithmetic.startswith("32 nodes x 8 ranks x 2 sequences x 2 accumulated = 1024 sequences")
    assert {"--nodes=32", "--gpus-per-node=8", "--mem=480G", "--partition=standard-g"} <= set(made.sbatch_options)


def test_part_of_a_node_gets_no_masks(job):
    assert job("lumi", ranks_per_node=4).cpu_masks == []


def test_torchrun_asks_for_one_task_a_node_with_all_its_cpus(job):
    options = job("lumi", nodes=2, launcher="torchrun").sbatch_options
    assert {"--ntasks-per-node=1", "--cpus-per-task=56"} <= set(options)


def test_spare_nodes_are_asked_for_but_do_not_train(job):
    made = job("leonardo", nodes=4, spare_nodes=1)
    assert made.ranks == 16
    assert "--nodes=5" in made.sbatch_options


def test_a_qos_that_is_the_account(job):
    assert "--qos=abc123" in job("discoverer_plus", ranks_per_node=4).sbatch_options


def test_all_problems_are_told_at_once(job):
    found = problems(job, "lumi", queue="dev-g", nodes=40, hours=5, account="abc", ranks_per_node=9,
                     threads_per_rank=9, wrong=["train.x: no such key"])  # fmt: skip
    for part in ("train.x", "at most 32 nodes", "hours=5: the queue allows 3", "account=abc", "has 8 GPUs", "7 CPUs"):
        assert any(part in line for line in found), part
    assert len(found) == 6


def test_check_asks_the_other_verb_too_and_says_whose_key_was_meant(hanse, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["site=leonardo", "account=abc", "train.experiment=demo", "train.batch.global_batch_size=8"]
    with monkeypatch.context() as patch:
        patch.setattr(verb, "subprocess", subprocess)  # cold, as in life: elsewhere tests/warm.py answers
        assert hanse("launch", "--check", *asked) == 0
    assert hanse("launch", "--check", *asked, "train.nodse=3") == 2
    said = capsys.readouterr().err.strip()
    assert said == ("hanse launch: train.nodse: no such key; hanse train --help lists the keys; 'nodes' is a key of "
                    "hanse launch")  # fmt: skip
    assert hanse("launch", "dry_run=true", *asked, "train.run=/proc/x") == 2
    assert capsys.readouterr().err == "hanse launch: /proc/x/jobs/0001: cannot be created; name another folder\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"queue": "standart-g"}, "did you mean 'standard-g'"),
        ({"account": None}, "which project pays"),
        ({"hours": 0.05}, "ask for more time"),
        ({"software__archive": "venv.zip"}, "a file ending in .sqsh or .tar"),
    ],
)
def test_a_wrong_request_is_refused_in_words(job, keys, said):
    assert said in " ".join(problems(job, "lumi", **keys))


def test_ranks_that_may_be_ended_before_their_watchdog_speaks_are_warned_of(job, train):
    assert not list(job("lumi").warnings), "the shipped limits leave it the time"
    (line,) = job("lumi", life__hang_minutes=20).warnings
    assert line.startswith("life.hang_minutes=20: silent ranks may be ended before")
    assert "26 or more leave it the time" in line
    assert not list(job("lumi", life__hang_minutes=26).warnings)
    train["guards"]["watchdog_slow_seconds"] = 2000
    assert [line.partition("=")[0] for line in job("lumi").warnings] == ["life.hang_minutes", "life.start_minutes"]
    train["guards"]["watchdog_seconds"] = 0
    assert not list(job("lumi", life__hang_minutes=1).warnings), "nothing is lost where no watchdog watches"


def test_check_warns_and_says_yes(hanse, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["site=leonardo", "account=abc", "train.experiment=demo", "train.batch.global_batch_size=8"]
    assert hanse("launch", "--check", *asked, "life.hang_minutes=5") == 0
    told = capsys.readouterr()
    assert told.err.startswith("hanse launch: life.hang_minutes=5: silent ranks")
    assert "silent ranks" not in told.out


def test_a_queue_for_large_jobs_refuses_small_ones(job):
    assert "17 nodes or more" in " ".join(problems(job, "karolina", queue="qgpu_big", nodes=4, hours=1))


def test_an_unknown_limit_must_be_said(job):
    assert "hours: must be set" in " ".join(problems(job, "vega"))


def test_files_are_looked_for_where_the_job_will_run(job, tmp_path):
    keys = {"hours": 1, "ranks_per_node": 4, "folder": tmp_path, "software__container": str(tmp_path / "no.sif"),
            "software__archive": str(tmp_path / "venv.sqsh")}  # fmt: skip
    found = " ".join(problems(job, "slurm", here=True, **keys))
    assert "no.sif: not there" in found
    assert "mksquashfs" in found
    assert "no token shards" in found
    job("slurm", here=False, **keys)  # from a laptop nothing can be looked for


def test_ranks_that_share_sequences_are_one(job, train):
    train["engine"]["sequence_parallel"] = 4
    made = job("lumi", nodes=32)
    assert made.arithmetic.startswith("32 nodes x 8 ranks / 4 to a sequence x 2 sequences x 8 accumulated = 1024 seq")
    train["engine"] |= {"sequence_parallel": 1, "tensor_parallel": 4}
    assert job("lumi", nodes=32).arithmetic.startswith("32 nodes x 8 ranks / 4 to a matrix x 2 sequences x 8 acc")


def test_a_model_that_cannot_fit_is_refused(job, train):
    train["model"]["settings"] |= {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
                                   "num_attention_heads": 64}  # fmt: skip
    assert "take a higher ZeRO stage" in " ".join(problems(job, "leonardo", nodes=4))
    train["engine"]["tensor_parallel"] = 4  # a quarter of the weights and gradients on each GPU is still too much
    assert "take a higher ZeRO stage" in " ".join(problems(job, "leonardo", nodes=4))
    train["engine"]["tensor_parallel"] = 1
    train["engine"]["zero_stage"] = 3
    job("leonardo", nodes=32)


def test_least_parameters_counts_a_known_model_without_its_embeddings():
    llama_8b = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
                "num_key_value_heads": 8}  # fmt: skip
    whole = 8_030_261_248 - 2 * 128_256 * 4096  # transformers' count of Llama 3 8B, less both embeddings
    gate = 32 * 4096 * 14336  # the third matrix of a gated MLP, which not every architecture has
    assert whole - gate - 1e6 < least_parameters(llama_8b) <= whole - gate
    assert least_parameters({"hidden_size": 8}) == 0


def test_state_bytes_follow_the_zero_paper():
    # Figure 1 of arXiv 1910.02054: 7.5 B parameters on 64 GPUs, in GB.
    assert [round(state_bytes(7_500_000_000, 64, stage) / 1e9, 1) for stage in (1, 2, 3)] == [31.4, 16.6, 1.9]


def test_values_that_no_site_allows_are_refused():
    life = LifeConfig(signal_seconds=0, max_starts=1, max_failures=0, backoff_seconds=0, exclude_after=1,
                      start_minutes=1, hang_minutes=0, slow_node=0.5)  # fmt: skip
    found = LaunchConfig(nodes=0, launcher="mpirun", hours=-1, ranks_per_node=0, life=life).problems()
    assert len(found) == 7


def test_what_would_break_a_line_of_the_batch_script_is_refused():
    """Slurm reads '#SBATCH --exclude=a b' as another script's argument, and says so an hour later or never."""
    ours = {"signal_seconds": 1, "max_starts": 1, "max_failures": 1, "backoff_seconds": 1, "exclude_after": 1}
    life = LifeConfig(**ours, start_minutes=1, hang_minutes=1, slow_node=0.5)
    config = LaunchConfig(account="a b", exclude=["n1", "n2 n3"], sbatch=["--mail-type=END", "-Cgpu", "qos"], life=life)
    found = [line.partition(":")[0] for line in config.problems()]
    assert found == ["account='a b'", "exclude='n2 n3'", "sbatch='qos'"]
