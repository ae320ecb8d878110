"""``dossier.yaml``: what only a person can write. Made with questions, appended to, never overwritten."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.errors import HanseError
from common.files import write_text
from consortium.dossier.forms import HERE, Field, all_fields
from consortium.strangers import read_regular

HEAD = """\
# What only a person can write about this model, for 'hanse dossier'. Write behind the colons and run it again.
# An empty answer shows as missing in the documents. Where a question does not apply, say why: "N/A: because ...".
# Lists: [one, two], or a line each, "- one". This file is yours: hanse only appends questions that are new.
"""
LARGEST = 1 << 20  # bytes
APART = ("provider_is_sme", "source_category")  # not fields of a form, but decide how some are filled
NOT_APPLICABLE = "N/A"


@dataclass(frozen=True)
class Answer:
    """``value`` is a string, or a list of strings or flat objects; ``not_applicable``: the reason, empty for others."""

    value: Any
    not_applicable: str = ""


@cache
def questions() -> dict[str, str]:
    """{key: what is wanted}."""
    found: dict[str, str] = yaml.safe_load((HERE / "questions.yaml").read_text(encoding="utf-8"))
    return found


def read(path: Path) -> dict[str, Any]:
    """{key: what stands behind it} of an answers file; {} where there is none.

    Raises:
        HanseError: it is no YAML of known keys, each once.
    """
    if not path.is_file():
        return {}
    text = read_regular(path, LARGEST, "answers file")
    try:
        node = yaml.compose(text.decode("utf-8"), Loader=yaml.SafeLoader)
        value = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise HanseError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict) or (node is not None and not isinstance(node, yaml.MappingNode)):
        raise HanseError(f"{path}: must hold 'question: answer', a line each")
    keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    problems = [f"{key} stands twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    for key in dict.fromkeys(keys):
        if key not in questions():
            close = difflib.get_close_matches(key, questions(), 1)
            problems.append(f"no question '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    if problems:
        raise HanseError(f"{path}: " + "; ".join(problems))
    return value


def check(path: Path, found: Mapping[str, Any]) -> dict[str, Answer]:
    """The answers that are given, of the kinds that their fields take.

    Raises:
        HanseError: naming every answer of another kind.
    """
    kinds = {field.ask: field for field in all_fields().values() if field.ask}
    answers, problems = {}, []
    for key, value in found.items():
        if value is None or value in ("", [], {}):
            continue
        try:
            answers[key] = _apart(key, value) if key in APART else _answer(kinds[key], value)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise HanseError(f"{path}: " + "; ".join(problems))
    return answers


def _apart(key: str, value: Any) -> Answer:
    from consortium.dossier.source_facts import CATEGORIES

    if key == "provider_is_sme":
        if isinstance(value, bool) or str(value) in ("Yes", "No"):
            return Answer("Yes" if value is True or value == "Yes" else "No")
        raise ValueError("Yes or No")
    if not isinstance(value, dict) or not all(one is None or one in CATEGORIES for one in value.values()):
        raise ValueError(f"{{source: category}}, each one of {', '.join(CATEGORIES)}")
    return Answer({str(name): one for name, one in value.items() if one})


def _answer(field: Field, value: Any) -> Answer:
    if isinstance(value, str) and value.strip().upper().startswith(NOT_APPLICABLE):
        reason = value.strip()[len(NOT_APPLICABLE) :].lstrip(" :,;-")
        if not reason:
            raise ValueError('say why it does not apply: "N/A: because ..."')
        return Answer(None, reason)
    if field.kind == "list":
        return Answer([_item(one) for one in (value if isinstance(value, list) else [value])])
    if field.kind == "choice":
        word = {True: "Yes", False: "No"}.get(value, value) if isinstance(value, bool) else value
        if word not in field.choices:
            raise ValueError(f"one of {', '.join(field.choices)}")
        return Answer(word)
    return Answer(_scalar(value))


def _item(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _scalar(one) for key, one in value.items()}
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()[:10]
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise ValueError("text is wanted here, not a list or a mapping")


def ask(path: Path, keys: Iterable[str], language: str, categories: Iterable[str] = ()) -> list[str]:
    """Append the questions that are not in the file yet; their keys.

    Args:
        keys: of the questions that are open.
        language: of the fields' labels, which stand above the questions.
        categories: names of sources whose category is asked for.
    """
    there = read(path)
    new = [key for key in keys if key not in there]
    if not new and path.is_file():
        return []
    before = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    blocks = [_question(key, language, categories) for key in new]
    write_text(path, (before if before.endswith("\n") else before + "\n") + "".join(blocks))
    return new


def _question(key: str, language: str, categories: Iterable[str]) -> str:
    fields = [field for field in all_fields().values() if field.ask == key]
    lines = [f"# {questions()[key]}"]
    if fields:
        places = ", ".join(f"{field.key.partition('.')[0]} {field.clause}" for field in fields)
        lines.insert(0, f"# {fields[0].label[language]} [{places}]")
    sources = "".join(f"\n  {name}:" for name in categories) if key == "source_category" else ""
    return "\n" + "\n".join(lines) + f"\n{key}:{sources}\n"
