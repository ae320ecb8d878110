"""Licences: what a person named, what is known of it, and whether a model under one may follow from text under another.

The table is ``licences.yaml``, with the clause behind each entry. It reads carefully, knows few licences, and decides
nothing that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.errors import HanseError
from consortium.strangers import read_regular

TABLE = Path(__file__).parent / "licences.yaml"
LARGEST = 1 << 20  # bytes of a decisions file
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
ADDRESS = re.compile(r"https?://[^\s,;)>\"']+")
AND = re.compile(r"\s+AND\s+|\s*\+\s+|\s*;\s*")  # SPDX, and how our manifests join several


@dataclass(frozen=True)
class Licence:
    """A licence as it was named. ``spdx`` is its identifier if the table knows it, else empty."""

    name: str
    spdx: str = ""
    url: str = ""


@dataclass(frozen=True)
class Conflict:
    """A licence of the data under which this model cannot be published as it is, and why."""

    licence: str
    why: str


@cache
def table() -> dict[str, dict[str, Any]]:
    """{lower-case identifier: {"id", "asks", "at", "url", "into"}}; words that are no identifiers have an empty id."""
    value = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    found = {name.lower(): {"id": name, "into": [], **entry} for name, entry in value["licences"].items()}
    return found | {name.lower(): {"id": "", "into": [], "url": "", **entry} for name, entry in value["words"].items()}


def stated(text: str) -> Licence:
    """The licence that a sentence names, such as ``Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0``."""
    address = ADDRESS.search(text)
    for word in IDENTIFIER.findall(ADDRESS.sub(" ", text)):
        entry = table().get(word.rstrip(".").lower())
        if entry and entry["id"]:
            return Licence(entry["id"], entry["id"], address[0] if address else entry["url"])
    return Licence(ADDRESS.sub("", text).strip(" ,;()") or text.strip(), "", address[0] if address else "")


def parts(text: str) -> list[str]:
    """The licences that a source names together, each of which applies."""
    return [one.strip() for one in AND.split(text) if one.strip()]


def conflicts(model: Licence | None, data: Iterable[str], decisions: Mapping[str, str]) -> list[Conflict]:
    """Why a model under a licence may not be published, given those of its data; empty where nothing speaks against it.

    Args:
        model: the model's licence.
        data: licences of the training data.
        decisions: {licence of the data: why a person found it to be no hindrance}.
    """
    if model is None:
        return [Conflict("", "the licence of the model is not known: answer model_licence in dossier.yaml with an SPDX "
                             "identifier such as Apache-2.0")]  # fmt: skip
    names = dict.fromkeys(part for one in data for part in parts(one))
    found = [Conflict(name, why) for name in names if name not in decisions and (why := _hindrance(model, name))]
    if not names:
        found.append(Conflict("", "the licences of the training data are not known: name where the corpus is with "
                                  "corpus=..."))  # fmt: skip
    return found


def _hindrance(model: Licence, name: str) -> str:
    """Why data under a licence hinders publication, and what to do; empty if it does not."""
    entry, target = table().get(name.lower()), model.spdx or model.name
    decide = f"write down why it does not hinder (decisions=FILE.yaml with a line '{name}: why, who decided')"
    if entry is None:
        return (f"'{name}' is not among the {len(table())} licences that hanse knows: find out what it asks of a "
                f"model and {decide}, or take its text out")  # fmt: skip
    said, asks = f"{name} ({entry['at']})", entry["asks"]
    if asks == "no-derivatives":
        return f"{said} allows no adaptations to be shared; take its text out, or {decide}"
    if asks == "share-alike" and target not in (entry["id"], *entry["into"]):
        allowed = " or ".join((entry["id"], *entry["into"]))
        return f"{said} wants adaptations under {allowed}, not {target}; change the model's licence, or {decide}"
    if asks == "non-commercial" and "-NC" not in target:
        return f"{said} allows no commercial use, and {target} does; change the model's licence, or {decide}"
    model_asks = table().get(target.lower(), {}).get("asks")
    if asks == "attribution" and model_asks == "nothing":
        return f"{said} wants its source to be named, and {target} asks nobody for that; change the model's licence"
    return ""


def unknown(names: Iterable[str]) -> list[str]:
    """Those that the table does not know."""
    return sorted({part for one in names for part in parts(one) if part.lower() not in table()})


def read_decisions(path: Path) -> dict[str, str]:
    """{licence: why it does not hinder} of a YAML file that people wrote.

    Raises:
        HanseError: it is not readable as that.
    """
    try:
        value = yaml.safe_load(read_regular(path, LARGEST, "decisions file").decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise HanseError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    texts = isinstance(value, dict) and all(
        isinstance(one, str) and one.strip() for pair in value.items() for one in pair
    )
    if not texts:
        raise HanseError(f"{path}: must hold 'LICENCE: why it does not hinder, and who decided', a line each")
    return dict(value)


def credit(data: Iterable[str]) -> list[str]:
    """Those of the licences that ask for the source to be named."""
    names = dict.fromkeys(part for one in data for part in parts(one))
    return [name for name in names if (table().get(name.lower()) or {"asks": ""})["asks"] not in ("nothing", "")]
