"""Criteria that hold for every field, whatever it is about: answered, explicit, of its kind, backed by evidence."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from common.errors import HanseError
from common.files import inside
from consortium.dossier import wording
from consortium.dossier.criteria import Dossier, Entry, Problem, criterion, item_text, number, shown
from consortium.dossier.forms import all_fields, load_forms

MUST_BE_THERE = ("public_summary", "copyright_policy")  # no exemption exists for Art. 53(1)(c) and (d)
LONGEST_FILE = 8 << 30  # bytes of a cited file that are hashed again
ANSWER = "answer it in dossier.yaml, or write status not_applicable with the reason"


@criterion("blocking", "Art. 53(1)(c) and (d); Art. 53(2)")
def form_missing(dossier: Dossier) -> Iterator[Problem]:
    """The public summary and the copyright policy are in the dossier; every provider owes both."""
    for form in MUST_BE_THERE:
        if not any(key.startswith(f"{form}.") for key in dossier.entries):
            yield form, "no field of this form is in the dossier", "add it: a free licence does not exempt from it"


@criterion("warning", "Art. 53(1)(a) and (b), Annexes XI and XII; Code of Practice, transparency")
def form_left_out(dossier: Dossier) -> Iterator[Problem]:
    """Annex XI, Annex XII and the Model Documentation Form are in the dossier, or an exemption is known to hold."""
    for form in load_forms():
        if form not in MUST_BE_THERE and not any(key.startswith(f"{form}.") for key in dossier.entries):
            yield (
                form,
                "no field of this form is in the dossier",
                ("add it, unless Art. 53(2) exempts the model: free and open licence, no systemic risk"),
            )


@criterion("blocking", "D23, D28 and each metric of completeness; template, all sections")
def unanswered(dossier: Dossier) -> Iterator[Problem]:
    """Every field that a form requires is filled, or said not to apply; none is missing."""
    present = {key.partition(".")[0] for key in dossier.entries}
    for key, field in all_fields().items():
        entry = dossier.entries.get(key)
        if key.partition(".")[0] in present and field.required and (entry is None or entry.status == "missing"):
            yield key, f"{field.label['en']}: not answered", ANSWER


@criterion("blocking", "most failed: a blank instead of an explicit N/A; recommendation P3")
def blank(dossier: Dossier) -> Iterator[Problem]:
    """A field that counts as filled says something: no empty text, no dashes, no empty list."""
    for entry in dossier:
        if entry.filled and wording.is_nothing(entry.value):
            yield entry.key, "is filled with nothing, which may mean anything", ANSWER


@criterion("blocking", "most failed: explicit N/A; recommendation P3; F1.1.b.1")
def bare_not_applicable(dossier: Dossier) -> Iterator[Problem]:
    """What does not apply is said so by its status and with a reason; no bare 'n/a', 'none' or 'entfällt'."""
    for entry in dossier:
        if entry.filled and (entry.field is None or entry.field.kind != "choice"):
            said = [text for text in wording.texts(entry.value) if wording.is_not_applicable(text)]
            if said:
                yield entry.key, f"says {shown(said[0])} and not why", "write status not_applicable, and the reason"
        elif entry.status == "not_applicable" and len(re.findall(r"\w{2,}", entry.reason)) < 2:
            yield entry.key, f"does not apply, and the reason is {shown(entry.reason)}", "say in a sentence why not"


@criterion("blocking", "each metric of completeness: insufficient where nothing is said")
def placeholder(dossier: Dossier) -> Iterator[Problem]:
    """No text waits to be written: TBD, TODO, lorem ipsum, '[name]', 'à compléter', 'noch offen'."""
    for entry in dossier:
        text = entry.reason if entry.status == "not_applicable" else entry.text
        found = wording.PLACEHOLDER.search(text)
        if found:
            yield entry.key, f"still holds {shown(found[0])}", "write what is meant there"


@criterion("blocking", "D5, D9: structure and format")
def unknown_choice(dossier: Dossier) -> Iterator[Problem]:
    """Where a form gives choices or bands, one of them is taken, in the words of the form."""
    for entry in dossier:
        choices = entry.field.choices if entry.field else ()
        if entry.filled and choices and not wording.is_nothing(entry.value):
            said = entry.value if isinstance(entry.value, str) else ""
            if said.strip().casefold() not in {choice.casefold() for choice in choices}:
                yield entry.key, f"{shown(entry.value)} is no choice of the form", f"one of: {', '.join(choices)}"


@criterion("blocking", "D9: well-defined, structured, machine-readable")
def wrong_type(dossier: Dossier) -> Iterator[Problem]:
    """A value is of the type that its field is: a number, a text, or a list of texts or of objects."""
    for entry in dossier:
        if not entry.filled or entry.field is None or wording.is_nothing(entry.value):
            continue
        kind, value = entry.field.kind, entry.value
        if kind == "number" and number(value) is None:
            yield entry.key, f"{shown(value)} holds no number", "write a number, 0 or more, and its unit if in a text"
        elif kind == "list" and not isinstance(value, list):
            yield entry.key, f"{shown(value)} is no list", "write a JSON array with one item for each thing"
        elif kind in ("text", "date", "url") and not isinstance(value, str | int | float):
            yield entry.key, f"{shown(value)} is no text", "write a JSON string"


@criterion("blocking", "most failed: date format; D30, F1.3.d.3")
def date_format(dossier: Dossier) -> Iterator[Problem]:
    """A date is one of the calendar, written YYYY-MM-DD or as the template does: DD/MM/YYYY, MM/YYYY for months."""
    for entry in dossier:
        a_date = entry.filled and entry.field and entry.field.kind == "date" and not wording.is_nothing(entry.value)
        if a_date and wording.day(str(entry.value).strip()) is None:
            yield (
                entry.key,
                f"{shown(entry.value)} is no date of a known format",
                ("write MM/YYYY" if entry.key.endswith("latest_acquisition") else "write YYYY-MM-DD or DD/MM/YYYY"),
            )


@criterion("blocking", "F1.2.a.3, F2.1.c.3, D24: links")
def link_malformed(dossier: Dossier) -> Iterator[Problem]:
    """Every link is an absolute http(s) address or a DOI that a browser opens."""
    for entry in dossier:
        for link in links(entry):
            if not wording.is_link(link):
                yield entry.key, f"{shown(link)} is no link", "write https:// and the whole address"
                break


@criterion("warning", "F1.2.a.4, F1.2.b.5: links lead to relevant locations")
def link_not_public(dossier: Dossier) -> Iterator[Problem]:
    """No link leads where the public cannot go: examples, local names, private networks."""
    private = re.compile(r"https?://(?:[^/@]*@|(?:[\w.-]*\.)?(?:example\.(?:com|org|net|eu)|localhost|[\w-]+\.(?:local|"
                         r"internal|lan|intranet|test|invalid|example))(?:[:/]|$))", re.IGNORECASE)  # fmt: skip
    for entry in dossier:
        found = next((link for link in links(entry) if private.match(link)), None)
        if found:
            yield entry.key, f"{shown(found)} is nowhere that the public can read", "link to where it is published"


@criterion("warning", "recommendation P7: the information itself, not where it may be")
def told_elsewhere(dossier: Dossier) -> Iterator[Problem]:
    """A text says what is asked, and does not only point to another document."""
    for entry in dossier:
        text = entry.text.strip()
        if entry.field and entry.field.kind == "text" and len(text) < 200 and wording.ELSEWHERE.match(text):
            yield entry.key, f"{shown(text)} only points elsewhere", "say it here; a link may stand beside it"


@criterion("warning", "assessors on summaries of 2026: 'may use ... for filtering', 'some data'")
def hedged(dossier: Dossier) -> Iterator[Problem]:
    """A text says what was done, not what may have been done; nobody can rely on 'may', 'where possible', 'kann'."""
    for entry in dossier:
        asked = entry.field is not None and entry.field.ask is not None and entry.field.kind == "text"
        found = wording.HEDGE.search(entry.text) if asked else None
        if found:
            yield entry.key, f"{shown(found[0])}: done, or not done?", "say what was done, to what, and what was not"


@criterion("blocking", "F1.1, F2.1.1, F3.1: consistent with other sections and documents")
def told_twice(dossier: Dossier) -> Iterator[Problem]:
    """What two documents ask alike, they answer alike."""
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in dossier:
        if entry.field and entry.status in ("evidence", "answered", "not_applicable"):
            groups[(entry.field.evidence or "", entry.field.ask or "", entry.field.kind)].append(entry)
    for group in groups.values():
        first = group[0]
        for entry in group[1:]:
            if entry.filled != first.filled or (entry.filled and entry.value != first.value):
                yield entry.key, f"says {_said(entry)}, and {first.key} says {_said(first)}", "make both the same"


@criterion("warning", "D7: provenance")
def evidence_uncited(dossier: Dossier) -> Iterator[Problem]:
    """What is filled by evidence cites it; the date of the dossier is its own evidence."""
    for entry in dossier:
        uncited = entry.status == "evidence" and not entry.evidence and not wording.is_nothing(entry.value)
        if uncited and entry.value != dossier.created:
            yield entry.key, "is filled by evidence and cites none", "cite file and SHA-256, or set status answered"


@criterion("blocking", "D7: provenance; D8: integrity")
def evidence_malformed(dossier: Dossier) -> Iterator[Problem]:
    """Evidence that is cited is a file and its SHA-256, in 64 lower-case hexadecimal digits."""
    for entry in dossier:
        for one in entry.evidence:
            if not isinstance(one.get("file"), str) or not one["file"].strip():
                yield entry.key, "cites evidence without a file", "name the file"
                break
            if not isinstance(one.get("sha256"), str) or not wording.SHA256.fullmatch(one["sha256"]):
                yield (
                    entry.key,
                    f"{shown(one.get('sha256'))} is no SHA-256 of {shown(one['file'])}",
                    ("write its 64 hexadecimal digits (sha256sum FILE)"),
                )
                break


@criterion("blocking", "D8: integrity")
def evidence_changed(dossier: Dossier) -> Iterator[Problem]:
    """A cited file that can be read from here still has the cited SHA-256."""
    hashes: dict[str, set[str]] = {}
    for entry in dossier:
        for one in entry.evidence:
            name, cited = one.get("file"), one.get("sha256")
            if isinstance(name, str) and isinstance(cited, str) and wording.SHA256.fullmatch(cited):
                if name not in hashes:
                    hashes[name] = _sha256s(dossier.folder, name)
                if hashes[name] and cited not in hashes[name]:
                    yield (
                        entry.key,
                        f"{shown(name)} is not the file that is cited (its SHA-256 differs)",
                        ("make the dossier again from the files as they are"),
                    )
                    break


@criterion("warning", "D9: structure")
def unknown_field(dossier: Dossier) -> Iterator[Problem]:
    """Every field is one that a form has; a misspelt one would go unread."""
    known = all_fields()
    for entry in dossier:
        if entry.field is None:
            close = difflib.get_close_matches(entry.key[:200], known, 1)
            yield entry.key[:200], "no form has this field", f"did you mean {close[0]}?" if close else "take it away"


@criterion("note", "Code of Practice, Model Documentation Form: recommended lengths")
def too_long(dossier: Dossier) -> Iterator[Problem]:
    """A text is not much longer than its form recommends (twice as long at most)."""
    for entry in dossier:
        words = len(entry.text.split()) if entry.field and entry.field.words else 0
        if entry.field and words > 2 * entry.field.words > 0:
            yield entry.key, f"{words} words where the form recommends {entry.field.words}", "shorten it"


def links(entry: Entry) -> list[str]:
    """What looks like a link in a field, or must be one because the field holds nothing else."""
    if not entry.filled:
        return []
    only = entry.field is not None and (entry.field.kind == "url" or entry.field.key in LINKS_ONLY)
    if only:
        return [found[-1] if (found := _found(item_text(one))) else item_text(one) for one in entry.items]
    return _found(entry.text)


LINKS_ONLY = ("public_summary.summary.previous_versions", "public_summary.model.links",
              "public_summary.model.dependency_summaries")  # fmt: skip


def _found(text: str) -> list[str]:
    return [link.rstrip(".,;:!?)]}'»") for link in wording.LINK.findall(text)]


def _said(entry: Entry) -> str:
    return shown(entry.value, 30) if entry.filled else "that it does not apply"


def _sha256s(folder: Path, name: str) -> set[str]:
    """SHA-256 of the files that a dossier may mean by a name: below its own folder, or below this one."""
    found = set()
    for root in (folder, Path.cwd()):
        try:
            with open(os.open(inside(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size <= LONGEST_FILE:
                    found.add(hashlib.file_digest(file, "sha256").hexdigest())
        except (OSError, ValueError, HanseError):  # not there, a link, not a plain name
            continue
    return found
