"""What a sweep is on disk: ``sweep.json`` in its folder, and one run folder inside for each combination of values.

runs/NAME/  sweep.json                          which runs belong to it, with which values
            jobs/0001/                          the array: array.sbatch, elements, job.json
            learning_rate-0.001_seed-1/         a run folder like any other, with its own jobs/
            sweep.html                          what 'hanse report' makes of it
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import HanseError
from common.files import is_plain, read_json, write_json

FORMAT = "hanse-sweep-1"
NAME_CHARACTERS = 100  # of a folder; longer ones are cut, and told apart by a hash


@dataclass(frozen=True)
class Sweep:
    """A sweep: ``runs`` are {name of the run folder inside: {swept key: value}}, keys and values as in ``train``."""

    folder: Path
    runs: dict[str, dict[str, str]]

    @property
    def keys(self) -> list[str]:
        """The swept keys, in the order they were given."""
        return list(dict.fromkeys(key for values in self.runs.values() for key in values))

    def write(self) -> None:
        """Write ``sweep.json``."""
        rows = [{"run": name, "values": values} for name, values in self.runs.items()]
        write_json(self.folder / "sweep.json", {"format": FORMAT, "runs": rows})

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Read it.

        Raises:
            HanseError: there is none, or it is not what :meth:`write` writes.
        """
        path = folder / "sweep.json"
        record = read_json(path, "record of a sweep")
        try:
            assert record["format"] == FORMAT
            runs = {str(row["run"]): {str(key): str(value) for key, value in row["values"].items()}
                    for row in record["runs"]}  # fmt: skip
            assert all(map(is_plain, runs))
        except (AssertionError, AttributeError, KeyError, TypeError):
            raise HanseError(f"{path}: not a record of a sweep ({FORMAT}); launch the sweep again") from None
        return cls(folder, runs)


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep, and no run of its own."""
    return (folder / "sweep.json").is_file()


def name_of(run: Path) -> str:
    """Name of a run's folder; of a run of a sweep, after that of the sweep."""
    path = run.absolute()
    return f"{path.parent.name}/{path.name}" if is_sweep(path.parent) else path.name


def run_folders(runs: Path, mark: str) -> list[Path]:
    """Folders below ``runs``, those of sweeps included, that hold something named as ``mark`` (a pattern)."""
    sweeps = [path.parent for path in runs.glob("*/sweep.json")]
    places = [runs, *sweeps]
    found = {path.parents[mark.count("/")] for place in places for path in place.glob(f"*/{mark}")}
    return sorted(found - set(sweeps))


def folder_name(values: Mapping[str, str], taken: Iterable[str]) -> str:
    """A folder's name that says the values, and stays the same when others join the sweep; not one of ``taken``."""
    last = [key.rpartition(".")[2] for key in values]
    keys = [key if last.count(short) > 1 else short for key, short in zip(values, last, strict=True)]
    text = "_".join(f"{key}-{value}" for key, value in zip(keys, values.values(), strict=True))
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "run"
    if len(name) > NAME_CHARACTERS or name in taken:
        digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
        name = f"{name[: NAME_CHARACTERS - 9]}-{digest}"
    return name
