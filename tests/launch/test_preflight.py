"""Node checks: what is wrong with a node is named, and what is not wrong is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.files import write_json
from launch.life import Record, Start
from launch.preflight import (
    NVIDIA_FIELDS,
    gpu_problems,
    infiniband_problems,
    judge,
    look_at_node,
    mount_problems,
    nvidia_gpus,
    verdict,
)

# Four GPUs as `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` writes them: the format of nvidia-smi(1).
HEALTHY = "\n".join(f"{index}, NVIDIA GH200 120GB, 97871, 0, 3, No, No, Not Active" for index in range(4)) + "\n"


def problems(answer: str | None, wanted: int = 4) -> list[str]:
    return list(gpu_problems(nvidia_gpus(answer), wanted))


def test_healthy_gpus_have_no_problems():
    assert len(HEALTHY.splitlines()[0].split(",")) == len(NVIDIA_FIELDS)
    assert problems(HEALTHY) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("1, NVIDIA GH200 120GB, 97871, 0,", "1, NVIDIA GH200 120GB, 97871, 2,", "GPU 1: uncorrected memory errors"),
        ("2, NVIDIA GH200 120GB, 97871, 0, 3", "2, NVIDIA GH200 120GB, 97871, 0, 64", "GPU 2: 64 or more"),
        (
            "3, NVIDIA GH200 120GB, 97871, 0, 3, No",
            "3, NVIDIA GH200 120GB, 97871, 0, 3, Yes",
            "GPU 3: remapped rows pending",
        ),
        ("0, NVIDIA GH200 120GB, 97871", "0, NVIDIA GH200 120GB, 48000", "GPU 0: less memory"),
        ("3, NVIDIA GH200 120GB, 97871, 0, 3, No, No, Not Active\n", "", "3 GPUs instead of 4"),
        ("0, 3, No, No, Not Active", "0, 3, No, No, Active", "slowed down"),
    ],
)
def test_a_sick_gpu_is_named(before, after, said):
    assert before in HEALTHY
    assert said in " ".join(problems(HEALTHY.replace(before, after)))


def test_a_driver_without_an_answer_is_a_problem():
    assert "no answer" in problems(None)[0]


def test_infiniband_ports_that_are_down_or_flap_are_named(tmp_path):
    def port(device: str, state: str, physical: str, downs: str) -> None:
        folder = tmp_path / device / "ports/1"
        (folder / "counters").mkdir(parents=True)
        (folder / "state").write_text(state)
        (folder / "phys_state").write_text(physical)
        (folder / "counters/link_downed").write_text(downs)

    port("mlx5_0", "4: ACTIVE\n", "5: LinkUp\n", "1\n")
    port("mlx5_1", "2: INIT\n", "5: LinkUp\n", "0\n")
    port("mlx5_2", "4: ACTIVE\n", "5: LinkUp\n", "2\n")
    port("mlx5_3", "1: DOWN\n", "3: Disabled\n", "0\n")  # not connected: not our business
    found = list(infiniband_problems(tmp_path))
    assert len(found) == 2
    assert "mlx5_1 port 1 is not active" in found[0]
    assert "mlx5_2 port 1 lost its link 2 times" in found[1]


def test_a_mount_that_does_not_answer_and_one_left_over_are_named(monkeypatch):
    monkeypatch.setattr("launch.preflight._tool", lambda command: None if command[-1] == "/dead" else "")
    found = list(
        mount_problems("a /dead lustre rw 0 0\nb /alive gpfs rw 0 0\nc /x fuse.squashfuse_ll ro 0 0\nd / ext4 rw 0 0\n")
    )
    assert len(found) == 2
    assert "/dead (lustre) does not answer" in found[0]
    assert "/x: a squashfs" in found[1]


def report(**changes: Any) -> dict[str, Any]:
    speed = {"flops_per_second": [100.0, 98.0], "all_reduce_bytes_per_second": 50.0}
    return {"problems": [], "free_memory_gb": 700.0, "clock_ahead_seconds": 0.1, "speed": speed, **changes}


def test_nodes_are_compared_with_each_other():
    slow = {"flops_per_second": [100.0, 60.0], "all_reduce_bytes_per_second": 50.0}
    weak = {"flops_per_second": [100.0, 99.0], "all_reduce_bytes_per_second": 5.0}
    reports = {"n1": report(), "n2": report(), "n3": report(speed=slow), "n4": report(speed=weak), "n5": None,
               "n6": report(clock_ahead_seconds=60.0), "n7": report(free_memory_gb=12.0),
               "n8": report(problems=["x"])}  # fmt: skip
    bad = judge(reports, slow=0.75, least_memory_gb=400)
    assert sorted(bad) == ["n3", "n4", "n5", "n6", "n7", "n8"]
    assert "matrix products at 61% of the median" in bad["n3"][0]
    assert "all-reduce at 10%" in bad["n4"][0]
    assert "no report" in bad["n5"][0]
    assert "+60 s" in bad["n6"][0]
    assert "12 GB" in bad["n7"][0]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "run/jobs/0001"
    folder.mkdir(parents=True)
    life = {"max_starts": 50, "max_failures": 3, "backoff_seconds": 0, "exclude_after": 2, "slow_node": 0.75}
    text = yaml.safe_dump({"life": life, "exclude": [], "site": {"node": {"healthy_free_memory_gb": None}}})
    (folder / "launch.yaml").write_text(text, encoding="utf-8")
    Record(folder).add(Start(0, 1.0, "n[1-4]", 0))
    return folder


def judged(job: Path, bad: set[str], wanted: int) -> str:
    nodes = ["n1", "n2", "n3", "n4"]
    for node in nodes:
        write_json(job / f"node-{node}.json", report(problems=["broken"] if node in bad else []))
    return verdict(job, job, nodes, wanted)


def test_good_nodes_train_and_spares_stand_by(job):
    assert judged(job, set(), 3) == "train n1,n2,n3"


def test_a_spare_takes_the_place_of_a_bad_node(job):
    assert judged(job, {"n2"}, 3) == "train n1,n3,n4"


def test_without_a_spare_the_job_goes_back_without_the_bad_node(job):
    assert judged(job, {"n2"}, 4) == "requeue n2"
    assert Record(job).starts()[-1].bad_nodes == ("n2",)


def test_when_most_nodes_fail_the_nodes_are_not_to_blame(job):
    assert judged(job, {"n1", "n2", "n3"}, 4) == "end 2"


@pytest.mark.slow
def test_this_machine_reports_what_it_has(tmp_path):
    found = look_at_node(tmp_path, gpus=0, vendor=None)
    assert found["problems"] == []
    assert len(found["speed"]["flops_per_second"]) == 2
    assert found["speed"]["all_reduce_bytes_per_second"] > 0
    assert found["free_memory_gb"] > 0
    assert found["write_seconds"] > 0


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    found = look_at_node(tmp_path / "not-there", gpus=0, vendor=None)
    assert "cannot be written" in found["problems"][0]
    assert found["speed"] is None, "a node that is bad already is not measured"
