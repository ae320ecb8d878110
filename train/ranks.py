"""Where this process stands among the ranks, and how the ranks agree."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.errors import EXIT_CRASH, FlakyError, HanseError


@dataclass(frozen=True)
class Place:
    """This process among the ranks."""

    rank: int
    ranks: int

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def data_parallel(self, sharing: int) -> Place:
        """The place of its group among them: so many ranks that lie side by side read the same samples."""
        return Place(self.rank // sharing, self.ranks // sharing)


class ToldElsewhere(HanseError):  # noqa: N818
    """An error that rank 0 prints for all; the process ends as rank 0's does."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class RankFailed(HanseError):  # noqa: N818
    """Another rank came to an end by what is no user's doing; there is a traceback of it."""

    exit_code = EXIT_CRASH


def node_name() -> str:
    """The name of this machine, as the scheduler knows it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def nodes_of(place: Place) -> list[str]:
    """The machine of every rank, by rank. Collective."""
    return gathered(place, node_name())


def find_place(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun, ``hanse train`` or srun gave this process; None where nobody did.

    A batch script has SLURM_PROCID as well, without being a rank: only srun sets SLURM_STEP_ID.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        ranks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
        return Place(int(environment["SLURM_PROCID"]), int(ranks))
    return None


def torchrun_variables(place: Place, environment: MutableMapping[str, str]) -> None:
    """Under srun, set the variables that torch.distributed reads; those already set stay."""
    job = int(environment.get("SLURM_JOB_ID", "0"))
    defaults = {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.ranks),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1",
        "MASTER_PORT": str(20_000 + job % 20_000),  # the same on all nodes, another for each job
    }
    for key, value in defaults.items():
        environment.setdefault(key, value)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``nid[005001-005004,7]`` -> ``nid005001``."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


@contextmanager
def together(place: Place) -> Iterator[None]:
    """A section that all ranks leave alike: an error of one is an error of all, told once.

    Raises:
        HanseError: on every rank, when the section raised one on any; its message is the first rank's that has one.
            Where it was any other exception, that goes on as it is on its own rank, with its traceback, and the others
            raise a :class:`RankFailed` that names it: nobody is left waiting for a rank that has gone.
    """
    mine: tuple[str, type[HanseError], tuple[str, ...]] | None = None  # a message, its kind, machines to suspect
    crash: Exception | None = None
    try:
        yield
    except HanseError as error:
        kind = FlakyError if isinstance(error, FlakyError) else HanseError
        mine = str(error), kind, error.nodes if isinstance(error, FlakyError) else ()
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        crash, mine = error, (f"rank {place.rank} on {node_name()} failed: {what}; its traceback stands in its own "
                              "output (logs/rank-*.log of ranks that were started here)", RankFailed, ())  # fmt: skip
    try:
        told = next((one for one in gathered(place, mine) if one is not None), None)
    except Exception:  # the section met a collective that another rank never came to
        if crash is not None:
            raise crash from None
        raise
    if crash is not None:
        raise crash
    if told is not None:
        message, kind, nodes = told
        raised = FlakyError(message, nodes) if kind is FlakyError else kind(message)
        raise (raised if place.first else ToldElsewhere(message, raised.exit_code)) from None


def gathered(place: Place, value: Any) -> list[Any]:
    """What each rank says, by rank. Collective."""
    import torch.distributed as dist  # not at the top: what reads a ledger needs no torch

    values = [value] * place.ranks
    if place.ranks > 1:
        dist.all_gather_object(values, value)
    return values
