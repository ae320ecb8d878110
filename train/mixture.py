"""How much of each language: by weights of one's own, by what there is, by temperature, or UniMax.

A rule gives weights, once and for all samples of a run (:func:`weights_of`); which sample is of which language then
follows from them alone (:class:`Mixture`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.errors import HanseError
from train.config import DataConfig
from train.pools import language_of, pools_of

LARGEST_PERIOD = 65_536


class Mixture:
    """The source of every sample, by integer weights, within one sample of them at every prefix.

    Tijdeman's chairman assignment (Discrete Mathematics 32, 1980): of the sources that are not ahead, the one with the
    earliest deadline. With S sources, weights w and sum D, after n samples source i has been drawn n w_i / D times
    with an error of at most 1 - 1/(2S - 2). (The plain largest deficit has no such bound from four sources on.)
    After D samples the errors are zero, so that one period is the whole order.
    """

    def __init__(self, weights: Sequence[float]):
        self.weights = integer_weights(weights)
        self.period = sum(self.weights)
        self.table = _assign(tuple(self.weights))  # source of sample n modulo the period
        places = [np.flatnonzero(self.table == source) for source in range(len(self.weights))]
        self._places = places
        self._rank = np.empty(self.period, dtype=np.int64)
        for place in places:
            self._rank[place] = np.arange(len(place))

    def draw(self, sample: int) -> tuple[int, int]:
        """(source, k): sample number -> source, and how many samples of that source came before it."""
        periods, place = divmod(sample, self.period)
        source = int(self.table[place])
        return source, periods * self.weights[source] + int(self._rank[place])

    def drawn(self, samples: int) -> list[int]:
        """How many of the first ``samples`` samples each source gives."""
        periods, place = divmod(samples, self.period)
        rest = np.bincount(self.table[:place], minlength=len(self.weights))
        return [periods * weight + int(more) for weight, more in zip(self.weights, rest, strict=True)]

    def sample(self, source: int, k: int) -> int:
        """The inverse of :meth:`draw`: the sample number of the k-th draw of ``source``."""
        return int(self.samples(source, np.array([k]))[0])

    def samples(self, source: int, draws: np.ndarray) -> np.ndarray:
        """:meth:`sample` of many draws at once; int64, of the same shape."""
        periods, ranks = np.divmod(draws, self.weights[source])
        return periods * self.period + self._places[source][ranks]


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as integers without a common factor: whole numbers as they are, others in shares of 1/10,000."""
    total = math.fsum(weights)
    if all(float(weight).is_integer() for weight in weights) and total <= LARGEST_PERIOD:
        whole = [int(weight) for weight in weights]
    else:
        exact = [10_000 * weight / total for weight in weights]
        whole = [math.floor(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
        for i in by_remainder[: 10_000 - sum(whole)]:
            whole[i] += 1
    factor = math.gcd(*whole)
    return [weight // factor for weight in whole]


@lru_cache(maxsize=8)  # the same for all who ask about one run
def _assign(weights: tuple[int, ...]) -> np.ndarray:
    period, active = sum(weights), [i for i, weight in enumerate(weights) if weight]
    slack = max(2 * len(active) - 2, 1)
    drawn = [0] * len(weights)
    table = np.empty(period, dtype=np.int32)
    for n in range(1, period + 1):
        best, best_slack = -1, (0, 1)
        for i in active:
            deficit = slack * (weights[i] * n - period * drawn[i])  # slack x period x (what is due - what was drawn)
            if deficit < period and len(active) > 1:
                continue
            left = ((slack - 1) * period - deficit, weights[i])  # samples until it is overdue, as a fraction
            if best < 0 or left[0] * best_slack[1] < best_slack[0] * left[1]:
                best, best_slack = i, left
        table[n - 1] = best
        drawn[best] += 1
    table.flags.writeable = False
    return table


def weights_of(
    settings: DataConfig, windows: Mapping[str, int], samples: int, taken: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{pool: weight} of what is drawn from (:mod:`train.pools`), by name; a rule is about whole languages.

    Args:
        settings: ``mixture`` as given, else ``mixture_rule``.
        windows: sequences that each language has for one epoch; what it says of other pools does not count.
        samples: sequences that are drawn in all.
        taken: sequences of each language that were drawn before.

    Raises:
        HanseError: UniMax, and more are drawn than its epochs allow.
    """
    windows = {name: count for name, count in windows.items() if language_of(name) == name}
    if settings.mixture:
        weights = {pool.name: weight for pool, weight in pools_of(settings.mixture).items()}
    elif settings.mixture_rule == "temperature":
        weights = {
            name: float(count) ** (1 / settings.temperature) if count else 0.0 for name, count in windows.items()
        }
    elif settings.mixture_rule == "unimax":
        weights = unimax(windows, samples, settings.max_epochs, taken)
    else:
        weights = {name: float(count) for name, count in windows.items()}
    return {name: weight for name, weight in weights.items() if weight > 0}


def unimax(
    windows: Mapping[str, int], samples: int, max_epochs: float, taken: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Samples of each language, as even as no more than ``max_epochs`` of any allows (Chung et al., arXiv 2304.09151).

    ``taken``, sequences of each language that were drawn before, count towards its epochs.

    Raises:
        HanseError: all languages together do not have so many.
    """
    left, found = float(samples), {}
    most = {name: max(max_epochs * count - (taken or {}).get(name, 0), 0) for name, count in windows.items()}
    order = sorted(windows, key=lambda name: (most[name], name))
    for place, name in enumerate(order):  # the smallest first: what they cannot give, the others share
        found[name] = min(left / (len(order) - place), most[name])
        left -= found[name]
    if left > 1e-6 * samples:
        there = f"{samples - left:,.0f} {'more ' if taken and any(taken.values()) else ''}sequences"
        raise HanseError(f"data.max_epochs={max_epochs:g}: so many epochs of all languages are {there}, but the run "
                         f"draws {samples:,}; give fewer tokens or more epochs")  # fmt: skip
    return {name: found[name] for name in windows}


@dataclass(frozen=True)
class Share:
    """What a run draws of a language: as asked, as obtained in whole sequences, and how often it repeats."""

    asked: float
    samples: int
    share: float
    epochs: float


def shares(weights: Mapping[str, float], drawn: Mapping[str, int], windows: Mapping[str, int]) -> dict[str, Share]:
    """{language: share}; ``drawn``: sequences of each that the order of data gives to a run, or to a stage of it."""
    total, samples = sum(weights.values()), max(sum(drawn.values()), 1)
    return {name: Share(weight / total, drawn[name], drawn[name] / samples, drawn[name] / windows[name])
            for name, weight in weights.items()}  # fmt: skip


def repeated(found: Mapping[str, Share], epochs: float = 4.0) -> list[str]:
    """Warnings, one line each: more than four epochs teach ever less (Muennighoff et al., arXiv 2305.16264)."""
    return [f"{name}: {one.epochs:.1f} epochs; beyond {epochs:g} repeated text teaches ever less"
            for name, one in found.items() if one.epochs > epochs]  # fmt: skip
