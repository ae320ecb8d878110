"""The 24 official languages of the Union (Regulation No 1 of 1958, as amended in 2013), and their names."""

from __future__ import annotations

import re

# ISO 639-1 code: English, French, German, Spanish, Italian
UNION = {
    "bg": ("Bulgarian", "bulgare", "Bulgarisch", "búlgaro", "bulgaro"),
    "cs": ("Czech", "tchèque", "Tschechisch", "checo", "ceco"),
    "da": ("Danish", "danois", "Dänisch", "danés", "danese"),
    "de": ("German", "allemand", "Deutsch", "alemán", "tedesco"),
    "el": ("Greek", "grec", "Griechisch", "griego", "greco"),
    "en": ("English", "anglais", "Englisch", "inglés", "inglese"),
    "es": ("Spanish", "espagnol", "Spanisch", "español", "spagnolo"),
    "et": ("Estonian", "estonien", "Estnisch", "estonio", "estone"),
    "fi": ("Finnish", "finnois", "Finnisch", "finés", "finlandese"),
    "fr": ("French", "français", "Französisch", "francés", "francese"),
    "ga": ("Irish", "irlandais", "Irisch", "irlandés", "irlandese"),
    "hr": ("Croatian", "croate", "Kroatisch", "croata", "croato"),
    "hu": ("Hungarian", "hongrois", "Ungarisch", "húngaro", "ungherese"),
    "it": ("Italian", "italien", "Italienisch", "italiano", "italiano"),
    "lt": ("Lithuanian", "lituanien", "Litauisch", "lituano", "lituano"),
    "lv": ("Latvian", "letton", "Lettisch", "letón", "lettone"),
    "mt": ("Maltese", "maltais", "Maltesisch", "maltés", "maltese"),
    "nl": ("Dutch", "néerlandais", "Niederländisch", "neerlandés", "nederlandese"),
    "pl": ("Polish", "polonais", "Polnisch", "polaco", "polacco"),
    "pt": ("Portuguese", "portugais", "Portugiesisch", "portugués", "portoghese"),
    "ro": ("Romanian", "roumain", "Rumänisch", "rumano", "rumeno"),
    "sk": ("Slovak", "slovaque", "Slowakisch", "eslovaco", "slovacco"),
    "sl": ("Slovenian", "slovène", "Slowenisch", "esloveno", "sloveno"),
    "sv": ("Swedish", "suédois", "Schwedisch", "sueco", "svedese"),
}
ALSO = {"slovene": "sl", "gaelic": "ga", "olandese": "nl", "hollandais": "nl", "castellano": "es", "castilian": "es"}
CODE_OF = {name.casefold(): code for code, names in UNION.items() for name in names} | ALSO
WORD = re.compile(r"[^\W\d_]+")


def named(text: str) -> set[str]:
    """Codes of the Union's languages that a text names in any of the five languages."""
    return {CODE_OF[word] for word in WORD.findall(text.casefold()) if word in CODE_OF}


def coded(text: str) -> set[str]:
    """Codes of the Union's languages that a text gives as codes: the whole text, in brackets, or before a colon."""
    found = re.findall(r"^\W*([a-z]{2})(?:[-_][A-Za-z]{2,4})?\W*$|[(\[]([a-z]{2})[)\]]|^\W*([a-z]{2}):", text)
    return {code for groups in found for code in groups if code in UNION}
