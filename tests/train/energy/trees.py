"""File trees of energy counters as real machines lay them out, that advance as their hardware would."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

RAPL_RANGE = 262_143_328_850  # microjoules: max_energy_range_uj of many Xeon and EPYC packages
NVML_SOURCE = r"""
#include <stdio.h>
#include <string.h>
/* The four calls of nvml.h that are used; what a GPU says stands in the file FOLDER/UUID: "MILLIJOULES MILLIWATTS". */
typedef struct { char name[96]; } *nvmlDevice_t;
static struct { char name[96]; } devices[16];
static int used = 0, ready = 0;
static int value(nvmlDevice_t device, unsigned long long *energy, unsigned int *limit) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", FOLDER, device->name);
  FILE *file = fopen(path, "r");
  if (!file) return 15; /* NVML_ERROR_GPU_IS_LOST */
  int found = fscanf(file, "%llu %u", energy, limit);
  fclose(file);
  return found == 2 ? 0 : 3; /* NVML_ERROR_NOT_SUPPORTED */
}
int nvmlInit_v2(void) { ready = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  if (!ready) return 1; /* NVML_ERROR_UNINITIALIZED */
  strncpy(devices[used].name, uuid, 95);
  *device = (nvmlDevice_t)&devices[used];
  used = (used + 1) % 16;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy) {
  unsigned int limit;
  return value(device, energy, &limit);
}
int nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit) {
  unsigned long long energy;
  return value(device, &energy, limit);
}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@dataclass
class Machine:
    """A machine whose counters and clock go on together; all energies in microjoules."""

    root: Path
    watts: dict[str, int] = field(default_factory=dict)  # {counter: its power}
    spent: dict[str, int] = field(default_factory=dict)
    now: int = 1_800_000_000  # seconds; Unix time and the steady clock are one here

    def monotonic(self) -> float:
        return float(self.now)

    def time(self) -> float:
        return float(self.now)

    def advance(self, seconds: int) -> None:
        self.now += seconds
        for name, watts in self.watts.items():
            self.spent[name] = self.spent.get(name, 0) + watts * seconds * 1_000_000
        self.show()

    def show(self) -> None:
        raise NotImplementedError


class Cray(Machine):
    """HPE Cray EX, as LUMI-G's nodes: a CPU and four MI250X modules; joules, ten readings a second."""

    def show(self) -> None:
        folder = self.root / "sys/cray/pm_counters"
        for name in self.watts:
            write(folder / name, f"{self.spent.get(name, 0) // 1_000_000} J {self.now}000000 us\n")
        if not (folder / "version").exists():
            others = {"power": "2100 W 1 us", "freshness": "1", "generation": "37", "version": "2", "raw_scan_hz": "10",
                      "startup": "1637850000000000", "power_cap": "0 W"}  # fmt: skip
            for name, text in others.items():
                write(folder / name, f"{text}\n")


def cray(root: Path, watts: int = 2100) -> Cray:
    accelerators = {f"accel{number}_energy": 400 for number in range(4)}
    parts = {"energy": watts, "cpu_energy": 250, "memory_energy": 90, **accelerators}
    machine = Cray(root, parts, dict.fromkeys(parts, 987_654_321_000_000))
    machine.show()
    return machine


ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram",
         "intel-rapl:1": "package-1", "intel-rapl:1:0": "core", "intel-rapl:1:1": "dram",
         "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}  # fmt: skip


class Rapl(Machine):
    """Linux's powercap: two packages, their cores and memory, the platform, and the same through another door."""

    def show(self) -> None:
        for zone in self.watts:
            parent = ":".join(zone.split(":")[:2]) if zone.count(":") == 2 else ""
            folder = self.root / "sys/devices/virtual/powercap" / zone.partition(":")[0] / parent / zone
            link = self.root / "sys/class/powercap" / zone
            if not link.is_symlink():
                write(folder / "name", f"{ZONES[zone]}\n")
                write(folder / "max_energy_range_uj", f"{RAPL_RANGE}\n")
                if ZONES[zone].startswith("package"):
                    write(folder / "constraint_0_max_power_uw", "280000000\n")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder)
            (folder / "energy_uj").write_text(f"{self.spent.get(zone, 0) % RAPL_RANGE}\n")


def rapl(root: Path, package: int = 250, dram: int = 30) -> Rapl:
    watts = {zone: {"core": 180, "dram": dram, "psys": 900}.get(name, package) for zone, name in ZONES.items()}
    machine = Rapl(root, watts, dict.fromkeys(watts, 200_000_000_000))
    machine.show()
    return machine


class Amd(Machine):
    """amdgpu's cards in sysfs: gpu_metrics 1.3 as MI200s have it, in units of 2^-16 J; displays beside them."""

    revision, offset, size = 3, 24, 120

    def show(self) -> None:
        for number, name in enumerate(self.watts):
            device = self.root / f"sys/devices/pci0000:00/0000:{number + 0xC1:02x}:00.0"
            write(device / "vendor", "0x1002\n")
            write(device / "hwmon" / f"hwmon{number}" / "power1_cap", "560000000\n" if self.watts[name] else "0\n")
            table = bytearray(b"\xff" * self.size)
            struct.pack_into("<HBB", table, 0, self.size, 1, self.revision)
            struct.pack_into("<Q", table, self.offset, (self.spent.get(name, 0) << 16) // 1_000_000)
            (device / "gpu_metrics").write_bytes(table)
            cards, card = self.root / "sys/class/drm", device / "drm" / name
            card.mkdir(parents=True, exist_ok=True)
            cards.mkdir(parents=True, exist_ok=True)
            (cards / f"{name}-DP-1").mkdir(exist_ok=True)
            if not (cards / name).is_symlink():
                (card / "device").symlink_to(device)
                (cards / name).symlink_to(card)


def mi250x(root: Path) -> Amd:
    """Four modules, eight dies, of which every second one counts nothing: its package's first does."""
    watts = {f"card{number}": 0 if number % 2 else 500 for number in range(8)}
    machine = Amd(root, watts, {name: power * 1_000_000_000 for name, power in watts.items()})
    machine.show()
    return machine


def nvidia(folder: Path, uuids: list[str]) -> str:
    """A library that speaks NVML for GPUs that are files (see NVML_SOURCE); its path. Wants a C compiler."""
    for uuid in uuids:
        write(folder / f"GPU-{uuid}", "5000000000 700000\n")
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    source.write_text(NVML_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", f'-DFOLDER="{folder}"', "-o", library, source], check=True)
    return str(library)
