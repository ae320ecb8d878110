"""A verb is a Hydra application: a dataclass that says what may be configured, and a function that does the work."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from common import configuration
from common.errors import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_USER_ERROR, ConfigError, HanseError
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
    "KINETO_LOG_LEVEL": "99",  # torch.profiler's
}
# A folder that cannot be written is no bug: full, over quota, read-only, somebody else's, or no folder at all.
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
HEAVY = ("torch", "transformers", "deepspeed", "safetensors", "pyarrow", "numpy", "tokenizers", "cryptography")
HELP = {"-h", "--help"}
# The folder of a run, its logs and its configuration are ours: Hydra writes nothing.
MANNERS = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")


@dataclass(frozen=True)
class Verb:
    """One command: ``schema`` and ``function`` are ``module:attribute``, imported when the verb is called.

    The schema is a dataclass with a method ``problems() -> list[str]``; the function takes an instance of it and
    returns an exit code or None. The verb's defaults stand in ``configs/NAME.yaml``. Where the schema has a method
    ``look()``, ``--check`` calls it: it looks at files too, changes none, and raises what the work would.

    ``sweep``: an instance gets each combination with ``add(values, config)``, and then does the work with
    ``run(problems)``, told what is wrong with combinations that could not be composed; it returns an exit code.
    """

    name: str
    schema: str
    function: str
    line: str
    sweep: str = ""  # class that takes the combinations of --multirun together; empty: they run one after the other

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
        return _told(verb, arguments[1:])
    except Exception:
        traceback.print_exc()
        return EXIT_CRASH


def _told(verb: Verb, arguments: list[str]) -> int:  # noqa: PLR0911 (an exit code each)
    """Run a verb; what a person can cause is one message on stderr."""
    try:
        return run(verb, arguments)
    except HanseError as error:
        print(f"hanse {verb.name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"hanse {verb.name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CRASH
    except SystemExit as stop:  # Hydra's argument parser
        return stop.code if isinstance(stop.code, int) else EXIT_CRASH
    except OSError as error:
        if error.errno not in OF_A_DISK or not error.filename:
            raise
        print(f"hanse {verb.name}: {error.filename}: {error.strerror}; make room, or name another folder",
              file=sys.stderr)  # fmt: skip
        return EXIT_USER_ERROR
    except ModuleNotFoundError as error:
        if error.name not in HEAVY:
            raise
        print(f"hanse {verb.name}: {sys.prefix} has no {error.name}: this verb needs hanse with all it depends on, "
              "where 'hanse launch' and 'hanse status' do without; pip install -c constraints.txt .",
              file=sys.stderr)  # fmt: skip
        return EXIT_USER_ERROR


def _overview(verbs: Mapping[str, Verb]) -> int:
    say("hanse VERB [group=choice] [key=value]\n")
    for verb in verbs.values():
        say(f"  {verb.name:10s} {verb.line}")
    say("\nhanse VERB --help     every key of a verb, with its default and what it means"
        "\nhanse VERB --cfg job  what would run"
        "\nhanse VERB --check    the same, resolved, after everything that is wrong with it was looked for"
        "\nexperiment=NAME       settings that belong together: configs/experiment/NAME/VERB.yaml"
        "\n--config-dir FOLDER   your own configs beside the shipped ones")  # fmt: skip
    return 0


def run(verb: Verb, arguments: list[str]) -> int:
    """Compose the verb's configuration with Hydra, report all its problems at once, and do the work."""
    single = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    if len(single) < len(arguments) and not HELP & set(arguments):
        return _multirun(verb, single)
    return _run(verb, single, verb.function)


def _multirun(verb: Verb, arguments: list[str]) -> int:
    """Run all combinations, after every one of them was looked at; the largest exit code."""
    combinations = configuration.combinations(arguments)
    sweep = verb.load(verb.sweep)() if verb.sweep else None
    problems: dict[str, None] = {}  # in order, each once
    for values, combination in combinations:
        try:
            _run(verb, combination, partial(sweep.add, values) if sweep else lambda config: None)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    looking = bool({"--check", "--cfg", "-c"} & set(arguments))
    if problems and (looking or not sweep):
        raise ConfigError(list(problems))
    if looking:
        return 0
    if sweep:
        return int(sweep.run(list(problems)))
    return max(_run(verb, combination, verb.function) for _, combination in combinations)


def _run(verb: Verb, arguments: list[str], function: str | Callable[[Any], Any]) -> int:
    flags, overrides, folders = configuration.sort_arguments(verb.name, arguments)
    if HELP & set(flags):
        say(configuration.explanation(verb.name, verb.line, folders))
        return 0
    asked = [override[:-2] for override in overrides if override.endswith("=?")]
    if asked:  # group=? is a question: what can be chosen, and what the verb knows about it
        for group in asked:
            say(f"{group}= one of {', '.join(configuration.choices(group, verb.name, folders))}")
            schema = verb.load(verb.schema)
            if hasattr(schema, "tell_choices"):
                say(schema.tell_choices(group))
        return 0
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(f"{verb.name}_schema", verb.load(verb.schema))
    checking = "--check" in flags
    flags = [flag for flag in flags if flag != "--check"]
    codes: list[int] = []
    failures: list[Exception] = []

    @hydra.main(config_path="pkg://configs", config_name=verb.name, version_base="1.3")
    def application(composed: Any) -> None:
        try:
            config = configuration.instantiate(composed)
            if checking:
                if hasattr(config, "look"):
                    config.look()
                print(OmegaConf.to_yaml(OmegaConf.structured(config)))
            else:
                work = verb.load(function) if isinstance(function, str) else function
                codes.append(work(config) or 0)
        except Exception as error:  # Hydra would announce it in its own words first
            failures.append(error)

    before = sys.argv
    sys.argv = [f"hanse {verb.name}", *flags, *MANNERS, f"hydra.job.name={verb.name}", *overrides]
    try:
        application()
    except Exception as error:
        configuration.check(verb.name, overrides, folders)  # all problems, where Hydra tells of the first
        raise configuration.readable(error) or error from None
    finally:
        sys.argv = before
        OmegaConf.clear_resolvers()
    if failures:
        raise failures[0]
    return max(codes, default=0)
