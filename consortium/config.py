"""What may be configured in the verbs that read what runs leave behind. Meanings stand in ``configs/*.yaml``."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from train.config import run_problems
from train.engine_config import ZERO_STAGES

AVERAGE_METHODS = ("average", "linear", "slerp", "ties", "diloco")
AVERAGE_DECAYS = ("linear", "1-sqrt", "cosine")
SEAL_KINDS = ("files", "checkpoint", "corpus", "run", "evaluation", "review", "reproduction", "contribution")
ROLES = ("maintainer", "contributor", "reviewer")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DAY = re.compile(r"\d{4}-\d\d-\d\d")


def is_day(text: str) -> bool:
    """Whether this is a day of the calendar, written YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


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


@dataclass
class Policy:
    """What a contribution to a registry must meet; ``configs/registry.yaml`` says what each key means."""

    reviews: int = 1
    licenses: list[str] = field(default_factory=list)
    opt_out_since: str = ""
    worse_bits_per_byte: float = 0.05
    logit_tolerance: float = 1e-4

    def problems(self) -> list[str]:
        """What is wrong with it, one line each."""
        found = [] if 0 <= self.reviews <= 100 else [f"policy.reviews={self.reviews}: 0 to 100"]
        if self.opt_out_since and not is_day(self.opt_out_since):
            found.append(f"policy.opt_out_since={self.opt_out_since}: a day, YYYY-MM-DD")
        for name in ("worse_bits_per_byte", "logit_tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                found.append(f"policy.{name}={getattr(self, name)}: 0 or more")
        return found


@dataclass
class RegistryConfig:
    """What ``hanse registry`` takes."""

    registry: str = MISSING
    root: str | None = None
    seen: str | None = None
    files: bool = False
    key: str | None = None
    create: str | None = None
    enrol: str | None = None
    revoke: str | None = None
    change_policy: bool = False
    holder: str | None = None
    roles: list[str] = field(default_factory=list)
    valid_from: str | None = None
    valid_until: str | None = None
    since: str | None = None
    reason: str | None = None
    policy: Policy = field(default_factory=Policy)

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = self.policy.problems()
        actions = [name for name in ("create", "enrol", "revoke", "change_policy") if getattr(self, name)]
        if len(actions) > 1:
            found.append(f"{', '.join(actions)}: one at a time")
        if bool(actions) != (self.key is not None):
            found.append("key: a private key belongs to create, enrol, revoke and change_policy, and to nothing else")
        found += [f"{name}={value}: a day, YYYY-MM-DD" for name in ("valid_from", "valid_until", "since")
                  if (value := getattr(self, name)) and not is_day(value)]  # fmt: skip
        if (self.create or self.enrol) and not self.holder:
            found.append("holder: say whose key it is (a person or an organisation)")
        if self.enrol and (not self.roles or set(self.roles) - set(ROLES)):
            found.append(f"roles=[{','.join(self.roles)}]: some of {', '.join(ROLES)}")
        if self.revoke and not self.reason:
            found.append("reason: say why it is revoked; everybody will read it")
        if self.create and not NAME.fullmatch(self.create):
            found.append(f"create={self.create}: a name of letters, digits, '.', '_' and '-'")
        return found


@dataclass
class ContributeConfig:
    """What ``hanse contribute`` takes."""

    registry: str = MISSING
    name: str = MISSING
    key: str = MISSING
    license: str = MISSING
    run: str | None = None
    step: int | None = None
    checkpoint: str | None = None
    data: str | None = None
    tokenizer: str | None = None
    data_licenses: list[str] = field(default_factory=list)
    opt_out_date: str | None = None
    tokens_per_language: int = 16_384
    output: str | None = None
    root: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [] if self.run is None else run_problems(self.run)
        if (self.run is None) == (self.checkpoint is None):
            found.append("run, checkpoint: give one of them: a run's checkpoint with its papers, or a merged one alone")
        if self.checkpoint is not None and not (Path(self.checkpoint) / "manifest.json").is_file():
            found.append(f"checkpoint={self.checkpoint}: no checkpoint here (no manifest.json in it)")
        if self.checkpoint is not None and self.tokenizer is None:
            found.append("tokenizer: a checkpoint without its run does not say where its tokenizer is")
        if not NAME.fullmatch(self.name):
            found.append(f"name={self.name}: letters, digits, '.', '_' and '-', 64 at most")
        if self.opt_out_date is not None and not is_day(self.opt_out_date):
            found.append(f"opt_out_date={self.opt_out_date}: a day, YYYY-MM-DD")
        if self.tokens_per_language < 1:
            found.append(f"tokens_per_language={self.tokens_per_language}: must be 1 or more")
        return found


@dataclass
class AcceptConfig:
    """What ``hanse accept`` takes."""

    registry: str = MISSING
    contribution: str = MISSING
    key: str | None = None
    data: str | None = None
    replay_steps: int = 0
    output: str | None = None
    largest_gigabytes: float = 2000.0
    root: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [] if Path(self.contribution).is_dir() else [f"contribution={self.contribution}: no folder here"]
        if self.replay_steps < 0 or (self.replay_steps and self.data is None):
            found.append(f"replay_steps={self.replay_steps}: 0 or more, and a replay needs data=SHARDS of the run")
        if not 0 < self.largest_gigabytes < math.inf:
            found.append(f"largest_gigabytes={self.largest_gigabytes}: must be more than 0")
        return found


@dataclass
class LineageConfig:
    """What ``hanse lineage`` takes."""

    folders: list[str] = field(default_factory=list)
    registry: str | None = None
    root: str | None = None
    of: str | None = None
    output: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        found = [f"folders: {one}: no folder here" for one in self.folders if not Path(one).is_dir()]
        if not self.folders and self.registry is None:
            found.append("folders, registry: name at least one place to look in, e.g. folders=[data,runs]")
        if self.root is not None and self.registry is None:
            found.append("root: belongs to registry=FOLDER")
        if self.of is not None and not re.fullmatch(r"[0-9a-f]{6,64}", self.of):
            found.append(f"of={self.of}: the beginning of a hash, 6 hexadecimal digits or more")
        return found
