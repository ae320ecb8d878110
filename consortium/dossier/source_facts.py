"""Which sources are of which kind in the sense of the public summary, and what opt-outs did to them.

A source that is read out of a pinned public package, or from a public dataset by its Hub id, is a publicly available
dataset. What the others are, only a person can tell: ``source_category`` in ``dossier.yaml``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.errors import HanseError
from common.files import read_json
from consortium.dossier.data_facts import Corpora, language_name
from consortium.dossier.evidence import Citation, Evidence, Paper
from data_pipelines.annotate.opt_out import CRAWLERS, CRAWLERS_DATE
from data_pipelines.annotate.opt_out_snapshot import origin_of
from data_pipelines.shards import SIDECAR, beside

CATEGORIES = {
    "public": "publicly available datasets",
    "licensed": "data commercially licensed by rightsholders",
    "private": "other private data from third parties",
    "crawled": "data crawled by the provider or on its behalf",
    "user": "user data",
    "synthetic": "synthetic data",
    "other": "other sources",
}
LARGE = 0.03  # of the public data: a dataset beyond this share is named
TOP, TOP_SME, MOST_SME = 10, 20, 1_000  # one domain name in so many is listed; of small providers, and at most
PROTOCOLS = (
    "robots.txt (RFC 9309)", "Content-Usage in robots.txt and HTTP headers (IETF aipref draft)",
    "Content-Signal in robots.txt (Cloudflare)", "TDM Reservation Protocol (tdmrep.json, HTTP header, meta)",
    "X-Robots-Tag and meta noai", "ai.txt (Spawning)", "trust.txt (JournalList)",
)  # fmt: skip
OPT_OUT = ("opt_out.protocols", "opt_out.snapshot", "opt_out.decision", "opt_out.outcome")


def tell(evidence: Evidence, corpora: Corpora) -> None:
    """``opt_out.*`` and, as far as no answer is needed for it, ``sources.*``."""
    if corpora.lost or corpora.lost_corpora:
        reason = f"not found: {', '.join([*corpora.lost, *corpora.lost_corpora])}"
        evidence.miss((*OPT_OUT, *_keys()), reason)
        return
    _opt_out(evidence, corpora)
    sidecars = [one.shards_paper.at("shards") for one in corpora.texts]
    evidence.know("sources.domains_by_source", _domains(corpora), *sidecars)
    classify(evidence, {}, small=False)


def _keys() -> list[str]:
    ends = ("used", "modalities", "none", "list", "large", "others", "period", "domains")
    return ["sources.categories", *(f"sources.{category}.{end}" for category in CATEGORIES for end in ends)]


def category_of(source: Mapping[str, Any], answers: Mapping[str, str]) -> str | None:
    """The category of a row of ``corpus.sources``; None: a person must say."""
    if source["name"] in answers:
        return answers[source["name"]]
    return "public" if source["public"] else None


def classify(evidence: Evidence, answers: Mapping[str, str], *, small: bool) -> None:
    """Set ``sources.*``; again once a person has said of which category sources are.

    Args:
        answers: {source: category}; they go before what is derived here.
        small: whether the provider is an SME, which may list fewer domain names.
    """
    if "corpus.sources" not in evidence:
        return
    rows, at = evidence["corpus.sources"].value, evidence["corpus.sources"].citations
    for key in _keys():
        evidence.known.pop(key, None)
    by: dict[str, list[Any]] = {category: [] for category in CATEGORIES}
    open_: list[Any] = []
    for row in rows:
        category = category_of(row, answers)
        (open_ if category is None else by[category]).append(row)
    if not open_:
        evidence.know("sources.categories", [CATEGORIES[one].capitalize() for one in CATEGORIES if by[one]], *at)
    reason = f"the category of {', '.join(row['name'] for row in open_)} is not known; answer source_category"
    evidence.miss("sources.categories", reason)
    for category, held in by.items():
        _one(evidence, category, held, more=bool(open_), reason=reason, at=at)
    _public(evidence, by["public"], at)
    _crawled(evidence, by["crawled"], at, small)
    if by["private"]:
        evidence.know("sources.private.list", [_row(one) for one in by["private"]], *at)


def _one(
    evidence: Evidence, category: str, held: list[Any], *, more: bool, reason: str, at: tuple[Citation, ...]
) -> None:
    name, ends = CATEGORIES[category], [key for key in _keys() if key.startswith(f"sources.{category}.")]
    if held:
        if category != "user":  # of two kinds, and which of them only a person can tell
            evidence.know(f"sources.{category}.used", "Yes", *at)
        evidence.know(f"sources.{category}.modalities", ["Text"], *at)
        evidence.miss(ends, "only a person can tell")
    elif more:
        evidence.miss(ends, reason)
    else:
        evidence.know(f"sources.{category}.used", "No", *at)
        for key in ends:
            if not key.endswith(".used"):
                evidence.rule_out(key, f"no {name} were used: none of the corpus's sources is of this kind", *at)


def _public(evidence: Evidence, rows: list[Any], at: tuple[Citation, ...]) -> None:
    if not rows:
        return
    total = sum(row["bytes"] for row in rows) or 1
    large = [row for row in rows if row["bytes"] > LARGE * total]
    small = [row for row in rows if row not in large]
    evidence.know("sources.public.large", [_row(row) for row in large], *at)
    if small:
        languages = ", ".join(language_name(code) for code in dict.fromkeys(row["language"] for row in small))
        names = ", ".join(row["name"] for row in small)
        told = f"{len(small)} datasets of text, each of 3 % or less of the public data, in {languages}: {names}"
        evidence.know("sources.public.others", told, *at)
    else:
        evidence.rule_out("sources.public.others", "every public dataset is large, and listed", *at)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": row["name"], "version": row["version"] or "not stated", "link": row["url"] or "not stated",
            "language": row["language"], "licence": row["license"],
            "part": f"{row['documents']:,} documents, {row['bytes']:,} bytes after curation"}  # fmt: skip


def _crawled(evidence: Evidence, rows: list[Any], at: tuple[Citation, ...], small: bool) -> None:
    if not rows:
        return
    dates = sorted(row["date"] for row in rows if len(row["date"]) >= 7)
    if len(dates) == len(rows):
        first, last = ("/".join(reversed(date[:7].split("-"))) for date in (dates[0], dates[-1]))
        evidence.know("sources.crawled.period", f"{first} to {last}", *at)
    found, domains = evidence.plain("sources.domains_by_source"), Counter[str]()
    if found is None:
        return evidence.miss("sources.crawled.domains", "the sidecars of the shards are not here to be counted")
    for row in rows:
        domains.update(found.get(row["name"], {}))
    listed = top_domains(domains, small=small)
    rule = "5 % or 1,000, whichever is less (SME)" if small else "10 %"
    evidence.know("sources.crawled.domains", [
        f"{len(listed):,} of {len(domains):,} domain names, the largest {rule} by bytes of text",
        *(f"{name} ({domains[name]:,} bytes)" for name in listed),
    ], *evidence["sources.domains_by_source"].citations)  # fmt: skip


def top_domains(sizes: Mapping[str, int], *, small: bool) -> list[str]:
    """The domain names that a summary lists, the largest first: the top 10 % of all names by size of their content; of
    SMEs the top 5 %, or 1,000 if that is less (template, footnote 16). At least one, where there are any."""
    ranked = sorted(sizes, key=lambda name: (-sizes[name], name))
    number = -(-len(ranked) // (TOP_SME if small else TOP))
    return ranked[: min(number, MOST_SME) if small else number]


def registrable(url: str | None) -> str | None:
    """The registrable domain of a web address (``example.co.uk``), after the Public Suffix List; None: no address."""
    host = (origin_of(url) or "").partition("://")[2].partition(":")[0]
    number = host.startswith("[") or host.replace(".", "").isdecimal()  # an IP address has no suffix
    return (None if number else _suffixes().privatesuffix(host)) or host or None


@cache
def _suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


def _domains(corpora: Corpora) -> dict[str, dict[str, int]] | None:
    """{source: {registrable domain: bytes}} of the training documents; None where a sidecar is not here."""
    found: dict[str, Counter[str]] = {}
    for one in corpora.texts:
        for entry in one.shards.of("train"):
            path = beside(one.shards.folder / entry.name, SIDECAR)
            if not path.is_file():
                return None
            for row in pq.read_table(path, columns=["source", "url", "bytes"]).to_pylist():
                domain = registrable(row["url"])
                if domain:
                    found.setdefault(row["source"], Counter())[domain] += row["bytes"]
    return {name: dict(counts) for name, counts in found.items()}


def _opt_out(evidence: Evidence, corpora: Corpora) -> None:
    at = corpora.cite("config.annotate.opt_out_snapshot")
    snapshots = {one.name: one.config["annotate"]["opt_out_snapshot"] for one in corpora.manifests}
    removed = Counter({language: tally.removed.get("opt_out", 0)
                       for one in corpora.manifests for language, tally in one.languages.items()})  # fmt: skip
    if not any(snapshots.values()):
        evidence.know("opt_out.protocols", ["None by hanse: no snapshot of opt-outs was consulted"], *at)
        for key in ("opt_out.snapshot", "opt_out.decision", "opt_out.outcome"):
            evidence.rule_out(key, "no snapshot of opt-outs was consulted when the corpus was made", *at)
        return
    evidence.know("opt_out.protocols", list(PROTOCOLS), *at)
    evidence.know("opt_out.decision", [
        f"Corpus {one.name}: removed by verdict: {', '.join(one.config['select']['opt_out']) or 'none'}; asked for "
        f"{len(CRAWLERS)} crawlers (list of {CRAWLERS_DATE}), '*' included" for one in corpora.manifests
    ], *corpora.cite("config.select.opt_out"))  # fmt: skip
    lines = [f"{language_name(code)}: {number:,} documents removed" for code, number in removed.items()]
    evidence.know("opt_out.outcome", lines, *corpora.cite("sources"))
    _snapshots(evidence, snapshots)


def _snapshots(evidence: Evidence, snapshots: Mapping[str, str | None]) -> None:
    lines, citations = [], []
    for name, folder in snapshots.items():
        if not folder:
            lines.append(f"Corpus {name}: none consulted")
            continue
        path = Path(folder) / "manifest.json"
        try:
            told = read_json(path, "opt-out snapshot")
        except HanseError:
            return evidence.miss("opt_out.snapshot", f"the snapshot of the corpus {name} is not here any more")
        dates = f"fetched {told['first_fetched']} to {told['last_fetched']}"
        lines.append(f"Corpus {name}: {dates}, SHA-256 {told['sha256']}")
        citations.append(Paper.of(path).at("first_fetched"))
    evidence.know("opt_out.snapshot", lines, *citations)
