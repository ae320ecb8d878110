"""Criteria on what the model was trained on: modalities, size, languages, each kind of source (template 1.3 and 2)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from consortium.dossier import languages, wording
from consortium.dossier.criteria import Dossier, Problem, close, criterion, item_text, numbers, part, shown
from consortium.dossier.criteria_summary import PERIOD
from consortium.dossier.forms import band_of

DATA, CRAWLED, SYNTHETIC = "public_summary.data", "public_summary.crawled", "public_summary.synthetic"
LARGE = "public_summary.public.large_datasets"
NUMBER_OF_POINTS = ("annex_xi.data.number", "model_documentation_form.data.number")
SECTIONS = tuple(
    f"public_summary.{name}" for name in ("public", "licensed", "private", "crawled", "synthetic", "other")
)
USER = ("public_summary.user.model_interactions", "public_summary.user.other_services")
USER_TOLD = ("public_summary.user.description", "public_summary.user.modalities")
MODALITIES = {
    "text": "text|texte|texto|testo", "image": "images?|bild|bilder|im[áa]genes?|imagen|immagini?",
    "audio": "audio|sound|speech|parole|sprache|voz|voce", "video": "videos?|v[íi]d[ée]os?",
    "other": "other|autre|andere|sonstige|otra|altr[oa]|code|tabular|table",
}  # fmt: skip
INEXACT = re.compile(
    r"(?<!-)\b(latest|newest|current|main|master|head|not stated|unknown|not known|unspecified|no pinned|various|"
    r"derni[èe]re|aktuelle?|neueste|[úu]ltima|ultima|inconnue?|unbekannt|desconocida|sconosciuta)\b",
    re.IGNORECASE,
)
COMMON_CRAWL = re.compile(r"common\s?-?crawl|\bcc-(?:main|news)\b|\bCC\b", re.IGNORECASE)
SNAPSHOT = re.compile(r"CC-(?:MAIN|NEWS)-\d{4}-\d\d", re.IGNORECASE)
DATASETS = re.compile(
    r"common\s?-?crawl|fineweb|\boscar\b|\bc4\b|culturax|hplt|redpajama|wikipedia|\bpile\b|dclm|laion|madlad|dataset|"
    r"corpus|jeu de donn|datensatz|conjunto de datos",
    re.IGNORECASE,
)
A_PART = re.compile(
    r"\b(part|parts|subset|portion|sample|some|partie|teil|auszug|parte|porci[óo]n|filtered|selected|selection|"
    r"filtr[ée]\w*|gefiltert|filtrad\w|filtrat\w)\b",
    re.IGNORECASE,
)
COUNTED = re.compile(
    r"\W*(?:(?:and|et|und|y|e|over|more than|about|around|some|plus de|environ|mehr als|[üu]ber|rund|m[áa]s de|unas|"
    r"oltre|circa|pi[ùu] di)\s+)?(?:\d[\d,. ]*|many|several|various|multiple|all|most|plusieurs|toutes|viele|mehrere|"
    r"alle|varias|todas|muchas|molte|diverse|tutte)\+?\s+(?:\w+\s+){0,3}?(languages?|langues?|sprachen?|lenguas?|idiomas?|lingue)",
    re.IGNORECASE,
)
TOKENIZER = re.compile(r"tokeni[sz]|vocab|jeton|tokenisier|segment|bpe|sentencepiece", re.IGNORECASE)
# Template, footnote 16. Not taken from what fills the form: a mistake there would go unseen.
TOP, TOP_SMALL, MOST_SMALL = 0.10, 0.05, 1_000


@criterion("blocking", "F1.3.a.1, F1.3.b.1, F2.1.b.2: modalities")
def modalities_contradict(dossier: Dossier) -> Iterator[Problem]:
    """A modality has a size if and only if it is among the modalities of the data; sections name no others."""
    overall = modalities(dossier.text(f"{DATA}.modalities"))
    if not overall:
        return
    for name in ("text", "image", "audio", "video"):
        key = f"{DATA}.{name}_size"
        if name in overall and dossier.not_applicable(key):
            yield key, f"{name} is among the modalities, and its size is said not to apply", "give the size"
        elif name not in overall and dossier.text(key).strip():
            yield key, f"a size is given, and {name} is not among the modalities", f"add {name}, or take the size away"
    for key in (f"{section}.modalities" for section in (*SECTIONS, "public_summary.user")):
        more = modalities(dossier.text(key)) - overall - {"other"}
        if more:
            yield key, f"{', '.join(sorted(more))} is not among the modalities of the data", "correct one of them"


@criterion("warning", "F1.3.a.1, F2.1.b.1")
def modality_unknown(dossier: Dossier) -> Iterator[Problem]:
    """Modalities are named in the template's words: text, image, audio, video, or what the other one is."""
    for entry in dossier:
        if entry.key.endswith(".modalities") and entry.text.strip() and not modalities(entry.text):
            yield entry.key, f"{shown(entry.text)} is no modality", "write Text, Image, Audio, Video, or Other"


@criterion("blocking", "F1.3.b.1, F1.3.b.3: size band")
def text_size_band(dossier: Dossier) -> Iterator[Problem]:
    """The band of the text's size is the one that the number of training tokens lies in."""
    key, tokens = f"{DATA}.text_size", training_tokens(dossier)
    if tokens is not None and dossier.text(key).strip() and not dossier.says(key, band_of("tokens", tokens)):
        yield (
            key,
            f"{shown(dossier.text(key))}, but there are {tokens:,.0f} tokens",
            (f"the band is {band_of('tokens', tokens)}"),
        )


@criterion("blocking", "most failed: languages; F1.3.e.1, F1.3.e.2: a list, not a number")
def languages_counted(dossier: Dossier) -> Iterator[Problem]:
    """Languages are listed one by one; how many there are tells nobody which."""
    for item in dossier.items(f"{DATA}.languages"):
        text = item_text(item)
        if COUNTED.match(text) and not languages.named(text) and not languages.coded(text):
            yield f"{DATA}.languages", f"{shown(text)} counts languages", "list each with its name"
            break


@criterion("blocking", "most failed: EU languages listed; F1.3.e.3")
def union_languages_unnamed(dossier: Dossier) -> Iterator[Problem]:
    """The Union's languages in the data are named, not only given as codes; if there is none, that is said."""
    key = f"{DATA}.languages"
    items = [item_text(item) for item in dossier.items(key)]
    text = "\n".join(items)
    if not text.strip() or any(COUNTED.match(item) and not languages.named(item) for item in items):
        return
    told = dossier.facts.get("language_codes")
    known = (
        {code for code in told if isinstance(code, str) and code in languages.UNION}
        if isinstance(told, list)
        else set()
    )
    codes = sorted(known.union(*map(languages.coded, items)) - languages.named(text))
    if codes:
        yield (
            key,
            f"does not name {', '.join(codes[:6])}, or only by code",
            f"write names: {languages.UNION[codes[0]][0]}",
        )
    elif not languages.named(text) and not re.search(r"\b(none|aucune|keine|ninguna|nessuna)\b", text, re.IGNORECASE):
        yield key, "names no official language of the Union", "name each that is in the data, or say that none is"


@criterion("blocking", "F1.3.e.4; Annex XI 2(c): number of data points")
def language_totals(dossier: Dossier) -> Iterator[Problem]:
    """The tokens of the languages add up to the tokens of the data, and their shares to 100 %."""
    key = f"{DATA}.languages"
    items = [item_text(item) for item in dossier.items(key)]
    each = [tokens_in(text) for text in items]
    told = [value for value in each if value is not None]
    total = exact_tokens(dossier)
    if told and len(told) == len(items) > 1 and total and not close(sum(told), total, 0.02):
        yield key, f"add up to {sum(told):,.0f} tokens, and Annex XI tells {total:,.0f}", "correct one of them"
    percent = [re.search(r"(\d{1,3}(?:[.,]\d{1,9})?)\s?%", text) for text in items]
    shares = [float(found[1].replace(",", ".")) for found in percent if found]
    if len(shares) == len(items) > 1 and abs(sum(shares) - 100) > max(1.0, 0.06 * len(shares)):
        yield key, f"their shares add up to {sum(shares):.1f} %", "correct them, or name what the rest is"


@criterion("blocking", "F1.1; Model Documentation Form 6: number of data points")
def data_points_disagree(dossier: Dossier) -> Iterator[Problem]:
    """Annex XI and the Model Documentation Form tell the same number of training tokens, but for rounding."""
    exact, rounded = (next(filter(None, map(tokens_in, texts(dossier, key))), None) for key in NUMBER_OF_POINTS)
    if exact and rounded and not close(exact, rounded, 0.06):
        yield NUMBER_OF_POINTS[1], f"{rounded:,.0f} tokens, and Annex XI says {exact:,.0f}", "make both the same"


@criterion("warning", "F1.3.g.2: how tokens were counted")
def counting_untold(dossier: Dossier) -> Iterator[Problem]:
    """It is said with which tokenizer the size of the text was counted."""
    key = f"{DATA}.comments"
    if dossier.filled(f"{DATA}.text_size") and dossier.filled(key) and not TOKENIZER.search(dossier.text(key)):
        yield key, "does not say how tokens were counted", "name the tokenizer and its vocabulary"


@criterion("note", "F1.3.f.1, F1.3.f.2: national, regional and demographic")
def characteristics_incomplete(dossier: Dossier) -> Iterator[Problem]:
    """Other characteristics tell of where and of whom the data speak: national or regional, and demographic."""
    key = f"{DATA}.other_characteristics"
    text = dossier.text(key)
    missing = [name for name, pattern in (
        ("national or regional", r"nation|region|r[ée]gion|countr|pays|land|l[äa]nder|pa[íi]s|paes|europ|union"),
        ("demographic", r"demogra|d[ée]mogra|\bage|gender|population|author|speaker|people|person|\bsex|geschlecht|"
                        r"edad|g[ée]nero|genere|et[àa]\b"),
    ) if not re.search(pattern, text, re.IGNORECASE)]  # fmt: skip
    if text.strip() and missing:
        yield key, f"tells nothing {' or '.join(missing)}", "tell it, or say that it is not known"


@criterion("blocking", "F2.1.a.2, F2.2.2.a.2, F2.3.a.2, F2.5.a.2: answers that hold together")
def section_contradicts(dossier: Dossier) -> Iterator[Problem]:
    """Where the answer is no, nothing else is told in the section; where it is yes, something is."""
    for section in SECTIONS:
        question = f"{section}.used"
        others = [key for key in dossier.entries
                  if key.startswith(f"{section}.") and not key.endswith((".used", ".comments"))]  # fmt: skip
        told = [key for key in others if dossier.text(key).strip()]
        if dossier.says(question, "no") and told:
            yield question, f"says no, and {told[0]} tells something", "correct the one that is wrong"
        elif dossier.says(question, "yes") and others and all(map(dossier.not_applicable, others)):
            yield question, "says yes, and everything else is said not to apply", "fill in the section"
    told = [key for key in USER_TOLD if dossier.text(key).strip()]
    if all(dossier.says(key, "no") for key in USER) and told:
        yield USER[0], f"says no, and {told[0]} tells something", "correct the one that is wrong"
    elif any(dossier.says(key, "yes") for key in USER) and dossier.not_applicable(USER_TOLD[0]):
        yield USER_TOLD[0], "user data were used, and which is said not to apply", "describe them"


@criterion("blocking", "assessors on summaries of 2026: no source is declared")
def no_source(dossier: Dossier) -> Iterator[Problem]:
    """At least one kind of source was used; nothing comes from nothing."""
    asked = [*(f"{section}.used" for section in SECTIONS), *USER]
    if all(dossier.says(key, "no") for key in asked):
        yield asked[0], "every kind of source is answered no", "say where the data come from"


@criterion("blocking", "most failed: exact dataset versions; F2.1.c.5; 'Common Crawl' without snapshots")
def dataset_unversioned(dossier: Dossier) -> Iterator[Problem]:
    """Each large dataset has an exact version: a release, a revision, a date; of Common Crawl its snapshots."""
    for key in (LARGE, "public_summary.private.datasets"):
        for item in dossier.items(key):
            name, version = _named(item)
            if COMMON_CRAWL.search(name) and not SNAPSHOT.search(item_text(item)):
                yield key, f"{shown(name)}: which snapshots?", "list them, e.g. CC-MAIN-2024-10"
            elif not re.search(r"\d", version) or INEXACT.search(version):
                yield key, f"{shown(name)} has no exact version", "add release, revision or date of retrieval"


@criterion("blocking", "F2.1.c.3, F2.2.2.c.4: a link for each")
def dataset_without_link(dossier: Dossier) -> Iterator[Problem]:
    """Each large dataset has a link to where it is published."""
    for key in (LARGE, "public_summary.private.datasets"):
        for item in dossier.items(key):
            link = part(item, "link", "url", "doi", "href")
            if not wording.LINK.search(item_text(item)) and not (isinstance(link, str) and wording.is_link(link)):
                yield key, f"{shown(_named(item)[0])} has no link", "link to where it can be had"


@criterion("blocking", "F2.1.c.6: how a part was selected")
def dataset_part_unexplained(dossier: Dossier) -> Iterator[Problem]:
    """Where a part of a large dataset was used, it is said which: how it was selected, or how much of it is left."""
    for item in dossier.items(LARGE):
        told = part(item, "part", "selection", "part_used", "how")
        text = told if isinstance(told, str) else "" if isinstance(item, dict) else item_text(item)
        after = A_PART.split(text)[-1] if A_PART.search(text) else None
        if after is not None and len(re.findall(r"\w{2,}", text)) < 4 and not re.search(r"\d", text):
            yield LARGE, f"{shown(_named(item)[0])}: {shown(text)}, selected how?", "say by which rule, or how much"


@criterion("note", "template 2.1: large is more than 3 % of the public data")
def dataset_too_small_to_list(dossier: Dossier) -> Iterator[Problem]:
    """A dataset whose share is told is listed as large only above 3 % of the public data."""
    for item in dossier.items(LARGE):
        found = re.search(r"(\d{1,3}(?:\.\d+)?)\s?%", str(part(item, "share") or ""))
        if found and float(found[1]) < 3:
            yield LARGE, f"{shown(_named(item)[0])} is {found[1]} % of the data", "move it to the other datasets"


@criterion("blocking", "F2.3.b.1, F2.3.b.2; assessors on summaries of 2026: no identifiers, datasets named as crawlers")
def crawler_unidentified(dossier: Dossier) -> Iterator[Problem]:
    """Where crawlers were used, each has the name that sites see (its user agent), and is no dataset."""
    key = f"{CRAWLED}.crawlers"
    if dossier.says(f"{CRAWLED}.used", "yes") and dossier.not_applicable(key):
        yield key, "crawlers were used, and their names are said not to apply", "give the user agent of each"
    for item in dossier.items(key):
        text = item_text(item)
        if DATASETS.search(text) and not re.search(r"bot\b|crawler|spider|ccbot", text, re.IGNORECASE):
            yield key, f"{shown(text)} is a dataset, not a crawler", "give the user agent, and list the dataset in 2.1"
        elif len(text.split()) > 12 and "/" not in text:
            yield key, f"{shown(text)} is a description, not a name", "give the user agent alone"


@criterion("warning", "F2.3.d.1 to F2.3.d.5; template 2.3: robots.txt, captchas, paywalls")
def crawler_behaviour_incomplete(dossier: Dossier) -> Iterator[Problem]:
    """The behaviour of the crawlers is told for robots.txt, captchas, paywalls and pages behind a login."""
    key, text = f"{CRAWLED}.behaviour", dossier.text(f"{CRAWLED}.behaviour")
    asked = {"robots.txt": r"robots|rfc\s?9309", "captchas": r"captcha",
             "paywalls": r"pay.?wall|paid|p[ée]age|payant|bezahl|pago|pagamento",
             "logins": r"pass.?word|log.?in|sign.?in|mot de passe|anmeld|passwort|contrase|account"}  # fmt: skip
    missing = [name for name, pattern in asked.items() if not re.search(pattern, text, re.IGNORECASE)]
    if text.strip() and missing:
        yield key, f"tells nothing of {', '.join(missing)}", "say what the crawlers do there"


@criterion("blocking", "F2.3.e.1 to F2.3.e.4: period, MM/YYYY")
def period_malformed(dossier: Dossier) -> Iterator[Problem]:
    """The period of collection has a first and a last month: MM/YYYY to MM/YYYY."""
    text = dossier.text(PERIOD).strip()
    months = re.findall(r"(?<!\d)(?:\d{4}-(?:0[1-9]|1[0-2])|(?:0?[1-9]|1[0-2])/\d{4})(?!\d)", text)
    if text and len(months) < 2:
        yield PERIOD, f"{shown(text)} has no first and last month", "write MM/YYYY to MM/YYYY, of each crawler"


@criterion("blocking", "F2.3.h.1; template 2.3, footnote 16: top 10 %, SMEs top 5 % or 1,000")
def domains_too_few(dossier: Dossier) -> Iterator[Problem]:
    """The list of domain names is as long as its rule asks: 10 % of all names, for an SME 5 % or 1,000 if that is less;
    the first item tells how many of how many are listed, the others are the names."""
    key = f"{CRAWLED}.domains"
    items = [item_text(item) for item in dossier.items(key)]
    if dossier.says(f"{CRAWLED}.used", "yes") and dossier.not_applicable(key):
        yield key, "crawlers were used, and the domain names are said not to apply", "list the top 10 % of them"
    if not items:
        return
    names, total, small = domain_names(items)
    if total is None:
        yield key, "does not tell how many domain names there are", "begin with 'N of M domain names, the largest 10 %'"
        return
    least = math.ceil(total * (TOP_SMALL if small else TOP) - 1e-9)
    least = min(least, MOST_SMALL) if small else least
    if len(names) < least:
        yield key, f"{len(names):,} of {total:,.0f} domain names, and the rule asks for {least:,}", "list the rest"


@criterion("blocking", "template 2.3, footnote 16: top and second level, example.com")
def domains_malformed(dossier: Dossier) -> Iterator[Problem]:
    """Domain names are names of sites, each once: no addresses of pages, no 'www.'."""
    key = f"{CRAWLED}.domains"
    names, _, _ = domain_names([item_text(item) for item in dossier.items(key)])
    wrong = [name for name in names if not wording.is_domain(name.casefold()) or name.casefold().startswith("www.")]
    if wrong:
        yield key, f"{shown(wrong[0])} is no domain name ({len(wrong):,} such)", "write top and second level, europa.eu"
    twice = len(names) - len({name.casefold() for name in names})
    if twice:
        yield key, f"{twice:,} domain names stand twice", "list each once"


@criterion("blocking", "F2.5.c.1, F2.5.c.2, F2.5.d.1: models that generated data")
def synthetic_without_model(dossier: Dossier) -> Iterator[Problem]:
    """Synthetic data come with the models that generated them, each with its version."""
    keys = [f"{SYNTHETIC}.market_models", f"{SYNTHETIC}.other_models"]
    if dossier.says(f"{SYNTHETIC}.used", "yes") and not any(dossier.text(key).strip() for key in keys):
        yield keys[0], "synthetic data were used, and no model is named", "name each model that generated them"
    for key in keys:
        for item in dossier.items(key):
            text = item_text(item)
            if text.strip() and not re.search(r"\d", text):
                yield key, f"{shown(text)} has no version", "add its version"


@criterion("warning", "F2.1.d.3 to F2.1.d.6: modality, nature, languages, dates")
def other_datasets_vague(dossier: Dossier) -> Iterator[Problem]:
    """The other public datasets are described by modality and language."""
    key = "public_summary.public.other_datasets"
    text = dossier.text(key)
    told = languages.named(text) or re.search(r"\((?:[a-z]{2})\)|langu|sprach|lengua|idioma|lingu", text, re.IGNORECASE)
    missing = [name for name, found in (("modality", modalities(text)), ("languages", told)) if not found]
    if text.strip() and missing:
        yield key, f"tells nothing of {' and '.join(missing)}", "describe them: modality, content, languages, dates"


def modalities(text: str) -> set[str]:
    """The modalities that a text names."""
    return {name for name, pattern in MODALITIES.items() if re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE)}


def texts(dossier: Dossier, *keys: str) -> list[str]:
    """The texts of the items of fields."""
    return [item_text(item) for key in keys for item in dossier.items(key)]


def tokens_in(text: str) -> float | None:
    """The first number of tokens in a text."""
    found = re.search(r"\d[\d,. ]{0,40}(?:\s?[*×x]\s?10\s?\^\s?\d+|e\+?\d+)?\s*(?:million|billion|trillion|[kMBT])?"
                      r"\s+tokens?\b", text)  # fmt: skip
    return next(iter(numbers(found[0])), None) if found else None


def exact_tokens(dossier: Dossier) -> float | None:
    """Tokens of the training data, each document once: of Annex XI, the Model Documentation Form, or the facts."""
    told = next(filter(None, map(tokens_in, texts(dossier, *NUMBER_OF_POINTS))), None)
    return told or dossier.fact("corpus_tokens")


def training_tokens(dossier: Dossier) -> float | None:
    """Tokens of the training data, each document once; by the languages where nothing else tells it."""
    each = [tokens_in(text) for text in texts(dossier, f"{DATA}.languages")]
    return exact_tokens(dossier) or (sum(filter(None, each)) or None)


def domain_names(items: list[str]) -> tuple[list[str], float | None, bool]:
    """(names, how many there are in all if the first item tells it, whether the rule of SMEs was taken)."""
    first = f"{items[0].strip()[:120]} " if items else ""
    head = re.match(r"(\d[\d,. ]{0,20}) (?:of|de|von|di|sur|su) (\d[\d,. ]{0,20}) ", first)
    total = next(iter(numbers(head[2].strip())), None) if head else None
    listed = items[1:] if head else items
    names = [text.split()[0] for text in listed if text.split()]
    return names, total, bool(head and re.search(r"\bSMEs?\b|5\s?%|\bPME\b|\bKMU\b|\bpymes?\b|\bPMI\b", first))


def _named(item: object) -> tuple[str, str]:
    """(name, what tells its version) of a dataset in a list: an object's parts, or a text without its links."""
    if isinstance(item, dict):
        version = part(item, "version", "revision", "snapshot", "snapshots", "date", "release")
        return item_text(part(item, "name", "dataset", "id") or item), item_text(version)
    text = wording.LINK.sub(" ", item_text(item)).strip()
    return text if re.search(r"[^\W\d_]{2}", text) else item_text(item), text
