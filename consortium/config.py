"""What may be configured in the verbs that read what runs leave behind. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from train.config import ZERO_STAGES, run_problems

SEAL_KINDS = ("files", "checkpoint", "corpus", "run", "evaluation", "review", "reproduction")
AVERAGE_METHODS = ("average", "linear", "slerp", "ties", "diloco")
AVERAGE_DECAYS = ("linear", "1-sqrt", "cosine")


@dataclass
class WhosawConfig:
    """What ``hanse whosaw`` takes."""

    run: str = MISSING
    what: str = MISSING
    shards: str | None = None
    output: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        return [*run_problems(self.run), *([] if self.what.strip() else ["what: must say which document"])]


@dataclass
class VerifyConfig:
    """What ``hanse verify`` takes."""

    run: str = MISSING
    shards: str | None = None
    batches: int = 16

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        few = [] if self.batches >= 0 else [f"batches={self.batches}: must be 0 or more"]
        return [*run_problems(self.run), *few]


@dataclass
class ReproduceConfig:
    """What ``hanse reproduce`` takes."""

    run: str = MISSING
    from_step: int = 0
    to_step: int = MISSING
    output: str = MISSING
    ranks: int | None = None
    zero_stage: int | None = None
    tolerance: float = 1e-3
    lock: bool = True
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = run_problems(self.run)
        if not 0 <= self.from_step < self.to_step:
            found.append(f"to_step={self.to_step}: must be after from_step={self.from_step}, which must be 0 or more")
        if self.ranks is not None and self.ranks < 1:
            found.append(f"ranks={self.ranks}: must be 1 or more")
        if self.zero_stage not in (None, *ZERO_STAGES):
            found.append(f"zero_stage={self.zero_stage}: one of {', '.join(map(str, ZERO_STAGES))}")
        if not self.tolerance >= 0:
            found.append(f"tolerance={self.tolerance}: must be 0 or more")
        return found


@dataclass
class KeyConfig:
    """What ``hanse key`` takes."""

    new: str | None = None
    show: str | None = None
    passphrase: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        if (self.new is None) == (self.show is None):
            return ["new, show: give one of them: new=NAME.key makes a key, show=NAME.pub shows one"]
        return ["passphrase=true: belongs to new=NAME.key"] if self.passphrase and self.new is None else []


@dataclass
class SealConfig:
    """What ``hanse seal`` takes."""

    folder: str = MISSING
    key: str | None = None
    kind: str | None = None
    facts: str | None = None
    output: str | None = None
    check: str | None = None
    trust: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [] if Path(self.folder).is_dir() else [f"folder={self.folder}: no folder here"]
        if self.kind not in (None, *SEAL_KINDS):
            found.append(f"kind={self.kind}: one of {', '.join(SEAL_KINDS)}")
        if (self.key is None) == (self.check is None):
            found.append("key, check: give one of them: key=NAME.key seals, check=FILE.sig checks a seal")
        elif self.check is not None and not self.trust:
            found.append("trust: name the public keys you believe, e.g. trust=[alice.pub]")
        if self.check is not None and (self.facts or self.output):
            found.append("facts, output: belong to key=NAME.key")
        if self.check is None and self.facts and self.kind in (None, "files"):
            found.append(f"facts={self.facts}: a seal of kind=files holds none; choose another kind")
        return found


@dataclass
class AverageConfig:
    """What ``hanse average`` takes."""

    inputs: list[str] = MISSING
    output: str = MISSING
    method: str = "average"
    last: int = 5
    weights: list[float] | None = None
    decay: str | None = None
    fraction: float = 0.5
    base: str | None = None
    density: float = 0.2
    scale: float = 1.0
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    momentum: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [f"inputs: {one}: no folder here" for one in self.inputs if not Path(one).is_dir()]
        if not self.inputs:
            found.append("inputs: name the folders to put together")
        if self.method not in AVERAGE_METHODS:
            return [*found, f"method={self.method}: one of {', '.join(AVERAGE_METHODS)}"]
        if (self.base is not None) != (self.method in ("ties", "diloco")):
            found.append(
                "base: the model that all inputs began with; method=ties and diloco need it, no other takes it"
            )
        return [*found, *self._weight_problems(), *self._number_problems()]

    def _weight_problems(self) -> list[str]:
        found = []
        if self.decay is not None and self.decay not in AVERAGE_DECAYS:
            found.append(f"decay={self.decay}: one of {', '.join(AVERAGE_DECAYS)}")
        if self.decay is not None and (self.weights is not None or self.method != "average"):
            found.append("decay: gives the weights of method=average; leave weights out")
        if self.weights is not None:
            if self.method in ("linear", "slerp"):
                found.append(f"weights: method={self.method} takes fraction=... instead")
            elif not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
                found.append(f"weights={self.weights}: finite numbers of 0 or more, not all 0")
        return found

    def _number_problems(self) -> list[str]:
        found = [f"{key}={getattr(self, key)}: must be in [0, 1]"
                 for key in ("fraction", "density") if not 0 <= getattr(self, key) <= 1]  # fmt: skip
        if self.last < 1:
            found.append(f"last={self.last}: must be 1 or more")
        if not 0 < self.outer_learning_rate < math.inf:
            found.append(f"outer_learning_rate={self.outer_learning_rate}: must be above 0, and finite")
        if not 0 <= self.outer_momentum < 1:
            found.append(f"outer_momentum={self.outer_momentum}: must be in [0, 1)")
        if not math.isfinite(self.scale):
            found.append(f"scale={self.scale}: must be finite")
        return found
