"""What many groups of a configuration ask of their values: a line for each that is not so."""

from __future__ import annotations

from typing import Any


def value_of(config: Any, key: str) -> Any:
    """What stands under a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def at_least(config: Any, least: int, *keys: str) -> list[str]:
    """One line for each key whose value is less than ``least``."""
    values = {key: value_of(config, key) for key in keys}
    return [f"{key}={value}: must be {least} or more" for key, value in values.items() if not value >= least]


def divides_ranks(key: str, size: int, ranks: int) -> list[str]:
    """A line if ranks cannot be put into groups of ``size``; a launcher may have decided how many there are."""
    return [f"{key}={size}: must divide ranks={ranks}"] if ranks % size else []


def one_of(config: Any, key: str, allowed: tuple[Any, ...]) -> list[str]:
    """A line if the value of ``key`` is none of those allowed."""
    value = value_of(config, key)
    return [] if value in allowed else [f"{key}={value}: one of {', '.join(map(str, allowed))}"]
