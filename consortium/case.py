"""A contribution that is being judged: the quarantined copy, and what is known about it, each thing read once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from common.errors import HanseError
from common.files import read_json
from consortium.config import AcceptConfig
from consortium.contribution import (
    CONFIG,
    EVALUATION,
    LARGEST,
    LEDGER,
    MANIFEST,
    OF_A_RUN,
    SEAL,
    Contribution,
    read_contribution,
)
from consortium.evidence import Unknown
from consortium.index import Registry
from consortium.seal import Seal, check
from consortium.strangers import read_regular, strict_json
from data_pipelines.shards import ShardsManifest
from train import ledger
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.trained import configuration_of


@dataclass
class Case:
    """Everything is read from ``folder``, the copy, which nobody else writes in.

    Attributes:
        day: on which it is judged, YYYY-MM-DD; what is valid is asked of this day.
    """

    folder: Path
    registry: Registry
    config: AcceptConfig
    day: str

    @cached_property
    def seal(self) -> Seal:
        return check(self.folder, self.folder / SEAL, self.registry.register.public_keys, kind="contribution")

    @cached_property
    def paper(self) -> Contribution:
        return read_contribution(self.folder)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the checkpoint's manifest: what the checkpoint is known by."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def evaluation(self) -> Any:
        return self.json(EVALUATION)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder / "checkpoint")

    @cached_property
    def model_config(self) -> PretrainedConfig:
        return configuration_of(self.checkpoint)

    @property
    def of_a_run(self) -> bool:
        """Whether a run made it, whose papers are here; otherwise it was merged from its parents."""
        return any((self.folder / name).is_file() for name in OF_A_RUN)

    @cached_property
    def train_config(self) -> TrainConfig:
        """The configuration of the run.

        Raises:
            HanseError: it is none; or it has a value that would be replaced by something of this machine when read.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        value = self.json(CONFIG)
        if "${" in (self.folder / CONFIG).read_text(encoding="utf-8"):
            raise HanseError(f"{CONFIG}: asks for a value of the machine that reads it (${{...}})")
        try:
            made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), value))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise HanseError(f"{CONFIG}: no configuration of 'hanse train' ({next(iter(str(error).splitlines()), '')})"
                             ) from None  # fmt: skip
        assert isinstance(made, TrainConfig)
        problems = [one for one in made.problems() if not one.startswith(("data.shards", "data.tokenizer"))]
        if problems:
            raise HanseError(f"{CONFIG}: {'; '.join(problems)[:500]}")
        return made

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of the ledger."""
        return [record for _, record in ledger.lines(self.folder / LEDGER)]

    @cached_property
    def shards(self) -> ShardsManifest:
        """The judge's own shards.

        Raises:
            Unknown: none were named.
        """
        if self.config.data is None:
            raise Unknown("needs shards of your own: data=FOLDER")
        return ShardsManifest.read(Path(self.config.data))

    def json(self, name: str) -> Any:
        """A JSON file of the copy, read as a stranger's."""
        return strict_json(read_regular(self.folder / name, LARGEST[name], "contribution"), name)

    def parent(self, identity: str) -> Checkpoint:
        """The checkpoint of an accepted model, its hashes checked."""
        folder = self.registry.place_of(self.registry.register.models[identity]) / "checkpoint"
        read_json(folder / "manifest.json", f"checkpoint of {identity[:12]} in the registry")
        found = Checkpoint(folder)
        if hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() != identity:
            raise HanseError(f"{folder}: not the checkpoint that was accepted; 'hanse registry' files=true says more")
        found.verify()
        return found
