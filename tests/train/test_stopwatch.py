"""Every moment of the loop belongs to one part; a profile shows them and changes nothing."""

import gzip
import json
import time
from types import SimpleNamespace

import pytest
import torch

from common.errors import EXIT_DONE
from tests.train.multirank import losses, train_cases
from train.profile import exposed, gpu_line, is_collective, length, operators, time_table
from train.run_folder import read_metrics
from train.stopwatch import PARTS, Stopwatch, _Handle, memory_bytes


def test_parts_add_up_to_the_clock_and_the_innermost_one_counts():
    watch = Stopwatch()
    watch.lap()
    begun = time.perf_counter()
    with watch.part("backward"):
        time.sleep(0.01)
        with watch.part("communication"):
            time.sleep(0.02)
    time.sleep(0.01)
    parts = watch.lap()
    whole = time.perf_counter() - begun
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(whole, abs=2e-3)
    assert parts["communication"] >= 0.02
    assert parts["backward"] >= 0.01
    assert parts["loop"] >= 0.01
    assert sum(watch.lap().values()) < 1


def test_waiting_for_a_collective_is_communication():
    watch = Stopwatch()
    work = SimpleNamespace(wait=lambda: time.sleep(0.02), done=True)
    handle = watch._timed(lambda: work)()
    assert isinstance(handle, _Handle)
    assert handle.done
    with watch.part("forward"):
        handle.wait()
    parts = watch.lap()
    assert parts["communication"] >= 0.02
    assert watch._timed(lambda: None)() is None


def test_memory_is_told_now_and_at_most():
    found = memory_bytes()
    assert 1e7 < found["host"] <= found["host_peak"] * 1.01


def test_time_that_no_computation_hides():
    assert length([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4
    assert exposed([(0, 4), (10, 12)], [(1, 3), (11, 20)]) == 1 + 1 + 1
    assert exposed([], [(0, 1)]) == 0
    assert is_collective("ncclDevKernel_AllReduce_Sum_bf16_RING_LL")
    assert not is_collective("ampere_bf16_s16816gemm")


def test_gpu_kernels_are_told_apart():
    def kernel(name, start, end, where="cuda"):
        return SimpleNamespace(name=name, device_type=where, time_range=SimpleNamespace(start=start, end=end))

    events = [kernel("gemm", 0, 2000), kernel("ncclDevKernel_AllGather", 1000, 5000)]
    assert gpu_line(events, 2) == ["GPU: collectives 2.00 ms a step, of which 1.50 ms with no computation beside them"]
    assert gpu_line([], 2) == []


def test_tables_show_shares_and_the_largest_operators():
    parts = {**dict.fromkeys(PARTS, 0.0), "forward": 0.03, "loop": 0.01}
    rows = [line.split() for line in time_table(parts, 2)[1:]]
    assert rows == [["forward", "15.00", "75.0%"], ["loop", "5.00", "25.0%"], ["all", "20.00", "100.0%"]]
    cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA

    def made(key, where, on_cpu=0, on_gpu=0):
        return SimpleNamespace(key=key, count=4, device_type=where, self_cpu_time_total=1000.0 * on_cpu,
                               self_device_time_total=1000.0 * on_gpu)  # fmt: skip

    on_host = [made("aten::mm", cpu, 6), made("aten::add", cpu, 2), made("hanse: forward", cpu, 9)]
    assert [line.split() for line in operators(on_host, 2, 1, 20)][1:] == [["aten::mm", "2", "3.00", "75.0%"]]
    on_device = [made("aten::mm", cpu, 1, 6), made("gemm", gpu, 0, 6), made("aten::add", cpu, 9, 2)]  # mm started gemm
    assert [line.split() for line in operators(on_device, 2, 1, 20)][1:] == [["aten::mm", "2", "3.00", "75.0%"]]


@pytest.mark.slow
def test_a_profile_changes_nothing_and_shows_where_the_time_went(tiny_settings, tmp_path):
    runs = {name: tmp_path / name for name in ("plain", "profiled")}
    cases = {name: [*tiny_settings, f"run={run}", "engine.zero_stage=3", "guards.times_every_steps=4"]
             for name, run in runs.items()}  # fmt: skip
    cases["profiled"] += ["profile=true", "profiling.after_steps=2", "profiling.steps=2", "profiling.ranks=[0,1]"]
    assert train_cases(tmp_path / "ranks", 2, cases) == dict.fromkeys(runs, EXIT_DONE)
    assert losses(runs["plain"]) == losses(runs["profiled"])
    assert not (runs["plain"] / "profile").exists()

    traces = sorted((runs["profiled"] / "profile").glob("*.json.gz"))
    assert [trace.name for trace in traces] == [f"steps-00000003-00000004-rank-0000{rank}.json.gz" for rank in (0, 1)]
    with gzip.open(traces[1]) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert sum(name == "hanse: forward" for name in names) == 2 * 2  # steps x micro-batches
    assert "aten::mm" in names
    table = traces[0].with_name(traces[0].name.replace("json.gz", "txt")).read_text()
    assert table.startswith("profile of steps 3 to 4, rank 0\n")
    for part in ("forward", "backward", "update", "communication", "aten::mm"):
        assert f"\n{part}" in table

    records = read_metrics(runs["plain"] / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    for record in steps[2:]:
        parts = record["seconds_by_part"]
        assert all(parts[part] > 0 for part in ("forward", "backward", "update", "communication", "loop"))
        assert min(parts.values()) >= 0
    gap = steps[8]["time"] - steps[3]["time"]
    assert sum(sum(record["seconds_by_part"].values()) for record in steps[4:9]) == pytest.approx(
        gap, abs=0.05 + gap / 10
    )
    assert steps[-1]["memory_bytes"]["host"] > 1e8
    assert sum("rank_times" in record for record in records) == 3
    consumed = [record["consumed"] for record in records if "consumed" in record]
    assert len(consumed) == 3
    assert sum(one["tokens"] for one in consumed[-1].values()) == 12 * 8 * 64
    assert all(one["epochs"] > 0 for one in consumed[-1].values())
    summary = json.loads((runs["plain"] / "summary.json").read_text())
    assert sum(summary["time_shares"].values()) == pytest.approx(1)
    assert summary["time_shares"]["evaluation"] > 0
    assert summary["checkpoint_share"] == summary["time_shares"]["checkpoint"] > 0
    assert 0 < summary["overhead_seconds"] < 1
