"""Headlines, tables and charts of a corpus's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.charts import Bar, Bars, Scale, Table
from common.distributions import Ridges, bars, logarithmic, ridges
from common.page import shown_count
from common.terminal import many
from data_pipelines.annotate.identifiers import KINDS
from data_pipelines.counted import SHOWN, excerpt, sites_of
from data_pipelines.manifest import Tally
from data_pipelines.select import REASONS

if TYPE_CHECKING:
    from data_pipelines.corpus_page import Evidence

EXCERPT = 280  # characters of an example
DOMAINS, DETAILS = 15, 8  # lines of a chart
MEANINGS = {
    "malformed": "could not be read as text",
    "too_long": "larger than a document may be",
    "broken_file": "the file breaks off here",
    "empty": "nothing left after normalisation",
    "too_short": "fewer characters than asked for",
    "wrong_language": "another language than declared was detected",
    "license": "not among the licences asked for",
    "opt_out": "the site objects to training, or gave an answer that was excluded",
    "quality": "outside a quality threshold of its language",
    "evaluation": "holds text of an evaluation set",
    "duplicate": "equal to a document that stays, but for case and spacing",
    "near_duplicate": "shares most runs of five words with a document that stays",
}
CLUSTERS = {"2": (2, 2), "3 to 5": (3, 5), "6 to 10": (6, 10), "11 to 100": (11, 100), "over 100": (101, 1 << 62)}


def subtitle(evidence: Evidence) -> str:
    """What it is made of, in one line."""
    manifest = evidence.manifest
    languages, sources = len(manifest.languages), len(manifest.sources)
    return " · ".join([
        many(languages, "language"),
        many(sources, "source"),
        f"made by hanse {manifest.tools.get('hanse', '')}",
        f"Merkle root {manifest.merkle_root[:16]}",
    ])  # fmt: skip


def headlines(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(number, what it is, what to compare it with)."""
    whole = Tally("", "")
    for one in evidence.manifest.sources.values():
        whole.add(one)
    gone = sum(whole.removed.values())
    repeated = whole.removed.get("duplicate", 0) + whole.removed.get("near_duplicate", 0)
    hidden = sum(sum(one.personal_data.values()) for one in evidence.kept.values())
    tiles = [
        (f"{whole.documents_kept:,}", "documents", f"of {whole.documents_in:,} that came in"),
        (shown_count(whole.bytes_kept, "B"), "text", f"of {shown_count(whole.bytes_in, 'B')}, UTF-8"),
    ]
    if evidence.tokens:
        tokens = sum(evidence.tokens.values())
        tiles.append((shown_count(tokens), "tokens", f"{whole.bytes_kept / max(tokens, 1):.2f} bytes per token"))
    tiles += [
        (_share(gone, whole.documents_in), "removed", f"{gone:,} documents, with reasons"),
        (_share(repeated, whole.documents_in), "repeated others", f"{repeated:,} documents"),
        (f"{hidden:,}", "personal data", "places that were replaced"),
    ]
    return tiles


def languages(evidence: Evidence) -> Table:
    """Counts of every language."""
    head = ["language", "came in", "kept", "text kept", "tokens", "bytes per token", "for validation", "removed"]
    rows = []
    for name, one in evidence.manifest.languages.items():
        tokens = evidence.tokens_of(name)
        rate = f"{one.bytes_kept / tokens:.2f}" if tokens else "not known"
        gone = sum(one.removed.values())
        rows.append([name, f"{one.documents_in:,}", f"{one.documents_kept:,}", shown_count(one.bytes_kept, "B"),
                     "not known" if tokens is None else f"{tokens:,}", rate, f"{one.validation_documents:,}",
                     f"{gone:,} ({_share(gone, one.documents_in)})"])  # fmt: skip
    return Table(head, rows)


def language_bars(evidence: Evidence) -> list[Bars]:
    """Documents, text and tokens side by side."""
    tallies = evidence.manifest.languages
    made = [_bars("Documents", {name: one.documents_kept for name, one in tallies.items()}, evidence.colours),
            _bars("Text", {name: one.bytes_kept for name, one in tallies.items()}, evidence.colours, "B")]  # fmt: skip
    if evidence.tokens:
        tokens = {name: evidence.tokens_of(name) or 0 for name in tallies}
        made.append(_bars("Tokens", tokens, evidence.colours))
    return made


def _bars(title: str, values: Mapping[str, int], colours: Mapping[str, int] | None = None, unit: str = "") -> Bars:
    labels = {name: _amount(value, unit) for name, value in values.items()}
    return bars(title, f"{_amount(sum(values.values()), unit)} in all", values, labels, colours)


def stages(evidence: Evidence) -> Bars:
    """What each reason took of what was left by then, in the order in which they are tried."""
    sums = _removed_sums(evidence)
    whole = left = sum(one.documents_in for one in evidence.manifest.sources.values())
    drawn = [Bar("came in", 100, f"{whole:,}", 0)]
    for reason in filter(sums.__getitem__, REASONS):
        took, left = sums[reason], left - sums[reason]
        label = f"\N{MINUS SIGN}{took:,} ({_share(took, whole)})"
        drawn.append(Bar(reason.replace("_", " "), 100 * took / whole, label, 2, 100 * left / whole))
    drawn.append(Bar("kept", 100 * left / max(whole, 1), f"{left:,} ({_share(left, whole)})", 3))
    return Bars("From what came in to what stays", "documents that each reason took, in this order", drawn)


def _removed_sums(evidence: Evidence) -> Counter[str]:
    sums = Counter[str]()
    for one in evidence.manifest.sources.values():
        sums.update(one.removed)
    return sums


def removed(evidence: Evidence) -> Table:
    """Removed documents, by reason and language."""
    tallies, sums = evidence.manifest.languages, _removed_sums(evidence)
    rows = [[reason.replace("_", " "), *(f"{one.removed.get(reason, 0):,}" for one in tallies.values()),
             f"{sums[reason]:,}", shown_count(sum(one.bytes[reason] for one in evidence.removed.values()), "B")]
            for reason in REASONS if sums[reason]]  # fmt: skip
    return Table(["reason", *tallies, "all", "text"], rows)


@dataclass(frozen=True)
class Reason:
    """Why documents were removed: in words, what decided most often, and examples (language, detail, id, text)."""

    name: str
    meaning: str
    said: str
    details: Bars | None
    examples: list[tuple[str, str, str, str]]


def reasons(evidence: Evidence) -> list[Reason]:
    """Every reason that removed something."""
    found = []
    for reason in REASONS:
        number = _removed_sums(evidence)[reason]
        if not number:
            continue
        details = Counter[str]()
        for one in evidence.removed.values():
            details.update({name: many for name, many in one.details.get(reason, {}).items() if name})
        name = reason.replace("_", " ")
        drawn = _top(f"{name}: what decided", details, DETAILS) if details else None
        examples = [
            (language, one.detail, one.id, excerpt(one.text, EXCERPT))
            for language, held in evidence.removed.items()
            for one in held.examples
            if one.reason == reason
        ]
        found.append(Reason(name, MEANINGS[reason], many(number, "document"), drawn, examples))
    return found


def sources(evidence: Evidence) -> list[Table]:
    """How much came of each source, and where it comes from."""
    numbers, places = [], []
    for name, one in evidence.manifest.sources.items():
        told = evidence.manifest.config.get("sources", {}).get(name, {})
        tokens = f"{evidence.tokens.get(name, 0):,}" if evidence.tokens else "not known"
        numbers.append([name, f"{one.documents_in:,}", f"{one.documents_kept:,}", shown_count(one.bytes_kept, "B"),
                        tokens, _share(sum(one.removed.values()), one.documents_in)])  # fmt: skip
        where = " · ".join(str(told[key]) for key in ("obtained", "url") if told.get(key))
        places.append([name, one.language, one.license, str(told.get("snapshot_date") or "not dated"),
                       where or "not said"])  # fmt: skip
    return [Table(["source", "came in", "kept", "text kept", "tokens", "removed"], numbers),
            Table(["source", "language", "licence", "dated", "obtained, from"], places, text=True)]  # fmt: skip


def distributions(evidence: Evidence) -> list[Ridges]:
    """Lengths and quality signals of the kept documents, a histogram a language."""
    drawn = []
    for name, what in SHOWN.items():
        values = {language: one.values[name] for language, one in evidence.kept.items() if name in one.values}
        if not values:
            continue
        if name in ("quality_characters", "quality_words"):
            scale = logarithmic(list(values.values()))
        elif name == "quality_mean_word_length":
            scale = Scale(0, 12)
        else:
            scale = Scale(0, 1)
        drawn.append(ridges(what[0].upper() + what[1:], "documents by this, median", values, evidence.colours, scale))
    return drawn


def origins(evidence: Evidence) -> list[Bars]:
    """Hosts and licences, by bytes of text."""
    return [_top("Addresses", _sum(evidence, "domains"), DOMAINS, "B"),
            _top("Licences", _sum(evidence, "licenses"), DOMAINS, "B")]  # fmt: skip


def opt_out(evidence: Evidence) -> list[Bars]:
    """What sites answer about training: of the text that is kept, and why documents went."""
    made = [_top("Opt-out, of the text kept", _sum(evidence, "opt_out"), DETAILS, "B")]
    why = Counter[str]()
    for one in evidence.removed.values():
        why.update(one.details.get("opt_out", {}))
    return made + ([_top("Opt-out, documents removed", why, DETAILS)] if why else [])


def sites(evidence: Evidence) -> Table | None:
    """What sites answer that deny, and the largest, of all documents that came in."""
    found, number = sites_of(evidence.manifest, DOMAINS)
    sizes = ("bytes", "allow_bytes", "deny_bytes", "unknown_bytes")
    rows = [[f"{row['domain'] or 'none'} ({row['language']})", f"{row['documents']:,}",
             *(shown_count(row[name], "B") for name in sizes)] for row in found]  # fmt: skip
    note = f"{number:,} sites in all, those that deny first; in opt_out/ of the corpus."
    return Table(["site", "came in", "text", "allows", "denies", "unknown"], rows, note) if rows else None


def _sum(evidence: Evidence, name: str) -> Counter[str]:
    total = Counter[str]()
    for one in evidence.kept.values():
        total.update(getattr(one, name))
    return total


def _top(title: str, values: Counter[str], most: int, unit: str = "") -> Bars:
    """The largest, and how many more there are."""
    ordered = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    shown, whole = dict(ordered[:most]), sum(values.values())
    labels = {name: f"{_amount(value, unit)} · {_share(value, whole)}" for name, value in shown.items()}
    more = f", {len(ordered) - most:,} more" if len(ordered) > most else ""
    return bars(title, f"{_amount(whole, unit)} in all{more}", shown, labels)


def personal_data_kinds(evidence: Evidence) -> Table:
    """Places that were replaced, by kind and language; values are nowhere."""
    rows = []
    for kind in KINDS:
        counts = [one.personal_data[kind.name] for one in evidence.kept.values()]
        if any(counts):
            rows.append([kind.name.replace("_", " "), *(f"{number:,}" for number in counts), f"{sum(counts):,}"])
    off = not evidence.manifest.config.get("annotate", {}).get("personal_data", True)
    note = "The corpus was made without looking for personal data." if off else ""
    return Table(["kind", *evidence.kept, "all"], rows, note)


def clusters(evidence: Evidence) -> Bars | None:
    """Clusters of documents that repeat each other, by size."""
    sizes = Counter[int]()
    for one in evidence.kept.values():
        sizes.update(one.cluster_sizes)
    values = {name: sum(many for size, many in sizes.items() if low <= size <= high)
              for name, (low, high) in CLUSTERS.items()}  # fmt: skip
    shown = {name: many for name, many in values.items() if many}
    if not shown:
        return None
    said = "documents in a cluster, one of which stays: how many such clusters"
    return bars("Clusters of repeated documents", said, shown, {name: f"{many:,}" for name, many in shown.items()})


def largest_clusters(evidence: Evidence) -> Table:
    """What was repeated most, in each language."""
    rows = [[language, f"{one.size:,}", one.id, excerpt(one.text, EXCERPT // 2)]
            for language, held in evidence.kept.items() for one in held.largest]  # fmt: skip
    return Table(["language", "documents", "stays", "begins"], rows, text=True)


def made(evidence: Evidence) -> Table:
    """How it was made, and its identity."""
    manifest, select = evidence.manifest, evidence.manifest.config.get("select", {})
    rows = [["Merkle root", manifest.merkle_root], ["folder", str(manifest.folder)]]
    rows += [[name, version] for name, version in manifest.tools.items()]
    rows += [[f"language of {name}", said] for name, said in manifest.language_checks.items()]
    rows += [[f"select.{name}", str(value)] for name, value in select.items()]
    return Table(["", ""], rows, text=True)


def _amount(value: int, unit: str) -> str:
    return shown_count(value, unit) if unit or value >= 100_000 else f"{value:,}"


def _share(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
