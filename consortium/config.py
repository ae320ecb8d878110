"""What may be configured in the verbs that read what runs leave behind. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from train.config import ZERO_STAGES, run_problems

SEAL_KINDS = ("files", "checkpoint", "corpus", "run", "evaluation", "review", "reproduction")


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
    parents: list[str] = field(default_factory=list)
    trust: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        few = [] if self.batches >= 0 else [f"batches={self.batches}: must be 0 or more"]
        absent = [f"parents: {name}: no folder here" for name in self.parents if not Path(name).is_dir()]
        return [*run_problems(self.run), *few, *absent]


@dataclass
class ReproduceConfig:
    """What ``hanse reproduce`` takes."""

    run: str = MISSING
    from_step: int = 0
    to_step: int | None = None
    from_scratch: bool = False
    output: str = MISSING
    ranks: int | None = None
    zero_stage: int | None = None
    tolerance: float = 1e-3
    measure_noise: bool = False
    lock: bool = True
    key: str | None = None
    shards: str | None = None
    tokenizer: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = run_problems(self.run)
        if self.from_scratch and self.from_step:
            found.append(f"from_step={self.from_step}: with from_scratch=true the replay begins at step 0")
        if self.to_step is None and not self.from_scratch:
            found.append(
                "to_step: the last step to compare; may be left out with from_scratch=true, which goes to the end"
            )
        if self.to_step is not None and not 0 <= self.from_step < self.to_step:
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
