"""A share of right answers, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

BEYOND = NormalDist().inv_cdf(0.975)  # standard errors that a 95 % interval reaches to either side


def right_answers(row: Mapping[str, float] | None, missing: str = "") -> str:
    """A task's accuracy and how far it can be trusted, for people; ``missing`` where there is no row."""
    return f"{row['accuracy']:.1%} ({interval(row)})" if row else missing


def interval(row: Mapping[str, float]) -> str:
    """The 95 % interval of a task's accuracy, for people."""
    low, high = wilson(row["accuracy"], row["items"])
    return f"{low:.0%} to {high:.0%}"


def wilson(share: float, items: float) -> tuple[float, float]:
    """The 95 % interval of a share of right answers to ``items`` questions.

    That of Wilson (J. Am. Stat. Assoc. 22, 1927, doi:10.1080/01621459.1927.10502953): all shares from which the one
    seen is not further than 1.96 of *their* standard errors. The standard error of the share itself is 0 where none or
    all are right, however few were asked.
    """
    square = BEYOND**2 / items
    middle = (share + square / 2) / (1 + square)
    reach = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
