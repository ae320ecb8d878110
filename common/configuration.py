"""Configurations as people write them: what can be chosen, what is wrong with a choice, what comes out of it."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import ConfigError, HanseError

ALIKE = 0.65  # from here on a key that is not there may have been meant for one that is
MOST_NAMED = 4  # keys, where any of several may have been meant
OF_ANOTHER_VERB = ("train.", "corpus.")  # dictionaries of what another verb is given
CHOICE = "__choice__"  # key of a group's choice in these, where there are keys of the group beside it
CONFIGS = Path(__file__).parents[1] / "configs"
FIRST_LINE = "its first line must be '# @package _global_', or none of its values count"  # of an experiment's file
HELP = """hanse {name} [group=choice] [key=value]: {line}

{groups}

{keys}

--cfg job            show what would run
--check              look for everything that is wrong with it, and show it with all references resolved
--config-dir FOLDER  your own configs beside the shipped ones, e.g. FOLDER/experiment/NAME/{name}.yaml
--multirun           run once for each of several values: key=1,2,3
--KEY                short for KEY=true"""


def open_dictionary() -> Any:
    """A dictionary to which the command line may add keys without a ``+``: what another verb is given."""
    from omegaconf import OmegaConf

    return OmegaConf.create({}, flags={"struct": False})


def sort_arguments(name: str, arguments: list[str]) -> tuple[list[str], list[str], list[Path]]:
    """(Hydra's flags, overrides, folders of ``--config-dir``): people mix them, argparse wants them apart.

    ``experiment=demo`` means the file of this verb in the experiment's folder: ``experiment=demo/train``.

    Raises:
        ConfigError: an argument is neither, or a folder is not there.
    """
    flags: list[str] = []
    overrides: list[str] = []
    folders: list[Path] = []
    problems = []
    before = ""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("--") and argument[2:].replace("-", "_") in switches(name):
            overrides.append(f"{argument[2:].replace('-', '_')}=true")
        elif argument.startswith("-") or (before.startswith("-") and not equals):
            flags.append(argument)
        elif equals or argument.startswith("~"):
            shorthand = key in ("experiment", "+experiment") and value and "/" not in value
            # '++': Hydra lets no new key into a dictionary otherwise; the schema still refuses keys it does not have
            into_dictionary = value.startswith("{") and key[0] not in "+~"
            overrides.append(f"{argument}/{name}" if shorthand else f"++{argument}" if into_dictionary else argument)
        else:
            problems.append(f"{argument}: neither key=value nor a flag; --help lists both")
        folder = value if key in ("--config-dir", "-cd") else argument if before in ("--config-dir", "-cd") else ""
        if folder:
            folders.append(Path(folder))
            if not Path(folder).is_dir():
                problems.append(f"--config-dir {folder}: no such folder")
        before = argument
    if problems:
        raise ConfigError(problems)
    return flags, _with_their_groups(overrides), folders


def _with_their_groups(overrides: list[str]) -> list[str]:
    """``train.model=NAME`` beside ``train.model.KEY=``: both are for another verb, and as keys one would be lost."""
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    return [
        f"{key}.{CHOICE}={override.partition('=')[2]}"
        if key.startswith(OF_ANOTHER_VERB) and any(other.startswith(f"{key}.") for other in keys)
        and not override.partition("=")[2].startswith("{") else override
        for key, override in zip(keys, overrides, strict=True)
    ]  # fmt: skip


def combinations(arguments: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """What ``--multirun`` means: ({swept key: value}, arguments) of every combination; the last key varies fastest.

    The values are written as in Hydra's own sweeper: ``key=1,2``, ``key=choice(a,b)``, ``key=range(1,4)``.

    Raises:
        ConfigError: a sweep without a list of values (``interval(0,1)``).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    spread: list[list[tuple[str, str]]] = []
    for argument in arguments:
        try:
            parsed = None if argument.startswith("-") or "=" not in argument else parser.parse_override(argument)
        except HydraException:
            parsed = None  # whoever reads the combination says what is wrong with it
        if parsed is None or not parsed.is_sweep_override():
            spread.append([("", argument)])
        elif not parsed.is_discrete_sweep():
            raise ConfigError([f"{argument}: a sweep needs a list of values, key=1,2,3"])
        else:
            key = parsed.get_key_element()
            spread.append([(key.lstrip("+"), f"{key}={value}") for value in parsed.sweep_string_iterator()])
    return [
        ({key: text.partition("=")[2] for key, text in chosen if key}, [text for _, text in chosen])
        for chosen in itertools.product(*spread)
    ]


def switches(name: str) -> list[str]:
    """The keys of a verb that are off by default: ``--watch`` is short for ``watch=true``."""
    return re.findall(r"^(\w+): false\b", (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)


def explanation(name: str, line: str, folders: list[Path]) -> str:
    """The help of a verb: its groups with their choices, and its keys as they stand, commented, in ``configs/``."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    head, _, keys = text.partition("\n\n")
    if "defaults:" not in head:  # a comment of its own stands before the defaults
        head, _, keys = keys.partition("\n\n")
    groups = [found.split("@")[0] for found in re.findall(r"^ *- (?:override )?/?([\w/@.]+):", head, re.MULTILINE)]
    width = 2 + max(map(len, groups), default=0)
    rows = [f"{group + '=':{width}s} {', '.join(choices(group, name, folders))}" for group in groups]
    return HELP.format(name=name, line=line, groups="\n".join(rows), keys=keys.strip())


def choices(group: str, name: str, folders: list[Path]) -> list[str]:
    """What can be chosen from a group of the configuration ``name``."""
    roots = [CONFIGS, *folders]
    if group == "experiment":
        return sorted({file.parent.name for root in roots for file in root.glob(f"experiment/*/{name}.yaml")})
    return sorted({file.stem for root in roots for file in root.glob(f"{group}/*.yaml")})


def instantiate(composed: Any) -> Any:
    """The dataclass instance of a composed configuration.

    Raises:
        ConfigError: keys without a value, or whatever the schema's ``problems()`` finds, and ``without_effect()``
            where it has that; all at once.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = OmegaConf.to_container(composed, resolve=False)
    missing = [f"{key}: must be set ({key}=...)" for key, value in _items(plain) if value == "???"]
    if missing:
        raise ConfigError([*_misplaced(plain), *missing])
    try:
        config: Any = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError([_one_line(error)]) from None
    problems = [*_misplaced(plain), *config.problems()]
    if hasattr(config, "without_effect"):
        problems += config.without_effect()
    if problems:
        raise ConfigError(problems)
    return config


def _misplaced(plain: Any) -> list[str]:
    """Values of an experiment's file that Hydra put below ``experiment``, where nothing reads them."""
    keys = [key for key, value in _items(plain.get("experiment")) if not isinstance(value, dict)]
    return [f"experiment: {', '.join(keys[:3])} would not be read; {FIRST_LINE}"] if keys else []


def check(name: str, overrides: list[str], folders: list[Path]) -> None:
    """Report every override that cannot be applied to the configuration ``name``, at once.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values of a wrong type, unknown choices of a group.
    """
    import hydra
    from omegaconf import OmegaConf

    search = [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders)}]"] if folders else []

    with hydra.initialize_config_module("configs", version_base="1.3", job_name=name):

        @cache
        def error_of(*some: str) -> Exception | None:
            try:
                hydra.compose(name, overrides=list(some))
                return None
            except Exception as error:
                return error

        def problem(override: str, base: list[str], error: Exception) -> str:
            key, _, value = override.partition("=")
            mapping, _, last = key.rpartition(".")
            if mapping and not error_of(*base, f"++{mapping}={{{last}: {value}}}"):  # which may have any key
                return f"{key}: a new key of a mapping is written '{mapping}={{{last}: {value}}}'"
            composed = OmegaConf.to_container(hydra.compose(name, overrides=base), resolve=False)
            return _explain(override, error, name, [key for key, _ in _items(composed)], folders)

        problems, good, rest = [], search, overrides
        while whole := error_of(*good, *rest):
            if not rest:  # nothing that was asked for, but what stands in the files
                problems.append(_one_line(whole))
                break
            # The first override that breaks what stands before it, by halving: a composition takes 0.2 seconds.
            first = bisect_left(range(len(rest)), True, key=lambda last: bool(error_of(*good, *rest[: last + 1])))
            good, wrong, rest = [*good, *rest[:first]], rest[first], rest[first + 1 :]
            if error := error_of(*good, wrong):
                problems.append(problem(wrong, good, error))
        if problems:
            raise ConfigError(problems)


def readable(error: Exception) -> HanseError | None:
    """Hydra's and OmegaConf's own complaints as ours; None for any other error."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        return ConfigError([_one_line(cause)])
    return None


def same_again(name: str) -> str:
    """The argument that makes the next verb use the same experiment, or the same name where no experiment was named."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices.get("experiment")
        if chosen:
            experiment = str(chosen).rpartition("/")[0] or str(chosen)
            return f"experiment={experiment}" + ("" if experiment == name else f" name={name}")
    return f"name={name}"


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is no mapping itself."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (before, now)} of all leaves that differ, sorted; None stands for one that is not there."""
    one, other = dict(leaves(before)), dict(leaves(now))
    return {key: (one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key)}  # fmt: skip


def belongs(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``groups``, or stands below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _items(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every key of nested dictionaries, dotted, and what it holds."""
    if not isinstance(value, dict):
        return []
    outer = [(f"{prefix}{key}", inner) for key, inner in value.items()]
    return outer + [pair for name, inner in outer for pair in _items(inner, f"{name}.")]


def _explain(override: str, error: Exception, name: str, known: list[str], folders: list[Path]) -> str:
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if type(error).__name__ == "MissingConfigException":
        there = choices(key, name, folders)
        asked = [
            word.removesuffix(f"/{name}") if key == "experiment" else word for word in re.split(r"[\[\], ]+", value)
        ]
        unknown = [word for word in asked if word and word not in there]
        said = [f"{key}={word}: no such choice; {_elsewhere(key, word, name, folders) or _nearest(word, there)}"
                for word in unknown]  # fmt: skip
        return "; ".join(said) or str(error)
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") or "not in struct" in str(error):
        near = nearest_keys(key, known)
        below, _, _ = key.rpartition(".")
        there = [one.removeprefix(f"{below}.") for one in known if below and one.rpartition(".")[0] == below]
        return f"{key}: no such key; " + (
            f"did you mean {' or '.join(map(repr, near))}?" if near else
            f"{below} has {', '.join(there)}" if there else f"hanse {name} --help lists the keys")  # fmt: skip
    if type(error).__name__ == "OverrideParseException" or type(cause).__name__ == "LexerNoViableAltException":
        return _unreadable(override.lstrip("+~"))
    told = _one_line(cause)
    return f"{override}: {FIRST_LINE if 'Key ' + repr('experiment') + ' not in' in told else told}"


def nearest_keys(key: str, known: Iterable[str]) -> list[str]:
    """The keys whose last word is most like that of ``key``; one of them where ``key`` says what it stands below."""

    def alike(one: str, other: str) -> float:
        begun = len(one) >= 4 and other.startswith(one)  # zero: zero_stage
        return 0.9 if begun else difflib.SequenceMatcher(None, one, other).ratio()

    def last(dotted: str) -> str:
        return dotted.rpartition(".")[2]

    near = {dotted: likeness for dotted in known if (likeness := alike(last(key), last(dotted))) >= ALIKE}
    best = [dotted for dotted, likeness in near.items() if likeness == max(near.values())]
    return sorted(best, key=lambda dotted: -alike(key, dotted))[: 1 if "." in key else MOST_NAMED]


def _unreadable(override: str) -> str:
    """Why Hydra could not even read ``key=value``, and how the value is written."""
    key, _, value = override.partition("=")
    if value.startswith(("[", "{")):
        how = "a list is written '[a, b]', a mapping '{a: 1, b: 2}', and in them"
    elif value.startswith(("'", '"')) or not re.fullmatch(r"[\w.+-]+", key):
        how = "a key is letters, digits, _ and dots;"
    else:
        quoted = json.dumps(value, ensure_ascii=False).replace("'", "'\\''")
        return (f"{key}: {value} holds a character that must be in quotes, and the shell takes the outer ones away: "
                f"'{key}={quoted}'")  # fmt: skip
    return f"{override}: cannot be read; {how} text with other characters stands in quotes inside those of the shell"


def _elsewhere(group: str, word: str, name: str, folders: list[Path]) -> str:
    """For which other verbs there is such an experiment, and how those are named that give ``train.`` its keys."""
    files = [file for root in (CONFIGS, *folders) for file in root.glob(f"experiment/{word}/*.yaml")]
    verbs = sorted({file.stem for file in files}) if group == "experiment" else []
    through = f"; say train.experiment={word}" if "train" in verbs and name in ("launch", "plan") else ""
    return f"it has files for {', '.join(verbs)} only{through}" if verbs else ""


def _nearest(word: str, there: list[str]) -> str:
    close = difflib.get_close_matches(word, there, 1)
    return f"did you mean '{close[0]}'?" if close else f"there {'are' if there else 'is'} {', '.join(there) or 'none'}"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    full_key = [line.strip()[10:] for line in str(error).splitlines() if line.strip().startswith("full_key: ")]
    text = " ".join(lines).replace("\t", " ").partition(" See https://hydra.cc")[0]
    return f"{full_key[0]}: {text}" if full_key and full_key[0] not in text else text
