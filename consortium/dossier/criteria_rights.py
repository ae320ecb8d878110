"""Criteria on rights: licence, reservations of rights, copyright policy, illegal content (template 3, Annex XI 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from consortium.dossier import wording
from consortium.dossier.criteria import Dossier, Problem, criterion, shown

LICENCES = ("annex_xi.general.licence", "annex_xii.general.licence", "model_documentation_form.distribution.licence")
RESERVATIONS = "public_summary.reservations"
PROTOCOL = re.compile(
    r"robots|rfc\s?9309|tdm|aipref|content-?usage|content-?signal|noai|ai\.txt|trust\.txt|c2pa|iptc|iscc|spawning|"
    r"do not train|have i been trained|opt.?out|retrait|widerspruch|vorbehalt|exclusi[óo]n|reserva|riserva|réserve",
    re.IGNORECASE,
)
CURRENT = re.compile(
    r"\b20\d\d\b|every|each|daily|weekly|monthly|quarter|annual|again|refresh|regular|up.to.date|chaque|mensuel|hebdomadaire|"
    r"à nouveau|mise à jour|jede|monatlich|wöchentlich|erneut|aktuell|cada|mensual|actualiza|de nuevo|ogni|mensil|"
    r"aggiorn|di nuovo",
    re.IGNORECASE,
)


@criterion("blocking", "Annex XI 1(f); Annex XII 1(h); Model Documentation Form 3; SPDX")
def licence_unknown(dossier: Dossier) -> Iterator[Problem]:
    """The licence of the model is an SPDX expression: it names one licence text; 'Open Source' names none."""
    for key in LICENCES:
        text = dossier.text(key).strip()
        name = text.split(" (")[0].strip(" .")
        if text and not wording.is_licence(name):
            yield (
                key,
                f"{shown(text)} is no SPDX licence",
                ("write e.g. Apache-2.0; LicenseRef-NAME (https://...) for a licence of your own"),
            )


@criterion("blocking", "F3.1.b.1: robots.txt; template 3.1; Code of Practice, copyright 1.3")
def robots_not_told(dossier: Dossier) -> Iterator[Problem]:
    """The measures or the protocols say whether the provider honours robots.txt; what suppliers do is apart."""
    keys = (f"{RESERVATIONS}.measures", f"{RESERVATIONS}.protocols")
    if dossier.filled(keys[0]) and not re.search(r"robots|rfc\s?9309", dossier.text(*keys), re.IGNORECASE):
        yield (
            keys[0],
            "nothing says whether robots.txt is honoured",
            ("say it, for your own crawls and for the datasets that you took"),
        )


@criterion("warning", "template 3.1: opt-out protocols and solutions honoured")
def protocol_unknown(dossier: Dossier) -> Iterator[Problem]:
    """The opt-out protocols are ones that somebody can use: robots.txt, TDMRep, aipref, ai.txt, ..."""
    key = f"{RESERVATIONS}.protocols"
    if dossier.items(key) and not PROTOCOL.search(dossier.text(key)):
        yield key, f"{shown(dossier.text(key))} names no protocol", "name each, e.g. robots.txt (RFC 9309), TDMRep"


@criterion("warning", "F3.1.b.3: up to date with requests; assessors on summaries of 2026")
def reservations_undated(dossier: Dossier) -> Iterator[Problem]:
    """It is said when reservations of rights were read, or how often they are read again."""
    keys = (f"{RESERVATIONS}.measures", f"{RESERVATIONS}.outcome", f"{RESERVATIONS}.protocols",
            "copyright_policy.reservations.snapshot")  # fmt: skip
    if dossier.filled(f"{RESERVATIONS}.measures") and not CURRENT.search(dossier.text(*keys)):
        yield (
            f"{RESERVATIONS}.measures",
            "does not say of when the reservations are",
            ("give the date on which they were read, and when they are read again"),
        )


@criterion("warning", "F3.2.a.1; assessors on summaries of 2026: no word on child abuse material")
def illegal_content_unnamed(dossier: Dossier) -> Iterator[Problem]:
    """The measures against illegal content name which: child sexual abuse, terrorism, hate, infringing copies."""
    key = "public_summary.illegal.measures"
    kinds = re.compile(r"csam|child|enfant|p[ée]do|kind(er|es)|menor|minor|infantil|terror|hate|haine|haineu|hass|odio|"
                       r"pira|copyright|droit d.auteur|urheberrecht|derechos de autor|diritto d.autore|illegal|illicit|"
                       r"illicite|rechtswidrig|il[íi]cit", re.IGNORECASE)  # fmt: skip
    if dossier.text(key).strip() and not kinds.search(dossier.text(key)):
        yield key, "names no kind of illegal content", "say what was looked for (child abuse material, ...) and how"


@criterion("warning", "F3.2.a.1: measures are described")
def too_short_to_describe(dossier: Dossier) -> Iterator[Problem]:
    """Where measures, behaviour or content are to be described, more than five words stand."""
    for entry in dossier:
        described = entry.key in DESCRIBED and entry.text.strip()
        if described and len(entry.text.split()) <= 5:
            yield entry.key, f"{shown(entry.text)} describes nothing", "say in a few sentences what is asked"


DESCRIBED = ("public_summary.illegal.measures", f"{RESERVATIONS}.measures", f"{RESERVATIONS}.suppliers",
             "public_summary.crawled.behaviour", "public_summary.crawled.content", "public_summary.crawled.purposes",
             "public_summary.user.description", "public_summary.other.description",
             "public_summary.private.description")  # fmt: skip
