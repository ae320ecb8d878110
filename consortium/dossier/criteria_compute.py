"""Criteria on size, computation, time and energy: what numbers say of each other, of bands and of thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from consortium.dossier import wording
from consortium.dossier.criteria import (
    Dossier,
    Problem,
    close,
    criterion,
    item_text,
    number,
    numbers,
    shown,
    significant_digits,
)
from consortium.dossier.forms import band_of

FORM = "model_documentation_form"
FLOPS = ("annex_xi.compute.flops", f"{FORM}.compute.flops")
PARAMETERS = ("annex_xi.general.parameters", "annex_xii.general.parameters", f"{FORM}.properties.total_size")
ENERGY = ("annex_xi.energy.consumption", f"{FORM}.energy.training")
GENERAL_PURPOSE, SYSTEMIC = 1e23, 1e25  # FLOP: Guidelines of 18 July 2025; Art. 51(2)
DAYS_A_MONTH = 365.25 / 12
MWH = {"mwh": 1.0, "gwh": 1e3, "twh": 1e6, "kwh": 1e-3, "wh": 1e-6, "gj": 1 / 3.6, "mj": 1 / 3600, "kj": 1 / 3.6e6,
       "j": 1 / 3.6e9}  # fmt: skip
BELOW = r"(?:below|under|less than|not exceed\w*|inf[ée]rieure?s?|unter|inferior|inferiore|por debajo|sotto|en dessous)"
CLAIMS_BELOW_23 = re.compile(
    BELOW + r"[^.\n]{0,60}?(?:10\s?\^\s?\{?23|1\.?0?\s?e\s?\+?23|10²³)|\bnot\b[^.\n]{0,20}general.purpose",
    re.IGNORECASE,
)
CLAIMS_BELOW_25 = re.compile(BELOW + r"[^.\n]{0,60}?(?:10\s?\^\s?\{?25|1\.?0?\s?e\s?\+?25|10²⁵)", re.IGNORECASE)
CLAIMS_THIRD = re.compile(BELOW + r"[^.\n]{0,40}?(?:third|tiers|drittel|tercio|terzo|1/3|⅓)", re.IGNORECASE)
ESTIMATED = re.compile(
    r"estimat|estim[ée]|gesch[äa]tzt|sch[äa]tzung|estimad|stimat|stima\b|rated power|\btdp\b|thermal design",
    re.IGNORECASE,
)
MEASURED = re.compile(
    r"measur|mesur|gemessen|messung|medid|misurat|counter|compteur|z[äa]hler|contador|contator|nvml|rapl|sacct|"
    r"pm_counters|accounting",
    re.IGNORECASE,
)
UNKNOWN = re.compile(r"not known|unknown|inconnu|unbekannt|desconocid|sconosciut", re.IGNORECASE)


@criterion("blocking", "Guidelines of 18 July 2025: more than 10^23 FLOP, indicative of general purpose")
def general_purpose_threshold(dossier: Dossier) -> Iterator[Problem]:
    """A model trained with more than 10^23 FLOP is not called below that threshold, or not of general purpose."""
    flops = training_flops(dossier)
    for key, text in said(dossier):
        claim = CLAIMS_BELOW_23.search(text)
        if claim and flops is not None and flops > GENERAL_PURPOSE:
            yield key, f"{shown(claim[0])}, but the training took {flops:.3g} FLOP", "correct the claim or the number"


@criterion("blocking", "Art. 51(2), Art. 52: 10^25 FLOP or more, presumed systemic risk; Annex XI section 2")
def systemic_risk_threshold(dossier: Dossier) -> Iterator[Problem]:
    """A model trained with 10^25 FLOP or more says what Annex XI asks of models with systemic risk."""
    flops = training_flops(dossier)
    if flops is None:
        return
    for key, text in said(dossier):
        claim = CLAIMS_BELOW_25.search(text)
        if claim and flops >= SYSTEMIC:
            yield key, f"{shown(claim[0])}, but the training took {flops:.3g} FLOP", "correct the claim or the number"
    skipped = [key for key in dossier.entries if key.startswith("annex_xi.systemic.") and dossier.not_applicable(key)]
    if flops >= SYSTEMIC and skipped:
        yield (
            skipped[0],
            f"said not to apply, but {flops:.3g} FLOP are 10^25 or more",
            ("fill in section 2 of Annex XI, and notify the Commission within two weeks (Art. 52)"),
        )


@criterion("blocking", "Guidelines of 18 July 2025: beyond a third of the original's compute, provider of a new model")
def one_third_rule(dossier: Dossier) -> Iterator[Problem]:
    """Who trains a model further with more than a third of its original computation does not claim to be below."""
    own = dossier.fact("own_flops") or training_flops(dossier)
    original = original_flops(dossier)
    for key, text in said(dossier):
        claim = CLAIMS_THIRD.search(text)
        if claim and own and original and own > original / 3:
            yield (
                key,
                f"{shown(claim[0])}, but {own:.3g} FLOP are {own / original:.0%} of the {original:.3g} before",
                ("say that you are the provider of a new model, and answer for it as a whole"),
            )


@criterion("note", "Guidelines of 18 July 2025: one-third rule")
def original_compute_unknown(dossier: Dossier) -> Iterator[Problem]:
    """Of a model that this one goes on from, the computation is told, so that the one-third rule can be applied."""
    key = "public_summary.model.dependencies"
    if dossier.items(key) and original_flops(dossier) is None:
        yield key, "does not tell the training computation of the original", "add it to the item, e.g. '(6.5e22 FLOP)'"


@criterion("blocking", "F1.1, D13: consistent with other documents")
def flops_disagree(dossier: Dossier) -> Iterator[Problem]:
    """Annex XI, the Model Documentation Form and the facts tell one computation, but for rounding; the order of
    magnitude is that of the number."""
    exact, rounded = (dossier.number(key) for key in FLOPS)
    if exact and rounded and not close(exact, rounded, 0.06):
        yield FLOPS[1], f"{rounded:.3g} FLOP, and Annex XI says {exact:.3g}", "make both the same"
    bare = dossier.fact("training_flops")
    if exact and bare and not close(exact, bare, 0.06):
        yield FLOPS[0], f"{exact:.3g} FLOP, and the facts say {bare:.3g}", "make both the same"
    key = f"{FORM}.compute.flops_magnitude"
    power = re.search(r"10\s?\^?\s?\{?(\d{1,3})|1e\+?(\d{1,3})", dossier.text(key))
    flops = training_flops(dossier)
    if power and flops and int(power[1] or power[2]) != math.floor(math.log10(flops) + 1e-9):
        yield (
            key,
            f"{shown(power[0])} is not the order of magnitude of {flops:.3g} FLOP",
            (f"write 10^{math.floor(math.log10(flops))}"),
        )


@criterion("blocking", "Guidelines of 18 July 2025, annex: architecture-based estimate, 6 N D")
def flops_implausible(dossier: Dossier) -> Iterator[Problem]:
    """The computation is near 6 times parameters times tokens consumed (within a factor of 5; a mixture of experts may
    take less, attention over long sequences more)."""
    flops, size = training_flops(dossier), first(dossier, PARAMETERS) or dossier.fact("parameters")
    tokens = consumed_tokens(dossier)
    if not (flops and size and tokens):
        return
    expected = 6 * size * tokens
    sparse = re.search(r"expert|\bmoe\b", dossier.text("annex_xi.general.architecture", "annex_xi.design.model"), re.I)
    if flops > 5 * expected or (flops < expected / 5 and not sparse):
        yield (
            FLOPS[0],
            f"{flops:.3g} FLOP, but 6 x {size:.3g} parameters x {tokens:.3g} tokens are {expected:.3g}",
            ("correct the one that is wrong, or say in the method what else was counted"),
        )


@criterion("blocking", "Model Documentation Form 2: total size and its band")
def size_band(dossier: Dossier) -> Iterator[Problem]:
    """The band of the size is the one that the number of parameters lies in, and the documents agree on the number."""
    size, key = first(dossier, PARAMETERS), f"{FORM}.properties.size_band"
    if not size:
        return
    if dossier.text(key).strip() and not dossier.says(key, band_of("parameters", size)):
        yield (
            key,
            f"{shown(dossier.text(key))}, but the model has {size:.3g} parameters",
            (f"the band is {band_of('parameters', size)}"),
        )
    for key in PARAMETERS[1:]:
        other = dossier.number(key)
        if other and not close(other, size, 0.06):
            yield key, f"{other:.3g} parameters, and {PARAMETERS[0]} says {size:.3g}", "make both the same"


@criterion("blocking", "Model Documentation Form 7: training time and its band")
def time_band(dossier: Dossier) -> Iterator[Problem]:
    """The band of the training time is the one that the wall-clock days lie in."""
    key = f"{FORM}.compute.time_band"
    days = in_days(dossier.text(f"{FORM}.compute.time_wall")) or dossier.number(f"{FORM}.compute.time_wall")
    if days is not None and dossier.text(key).strip():
        band = band_of("wall_months", days / DAYS_A_MONTH)
        if not dossier.says(key, band):
            yield key, f"{shown(dossier.text(key))}, but the training took {days:.3g} days", f"the band is {band}"


@criterion("warning", "Model Documentation Form 7, 8: two significant figures")
def rounding(dossier: Dossier) -> Iterator[Problem]:
    """Numbers of the form are rounded as it asks: energy and computation to two significant figures."""
    for key in (ENERGY[1], FLOPS[1]):
        value = dossier.number(key)
        if value and significant_digits(value) > 2:
            yield (
                key,
                f"{shown(dossier.entries[key].value)} tells more than two significant figures",
                (f"write {value:.2g} with its unit"),
            )


@criterion("blocking", "Annex XI 2(e); Model Documentation Form 8: MWh")
def energy_without_unit(dossier: Dossier) -> Iterator[Problem]:
    """Energy has a unit of energy behind it, and both documents tell the same amount."""
    told = {}
    for key in ENERGY:
        text, value = dossier.text(key), dossier.entries[key].value if dossier.filled(key) else None
        amount = in_mwh(text)
        if amount is None and isinstance(value, int | float) and key == ENERGY[1]:
            amount = number(value)  # the form itself says MWh
        if amount is not None:
            told[key] = amount
        elif number(value) is not None and not UNKNOWN.search(text):
            yield key, f"{shown(value)} has no unit of energy", "write MWh (kWh, GWh) behind it"
    if len(told) == 2 and not close(told[ENERGY[0]], told[ENERGY[1]], 0.06):
        yield ENERGY[1], f"{told[ENERGY[1]]:.3g} MWh, and Annex XI says {told[ENERGY[0]]:.3g}", "make both the same"


@criterion("blocking", "Annex XI 2(e): known or estimated; Model Documentation Form 8")
def energy_not_said_estimated(dossier: Dossier) -> Iterator[Problem]:
    """Beside every amount of energy stands whether it was measured or estimated, as the method says."""
    for key, method in zip(ENERGY, ("annex_xi.energy.method", f"{FORM}.energy.training_method"), strict=True):
        if not dossier.filled(key) or wording.is_nothing(dossier.entries[key].value):
            continue
        amount, how = dossier.text(key), dossier.text(method)
        if ESTIMATED.search(amount) or UNKNOWN.search(amount):
            continue
        if ESTIMATED.search(how):
            yield key, "is estimated, as its method says, and the amount does not say so", "write 'estimated' beside it"
        elif not MEASURED.search(amount) and not MEASURED.search(how):
            yield key, "says neither measured nor estimated", "write which of the two, and by what"


@criterion("blocking", "Model Documentation Form 1: a secure hash")
def authenticity_without_hash(dossier: Dossier) -> Iterator[Problem]:
    """The authenticity of the model is a hash that can be checked: 64 hexadecimal digits of SHA-256, or 96 or 128."""
    key = f"{FORM}.general.authenticity"
    items = [item_text(item) for item in dossier.items(key)]
    if items and not any(re.search(r"\b[0-9a-fA-F]{64}(?:[0-9a-fA-F]{32}){0,2}\b", text) for text in items):
        yield key, f"{shown(items[0])} holds no secure hash", "write the SHA-256 of the weights (64 hexadecimal digits)"


@criterion("warning", "Annex XII 2(b); Model Documentation Form 2: maximum size")
def maximum_size_without_number(dossier: Dossier) -> Iterator[Problem]:
    """The maximum size of inputs and outputs is a number with its unit."""
    for key in (f"{FORM}.properties.input_size", f"{FORM}.properties.output_size"):
        text = dossier.text(key)
        if text.strip() and not numbers(text) and not isinstance(dossier.entries[key].value, int | float):
            yield key, f"{shown(text)} is no size", "write how many tokens"


def training_flops(dossier: Dossier) -> float | None:
    """FLOP of the whole training, as Annex XI tells them, or else the Model Documentation Form, or the facts."""
    return first(dossier, FLOPS) or dossier.fact("training_flops")


def original_flops(dossier: Dossier) -> float | None:
    """FLOP of the model that this one goes on from, the largest of several; None where none is told."""
    told = dossier.fact("parent_flops")
    found = [told] if told else []
    for item in dossier.items("public_summary.model.dependencies"):
        told = number(item.get("flops")) if isinstance(item, dict) else None
        text = re.search(r"[^()\n;]{1,60}?FLOPs?\b", item_text(item))
        found += [told] if told else numbers(text[0])[-1:] if text else []
    return max(found, default=None)


def consumed_tokens(dossier: Dossier) -> float | None:
    """Tokens that the training consumed, over all epochs: of the facts, or the first number of tokens in Annex XI."""
    if dossier.fact("consumed_tokens"):
        return dossier.fact("consumed_tokens")
    for item in dossier.items("annex_xi.data.consumed"):
        text = item_text(item)
        found = re.search(r"[\d][^\n;:]{0,60}?tokens?\b", text, re.IGNORECASE)
        if found and numbers(found[0]):
            return numbers(found[0])[-1]
        if isinstance(item, int | float):
            return number(item)
    return None


def first(dossier: Dossier, keys: tuple[str, ...]) -> float | None:
    """The first number told in these fields."""
    return next((value for value in map(dossier.number, keys) if value is not None), None)


def said(dossier: Dossier) -> Iterator[tuple[str, str]]:
    """(field, text) of everything said, reasons for what does not apply included."""
    for entry in dossier:
        yield entry.key, entry.reason if entry.status == "not_applicable" else entry.text


def in_mwh(text: str) -> float | None:
    """The first amount of energy in a text, in MWh."""
    amounts = r"(\d[\d.,\u00a0 ]{0,30}(?:\s?(?:[*×x]\s?)?(?:10\s?\^\s?|e\s?)[+-]?\d{1,3})?)\s?([TGMk]?W\s?h|[GMk]?J)\b"
    for found in re.finditer(amounts, text[:2000]):
        amount = number(found[1].strip())
        if amount is not None:
            return amount * MWH[found[2].replace(" ", "").lower()]
    return None


def in_days(text: str) -> float | None:
    """The first time in a text, in days."""
    unit = r"(days?|hours?|h\b|weeks?|months?|minutes?|seconds?|s\b)"
    found = re.search(r"(?<![\d.,])([\d.,]{1,40}(?:\s?[*×x]\s?10\s?\^\s?-?\d+)?)\s*" + unit, text)
    if not found or number(found[1]) is None:
        return None
    days = {"d": 1, "h": 1 / 24, "w": 7, "mo": DAYS_A_MONTH, "mi": 1 / 1440, "s": 1 / 86_400}
    letter = found[2].lower()
    return (number(found[1]) or 0.0) * days[letter[:2] if letter[0] == "m" else letter[0]]
