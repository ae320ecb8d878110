"""Counters laid out as on real machines: the best is found, wraps and resets are made good, what is missing is said."""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.train.energy.trees import RAPL_RANGE, Amd, cray, mi250x, nvidia, rapl
from train.energy.config import EnergyConfig
from train.energy.counters import AMD_OFFSETS, Counter, Meter, Source, amd_counters, find_source, gpu_watts
from train.energy.recorder import NodeReader

DIES = [""] * 8
UUIDS = ["aaaa-1", "bbbb-2"]


def metered(machine, gpus=(), **more) -> Meter:
    meter = Meter(find_source(machine.root, gpus, **more))
    meter.read(machine.monotonic())
    return meter


def joules_over(machine, meter: Meter, *seconds: int) -> float:
    for some_seconds in seconds:
        machine.advance(some_seconds)
        meter.read(machine.monotonic())
    return meter.microjoules / 1e6


def test_cray_counts_the_whole_node_and_keeps_its_parts_apart(tmp_path):
    machine = cray(tmp_path)
    rapl(tmp_path)
    mi250x(tmp_path)
    meter = metered(machine, DIES)
    assert (meter.source.name, meter.source.coverage) == ("Cray pm_counters", "whole node")
    assert joules_over(machine, meter, 100, 50) == 150 * 2100  # not the parts beside it
    assert meter.raw["accel3_energy"] == 987_654_321 + 150 * 400
    assert not meter.notes


def test_rapl_adds_packages_and_memory_and_nothing_twice(tmp_path):
    machine = rapl(tmp_path, package=250, dram=30)
    meter = metered(machine)
    assert (meter.source.name, meter.source.coverage) == ("RAPL", "CPU packages and memory only")
    assert [counter.name for counter in meter.source.counters] == [
        "intel-rapl:0 package-0", "intel-rapl:0:1 dram", "intel-rapl:1 package-1", "intel-rapl:1:1 dram",
    ]  # fmt: skip
    assert joules_over(machine, meter, 60) == 60 * (2 * 250 + 2 * 30)


def test_rapl_wraps_and_nothing_is_lost(tmp_path):
    machine = rapl(tmp_path, package=800, dram=0)
    meter = metered(machine)  # at 200 kJ of 262
    assert joules_over(machine, meter, *[60] * 15) == 900 * 1600
    assert machine.spent["intel-rapl:0"] > 3 * RAPL_RANGE
    assert not meter.notes


def test_a_wrap_that_may_have_been_missed_is_said(tmp_path):
    machine = rapl(tmp_path)
    meter = metered(machine)
    assert joules_over(machine, meter, 2000) < 2000 * 560
    assert any("intel-rapl:0 package-0 may have wrapped unseen" in note for note in meter.notes)


def test_rapl_that_only_root_may_read_is_said():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may not be entered by others
        root = Path(folder)
        machine = rapl(root)
        for path in root.glob("sys/devices/**/energy_uj"):
            path.chmod(0o400 if os.geteuid() == 0 else 0)
        root.chmod(0o755)
        before = os.geteuid()
        os.seteuid(65534 if before == 0 else before)
        try:
            source = find_source(machine.root, [])
        finally:
            os.seteuid(before)
    assert (source.coverage, source.counters) == ("estimated", ())
    assert "RAPL is there, but only root may read it" in source.notes


def test_the_second_die_of_an_mi250x_says_nothing_and_is_not_missed(tmp_path):
    machine = mi250x(tmp_path)
    meter = metered(machine, DIES)
    assert (meter.source.name, meter.source.coverage) == ("AMD gpu_metrics", "GPUs only")
    assert [counter.name for counter in meter.source.counters] == ["card0", "card2", "card4", "card6"]
    assert "4 of 8 dies say 0, counted with the other die of their package" in meter.source.notes
    assert joules_over(machine, meter, 100) == pytest.approx(100 * 4 * 500, rel=1e-6)
    assert gpu_watts(tmp_path, DIES) == 4 * 560


@pytest.mark.parametrize("revision", AMD_OFFSETS)
def test_every_layout_of_gpu_metrics_is_read_where_its_energy_stands(tmp_path, revision):
    machine = Amd(tmp_path, {"card0": 500}, {"card0": 7_000_000})
    machine.revision, machine.offset = revision, AMD_OFFSETS[revision]
    machine.show()
    (counter,), notes = amd_counters(tmp_path)
    assert counter.read() * counter.microjoules == 7_000_000
    assert not notes


@pytest.mark.parametrize("data", [b"", b"\x78\x00\x01", struct.pack("<HBB", 120, 2, 3) + b"\1" * 116,
                                  struct.pack("<HBB", 120, 1, 9) + b"\1" * 116,
                                  struct.pack("<HBB", 120, 1, 3) + b"\xff" * 116])  # fmt: skip
def test_a_gpu_metrics_that_is_not_understood_counts_as_no_counter(tmp_path, data):
    mi250x(tmp_path)
    for path in tmp_path.glob("sys/devices/**/gpu_metrics"):
        path.write_bytes(data)
    assert find_source(tmp_path, DIES).coverage == "estimated"
    assert "8 of 8 GPUs tell no energy" in amd_counters(tmp_path)[1]


def test_nvidia_counts_the_gpus_of_the_ranks_and_the_processors(tmp_path):
    library = nvidia(tmp_path / "nvml", [*UUIDS, "somebody-elses"])
    source = find_source(tmp_path, UUIDS, library)
    assert (source.name, source.coverage) == ("NVML", "GPUs only")
    assert [counter.name for counter in source.counters] == ["GPU-aaaa-1", "GPU-bbbb-2"]
    assert [counter.read() * counter.microjoules for counter in source.counters] == [5e12, 5e12]
    assert gpu_watts(tmp_path, UUIDS, library) == 1400
    machine = rapl(tmp_path, package=250, dram=0)
    meter = metered(machine, UUIDS, nvml=library)
    assert (meter.source.name, meter.source.coverage) == ("NVML + RAPL", "GPUs, CPU packages and memory")
    for uuid in UUIDS:
        (tmp_path / f"nvml/GPU-{uuid}").write_text(f"{5_000_000_000 + 60 * 700 * 1000} 700000\n")
    assert joules_over(machine, meter, 60) == 60 * (2 * 700 + 2 * 250)


def test_without_the_gpus_the_processors_do_not_stand_for_the_node(tmp_path):
    rapl(tmp_path)
    assert not find_source(tmp_path, UUIDS, "libnvidia-ml-that-is-not-there.so.1").counters
    assert not find_source(tmp_path, [""]).counters
    assert gpu_watts(tmp_path, UUIDS, "libnvidia-ml-that-is-not-there.so.1") is None
    library = nvidia(tmp_path / "nvml", UUIDS[:1])
    assert not find_source(tmp_path, UUIDS, library).counters  # one of the two tells nothing


@pytest.mark.parametrize("text", ["", "n/a\n", "-5 J 1 us\n"])
def test_an_unreadable_counter_gives_way_to_the_next_source(tmp_path, text):
    cray(tmp_path)
    (tmp_path / "sys/cray/pm_counters/energy").write_text(text)
    assert not find_source(tmp_path, []).counters
    rapl(tmp_path)
    assert find_source(tmp_path, []).name == "RAPL"


def test_a_counter_that_was_away_for_a_while_costs_nothing_but_is_said_while_it_is_away(tmp_path):
    machine = cray(tmp_path)
    meter = metered(machine)
    path = tmp_path / "sys/cray/pm_counters/energy"
    joules_over(machine, meter, 10)
    machine.advance(10)
    path.unlink()
    meter.read(machine.monotonic())
    assert (meter.microjoules / 1e6, meter.missing) == (10 * 2100, {"energy"})
    assert joules_over(machine, meter, 10) == 30 * 2100
    assert not meter.missing


def test_a_reset_is_told_from_a_wrap_and_said(tmp_path):
    machine = cray(tmp_path)
    meter = metered(machine)
    joules_over(machine, meter, 100)
    machine.spent = dict.fromkeys(machine.spent, 0)  # the node's controller was restarted
    assert joules_over(machine, meter, 100) == 200 * 2100
    assert any("energy was reset" in note for note in meter.notes)

    machine = rapl(tmp_path / "other", dram=0)
    meter = metered(machine)
    joules_over(machine, meter, 60)
    machine.spent = dict.fromkeys(machine.spent, 0)  # a wrap to here would have taken 47 kJ in 10 s
    assert joules_over(machine, meter, 10) == 70 * 500
    assert any("package-0 was reset" in note for note in meter.notes)


@settings(deadline=None)
@given(start=some.integers(0, 10**15), steps=some.lists(some.integers(0, 10**6), max_size=40))
def test_a_wrapping_counter_adds_up_to_what_was_spent(start, steps):
    """Against plain addition: any start, any pieces, each smaller than the range."""
    span, spent = 10**6 + 1, start
    meter = Meter(Source("", "", (Counter("c", lambda: spent % span, 1, span, watts=1.0),)))
    meter.read(0.0)
    for number, step in enumerate(steps, 1):
        spent += step
        meter.read(float(number))
    assert meter.microjoules == sum(steps)


def test_rated_power_where_nothing_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "56")
    config = EnergyConfig()
    reader = NodeReader(config, [], tmp_path)
    assert (reader.watts, reader.basis) == (56 * 3.5, "56 threads at 3.5 W")
    assert reader.describe()["coverage"] == "estimated"
    asked = NodeReader(config, DIES, tmp_path)
    assert asked.watts is None
    assert asked.read() == {"joules": None}
    given_watts = NodeReader(replace(config, gpu_watts=280.0), DIES, tmp_path)
    assert (given_watts.watts, given_watts.basis) == (
        8 * 280 + 56 * 3.5,
        "8 GPUs at 280 W (energy.gpu_watts), 56 threads at 3.5 W",
    )
