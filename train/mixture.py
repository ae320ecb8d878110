"""How much of each language: by weights of one's own, by what there is, by temperature, or UniMax.

A rule gives weights, once and for all samples of a run; which sample is of which language then follows from them alone
(:class:`train.stream.Mixture`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import HanseError
from train.config import DataConfig


def weights_of(settings: DataConfig, windows: Mapping[str, int], samples: int) -> dict[str, float]:
    """Weights of the languages that are drawn from, in the order of ``windows``.

    Args:
        settings: ``mixture`` as given, else ``mixture_rule``.
        windows: sequences that each language has for one epoch.
        samples: sequences that the whole run draws.

    Raises:
        HanseError: UniMax, and the run draws more than its epochs allow.
    """
    if settings.mixture:
        weights = {name: float(settings.mixture.get(name, 0)) for name in windows}
    elif settings.mixture_rule == "temperature":
        weights = {
            name: float(count) ** (1 / settings.temperature) if count else 0.0 for name, count in windows.items()
        }
    elif settings.mixture_rule == "unimax":
        weights = unimax(windows, samples, settings.max_epochs)
    else:
        weights = {name: float(count) for name, count in windows.items()}
    return {name: weight for name, weight in weights.items() if weight > 0}


def unimax(windows: Mapping[str, int], samples: int, max_epochs: float) -> dict[str, float]:
    """Samples of each language, as even as no more than ``max_epochs`` of any allows (Chung et al., arXiv 2304.09151).

    Raises:
        HanseError: all languages together do not have so many.
    """
    left, found = float(samples), {}
    order = sorted(windows, key=lambda name: (windows[name], name))
    for place, name in enumerate(order):  # the smallest first: what they cannot give, the others share
        found[name] = min(left / (len(order) - place), max_epochs * windows[name])
        left -= found[name]
    if left > 1e-6 * samples:
        raise HanseError(f"data.max_epochs={max_epochs:g}: so many epochs of all languages are {samples - left:,.0f} "
                         f"sequences, but the run draws {samples:,}; give fewer tokens or more epochs")  # fmt: skip
    return {name: found[name] for name in windows}


@dataclass(frozen=True)
class Share:
    """What a run draws of a language: as asked, as obtained in whole sequences, and how often it repeats."""

    asked: float
    samples: int
    share: float
    epochs: float


def shares(weights: Mapping[str, float], drawn: Mapping[str, int], windows: Mapping[str, int]) -> dict[str, Share]:
    """{language: share}; ``drawn``: sequences of each that the order of data gives to the whole run."""
    total, samples = sum(weights.values()), max(sum(drawn.values()), 1)
    return {name: Share(weight / total, drawn[name], drawn[name] / samples, drawn[name] / windows[name])
            for name, weight in weights.items()}  # fmt: skip


def repeated(found: Mapping[str, Share], epochs: float = 4.0) -> list[str]:
    """Warnings, one line each: more than four epochs teach ever less (Muennighoff et al., arXiv 2305.16264)."""
    return [f"{name}: {one.epochs:.1f} epochs; beyond {epochs:g} repeated text teaches ever less"
            for name, one in found.items() if one.epochs > epochs]  # fmt: skip
