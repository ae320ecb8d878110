"""A verb is a Hydra application: a dataclass that says what may be configured, and a function that does the work."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import EXIT_CRASH, EXIT_USER_ERROR, ConfigError, HanseError
from common.terminal import say

# Compute nodes have no internet, and what a dependency reports home is nobody's business: both off unless asked for.
QUIET_ENVIRONMENT = {
    "HYDRA_FULL_ERROR": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "TOKENIZERS_PARALLELISM": "true",
}


@dataclass(frozen=True)
class Verb:
    """One command: ``schema`` and ``function`` are ``module:attribute``, imported when the verb is called.

    The schema is a dataclass with a method ``problems() -> list[str]``; the function takes an instance of it and
    returns an exit code or None. The verb's defaults stand in ``configs/NAME.yaml``.
    """

    name: str
    schema: str
    function: str
    line: str

    def load(self, reference: str) -> Any:
        module, attribute = reference.split(":")
        return getattr(importlib.import_module(module), attribute)


def main(verbs: Mapping[str, Verb], arguments: list[str]) -> int:
    """Run ``hanse ARGUMENTS``; the exit code (see :mod:`common.errors`)."""
    for key, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _overview(verbs)
    verb = verbs.get(arguments[0])
    if verb is None:
        close = difflib.get_close_matches(arguments[0], verbs, 1)
        hint = f"; did you mean 'hanse {close[0]}'?" if close else ""
        print(f"hanse: no verb '{arguments[0]}'{hint} (hanse --help lists them)", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        return run(verb, arguments[1:])
    except HanseError as error:
        print(f"hanse {verb.name}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"hanse {verb.name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # Hydra's argument parser
        return stop.code if isinstance(stop.code, int) else EXIT_CRASH
    except Exception:
        traceback.print_exc()
        return EXIT_CRASH


def _overview(verbs: Mapping[str, Verb]) -> int:
    say("hanse VERB [group=choice] [key=value]\n")
    for verb in verbs.values():
        say(f"  {verb.name:10s} {verb.line}")
    say("\nhanse VERB --help     every key of a verb, with its default"
        "\nhanse VERB --cfg job  what would run, resolved"
        "\nexperiment=NAME       settings that belong together: configs/experiment/NAME/VERB.yaml"
        "\n--config-dir FOLDER   your own configs beside the shipped ones")  # fmt: skip
    return 0


def run(verb: Verb, arguments: list[str]) -> int:
    """Compose the verb's configuration with Hydra, report all its problems at once, and do the work."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(f"{verb.name}_schema", verb.load(verb.schema))
    arguments = [_experiment_of(verb.name, argument) for argument in arguments]
    if not any(argument.startswith("-") for argument in arguments):
        check(verb.name, arguments)
    codes: list[int] = []

    @hydra.main(config_path="pkg://configs", config_name=verb.name, version_base="1.3")
    def application(composed: Any) -> None:
        codes.append(verb.load(verb.function)(instantiate(composed)) or 0)

    manners = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none",
               f"hydra.job.name={verb.name}",
               f"hydra.help.header='hanse {verb.name}: {verb.line}'",
               "hydra.help.footer='Set a key with key=value, a group with group=choice. What each key means: configs/'"]  # fmt: skip
    before = sys.argv
    sys.argv = [f"hanse {verb.name}", *manners, *arguments]
    try:
        application()
    except Exception as error:
        raise _readable(error) or error from None
    finally:
        sys.argv = before
        OmegaConf.clear_resolvers()
    return max(codes, default=0)


def instantiate(composed: Any) -> Any:
    """The dataclass instance of a composed configuration.

    Raises:
        ConfigError: keys without a value, or whatever the schema's ``problems()`` finds; all at once.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    missing = [f"{key}: must be set ({key}=...)" for key in sorted(OmegaConf.missing_keys(composed))]
    if missing:
        raise ConfigError(missing)
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError([_one_line(error)]) from None
    problems = config.problems()
    if problems:
        raise ConfigError(problems)
    return config


def check(name: str, overrides: list[str]) -> None:
    """Report every override that cannot be applied to the configuration ``name``, at once.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values of a wrong type, unknown choices of a group.
    """
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_module("configs", version_base="1.3", job_name=name):

        def problem(override: str, base: list[str]) -> str | None:
            try:
                hydra.compose(name, overrides=[*base, override])
                return None
            except Exception as error:
                known = _keys(OmegaConf.to_container(hydra.compose(name, overrides=base), resolve=False))
                return _explain(override, error, known)

        try:
            hydra.compose(name, overrides=overrides)
            return
        except Exception as error:
            whole = error
        problems, good = [], []
        for override in overrides:
            found = problem(override, good)
            if found:
                problems.append(found)
            else:
                good.append(override)
        raise ConfigError(problems or [_one_line(whole)]) from None


def _experiment_of(name: str, argument: str) -> str:
    """``experiment=demo`` means the file of this verb in the experiment's folder: ``experiment=demo/train``."""
    key, _, value = argument.partition("=")
    return f"{key}={value}/{name}" if key in ("experiment", "+experiment") and value and "/" not in value else argument


def _keys(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return []
    names = [f"{prefix}{key}" for key in value]
    return names + [key for name, inner in zip(names, value.values(), strict=True) for key in _keys(inner, f"{name}.")]


def _explain(override: str, error: Exception, known: list[str]) -> str:
    key = override.partition("=")[0].lstrip("+~")
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") or "not in struct" in str(error):
        last = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        close = last or difflib.get_close_matches(key, known, 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else "--help lists the keys"
        return f"{key}: no such key; {hint}"
    return f"{override}: {_one_line(cause)}"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    full_key = [line.strip()[10:] for line in str(error).splitlines() if line.strip().startswith("full_key: ")]
    text = " ".join(lines).replace("\t", " ")
    return f"{full_key[0]}: {text}" if full_key and full_key[0] not in text else text


def _readable(error: Exception) -> HanseError | None:
    """Hydra's and OmegaConf's own complaints as ours; None for any other error."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        return ConfigError([_one_line(cause)])
    return None


Function = Callable[[Any], int | None]
