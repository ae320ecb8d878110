"""Criteria on who provides which model since when, and which version of the summary this is (template 0, 1.1, 1.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from consortium.dossier import wording
from consortium.dossier.criteria import Dossier, Problem, criterion, item_text, part, shown

SUMMARY = "public_summary.summary"
MODEL = "public_summary.model"
ACQUIRED, PERIOD = "public_summary.data.latest_acquisition", "public_summary.crawled.period"
CONTACTS = ("public_summary.provider.contact", "public_summary.provider.representative_contact",
            "copyright_policy.contact.contact_point")  # fmt: skip
FIRST = re.compile(r"(?:v(?:ersion)?[ .]?)?(?:0*1(?:\.0+)*|0(?:\.\d+)*)", re.IGNORECASE)
FAMILY = re.compile(
    r"\b(family|families|series|all (our )?models|famille|modellreihe|modellfamilie|familia|famiglia)\b", re.IGNORECASE
)


@criterion("blocking", "most failed: version; D23, D26")
def summary_version(dossier: Dossier) -> Iterator[Problem]:
    """The version of the summary is a number that the next one can be counted up from: 1.0, v2, 2026-11."""
    key = f"{SUMMARY}.version"
    text = dossier.text(key).strip()
    if text and not re.match(r"(?:v(?:ersion)?[ .]?)?\d", text, re.IGNORECASE):
        yield key, f"{shown(text)} does not tell which version comes before or after it", "write a number, e.g. 1.0"


@criterion("blocking", "most failed: links to earlier versions; D19, D24, D25")
def earlier_versions(dossier: Dossier) -> Iterator[Problem]:
    """A summary that is not the first links to the earlier ones, each once."""
    key, version = f"{SUMMARY}.previous_versions", dossier.text(f"{SUMMARY}.version").strip()
    if version and not FIRST.fullmatch(version) and re.search(r"\d", version) and dossier.not_applicable(key):
        yield (
            key,
            f"version {shown(version)} is not the first, and no earlier one is linked",
            ("link every earlier version, or count from 1.0"),
        )
    linked = [item_text(item) for item in dossier.items(key)]
    twice = next((text for number, text in enumerate(linked) if text in linked[:number]), None)
    if twice:
        yield key, f"{shown(twice)} stands there twice", "give every version a link of its own"


@criterion("warning", "D29")
def update_after_dossier(dossier: Dossier) -> Iterator[Problem]:
    """The date of the last update is not after the day on which the dossier was made."""
    updated, created = wording.day(dossier.text(f"{SUMMARY}.last_update").strip()), wording.day(dossier.created)
    if updated and created and updated[0] > created[1]:
        yield (
            f"{SUMMARY}.last_update",
            f"{updated[0]} is after the day this dossier was made, {created[1]}",
            ("write the day of the last change"),
        )


@criterion("blocking", "F1.1.a.3, F1.1.b.3; Code of Practice, copyright 1.5")
def contact_malformed(dossier: Dossier) -> Iterator[Problem]:
    """A contact holds an e-mail address or a link that works as written."""
    for key in CONTACTS:
        text = dossier.text(key)
        tokens = [token.strip("<>()[],;:.'\"") for token in text.split()]
        addresses = [token.removeprefix("mailto:") for token in tokens if "@" in token]
        wrong = next((one for one in addresses if not wording.EMAIL.fullmatch(one)), None)
        if wrong:
            yield key, f"{shown(wrong)} is no e-mail address", "write it as name@organisation.eu"
        elif text.strip() and not addresses and not any(wording.is_link(token) for token in tokens):
            yield key, "holds neither an e-mail address nor a link", "write where somebody can be reached"


@criterion("note", "F1.1.a.4, F1.1.b.4: not a general address")
def contact_general(dossier: Dossier) -> Iterator[Problem]:
    """A contact leads to those who answer for the model, not to the general mailbox of the organisation."""
    for key in CONTACTS:
        found = re.search(r"\b(info|contact|kontakt|hello|office|mail|admin|sales|support|noreply|no-reply)@[\w.-]+",
                          dossier.text(key), re.IGNORECASE)  # fmt: skip
        if found:
            yield key, f"{shown(found[0])} is a general mailbox", "give one that is read by those who know the model"


@criterion("blocking", "F1.1.a.2: can be traced back to an organisation")
def provider_name(dossier: Dossier) -> Iterator[Problem]:
    """The provider is named, not only addressed: the name is no link and no e-mail address."""
    for key in ("public_summary.provider.name", "public_summary.provider.representative_name"):
        text = dossier.text(key).strip()
        if text and (wording.EMAIL.fullmatch(text) or wording.is_link(text) or not re.search(r"[^\W\d_]{2}", text)):
            yield key, f"{shown(text)} is no name", "write the name of the legal entity"


@criterion("blocking", "F1.2.a.1, F1.2.a.2: one specific model; 'Gemma family'")
def model_unversioned(dossier: Dossier) -> Iterator[Problem]:
    """Every model is named with its version; a family or a series is no model."""
    for item in dossier.items(f"{MODEL}.names"):
        text = item_text(item)
        version = part(item, "version", "revision", "step", "date")
        if FAMILY.search(text):
            yield f"{MODEL}.names", f"{shown(text)} is a family, not a model", "list every model with its version"
        elif version is None and text.strip() and not re.search(r"\d", text):
            yield f"{MODEL}.names", f"{shown(text)} has no version", "add version, date or checkpoint"


@criterion("warning", "F1.1, D13: consistent with other documentation")
def model_named_otherwise(dossier: Dossier) -> Iterator[Problem]:
    """The model that the dossier is about is among the models that the summary names."""
    name = dossier.model.get("name")
    names = " ".join(item_text(item) for item in dossier.items(f"{MODEL}.names")).casefold()
    if isinstance(name, str) and name.strip() and names and name.strip().casefold() not in names:
        yield f"{MODEL}.names", f"does not name {shown(name)}, which the dossier is about", "name it as its files do"


@criterion("blocking", "F1.2.b.1, F1.2.b.4; template 1.2")
def dependency_without_summary(dossier: Dossier) -> Iterator[Problem]:
    """Each model that this one goes on from has a link to its public summary, or it is said why there is none."""
    on, key = dossier.items(f"{MODEL}.dependencies"), f"{MODEL}.dependency_summaries"
    apart = [item for item in on if part(item, "summary", "summary_link", "public_summary") is None]
    linked = [item for item in dossier.items(key) if wording.LINK.search(item_text(item))]
    if apart and not dossier.not_applicable(key) and len(linked) < len(apart):
        yield (
            key,
            f"models that this one builds on: {len(on)}, summaries linked: {len(linked)}",
            ("link each one's public summary, or write status not_applicable and why there is none"),
        )


@criterion("warning", "F1.2.b.2, F1.2.b.3")
def dependency_unversioned(dossier: Dossier) -> Iterator[Problem]:
    """Each model that this one goes on from is named with its version, step or hash."""
    for item in dossier.items(f"{MODEL}.dependencies"):
        text = item_text(item)
        if text.strip() and not re.search(r"\d", text):
            yield f"{MODEL}.dependencies", f"{shown(text)} has no version", "add its version, date or checkpoint"


@criterion("blocking", "F1.2.c.2, F1.3.d.4: dates that can be")
def dates_out_of_order(dossier: Dossier) -> Iterator[Problem]:
    """Data were collected before the model was released or placed on the market, and a period ends after it begins."""
    acquired = days_in(dossier.text(ACQUIRED))
    for key in (f"{MODEL}.placement_date", "annex_xi.general.release_date"):
        there = days_in(dossier.text(key))
        if acquired and there and acquired[-1][0] > there[-1][1]:
            yield (
                key,
                f"{there[-1][0]} is before the last data were collected ({acquired[-1][0]:%m/%Y})",
                ("correct one of them"),
            )
    days = days_in(dossier.text(PERIOD))
    if days and days[0][0] > days[-1][1]:
        yield PERIOD, "ends before it begins", "write the earlier month first"
    elif days and acquired and days[-1][0] > acquired[-1][1]:
        yield PERIOD, f"ends after the latest acquisition of data ({acquired[-1][1]:%m/%Y})", "correct one of them"


def days_in(text: str) -> list[tuple[date, date]]:
    """(first, last) day that each date in a text may mean, in the order in which they stand; a bare year is one."""
    found = re.findall(r"(?<!\d)(?:\d{4}-\d\d(?:-\d\d)?|(?:\d\d?/)?\d\d?/\d{4}|(?:19|20)\d\d)(?!\d)", text)
    days = [(date(int(one), 1, 1), date(int(one), 12, 31)) if len(one) == 4 else wording.day(one) for one in found]
    return [pair for pair in days if pair is not None]
