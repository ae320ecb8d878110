"""Which fields of the forms a dossier fills by evidence, and which a person fills: the tables of docs/guide/dossier.md.

``python -m consortium.dossier.coverage runs/demo/dossier/dossier.json`` prints them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import read_json
from common.terminal import say
from consortium.dossier.forms import Field, Form, load_forms

BY_EVIDENCE, RULED_OUT, BY_PERSON = "evidence", "N/A by evidence", "a person"
HEAD = "| form | fields | filled by evidence | of these N/A | asked of a person |\n| --- | ---: | ---: | ---: | ---: |"


def filled_by(dossier: Mapping[str, Any], field: Field) -> str:
    """Who fills a field of a dossier."""
    told = dossier["fields"][field.key]
    if told["status"] == "evidence":
        return BY_EVIDENCE
    return RULED_OUT if told["status"] == "not_applicable" and told["evidence"] else BY_PERSON


def summary(dossier: Mapping[str, Any]) -> str:
    """A Markdown table with a row a form."""
    rows = [[form.title["en"], *_counts(dossier, [form])] for form in load_forms().values()]
    rows.append(["**all**", *_counts(dossier, list(load_forms().values()))])
    return "\n".join([HEAD, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _counts(dossier: Mapping[str, Any], forms: list[Form]) -> list[int]:
    found = [filled_by(dossier, field) for form in forms for field in form.fields]
    known = len(found) - found.count(BY_PERSON)
    return [len(found), known, found.count(RULED_OUT), found.count(BY_PERSON)]


def fields(dossier: Mapping[str, Any], form: Form) -> str:
    """A Markdown table with a row a field."""
    rows = [f"| {field.clause} | {field.label['en']} | {filled_by(dossier, field)} |" for field in form.fields]
    return "\n".join(["| clause | field | filled by |", "| --- | --- | --- |", *rows])


def main(path: str) -> None:
    """Print all tables of a ``dossier.json``."""
    dossier = read_json(Path(path), "dossier")
    say(summary(dossier))
    for form in load_forms().values():
        say(f'\n??? note "{form.title["en"]}"\n')
        say("\n".join(f"    {line}" for line in fields(dossier, form).splitlines()))


if __name__ == "__main__":
    main(sys.argv[1])
