"""Texts in four languages with planted identifiers, valid or with a wrong check digit, and look-alikes of every kind.

Written apart from the detector: check digits are computed here from their published rules, not by python-stdnum.
"""

import random
from dataclasses import dataclass

WORDS = {
    "fr": "le la des projet données langue avec dans recherche année ville document santé école droit histoire",
    "de": "der die das Projekt Daten Sprache mit auf Forschung Jahr Stadt Dokument Gesundheit Schule Recht",
    "es": "el la los proyecto datos lengua con en investigación año ciudad documento salud escuela ley historia",
    "it": "il la gli progetto dati lingua con su ricerca anno città documento salute scuola legge storia",
}
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
# ODD of the codice fiscale: values of the characters in odd places (Ministero delle Finanze, D.M. 23 December 1976).
ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
               (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14,
                16, 10, 22, 25, 24, 23), strict=True))  # fmt: skip
ID_CARD_ALPHABET = "CFGHJKLMNPRTVWXYZ"


@dataclass(frozen=True)
class Planted:
    """An identifier in a text: its kind, and how it is written."""

    kind: str
    value: str


def luhn_digit(body):
    total = 0
    for place, digit in enumerate(reversed(body)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 * (doubled > 9)
    return str(-total % 10)


def mod_11_10_digit(body):
    """ISO/IEC 7064 MOD 11,10."""
    product = 10
    for digit in body:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return str((11 - product) % 10)


def fiscal_code_letter(body):
    even = {c: int(c) if c.isdigit() else ord(c) - ord("A") for c in ODD}
    total = sum(ODD[c] if place % 2 == 0 else even[c] for place, c in enumerate(body))
    return chr(ord("A") + total % 26)


def id_card_digit(body):
    return str(sum(int(c, 36) * (7, 3, 1)[place % 3] for place, c in enumerate(body)) % 10)


class Generator:
    """Draws values; ``wrong`` gives the same with a check digit or letter that does not fit."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def digits(self, count):
        return "".join(self.random.choice("0123456789") for _ in range(count))

    def letters(self, count, alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        return "".join(self.random.choice(alphabet) for _ in range(count))

    def other_digit(self, digit):
        return self.random.choice([other for other in "0123456789" if other != digit])

    def grouped(self, value, *sizes, separators=(" ", "\u00a0")):
        separator, parts = self.random.choice(separators), []
        for size in sizes:
            parts.append(value[:size])
            value = value[size:]
        return separator.join([*parts, value] if value else parts)

    def maybe(self, value, grouped):
        return self.random.choice([value, grouped])

    # ------------------------------------------------ kinds
    def email(self, _):
        name = self.random.choice(["anne.muller", "jgarcia", "m.rossi+news", "paul_durand", "café", "o'neill"])
        host = self.random.choice(["exemple-mail.fr", "posta.it", "firma.co.at", "correo.es", "müller.de"])
        return f"{name}{self.digits(2)}@{host}"

    def ipv4(self, _):
        first = self.random.choice([82, 91, 151, 193])
        return ".".join(str(part) for part in (first, *(self.random.randint(10, 254) for _ in range(3))))

    def ipv6(self, _):
        groups = [f"{self.random.randint(1, 65535):x}" for _ in range(7)]
        return self.random.choice(
            ["2a01:" + ":".join(groups), f"2a02:{groups[0]}:{groups[1]}::{groups[2]}", f"2001:41d0::{groups[3]}"]
        )

    def phone(self, language):
        d, berlin, madrid = self.digits, self.random.randint(20, 89), self.random.randint(200, 799)
        forms = {
            "fr": [f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}", f"06 {d(2)} {d(2)} {d(2)} {d(2)}"],
            "de": [f"+49 151 {d(8)}", f"0151 {d(8)}", f"030/{berlin}{d(5)}", f"+49 (0)30 {berlin}{d(4)}"],
            "es": [f"+34 6{d(2)} {d(3)} {d(3)}", f"6{d(2)} {d(2)} {d(2)} {d(2)}", f"91 {madrid} {d(2)} {d(2)}"],
            "it": [f"+39 34{d(1)} {d(7)}", f"34{d(1)} {d(7)}", f"02 {berlin}{d(6)}", f"cell. 34{d(8)}"],
        }
        forms["fr"] += [f"01.42.{d(2)}.{d(2)}.{d(2)}", f"+33 (0)1 42 {d(2)} {d(2)} {d(2)}"]
        forms["es"] += [f"Tel.: 6{d(8)}"]
        return self.random.choice(forms[language])

    def iban(self, _, wrong=False):
        country = self.random.choice(["FR", "DE", "ES", "IT", "NL", "BE"])
        account = {
            "FR": self.digits(10) + self.letters(11, "0123456789ABCDEFGHJK") + self.digits(2), "DE": self.digits(18),
            "ES": self.digits(20), "IT": self.letters(1) + self.digits(22), "NL": self.letters(4) + self.digits(10),
            "BE": self.digits(12),
        }[country]  # fmt: skip
        number = int("".join(str(int(c, 36)) for c in account + country + "00"))
        check = f"{98 - number % 97:02d}"
        check = check[0] + self.other_digit(check[1]) if wrong else check
        value = country + check + account
        return self.maybe(value, self.grouped(value, *[4] * ((len(value) - 1) // 4)))

    def card(self, _, wrong=False):
        prefix, length = self.random.choice([("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16)])
        body = prefix + self.digits(length - 1 - len(prefix))
        check = luhn_digit(body)
        value = body + (self.other_digit(check) if wrong else check)
        sizes = (4, 6) if length == 15 else (4, 4, 4)
        return self.maybe(value, self.grouped(value, *sizes, separators=(" ", "-", "\u00a0")))

    def vat(self, _, wrong=False):
        country = self.random.choice(["FR", "DE", "IT", "BE"])
        if country == "FR":
            siren = self.digits(8)
            siren += luhn_digit(siren)
            body, check = "", f"{(12 + 3 * (int(siren) % 97)) % 97:02d}"
            value = "FR" + check[0] + (self.other_digit(check[1]) if wrong else check[1]) + siren
            return self.maybe(value, f"FR {value[2:4]} {siren[:3]} {siren[3:6]} {siren[6:]}")
        if country == "BE":
            body = self.random.choice("01") + self.digits(7)
            body = "0" + body[1:] if int(body) < 2000000 else body
            check = f"{97 - int(body) % 97:02d}"
            value = "BE" + body + check[0] + (self.other_digit(check[1]) if wrong else check[1])
            return self.maybe(value, f"BE {value[2:6]}.{value[6:9]}.{value[9:]}")
        if country == "DE":
            body = self.random.choice("123456789") + self.digits(7)
            check = mod_11_10_digit(body)
        else:
            body = f"{self.random.randint(1, 9_999_999):07d}{self.random.randint(1, 100):03d}"
            check = luhn_digit(body)
        return country + body + (self.other_digit(check) if wrong else check)

    def fr_nir(self, _, wrong=False):
        department = self.random.choice(
            [f"{self.random.randint(1, 19):02d}", f"{self.random.randint(21, 95):02d}", "2A", "2B"]
        )
        body = (
            self.random.choice("12")
            + f"{self.random.randint(30, 99)}{self.random.randint(1, 12):02d}{department}{self.digits(6)}"
        )
        number = int(body.replace("2A", "19").replace("2B", "18"))
        check = f"{97 - number % 97:02d}"
        check = check[0] + self.other_digit(check[1]) if wrong else check
        return self.maybe(body + check, self.grouped(body + check, 1, 2, 2, 2, 3, 3, separators=(" ", ".", "\u202f")))

    def de_tax_id(self, _, wrong=False):
        # Of the first ten digits one occurs twice, the others at most once (section 139b AO).
        digits = self.random.sample("0123456789", 9)
        digits.insert(self.random.randint(1, 9), self.random.choice(digits))
        while digits[0] == "0":
            self.random.shuffle(digits)
        body = "".join(digits)
        check = mod_11_10_digit(body)
        value = body + (self.other_digit(check) if wrong else check)
        return self.maybe(value, self.grouped(value, 2, 3, 3))

    def de_id_card(self, language, wrong=False):
        body = self.letters(1, ID_CARD_ALPHABET) + self.letters(8, ID_CARD_ALPHABET + "0123456789")
        check = id_card_digit(body)
        cue = {
            "fr": "carte d'identité",
            "de": "Personalausweis",
            "es": "documento de identidad",
            "it": "carta d'identità",
        }
        return f"{cue[language]} n° {body}{self.other_digit(check) if wrong else check}"

    def es_dni(self, _, wrong=False):
        number = self.digits(8)
        letter = DNI_LETTERS[(int(number) + wrong * self.random.randint(1, 22)) % 23]
        return self.random.choice(
            [f"{number}{letter}", f"{number}-{letter}", f"{number[:2]}.{number[2:5]}.{number[5:]}-{letter}"]
        )

    def es_nie(self, _, wrong=False):
        first, number = self.random.choice("XYZ"), self.digits(7)
        letter = DNI_LETTERS[(int(str("XYZ".index(first)) + number) + wrong * self.random.randint(1, 22)) % 23]
        return self.maybe(f"{first}{number}{letter}", f"{first}-{number}-{letter}")

    def it_fiscal_code(self, _, wrong=False):
        body = (
            self.letters(6, "BCDFGLMNPRSTV") + f"{self.random.randint(30, 99)}" + self.letters(1, "ABCDEHLMPRST")
            + f"{self.random.randint(1, 28):02d}" + self.random.choice(["H501", "F205", "L219", "D612"])
        )  # fmt: skip
        letter = fiscal_code_letter(body)
        value = body + (chr(ord("A") + (ord(letter) - ord("A") + self.random.randint(1, 25)) % 26) if wrong else letter)
        return self.maybe(value, f"{value[:3]} {value[3:6]} {value[6:11]} {value[11:]}")

    CHECKED = ("iban", "card", "vat", "fr_nir", "de_tax_id", "de_id_card", "es_dni", "es_nie", "it_fiscal_code")
    KINDS = ("email", "ipv4", "ipv6", "phone", *CHECKED)

    def look_alike(self, language):
        """Something that is nobody's: numbers of every length, versions, dates, ISBNs, hashes, wrong check digits."""
        d, r = self.digits, self.random
        return r.choice([
            lambda: d(r.randint(7, 19)),
            lambda: f"v{d(1)}.{d(2)}.{d(1)}.{d(3)}",
            lambda: f"978-2-07-{d(6)}-{d(1)}",
            lambda: f"20{d(2)}-0{r.randint(1, 9)}-{r.randint(10, 28)}",
            lambda: f"{r.randint(10, 28)}.0{r.randint(1, 9)}.19{d(2)}",
            lambda: f"{r.getrandbits(128):032x}",
            lambda: f"{r.randint(1, 99)} {d(3)} {d(3)}",
            lambda: f"{d(2)}.{d(3)}.{d(3)},{d(2)} €",
            lambda: f"192.168.{r.randint(0, 255)}.{r.randint(0, 255)}",
            lambda: f"fe80::{r.getrandbits(16):x}",
            lambda: f"{d(2)}:{d(2)}:{d(2)}",
            lambda: f"image@2x{d(1)}.png",
            lambda: f"pkg@{d(1)}.{d(1)}.{d(1)}",
            *[lambda kind=kind: getattr(self, kind)(language, wrong=True) for kind in self.CHECKED],
        ])()  # fmt: skip

    def document(self, language, identifiers=2, look_alikes=3):
        """(text, planted) of some 150 words."""
        vocabulary = WORDS[language].split()
        words = [self.random.choice(vocabulary) for _ in range(150)]
        words[16::17] = [word + "." for word in words[16::17]]
        planted = []
        for _ in range(look_alikes):
            words.insert(self.random.randint(0, len(words)), self.look_alike(language))
        for _ in range(identifiers):
            kind = self.random.choice(self.KINDS)
            value = getattr(self, kind)(language)
            planted.append(Planted(kind, value))
            # Between two words, so that no two numbers touch and become a third.
            place = self.random.choice(
                [
                    i
                    for i in range(1, len(words))
                    if words[i - 1].rstrip(".").isalpha() and words[i].rstrip(".").isalpha()
                ]
            )
            words.insert(place, self.random.choice(["{}", "({})", "«{}»", "{},", "{}."]).format(value))
        return " ".join(words), planted
