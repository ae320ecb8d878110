"""What another verb would make of its part of a launch: asked of the verb itself, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from common.configuration import CHOICE, nearest_keys
from launch.config import LaunchConfig


def configuration_of(verb: str, keys: Any, *more: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The resolved configuration of ``hanse VERB`` (None where it cannot be composed), and what is wrong with it.

    This package imports nothing of the others: a login node has neither torch nor DeepSpeed.

    Args:
        verb: train, corpus.
        keys: what the launch says under that name; the experiment and ``--config-dir`` of the launch are passed on.
        more: further overrides.
    """
    return answer_of(verb, [*overrides(keys), *more])


def answer_of(verb: str, arguments: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """As :func:`configuration_of`, of a command line that :func:`overrides` began."""
    command = [sys.executable, "-m", "hanse", verb, *arguments]
    # Asked from inside a job (srun --pty bash), it is not to count the ranks of that one.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "SLURM_STEP_ID")}
    ask = partial(subprocess.run, capture_output=True, text=True, check=False, env=environment)
    answer = ask([*command, "--check"])
    wrong = []
    if answer.returncode:
        lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
        head = lines[0].removeprefix(f"hanse {verb}: ") if lines else f"hanse {verb} --check failed"
        wrong = [
            f"{verb}.{line}".replace("must be set (", f"must be set ({verb}.") + _own(line)
            for line in (lines[1:] if "problems in the configuration" in head else [head])
        ]
        # A wrong value does not keep us from looking at what the others mean for the site.
        answer = ask([*command, "--cfg", "job", "--resolve"])
        if answer.returncode:
            return None, wrong
    found = OmegaConf.to_container(OmegaConf.create(answer.stdout))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}, wrong


def _own(problem: str) -> str:
    """A key of ``hanse launch`` that may have been meant by one that the other verb does not have."""
    key, _, why = problem.partition(": ")
    own = [field.name for field in fields(LaunchConfig)] if why.endswith("--help lists the keys") else []
    near = nearest_keys(key, own)
    return f"; '{near[0]}' is a key of hanse launch" if near else ""


MAPPINGS = ("data.mixture",)  # of any keys: passed on whole


def overrides(keys: Any) -> list[str]:
    """The command line that gives another verb ``keys``, and this launch's experiment and ``--config-dir``."""
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [flag for folder in folders for flag in ("--config-dir", folder)]
    choice = str(hydra.runtime.choices.get("experiment") or "")
    experiment = [f"experiment={choice.rpartition('/')[0]}"] if "/" in choice else []
    # Groups (model=llama-8m) come before keys that change what they chose.
    pairs = sorted(_leaves(OmegaConf.to_container(OmegaConf.create(keys))), key=lambda pair: "." in pair[0])
    return [*flags, *experiment, *(f"{key}={_as_override(value)}" for key, value in pairs)]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and f"{prefix}{key}" not in MAPPINGS:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield prefix.removesuffix(".") if key == CHOICE else f"{prefix}{key}", inner


def _as_override(value: Any) -> str:
    if isinstance(value, dict):  # whose keys Hydra takes without quotes only
        return "{" + ", ".join(f"{key}: {_as_override(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_override, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 2e9 tokens; a number without a fraction is taken for every key
    return value if isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum() else json.dumps(value)
