"""``hanse dossier check=FILE``: a dossier, ours or written by hand, against what assessors and the law look for.

The criteria stand in ``criteria_*.py``; docs/reference/dossier-criteria.md lists them. None asks the network: whether a
linked page exists, and whether what is said is true, only people can judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from common.errors import EXIT_DONE, HanseError
from common.files import write_json
from common.terminal import console, say
from consortium.dossier import criteria_compute, criteria_data, criteria_form, criteria_rights, criteria_summary
from consortium.dossier.criteria import CRITERIA, SEVERITIES, Dossier, Entry, Finding, shown
from consortium.dossier.fill import SCHEMA, STATUSES
from consortium.dossier.forms import all_fields
from consortium.strangers import read_regular, strict_json

MODULES = (criteria_form, criteria_summary, criteria_data, criteria_rights, criteria_compute)
REPORT = "hanse:dossier-check/v1"
LARGEST = 16 << 20  # bytes of a dossier.json
DEEPEST = 12  # objects and arrays inside each other
MOST_FIELDS = 2_000
EXIT_FINDINGS = 1  # something blocks publication
GRADES = {
    "A": "nothing blocks publication, and there is no warning",
    "B": "nothing blocks publication, and there are at most 3 warnings",
    "C": "nothing blocks publication, or at most 3 things do",
    "D": "more than 3 things block publication",
}
STYLES = {"blocking": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Report:
    """What the linter says of a dossier: its findings, blocking ones first, in the order of the forms."""

    dossier: Dossier
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """{severity: findings}."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def grade(self) -> str:
        """A to D, by :data:`GRADES`."""
        blocking, warnings = self.counts["blocking"], self.counts["warning"]
        if blocking:
            return "C" if blocking <= 3 else "D"
        return "A" if not warnings else "B" if warnings <= 3 else "C"

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {"schema": REPORT, "grade": self.grade, "rule": GRADES[self.grade], "counts": self.counts,
                "criteria": len(CRITERIA), "findings": [asdict(finding) for finding in self.findings]}  # fmt: skip


def run_check(path: Path, output: Path | None = None) -> int:
    """Check a dossier and show what was found; the report is also written to ``output`` as JSON, if given.

    Returns:
        0: nothing blocks publication. 1: something does.

    Raises:
        HanseError: the file is no dossier.
    """
    report = check(read_dossier(path))
    show(report)
    if output:
        write_json(output, report.as_json())
        say(f"\nwritten: {output}")
    return EXIT_FINDINGS if report.counts["blocking"] else EXIT_DONE


def check(dossier: Dossier) -> Report:
    """Ask every criterion; one finding for each problem."""
    places = {key: number for number, key in enumerate(all_fields())}
    found = [Finding(one.name, one.severity, *problem) for one in CRITERIA.values() for problem in one.find(dossier)]
    order = sorted(found, key=lambda one: (SEVERITIES.index(one.severity), places.get(one.field, len(places))))
    return Report(dossier, tuple(dict.fromkeys(order)))


def read_dossier(path: Path) -> Dossier:
    """Read a ``dossier.json`` as if a stranger had written it.

    Raises:
        HanseError: it is not readable, not JSON, too large or too deep, or not of the schema.
    """
    value = strict_json(read_regular(path, LARGEST, "dossier"), str(path))
    if depth(value) > DEEPEST:
        raise HanseError(f"{path}: nested more than {DEEPEST} deep, which no dossier is")
    return from_json(value, str(path), path.absolute().parent)


def from_json(value: Any, where: str, folder: Path) -> Dossier:
    """The dossier in a JSON value; ``folder``: where it lies.

    Raises:
        HanseError: it is not of the schema; the message says where.
    """
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise HanseError(f'{where}: not a dossier: an object with "schema": "{SCHEMA}" must be there')
    fields, model, created = value.get("fields"), value.get("model", {}), value.get("created", "")
    facts = value.get("facts", {})
    if not isinstance(fields, dict) or not fields:
        raise HanseError(f"{where}: 'fields' must hold fields by their names, such as public_summary.summary.version")
    if len(fields) > MOST_FIELDS:
        raise HanseError(f"{where}: {len(fields):,} fields; the forms together have {len(all_fields())}")
    if not isinstance(model, dict) or not isinstance(facts, dict) or not isinstance(created, str):
        raise HanseError(f"{where}: 'model' and 'facts' must be objects, 'created' a date")
    entries = {key: _entry(key, one, where) for key, one in fields.items()}
    places = {key: number for number, key in enumerate(all_fields())}
    ordered = sorted(entries, key=lambda key: places.get(key, len(places)))
    return Dossier(created, model, facts, {key: entries[key] for key in ordered}, folder)


def depth(value: Any) -> int:
    """How many objects and arrays lie inside each other."""
    level, deepest = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        deepest += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest


def show(report: Report) -> None:
    """Print the grade, then the findings: what one criterion found stands together, with how to fix it."""
    model = report.dossier.model
    name = " ".join(printable(model[key])[:80] for key in ("name", "version") if isinstance(model.get(key), str))
    counts = ", ".join(f"{number} {severity}" for severity, number in report.counts.items())
    say(f"Dossier of {name or 'a model without a name'}: grade {report.grade} ({GRADES[report.grade]})")
    say(f"{len(CRITERIA)} criteria, {len(report.dossier.entries)} fields: {counts}")
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in report.findings:
        groups.setdefault((one.severity, one.criterion, one.fix), []).append(one)
    for (severity, criterion, fix), found in groups.items():
        head = Text(f"\n{severity:9s}", STYLES[severity]).append(criterion, "bold")
        console.print(head.append(f"  ({len(found)} fields)" if len(found) > 1 else "", "dim"))
        width = max(len(printable(one.field)[:56]) for one in found) + 4
        for one in found:
            _show_row(printable(one.field)[:56], printable(one.what), width)
        _show_wrapped("  fix: ", printable(fix), "green")


def _show_row(field: str, what: str, width: int) -> None:
    """A field beside what is wrong with it; above it where the terminal is too narrow for both."""
    if console.width >= width + 60:
        _show_wrapped(f"  {field}".ljust(width), what)
    else:
        say(f"  {field}")
        _show_wrapped("      ", what)


def _show_wrapped(head: str, text: str, style: str = "") -> None:
    """A text behind a head, its further lines below its first."""
    lines = Text(text).wrap(console, max(min(console.width, 160) - len(head), 20))
    for number, line in enumerate(lines):
        console.print(Text((" " * len(head) if number else head) + line.plain, style))


def printable(text: str) -> str:
    """A text without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _entry(key: str, value: Any, where: str) -> Entry:
    status = value.get("status") if isinstance(value, dict) else None
    if not isinstance(value, dict) or status not in STATUSES:
        raise HanseError(f"{where}: field {shown(key)} must be an object whose status is one of {', '.join(STATUSES)}")
    reason, evidence = value.get("reason"), value.get("evidence")
    if reason is not None and not isinstance(reason, str):
        raise HanseError(f"{where}: field {shown(key)}: reason must be a text")
    if evidence is not None and not (isinstance(evidence, list) and all(isinstance(one, Mapping) for one in evidence)):
        raise HanseError(f"{where}: field {shown(key)}: evidence must be a list of objects with file, sha256 and at")
    return Entry(key, all_fields().get(key), str(status), value.get("value"), reason or "", tuple(evidence or ()))
