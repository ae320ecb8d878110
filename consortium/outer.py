"""The outer step of DiLoCo (Douillard et al., arXiv 2311.08105), from files.

Sites train from one base, each on its own; then, with base b, sites' weights s_i and shares w_i that sum to 1:

    outer gradient   g = b - sum of w_i * s_i
    momentum         m = outer_momentum * m_before + g
    new weights      b - outer_learning_rate * (g + outer_momentum * m)

which is ``torch.optim.SGD(nesterov=True)`` with g as gradient. The momentum lies beside the weights, in a folder of its
own that only who makes the outer steps needs; the weights' manifest names it by hash, so that no other is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import HanseError
from common.files import sha256_file
from common.folders import replaced_folder, restore
from common.terminal import say
from consortium import merging
from consortium.config import AverageConfig
from consortium.merging import Formula, read
from train.checkpoint import Checkpoint
from train.checkpoint_writer import write_papers
from train.weights import CheckpointWeights, Weights

FORMAT = "hanse.momentum/1"


@dataclass(frozen=True)
class OuterStep:
    """An outer step whose momentum is written.

    Attributes:
        weights: the formula of the new weights; ``method``: what their manifest says of it.
    """

    weights: Formula
    method: dict[str, Any]
    momentum_folder: Path


class Momentum:
    """The momentum of an earlier outer step, opened and its hashes checked."""

    def __init__(self, folder: Path):
        self.folder, self._held = folder, Checkpoint(folder, FORMAT)
        self._held.verify()
        self._spans = self._held.slices("momentum")
        self.shapes = self._held.shapes

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start..stop`` of a flattened tensor."""
        out = torch.empty(stop - start)
        self._held.read(self._spans[name], start, stop, out)
        return out


def prepare(
    config: AverageConfig, models: Sequence[Weights], base: Weights, shares: Sequence[float], state: Mapping[str, Any]
) -> OuterStep:
    """Write the new momentum, beside where the weights will be.

    Raises:
        HanseError: the base was made by an outer step whose momentum is not there, or is another one.
    """
    before = momentum_before(config, base)
    mean, rate, decay = merging.average(models, shares), config.outer_learning_rate, config.outer_momentum

    def gradient(name: str, start: int, stop: int) -> Tensor:
        return read(base, name, start, stop).sub_(mean(name, start, stop))

    def momentum(name: str, start: int, stop: int) -> Tensor:
        new = gradient(name, start, stop)
        return new.add_(before.read(name, start, stop), alpha=decay) if before else new

    folder = Path(f"{Path(config.output)}.momentum")
    restore(folder)
    with replaced_folder(folder, FORMAT) as partial:
        files = merging.write_model(partial, "momentum", base.shapes, momentum)
        write_papers(partial, files, base.shapes, state, form=FORMAT)
    written = Momentum(folder)

    def weights(name: str, start: int, stop: int) -> Tensor:
        change = gradient(name, start, stop).add_(written.read(name, start, stop), alpha=decay)
        return read(base, name, start, stop).sub_(change, alpha=rate)

    number = 1 + (_method(base).get("outer_steps", 0) if before else 0)
    return OuterStep(weights, {
        "name": "diloco", "outer_learning_rate": rate, "outer_momentum": decay, "outer_steps": number,
        "momentum_manifest_sha256": sha256_file(folder / "manifest.json"),
    }, folder)  # fmt: skip


def momentum_before(config: AverageConfig, base: Weights) -> Momentum | None:
    """The momentum that belongs to the base; None where the base was made by no outer step.

    Raises:
        HanseError: it is not there, is another one, or is where it cannot belong.
    """
    wanted = _method(base).get("momentum_manifest_sha256")
    folder = Path(config.momentum or f"{base.folder}.momentum")
    if wanted is None:
        if config.momentum:
            raise HanseError(
                f"momentum={folder}: {base.folder} was made by no outer step, so no momentum belongs to it"
            )
        say(f"{base.folder}: made by no outer step, so the momentum begins at zero")
        return None
    if not (folder / "manifest.json").is_file() or sha256_file(folder / "manifest.json") != wanted:
        raise HanseError(f"{folder}: not the momentum that {base.folder} names; set momentum=... to where that is, or "
                         "make the outer step that gave this base again")  # fmt: skip
    return Momentum(folder)


def _method(base: Weights) -> dict[str, Any]:
    if not isinstance(base, CheckpointWeights):
        return {}
    method = base.checkpoint.manifest.get("method", {})
    if not isinstance(method, dict):
        raise HanseError(f"{base.folder / 'manifest.json'}: method is no JSON object")
    return method
