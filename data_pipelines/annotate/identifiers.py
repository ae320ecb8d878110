"""What counts as personal data: for each kind a pattern that proposes, and a check that decides.

Patterns run on UTF-8 bytes in which spaces and punctuation outside ASCII are blanked (:data:`BLANKED`), so that the
bytes ``\\x80-\\xff`` are letters. A check returns the end of the identifier within the text, or None. Checksums are
python-stdnum's, phone numbers phonenumbers', both offline; the German identity card's is ICAO 9303 part 3, section 4.9
(weights 7, 3, 1).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber
from stdnum import iban, luhn, numdb
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.eu import vat
from stdnum.fr import nir
from stdnum.it import codicefiscale

W = rb"[0-9A-Za-z_\x80-\xff]"
ALONE = rb"(?<!" + W + rb")"  # no letter or digit before
END = rb"(?!" + W + rb")"  # none behind
GAP = rb"[ .\-]{0,3}"  # between groups; three, because a blanked character is up to three bytes

# Latin-1's and general punctuation, symbols up to U+2BFF, CJK punctuation; of it all only ª, µ and º are letters.
BLANKED = re.compile(rb"\xc2[\x80-\xbf]|\xe2[\x80-\xaf][\x80-\xbf]|\xe3\x80[\x80-\xbf]")

Check = Callable[["re.Match[bytes]", str], "int | None"]


@dataclass(frozen=True, eq=False)  # one object a kind: compared and hashed by identity
class Kind:
    """A kind of personal data.

    ``near`` says what it stands near: "at" sign, "colons", "cue" word, or "digits"; only such places are searched.
    ``digits``: the fewest it has.
    """

    name: str
    near: str
    digits: int
    pattern: re.Pattern[bytes]
    check: Check

    @property
    def placeholder(self) -> str:
        """What stands in its place: its name in capitals, in angle brackets."""
        return f"<{self.name.upper()}>"


def _compact(value: bytes) -> str:
    """Letters and digits in capitals, without separators."""
    return re.sub(rb"[ .\-/()]", b"", value).upper().decode("utf-8", "replace")


def _checked(is_valid: Callable[[str], bool]) -> Check:
    """The whole match, if it is valid without its separators."""
    return lambda match, language: match.end() if is_valid(_compact(match.group())) else None


def _trimmed(match: re.Match[bytes], is_valid: Callable[[bytes], bool]) -> int | None:
    """The end of the longest valid beginning of the match, when up to three groups behind it are dropped."""
    value = match.group()
    for _ in range(4):
        if is_valid(value):
            return match.start() + len(value)
        shorter = re.fullmatch(rb"(.*" + W + rb")[^0-9A-Za-z]+[0-9A-Za-z]+", value, re.DOTALL)
        if not shorter:
            return None
        value = shorter.group(1)
    return None


# ---------------------------------------------------------------- mail and network addresses
EMAIL = (
    rb"(?<![0-9A-Za-z_\x80-\xff.+\-])[0-9A-Za-z_\x80-\xff][0-9A-Za-z_\x80-\xff.+%'\-]{0,63}@"
    rb"(?:[0-9A-Za-z\x80-\xff](?:[0-9A-Za-z\x80-\xff\-]{0,61}[0-9A-Za-z\x80-\xff])?\.){1,8}([A-Za-z\x80-\xff]{2,24})"
    + END
)
FILE_ENDINGS = {b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"js", b"css", b"html", b"php"}  # image@2x.png
IPV4 = rb"(?<![0-9A-Za-z_\x80-\xff.])(?<!\d[/\-])\d{1,3}(?:\.\d{1,3}){3}(?!" + W + rb"|\.\d)"
HEX = rb"[0-9A-Fa-f]{1,4}"
# Global unicast is 2000::/3 (IANA), so that the first group has four digits and none can be left out before it.
IPV6 = (
    rb"(?<![0-9A-Za-z_\x80-\xff:.])[23][0-9A-Fa-f]{3}(?:(?::" + HEX + rb"){7}|(?::" + HEX + rb"){0,6}::(?:" + HEX
    + rb"(?::" + HEX + rb"){0,5})?)(?![0-9A-Za-z_\x80-\xff:])"
)  # fmt: skip
VERSION = re.compile(
    rb"(?i)(?:version|release|v\.|ver\.|rfc|section|chapter|chapitre|kapitel|cap\S{0,8}|\xc2\xa7)\W{0,3}$"
)


def _email(match: re.Match[bytes], language: str) -> int | None:
    return None if match.group(1).lower() in FILE_ENDINGS else match.end()


def _address(match: re.Match[bytes], language: str) -> int | None:
    """Global addresses only: private, reserved and documentation ranges are nobody's. No version or section number."""
    value = match.group()
    try:
        known = ipaddress.ip_address(value.decode()).is_global
    except ValueError:
        return None
    section = b"." in value and len(value) < 10  # 15.1.1.1; one in 700 addresses is as short
    return match.end() if known and not section and not VERSION.search(_before(match, 24)) else None


def _before(match: re.Match[bytes], count: int) -> bytes:
    return match.string[max(0, match.start() - count) : match.start()]


# ---------------------------------------------------------------- bank accounts and cards
IBAN = ALONE + rb"([A-Za-z]{2})\d{2}(?=" + GAP + rb"[0-9A-Za-z])"
CARD = (
    ALONE
    + rb"(?<![.,+\-])(?:\d{13,19}|\d{4}([ \-]{1,3})\d{4}(?:\1\d{4}){2}(?:\1\d{3})?|3\d{3}([ \-]{1,3})\d{6}\2\d{4,5})"
    + END
)
# Issuers by leading digits, and the lengths they use (ISO/IEC 7812; the networks' published ranges).
ISSUERS = re.compile(
    r"4(?:\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{12}"
)


@functools.cache
def _iban_length(country: str) -> int | None:
    """Characters of a country's IBAN; None where there is no such country."""
    for _, found in numdb.get("iban").info(country):
        if "bban" in found:
            return 4 + sum(map(int, re.findall(r"(\d+)!", found["bban"])))
    return None


def _iban(match: re.Match[bytes], language: str) -> int | None:
    """As many characters as the country's IBANs have, across separators, so that a word behind is not swallowed."""
    length = _iban_length(match.group(1).decode().upper())
    if not length:
        return None
    whole = re.compile(rb"[0-9A-Za-z](?:[ \-]{0,3}[0-9A-Za-z]){%d}" % (length - 1) + END).match(
        match.string, match.start()
    )
    # The check of the national digits is left out: many Spanish numbers in use fail it.
    return whole.end() if whole and iban.is_valid(_compact(whole.group()), check_country=False) else None


def _is_card(number: str) -> bool:
    return bool(ISSUERS.fullmatch(number)) and luhn.is_valid(number)


# ---------------------------------------------------------------- value added tax, with the country's prefix
VAT_COUNTRIES = b"AT BE BG CY CZ DE DK EE EL ES FI FR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK XI".replace(
    b" ", b"|"
)
VAT = ALONE + b"(?:" + VAT_COUNTRIES + rb")[ .\-]{0,3}[0-9A-Z](?:[ .\-]?[0-9A-Z]){6,13}" + END


def _vat(match: re.Match[bytes], language: str) -> int | None:
    # Romania alone has numbers of fewer than seven digits: too short to tell from anything else.
    return _trimmed(match, lambda value: len(re.findall(rb"\d", value)) >= 7 and vat.is_valid(_compact(value)))


# ---------------------------------------------------------------- national identifiers
NIR = (
    ALONE + rb"[1-478]" + GAP + rb"\d\d" + GAP + rb"(?:0[1-9]|1[0-2]|[2-9]\d)" + GAP + rb"(?:\d\d|2[ABab])" + GAP
    + rb"\d{3}" + GAP + rb"\d{3}" + GAP + rb"\d\d" + END
)  # fmt: skip
TAX_ID = ALONE + rb"(?<![.,+\-])[1-9]\d(?:[ ]{0,3}\d{3}){3}" + END
ID_CARD = ALONE + rb"[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8}\d(?=D?(?!" + W + rb"))"
ID_CARD_CUE = re.compile(rb"(?i)ausweis|identi(?:t|d|f)|IDD<<|passport|reisepass|dokument")
DNI = ALONE + rb"(?:\d{8}[\- ]?[A-HJ-NP-TV-Z]|\d{8}-?[a-hj-np-tv-z]|\d\d\.\d{3}\.\d{3}[\- ]?[A-HJ-NP-TV-Z])" + END
NIE = ALONE + rb"[XYZxyz][\- ]?\d{7}[\- ]?[A-HJ-NP-TV-Za-hj-np-tv-z]" + END
FISCAL_CODE = (
    ALONE + rb"[A-Za-z]{3}[ ]?[A-Za-z]{3}[ ]?\d\d[A-EHLMPR-Ta-ehlmpr-t]\d\d[ ]?[A-Za-z]\d{3}[ ]?[A-Za-z]" + END
)  # fmt: skip


def _id_card(match: re.Match[bytes], language: str) -> int | None:
    """Serial number and check digit, where a cue stands up to 48 characters before: one digit alone proves little."""
    body, digit = match.group()[:9].decode(), int(match.group()[9:])
    weighed = sum(int(character, 36) * (7, 3, 1)[place % 3] for place, character in enumerate(body))
    return match.end() if weighed % 10 == digit and ID_CARD_CUE.search(_before(match, 48)) else None


# ---------------------------------------------------------------- phone numbers
INTERNATIONAL = rb"(?<![0-9A-Za-z_\x80-\xff+.,])(?:\+|00[ ]{0,3})[1-9](?:[ .()\-/]{0,4}\d){6,14}" + END
NATIONAL = rb"(?<![0-9A-Za-z_\x80-\xff+.,\-/])(?:\(0\d{1,5}\)|[02-9])(?:[ .()\-/]{0,3}\d){6,11}" + END
PHONE = rb"(?:" + INTERNATIONAL + rb"|" + NATIONAL + rb")"
PHONE_CUE = re.compile(
    rb"(?i)(?:t(?:e|\xc3\xa9)l\b|t(?:e|\xc3\xa9)l(?:\.|e|\xc3\xa8|\xc3\xa9)|fax|phone|fono|telefon|mobil|handy|"
    rb"m(?:o|\xc3\xb3)vil|cell|whatsapp|rufnummer|hotline|\bsms\b|call|appel|llam|chiam|anruf|trucar|bellen|ligar)"
    rb"[^0-9\n]{0,24}$"
)
DATE_OR_ZIP = re.compile(rb"\d{1,2}[./\-]\d{1,2}[./\-](?:\d\d|\d{4})|.*(?:19|20)\d\d-\d\d.*|\d{5}-\d{4}", re.DOTALL)
# How numbers without a country code are written, so that they need no cue. Groups of three might be thousands.
TRUNK = rb"(?:\(0\d{1,5}\)|0\d{1,5})[ ]{0,3}[/\-. ][ ]{0,3}\d{2,8}(?:([ .\-]{1,3})\d{2,5}(?:\1\d{2,5}){0,3})?"
SPANISH = rb"[6-9]\d\d([ .\-]{1,3})\d\d(?:\2\d\d){2}|[89]\d([ .\-]{1,3})\d{3}(?:\3\d\d){2}"
ITALIAN = rb"3\d\d(?:([ .\-]{1,3})\d{3}\2\d{4}|[ .\-/]{1,3}\d{6,7})"
PORTUGUESE = rb"[29]\d([ .\-]{1,3})\d{3}(?:\2\d\d){2}"
OWN = {
    "fr": rb"0[467]\d{8}", "de": rb"01[5-7]\d{8,9}", "en": rb"07\d{9}", "nl": rb"0[46]\d{8}",
    "es": SPANISH, "ca": SPANISH, "it": ITALIAN, "pt": PORTUGUESE,
}  # fmt: skip
WRITTEN = {language: re.compile(TRUNK + b"|" + own) for language, own in OWN.items()}
REGIONS = {
    "fr": ("FR", "BE", "CH"), "de": ("DE", "AT", "CH"), "es": ("ES",), "it": ("IT",), "en": ("GB", "IE"), "pt": ("PT",),
    "nl": ("NL", "BE"), "ca": ("ES",),
}  # fmt: skip
assert REGIONS.keys() == WRITTEN.keys()


def _phone(match: re.Match[bytes], language: str) -> int | None:
    return _trimmed(match, lambda value: _is_phone(value, match, language))


def _is_phone(value: bytes, match: re.Match[bytes], language: str) -> bool:
    """With a country code: any that could exist there. Without: one in use, written or announced as a phone number."""
    if value.startswith(b"+"):
        return _exists(_compact(value.replace(b"(0)", b"")), None, phonenumbers.is_possible_number)
    if value.startswith(b"00"):
        number = _compact(value.replace(b"(0)", b""))[2:]
        return _exists("+" + number, None, phonenumbers.is_valid_number)
    if language not in REGIONS or DATE_OR_ZIP.fullmatch(value):
        return False
    number = _compact(value)
    written = len(number) >= 9 and WRITTEN[language].fullmatch(value)
    if not written and not PHONE_CUE.search(_before(match, 40)):
        return False
    return any(
        _exists(number, region, functools.partial(phonenumbers.is_valid_number_for_region, region_code=region))
        for region in REGIONS[language]
    )


def _exists(number: str, region: str | None, test: Callable[[PhoneNumber], bool]) -> bool:
    try:
        return test(phonenumbers.parse(number, region))
    except NumberParseException:
        return False


def _kind(name: str, near: str, digits: int, pattern: bytes, check: Check) -> Kind:
    return Kind(name, near, digits, re.compile(pattern), check)


# In the order of precedence: where two overlap, the earlier one stays.
KINDS = (
    _kind("email", "at", 0, EMAIL, _email),
    _kind("ipv6", "colons", 0, IPV6, _address),
    _kind("iban", "digits", 9, IBAN, _iban),
    _kind("it_fiscal_code", "digits", 7, FISCAL_CODE, _checked(codicefiscale.is_valid)),
    _kind("vat", "digits", 7, VAT, _vat),
    _kind("fr_nir", "digits", 13, NIR, _checked(nir.is_valid)),
    _kind("card", "digits", 13, CARD, _checked(_is_card)),
    _kind("es_nie", "digits", 7, NIE, _checked(nie.is_valid)),
    _kind("es_dni", "digits", 8, DNI, _checked(dni.is_valid)),
    _kind("de_tax_id", "digits", 11, TAX_ID, _checked(idnr.is_valid)),
    _kind("ipv4", "digits", 7, IPV4, _address),
    _kind("phone", "digits", 7, PHONE, _phone),
    _kind("de_id_card", "cue", 0, ID_CARD, _id_card),
)
