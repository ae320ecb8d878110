"""What many groups of a configuration ask of their values: a line for each that is not so."""

from __future__ import annotations

from typing import Any


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def at_least(config: Any, least: int, *keys: str) -> list[str]:
    """One line for each key whose value is less than ``least``."""
    return [f"{key}={_value(config, key)}: must be {least} or more" for key in keys if not _value(config, key) >= least]


def one_of(config: Any, key: str, allowed: tuple[Any, ...]) -> list[str]:
    """A line if the value of ``key`` is none of those allowed."""
    value = _value(config, key)
    return [] if value in allowed else [f"{key}={value}: one of {', '.join(map(str, allowed))}"]
