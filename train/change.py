"""Other stages, tokens or schedule for a run that goes on: only what is still to come, and with a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import HanseError
from common.terminal import say
from train.config import TrainConfig
from train.order import WindowsAt, pieces_of
from train.schedule import learning_rate

if TYPE_CHECKING:
    from train.ledger import Ledger
    from train.run_folder import RunFolder


@dataclass(frozen=True)
class Change:
    """A change that was asked for; ``differs``: {key: (before, now)}."""

    before: TrainConfig
    now: TrainConfig
    differs: Mapping[str, tuple[Any, Any]]

    def check(self, steps: int, windows_at: WindowsAt) -> None:
        """See that a run's first ``steps`` steps are the same before and now: sizes, samples, rates.

        Raises:
            HanseError: naming what is not.
        """
        wrong = list(past_differences(self.before, self.now, steps, windows_at))
        if wrong:
            raise HanseError(f"change_stages=true: {steps} steps are done, and can no longer be changed: "
                             f"{'; '.join(wrong)}; let the first stages be as they were until there, and change what "
                             "comes after them")  # fmt: skip

    def note(self, folder: RunFolder, ledger: Ledger, step: int, hashes: tuple[str, str]) -> None:
        """Keep a copy of the old configuration, and tell of the change in the ledger. To be called on rank 0.

        Args:
            step: that the run goes on after.
            hashes: of the configuration before and now (:func:`train.lock.config_sha256`).
        """
        copy = folder.keep_old_config(step)
        ledger.write("stages", {"step": step, "before": hashes[0], "config_sha256": hashes[1], "changes": self.told})
        ledger.sync()
        for key, (was, is_now) in self.differs.items():
            say(f"after step {step}: {key} was {was}, is {is_now}")
        say(f"the configuration until here is kept as {copy}")

    @property
    def told(self) -> dict[str, list[Any]]:
        """What differs, as it is written down."""
        return {key: list(both) for key, both in self.differs.items()}


def past_differences(before: TrainConfig, now: TrainConfig, steps: int, windows_at: WindowsAt) -> Iterator[str]:
    """What would have been otherwise in a run's first ``steps`` steps, in words."""
    for step in sorted({stage.first_step for one in (before, now) for stage in one.timeline}):
        old, new = before.timeline.at(step), now.timeline.at(step)
        if step < steps and (old.size, old.length, old.rope_theta) != (new.size, new.length, new.rope_theta):
            told = (f"{one.size} sequences of {one.length} tokens (rope_theta {one.rope_theta})" for one in (old, new))
            yield f"step {step + 1} took {' and would now take '.join(told)}"
            return
    if _order(before, steps, windows_at) != _order(now, steps, windows_at):
        yield "these steps would have drawn other samples"
    for step in range(steps):
        rates = learning_rate(step, before), learning_rate(step, now)
        if rates[0] != rates[1]:
            yield f"step {step + 1} was made at learning rate {rates[0]:.6g} and would now be at {rates[1]:.6g}"
            return


def _order(config: TrainConfig, steps: int, windows_at: WindowsAt) -> list[Any]:
    """All that decides which samples the first steps take."""
    return [(piece.stages[0].first_step, list(piece.weights), piece.mixture.weights)
            for piece in pieces_of(config, windows_at) if piece.stages[0].first_step < steps]  # fmt: skip


def as_changed(config_sha256: str, records: Iterable[Mapping[str, Any]]) -> str:
    """The hash of a run's configuration, which began with ``config_sha256``, as its ledger says it is now.

    Raises:
        HanseError: a line changes a configuration that the run never had.
    """
    known = [config_sha256]
    for record in records:
        if record["kind"] == "stages":
            if record["before"] not in known:
                raise HanseError(f"the ledger's change of stages at step {record['step']} is not one of the "
                                 "configuration that the run had")  # fmt: skip
            known.append(record["config_sha256"])
    return known[-1]
