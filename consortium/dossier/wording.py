"""How a value is written: whether a text is a date, a link, an address, a licence, a domain, or nothing at all."""

from __future__ import annotations

import datetime
import re
from urllib.parse import urlsplit

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# One line of "not applicable" in the five languages of the documents: a reason must stand beside it.
NOT_APPLICABLE = re.compile(
    r"n\.? ?[/.]? ?a\.?|none|not applicable|no|nil|sans objet|s\. ?o\.|non applicable|n[ée]ant|aucune?|"
    r"nicht zutreffend|entf[äa]llt|keine?r?|k\. ?a\.|no aplica(ble)?|no procede|ninguno|ninguna|"
    r"non applicabile|nessuno|nessuna|n\. ?d\.",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"\b(tb[dca]|todo|fixme|to be (determined|defined|confirmed|completed|announced|added|filled in)|coming soon|"
    r"lorem ipsum|placeholder|your (name|organi[sz]ation|text|company) here|(insert|fill in|write) .{0,40}\bhere|"
    r"[àa] compl[ée]ter|[àa] d[ée]finir|noch (offen|festzulegen|zu erg[äa]nzen)|"
    r"por (completar|definir)|da (completare|definire|compilare))\b|\?{3,}|\bx{3,}\b|\[(\.{3}|…|name|date|link|text)\]|"
    r"<(name|date|link|url|text|value|insert[^<>]{0,40})>",
    re.IGNORECASE,
)
# Something that may or may not have been done is no statement of what was done.
HEDGE = re.compile(
    r"\b((may|might|could) (also )?(be|have|use|apply|employ|filter|include|exclude|remove|contain|respect|honou?r)\b|"
    r"(where|if|when|as) (possible|appropriate|feasible)|best efforts?|reasonable efforts?|"
    r"(peut|peuvent|pourrai(t|ent)) (être|avoir|utiliser|filtrer)|dans la mesure du possible|"
    r"(k[öo]nn(en|ten|te)|kann|ggf\.?|gegebenenfalls|m[öo]glicherweise|nach m[öo]glichkeit)(?= )|"
    r"(puede|pueden|podr[íi]an?) (ser|haber|utilizar|filtrar)|en la medida de lo posible|"
    r"(pu[òo]|possono|potrebbero?) (essere|avere|utilizzare|filtrare)|per quanto possibile)",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(
    r"\W*(please )?(see|refer to|consult|visit|available (at|in|on)|as described (at|in|on)|"
    r"voir|cf\.?|se reporter [àa]|siehe|vgl\.?|v[ée]ase|consulte|vedi|consultare)\b",
    re.IGNORECASE,
)
EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
)
LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
LINK = re.compile(r"\b(?:https?|ftp|file|htp|htpps?|doi)\b[:/][^\s<>\"]*|\bwww\.[^\s<>\"]+", re.IGNORECASE)
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_nothing(value: object) -> bool:
    """Whether a value says nothing: null, blanks, or a list or object of such."""
    if isinstance(value, str):
        return not value.strip(" \t\r\n\u00a0\u2014\u2013-_.*")
    if isinstance(value, list | dict):
        return all(is_nothing(one) for one in (value.values() if isinstance(value, dict) else value))
    return value is None


def is_not_applicable(value: object) -> bool:
    """Whether a value is a bare 'n/a', 'none', 'entfällt', with nothing beside it."""
    return isinstance(value, str) and NOT_APPLICABLE.fullmatch(value.strip(" .()")) is not None


def texts(value: object) -> list[str]:
    """All texts in a value, in order, the keys of objects left out."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in texts(one)] if isinstance(value, list) else []


def is_link(text: str) -> bool:
    """Whether a text is an absolute http(s) link to a host that can be one, or a DOI."""
    if re.fullmatch(r"(doi:)?10\.\d{4,9}/\S+", text):
        return True
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return (parts.scheme in ("http", "https") and is_domain((parts.hostname or "").lower()) and port != 0
            and not re.search(r"[\s<>\"\\^`{|}]", text))  # fmt: skip


def is_domain(text: str) -> bool:
    """Whether a text is a domain name: labels of letters, digits and hyphens, at least two, the last no number.

    Names in other scripts count in Unicode or in their ASCII form (RFC 5891).
    """
    try:
        labels = text.encode("idna").decode("ascii").split(".") if not text.isascii() else text.split(".")
    except UnicodeError:
        return False
    return (len(labels) > 1 and len(text) <= 253 and all(LABEL.fullmatch(label) for label in labels)
            and not labels[-1].isdigit())  # fmt: skip


def is_licence(text: str) -> bool:
    """Whether a text is an SPDX licence expression (``LicenseRef-`` names a licence that SPDX does not list)."""
    try:
        return bool(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return False


def day(text: str) -> tuple[datetime.date, datetime.date] | None:
    """First and last day that a date may mean: ISO 8601 or the template's DD/MM/YYYY and MM/YYYY; None for others.

    A time behind an ISO date (``2026-11-25T10:00:00Z``) is let through and cut off.
    """
    iso = re.fullmatch(r"(\d{4})-(\d\d)(?:-(\d\d)(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?)?", text)
    template = re.fullmatch(r"(?:(\d\d?)/)?(\d\d?)/(\d{4})", text)
    if iso:
        year, month, number = iso[1], iso[2], iso[3]
    elif template:
        year, month, number = template[3], template[2], template[1]
    else:
        return None
    try:
        first = datetime.date(int(year), int(month), int(number or 1))
    except ValueError:
        return None
    if number:
        return first, first
    later = datetime.date(first.year + first.month // 12, first.month % 12 + 1, 1) if first.year < 9999 else first
    return first, max(first, later - datetime.timedelta(days=1))
