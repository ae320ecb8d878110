"""Personal data is found by its checksum in four languages, replaced by its kind, counted, and never shown."""

import logging
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.annotate.identifiers import KINDS
from data_pipelines.annotate.personal_data import SCHEMA, find, redact
from tests.data_pipelines.annotate.identifier_generator import WORDS, Generator

LANGUAGES = tuple(WORDS)


def counts_of(redacted):
    return [
        {name.removeprefix("personal_data_"): n for name, n in row.items() if n} for row in redacted.counts.to_pylist()
    ]


def one(text, language=""):
    redacted = redact([text], language)
    return redacted.texts[0].as_py(), counts_of(redacted)[0]


@pytest.fixture(scope="module")
def corpus():
    """{language: (texts, planted)}, 600 documents a language"""
    made = {}
    for seed, language in enumerate(LANGUAGES):
        generator = Generator(seed)
        made[language] = list(zip(*(generator.document(language) for _ in range(600)), strict=True))
    return made


@pytest.mark.parametrize("language", LANGUAGES)
def test_finds_99_of_100_and_raises_few_false_alarms(corpus, language):
    """Look-alikes: three a document, most of them with the form of an identifier; 1 in 10 to 100 passes by chance."""
    texts, planted = corpus[language]
    missed, wanted, alarms = Counter(), Counter(), Counter()
    for text, items in zip(texts, planted, strict=True):
        found = Counter(
            (place.kind.name, text.encode()[place.start : place.end].decode())
            for place in find(text.encode(), language)
        )
        for item in items:
            wanted[item.kind] += 1
            hit = next((key for key in found if key[0] == item.kind and key[1] in item.value and len(key[1]) > 6), None)
            missed[item.kind] += hit is None
            if hit:
                found[hit] -= 1
        alarms.update(key[0] for key in found.elements())
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    assert sum(missed.values()) <= 0.01 * sum(wanted.values()), missed
    assert wanted.keys() == {kind.name for kind in KINDS}
    assert sum(alarms.values()) / megabytes < 30, alarms  # of some 2,800 look-alikes a megabyte


# ---------------------------------------------------------------- examples that anybody may check
VALID = {
    "email": ["anne@example.org", "a.b+c@sub.example.co.uk", "josé@correo.es", "x_1%y@müller.de"],
    "ipv4": ["82.50.72.202"],
    "ipv6": ["2a00:1450:4007:80e::200e", "2001:41d0:1:2:3:4:5:6"],
    "phone": ["+33 1 42 68 53 00", "+49 (0)30 227 32152", "0034 91 390 60 00"],
    "iban": ["FR14 2004 1010 0505 0001 3M02 606", "DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009"],
    "vat": ["FR 40 303 265 045", "DE136695976", "ESA28015865", "NL004495445B01", "ATU13585627", "BE 0203.430.576"],
    "fr_nir": ["2 55 08 14 168 025 38", "253072B07300470"],
    "de_tax_id": ["36574261809", "36 574 261 809"],
    "de_id_card": ["Personalausweis L01X00T471", "IDD<<T220001293"],
    "es_dni": ["54362315K", "54362315-K", "54.362.315-K"],
    "es_nie": ["X-2482300-W", "x2482300w"],
    "it_fiscal_code": ["RCCMNL83S18D969H", "RCC MNL 83S18 D969 H"],
}
AROUND = [("", ""), ("Voici ", ", merci."), ("«", "»"), ("(", ")"), ("été:\u00a0", "\u202fété"), ("1\n", "\n2")]
INVALID = [
    "anne@localhost", "logo@2x.png", "v1.2.3.4", "127.0.0.1", "10.0.0.1", "15.1.1.1", "version 82.50.72.202",
    "2001:db8::1", "fe80::1", "::1", "12:30:45", "std::string", "+33 1", "FR14 2004 1010 0505 0001 3M02 607",
    "DE89370400440532013001", "4111 1111 1111 1112", "FR 41 303 265 045", "2 55 08 14 168 025 39",
    "2 55 13 14 168 025 38", "36574261890", "L01X00T471", "Personalausweis L01X00T472", "54362315Z", "X-2482300-A",
    "RCCMNL83S18D969A", "2021-06-15", "01.02.2019", "1 234 567 890", "02110-1301", "978-2-07-036822-8",
    "d41d8cd98f00b204e9800998ecf8427e", "3.14159265358979", "0123456789", "-rw-r--r-- root/root 430 2021-07-27 20:14",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in VALID.items() for value in values])
def test_known_examples_are_replaced_by_their_kind(kind, value):
    for left, right in AROUND:
        text, counts = one(f"{left}{value}{right}")
        assert counts == {kind: 1}
        expected = value if kind != "de_id_card" else value[-10:]
        assert text == f"{left}{value}{right}".replace(expected, f"<{kind.upper()}>")


@pytest.mark.parametrize("value", INVALID)
@pytest.mark.parametrize("language", ["", *LANGUAGES])
def test_look_alikes_stay(value, language):
    assert one(f"Voici {value} !", language) == (f"Voici {value} !", {})


@pytest.mark.parametrize(
    ("language", "written"),
    [
        ("fr", "06 12 34 56 78"), ("fr", "01.42.68.53.00"), ("fr", "0612345678"), ("de", "030/22732152"),
        ("de", "(030) 227 321 52"), ("de", "0151 12345678"), ("es", "612 34 56 78"), ("es", "91 390 60 00"),
        ("it", "02/68.35.20.11"), ("it", "347 1234567"), ("it", "06 4412 1234"), ("nl", "06-12345678"),
        ("en", "020 7946 0958"), ("pt", "21 392 00 00"), ("ca", "93 402 10 00"),
    ],
)  # fmt: skip
def test_phone_numbers_without_country_code_are_those_of_the_language(language, written):
    assert one(f"Voilà {written}.", language) == ("Voilà <PHONE>.", {"phone": 1})
    assert one(f"Voilà {written}.") == (f"Voilà {written}.", {})


def test_a_cue_tells_a_phone_number_from_a_plain_one():
    assert one("Hay 612345678 casos.", "es")[1] == {}
    assert one("Móvil: 612345678.", "es") == ("Móvil: <PHONE>.", {"phone": 1})
    assert one("Tel. 912 345 678", "pt")[1] == {"phone": 1}


def test_words_behind_an_identifier_are_not_swallowed():
    assert one("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF")[0] == "IBAN <IBAN> BIC COBADEFF"
    assert one("TVA FR 40 303 265 045 RCS PARIS")[0] == "TVA <VAT> RCS PARIS"
    assert one("+33 1 42 68 53 00 2024")[0] == "<PHONE> 2024"
    assert one("de anne@example.org.")[0] == "de <EMAIL>."


# ---------------------------------------------------------------- properties
def documents():
    return st.tuples(st.integers(0, 2**32), st.sampled_from(LANGUAGES), st.integers(0, 4))


@given(st.lists(documents(), max_size=4))
@settings(max_examples=25, deadline=None)
def test_redacting_twice_changes_nothing_more_and_counts_are_of_the_planted(drawn):
    for seed, language, identifiers in drawn:
        text, planted = Generator(seed).document(language, identifiers, look_alikes=0)
        redacted = redact([text], language)
        again = redact(redacted.texts, language)
        assert again.texts.equals(redacted.texts)
        assert counts_of(again) == [{}]
        assert Counter(counts_of(redacted)[0]) == Counter(item.kind for item in planted)


@given(st.lists(st.one_of(st.text("0123456789 .-+@:/()AZ<>é\u00a0", max_size=60), st.text(max_size=20)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_text_is_taken_and_the_batch_does_not_matter(texts):
    whole = redact(texts, "fr")
    assert whole.counts.schema == SCHEMA
    alone = [redact([text], "fr") for text in texts]
    assert whole.texts.to_pylist() == [one.texts[0].as_py() for one in alone]
    assert counts_of(whole) == [counts_of(one)[0] for one in alone]
    assert redact(whole.texts, "fr").texts.equals(whole.texts)


def test_lists_arrays_slices_and_missing_texts_are_taken():
    texts = ["x", "anne@example.org", None, "", "é 82.50.72.202"]
    expected = ["x", "<EMAIL>", None, "", "é <IPV4>"]
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(texts, kind)
        assert redact(array).texts.to_pylist() == expected
        assert redact(array).texts.type == kind
        assert redact(array[1:]).texts.to_pylist() == expected[1:]
        assert redact(pa.chunked_array([array[:2], array[2:]])).texts.to_pylist() == expected
    assert redact(texts).texts.to_pylist() == expected
    assert redact([]).texts.to_pylist() == []


@pytest.mark.slow
def test_a_text_of_nothing_but_personal_data_is_taken():
    """Quadratic work anywhere would make this one take minutes."""
    text, counts = one("anne@example.org, 4111111111111111 " * 20_000)
    assert text == "<EMAIL>, <CARD> " * 20_000
    assert counts == {"email": 20_000, "card": 20_000}
    assert one("a@" * 200_000)[1] == one("1:" * 200_000)[1] == {}


def test_values_are_not_logged(caplog):
    with caplog.at_level(logging.DEBUG):
        one("anne@example.org, DE89370400440532013000, +33 1 42 68 53 00, 2a00:1450:4007:80e::200e", "fr")
    assert "anne" not in caplog.text
    assert "3704" not in caplog.text
    assert "42 68" not in caplog.text
