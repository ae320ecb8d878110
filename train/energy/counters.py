"""Where a node's energy can be read: counters that only grow, found under ``/sys`` and in NVIDIA's driver.

In order of preference: Cray's pm_counters (the whole node), the GPUs' own counters with those of the CPU packages,
the CPU packages alone where nothing computes on GPUs. Nothing here samples power.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

WHOLE_NODE, GPUS_AND_CPUS, GPUS, CPUS = "whole node", "GPUs and CPU packages", "GPUs only", "CPU packages only"
WITH_MEMORY = {GPUS_AND_CPUS: "GPUs, CPU packages and memory", CPUS: "CPU packages and memory only"}
ESTIMATE = "estimate from rated power"  # the source of a node without counters
PLAUSIBLE_WATTS = 1000.0  # of one CPU package, where the driver tells no limit
AMD_TICK = 1e6 / 2**16  # microjoules a unit of gpu_metrics' energy_accumulator (Linux, kgd_pp_interface.h)
# Where energy_accumulator (64 bits) stands in gpu_metrics, by content_revision of format 1 (the same file).
AMD_OFFSETS = {1: 24, 2: 24, 3: 24, 4: 24, 5: 88, 6: 16, 7: 24, 8: 24}
UNREADABLE = (OSError, ValueError)


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only grows, until it wraps or is reset.

    Attributes:
        read: its value in units of ``microjoules``; raises OSError or ValueError where it cannot be read.
        range: it goes on from 0 after this value; None: never within a lifetime.
        watts: more than this its device does not draw; for telling a wrap from a reset.
    """

    name: str
    read: Callable[[], int]
    microjoules: float
    range: int | None = None
    watts: float = float("inf")


@dataclass(frozen=True)
class Source:
    """The counters of a node that are added up.

    Attributes:
        coverage: what they count; ``notes``: what they leave out, or why a better one was not used.
        parts: counters of parts of it, written down but not added.
    """

    name: str
    coverage: str
    counters: tuple[Counter, ...] = ()
    parts: tuple[Counter, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Meter:
    """Adds up what the counters of a source say, wraps and resets made good.

    Attributes:
        microjoules: since the first reading; ``raw``: {counter: its last value}.
        missing: counters that the last reading did not get. One that is back later has lost nothing: it went on.
        notes: what makes ``microjoules`` less than what was spent.
    """

    source: Source
    microjoules: float = 0.0
    raw: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    _at: dict[str, float] = field(default_factory=dict)

    @property
    def wraps(self) -> bool:
        """Whether it must be read now and then between two records."""
        return any(counter.range is not None for counter in self.source.counters)

    def read(self, now: float) -> None:
        """Take all counters; ``now`` in seconds of a clock that never goes back."""
        first, self.missing = not self._at, set()
        for counter in (*self.source.counters, *self.source.parts):
            name, added = counter.name, counter in self.source.counters
            try:
                value = counter.read()
            except UNREADABLE:
                self.missing |= {name} if added else set()
                continue
            if added and name in self.raw:
                self.microjoules += self._since(counter, value, now - self._at[name]) * counter.microjoules
            elif added and not first:
                self.notes.add(f"{name} could not be read at the start: counted from later on")
            self.raw[name], self._at[name] = value, now

    def _since(self, counter: Counter, value: int, seconds: float) -> int:
        """Units since the last reading."""
        before = self.raw[counter.name]
        if counter.range is None:
            wrapped = False
        else:
            most = counter.watts * seconds * 1e6 / counter.microjoules
            wrapped = value < before and counter.range - before + value <= most
            if most > counter.range:
                self.notes.add(f"{counter.name} may have wrapped unseen: at least this much")
        if wrapped:
            return (counter.range or 0) - before + value
        if value < before:
            self.notes.add(f"{counter.name} was reset: what it counted between the last reading and that is lost")
            return value
        return value - before


def find_source(root: Path, gpus: Sequence[str], nvml: str = "libnvidia-ml.so.1") -> Source:
    """The best source of this node; one without counters, :data:`ESTIMATE`, where nothing can be read.

    Args:
        root: of the file system (another one in tests).
        gpus: of the ranks of this node: UUIDs of NVIDIA's, "" for others; empty where they compute on CPUs.
        nvml: name of NVIDIA's library.
    """
    cray = cray_counters(root)
    if cray:
        return cray
    packages, notes = rapl_counters(root)
    if not gpus and packages:
        return Source("RAPL", _coverage(CPUS, packages), packages, notes=notes)
    cards: tuple[Counter, ...] = ()
    more: tuple[str, ...] = ()
    name = "NVML"
    if gpus and all(gpus):
        cards = nvml_counters(gpus, nvml)
    elif gpus:
        name, (cards, more) = "AMD gpu_metrics", amd_counters(root)
    if not cards:  # where there are GPUs, what the CPUs say would leave out most of it
        return Source(ESTIMATE, "estimated", notes=("No energy counter can be read", *notes, *more))
    if not packages:
        return Source(name, GPUS, cards, notes=(*notes, *more))
    return Source(f"{name} + RAPL", _coverage(GPUS_AND_CPUS, packages), (*cards, *packages), notes=(*notes, *more))


def _coverage(told: str, packages: Iterable[Counter]) -> str:
    return WITH_MEMORY[told] if any(counter.name.endswith("dram") for counter in packages) else told


def cray_counters(root: Path) -> Source | None:
    """``/sys/cray/pm_counters``: ``energy`` of the node in joules, and of its parts (HPE Cray EX, docs-csm)."""
    folder = root / "sys/cray/pm_counters"
    names = [path.name for path in sorted(folder.glob("*_energy"))]
    found = readable(Counter(name, _first_number(folder / name), 1e6) for name in ("energy", *names))
    if not found or found[0].name != "energy":
        return None
    return Source("Cray pm_counters", WHOLE_NODE, tuple(found[:1]), parts=tuple(found[1:]))


def rapl_counters(root: Path) -> tuple[tuple[Counter, ...], tuple[str, ...]]:
    """(counters, notes) of the CPU packages and their memory: Linux's powercap, in microjoules.

    Cores and graphics are parts of a package; ``psys`` holds the packages: neither is counted beside them.
    """
    folder, found, closed = root / "sys/class/powercap", [], False
    for zone in sorted(path for path in folder.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl(:\d+)+", path.name)):
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            span = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            watts = _watts(zone / "constraint_0_max_power_uw")
            counter = Counter(f"{zone.name} {name}", _first_number(zone / "energy_uj"), 1, span,
                              max(2 * watts, PLAUSIBLE_WATTS))  # fmt: skip
            counter.read()
        except PermissionError:
            closed = True
        except UNREADABLE:
            continue
        else:
            found.append(counter)
    notes = ("RAPL is there, but only root may read it",) if closed else ()
    return tuple(found), notes


def amd_counters(root: Path) -> tuple[tuple[Counter, ...], tuple[str, ...]]:
    """(counters, notes) of all AMD GPUs of the node: ``energy_accumulator`` in the driver's ``gpu_metrics``.

    An MI250X counts the energy of both dies on the first: the second says 0, and is left out.
    """
    folder = root / "sys/class/drm"
    cards = sorted((path for path in folder.glob("card*") if re.fullmatch(r"card\d+", path.name)),
                   key=lambda path: int(path.name[4:]))  # fmt: skip
    amd = [card for card in cards if _text(card / "device/vendor") == "0x1002"]
    found = readable(Counter(card.name, _amd_energy(card / "device/gpu_metrics"), AMD_TICK) for card in amd)
    counting = tuple(counter for counter in found if counter.read() > 0)
    notes = []
    if counting and len(counting) < len(found):
        notes.append(f"{len(found) - len(counting)} of {len(found)} dies say 0, counted with the other die of their "
                     "package")  # fmt: skip
    if len(found) < len(amd):
        notes.append(f"{len(amd) - len(found)} of {len(amd)} GPUs tell no energy")
    return counting, tuple(notes)


def nvml_counters(uuids: Iterable[str], library: str) -> tuple[Counter, ...]:
    """The counters of these GPUs, in millijoules since the driver was loaded (NVML; Volta and later)."""
    found = []
    for uuid in uuids:
        counter = Counter(
            f"GPU-{uuid}", _nvml(library, uuid, "nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong), 1000
        )
        found += readable([counter])
    return tuple(found) if len(found) == len(set(uuids)) else ()


def gpu_watts(root: Path, gpus: Sequence[str], nvml: str = "libnvidia-ml.so.1") -> float | None:
    """Power limit of the ranks' GPUs as the driver enforces it, in watts, of all together; None where it tells none."""
    try:
        if all(gpus):
            limits = [_nvml(nvml, uuid, "nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint) for uuid in gpus]
            return sum(read() for read in limits) / 1000 or None
        caps = sorted((root / "sys/class/drm").glob("card*/device/hwmon/hwmon*/power1_cap"))
        return sum(map(_watts, caps)) or None
    except UNREADABLE:
        return None


def readable(counters: Iterable[Counter]) -> list[Counter]:
    """Those that give a value now."""
    found = []
    for counter in counters:
        try:
            counter.read()
        except UNREADABLE:
            continue
        found.append(counter)
    return found


def _first_number(path: Path) -> Callable[[], int]:
    """Reads ``VALUE [UNIT TIME UNIT]``."""

    def read() -> int:
        found = re.match(r"\d+\b", path.read_text(encoding="ascii"))
        if not found:
            raise ValueError(f"{path}: no number")
        return int(found[0])

    return read


def _amd_energy(path: Path) -> Callable[[], int]:
    def read() -> int:
        data = path.read_bytes()
        offset = AMD_OFFSETS.get(data[3]) if len(data) > 3 and data[2] == 1 else None
        if offset is None or len(data) < offset + 8:
            raise ValueError(f"{path}: not a gpu_metrics that tells energy")
        value = int.from_bytes(data[offset : offset + 8], "little")
        if value == 2**64 - 1:  # what the driver fills in where a chip does not tell
            raise ValueError(f"{path}: no energy")
        return value

    return read


@cache
def _nvml_library(name: str) -> ctypes.CDLL:
    library = ctypes.CDLL(name)  # OSError where there is none
    if code := library.nvmlInit_v2():
        raise ValueError(f"nvmlInit_v2: NVML error {code}")
    return library


def _nvml(library: str, uuid: str, function: str, kind: type[ctypes.c_uint | ctypes.c_ulonglong]) -> Callable[[], int]:
    """Reads a number of a GPU through NVIDIA's library; ``kind`` as nvml.h declares it."""

    def read() -> int:
        nvml, handle, value = _nvml_library(library), ctypes.c_void_p(), kind(0)
        code = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle))
        code = code or getattr(nvml, function)(handle, ctypes.byref(value))
        if code:
            raise ValueError(f"{function}: NVML error {code}")
        return int(value.value)

    return read


def _watts(path: Path) -> float:
    """A file of microwatts, in watts; 0 where there is none."""
    try:
        return int(path.read_text(encoding="ascii")) / 1e6
    except UNREADABLE:
        return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except UNREADABLE:
        return ""
