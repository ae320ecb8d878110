"""Whether the site that a text comes from objects to training on it: allow, deny or unknown, and why.

Signals, each read from a frozen snapshot or from the page itself; any one that objects makes the answer *deny*:

- robots.txt (RFC 9309, parsed by protego): disallowed for one of the crawlers asked about;
- robots.txt ``Content-Usage: [path] train-ai=n`` (draft-ietf-aipref-attach-04) and Cloudflare's ``Content-Signal``;
- ``/.well-known/tdmrep.json``, header and ``<meta>`` ``tdm-reservation: 1`` (W3C TDM Reservation Protocol, 2024). Which
  of the three has precedence changed between its versions: here a reservation counts wherever it stands;
- header or ``<meta>`` X-Robots-Tag ``noai``, header ``Content-Usage``;
- ``/ai.txt`` (Spawning) and ``/trust.txt`` ``datatrainingallowed=no`` (JournalList).

*allow* means that the site was asked and nothing objects; *unknown* that nobody knows: not asked, or no answer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from protego import Protego

from data_pipelines.annotate.opt_out_snapshot import Origin, Snapshot, origin_of

ALLOW, DENY, UNKNOWN = "allow", "deny", "unknown"
# Crawlers that gather text for training, and Common Crawl's; "*" asks what is said to everybody.
# Names after the ai.robots.txt project (MIT licence), without those that fetch single pages on behalf of a person.
CRAWLERS_DATE = "2026-11-24"
CRAWLERS = (
    "*", "CCBot", "GPTBot", "ClaudeBot", "anthropic-ai", "Claude-Web", "Google-Extended", "GoogleOther",
    "Applebot-Extended", "meta-externalagent", "FacebookBot", "Amazonbot", "Bytespider", "TikTokSpider", "AI2Bot",
    "Ai2Bot-Dolma", "cohere-ai", "cohere-training-data-crawler", "DeepSeekBot", "PanguBot", "PetalBot",
    "ChatGLM-Spider", "Diffbot", "omgili", "omgilibot", "Webzio-Extended", "Timpibot", "VelenPublicWebCrawler",
    "ICC-Crawler", "SBIntuitionsBot", "Kangaroo Bot", "Cotoyogi", "LAIONDownloader", "laion-huggingface-processor",
    "YandexAdditional",
)  # fmt: skip
TRAINING = ("train-ai", "ai-train", "train-genai")  # aipref now, Cloudflare, aipref's earlier drafts
META_OBJECTION = re.compile(r"noai|tdm-reservation", re.IGNORECASE)
HEAD = 1 << 16  # characters of a page in which <meta> is looked for
SCHEMA = pa.schema([("opt_out", pa.string()), ("opt_out_reason", pa.string())])


@dataclass(frozen=True)
class Decision:
    """``verdict`` is allow, deny or unknown; ``reason`` says which signal decided, e.g. ``robots.txt: GPTBot``."""

    verdict: str
    reason: str


class OptOut:
    """Decisions by one snapshot for one list of crawlers."""

    def __init__(self, snapshot: Snapshot, crawlers: Sequence[str] = CRAWLERS):
        self.snapshot, self.crawlers = snapshot, tuple(crawlers)
        self._site = functools.lru_cache(4096)(self._read_site)

    def __reduce__(self) -> tuple[type[OptOut], tuple[Snapshot, tuple[str, ...]]]:
        return OptOut, (self.snapshot, self.crawlers)

    def decide(self, url: str | None, *, headers: Mapping[str, str] | None = None, html: str | None = None) -> Decision:
        """The answer for a page.

        Args:
            url: where the text comes from.
            headers: of the page's HTTP response, if they were kept; names in any case.
            html: of the page, if it was kept.
        """
        objection = page_objection(headers or {}, html or "")
        if objection:
            return Decision(DENY, objection)
        origin = origin_of(url)
        if url is None or origin is None:
            return Decision(UNKNOWN, "no web address")
        site = self._site(origin)
        if site is None:
            return Decision(UNKNOWN, "not in the snapshot")
        return site.decide(_path(url), self.crawlers)

    def columns(
        self,
        urls: Iterable[str | None],
        headers: Iterable[Mapping[str, str] | None] | None = None,
        html: Iterable[str | None] | None = None,
    ) -> pa.RecordBatch:
        """``opt_out`` and ``opt_out_reason`` of documents: a row a document; arguments as of :meth:`decide`."""
        addresses = list(urls)
        given = zip(addresses, headers or [None] * len(addresses), html or [None] * len(addresses), strict=True)
        rows = [self.decide(url, headers=head, html=page) for url, head, page in given]
        verdicts, reasons = [row.verdict for row in rows], [row.reason for row in rows]
        return pa.RecordBatch.from_arrays(
            [pa.array(verdicts, pa.string()), pa.array(reasons, pa.string())], schema=SCHEMA
        )

    def _read_site(self, origin: str) -> Site | None:
        """The site's record under its own name, or under the other scheme, or with or without ``www.``."""
        scheme, _, host = origin.partition("://")
        twin = host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"
        other = "http" if scheme == "https" else "https"
        for name in (origin, f"{other}://{host}", f"{scheme}://{twin}", f"{other}://{twin}"):
            record = self.snapshot.get(name)
            if record:
                return Site(record)
        return None


class Site:
    """The files of one origin, parsed."""

    def __init__(self, record: Origin):
        self.status = record.status
        self.robots = Protego.parse(record.robots or "")
        self.usage = Protego.parse(usage_rules(record.robots or ""))
        self.tdmrep = tdm_rules(record.tdmrep or "")
        self.ai_txt = Protego.parse(record.ai_txt or "")
        self.no_training = bool(re.search(r"(?im)^\s*datatrainingallowed\s*=\s*no\b", record.trust_txt or ""))

    def decide(self, path: str, crawlers: Sequence[str]) -> Decision:
        """The answer for a path of this site."""
        objection = next(self._objections(path, crawlers), None)
        if objection:
            return Decision(DENY, objection)
        if 200 <= self.status < 300:
            return Decision(ALLOW, "robots.txt")
        # RFC 9309, 2.3.1: a client error means that there are no rules; anything else, that nobody knows them.
        if 400 <= self.status < 500 and self.status != 429:
            return Decision(ALLOW, "no robots.txt")
        return Decision(UNKNOWN, f"robots.txt: status {self.status}" if self.status else "robots.txt: no answer")

    def _objections(self, path: str, crawlers: Sequence[str]) -> Iterator[str]:
        yield from (f"robots.txt: {name}" for name in crawlers if not self.robots.can_fetch(path, name))
        yield from (f"robots.txt: no training, {name}" for name in crawlers if not self.usage.can_fetch(path, name))
        if self._reserved(path):
            yield "tdmrep.json"
        if not all(self.ai_txt.can_fetch(path + ending, "*") for ending in _as_text(path)):
            yield "ai.txt"
        if self.no_training:
            yield "trust.txt"

    def _reserved(self, path: str) -> bool:
        """The first rule that matches decides."""
        return next((reserved for pattern, reserved in self.tdmrep if pattern.match(path)), False)


def usage_rules(robots: str) -> str:
    """The training preferences of a robots.txt as a robots.txt of their own: Disallow for no training, else Allow.

    So that groups, wildcards and the longest path match as they do for crawling. Of two rules with one path in a group,
    the one that objects stays.
    """
    groups: list[tuple[list[str], dict[str, bool]]] = []  # (crawlers, {path: training allowed})
    open_ = False
    for line in robots.splitlines():
        name, _, value = (part.strip() for part in line.split("#", 1)[0].partition(":"))
        if name.lower() == "user-agent":
            if not open_:
                groups.append(([], {}))
            groups[-1][0].append(value)
            open_ = True
        elif groups and name.lower() in ("content-usage", "content-signal", "allow", "disallow"):
            open_ = False
            path, preferences = value.split(maxsplit=1) if re.match(r"/\S*\s", value) else ("/", value)
            allowed = _training_allowed(preferences) if name.lower().startswith("content") else None
            if allowed is not None:
                groups[-1][1][path] = groups[-1][1].get(path, True) and allowed
    lines = []
    for crawlers, rules in groups:
        lines += [f"User-agent: {crawler}" for crawler in crawlers]
        # A group without preferences needs a line all the same, or its crawlers would fall into the next group.
        lines += [f"{'Allow' if allowed else 'Disallow'}: {path}" for path, allowed in rules.items()] or [
            "Crawl-delay: 1"
        ]
    return "\n".join(lines)


def _training_allowed(preferences: str) -> bool | None:
    """What ``train-ai=n, search=y`` says about training; None if nothing."""
    said = dict(part.strip().lower().partition("=")[::2] for part in preferences.split(","))
    answers = {said[label].split(";")[0].strip() for label in TRAINING if label in said}
    if answers & {"n", "no"}:
        return False
    return True if answers & {"y", "yes"} else None


def tdm_rules(tdmrep: str) -> list[tuple[re.Pattern[str], bool]]:
    """(pattern of paths, reserved) of a tdmrep.json in its order; malformed rules are left out."""
    try:
        rules = json.loads(tdmrep or "[]")
    except (ValueError, RecursionError):
        return []
    found = []
    for rule in [rules] if isinstance(rules, dict) else rules if isinstance(rules, list) else []:
        if isinstance(rule, dict) and isinstance(rule.get("location"), str):
            reserved = str(rule.get("tdm-reservation")) == "1"
            parts = (re.escape(unquote(part)) for part in rule["location"].removesuffix("$").split("*"))
            ending = "$" if rule["location"].endswith("$") else ""
            found.append((re.compile(".*".join(parts) + ending, re.DOTALL), reserved))
    return found


def page_objection(headers: Mapping[str, str], html: str) -> str:
    """Which signal of a page itself objects, "" if none."""
    said = {name.lower(): value.lower() for name, value in headers.items()}
    if re.search(r"(?:^|[,:\s])noai(?:$|[,\s])", said.get("x-robots-tag", "")):
        return "X-Robots-Tag: noai"
    if said.get("tdm-reservation", "").strip() == "1":
        return "header tdm-reservation"
    if _training_allowed(said.get("content-usage", "")) is False:
        return "header Content-Usage"
    head = html[:HEAD]
    if not META_OBJECTION.search(head):  # most pages: parsing takes a hundred times as long
        return ""
    metas = _Metas()
    metas.feed(head)
    if any("noai" in re.split(r"[\s,]+", content) for content in metas.of("robots")):
        return "meta robots: noai"
    return "meta tdm-reservation" if "1" in metas.of("tdm-reservation") else ""


def with_objections(columns: Mapping[str, pa.Array], objections: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of :data:`SCHEMA`, *deny* where a page itself objects, whatever was said of its site, if anything."""
    verdicts, reasons = (
        columns[name].to_pylist() if name in columns else [None] * len(objections) for name in SCHEMA.names
    )
    pairs = [
        (DENY, said) if said else pair
        for said, pair in zip(objections, zip(verdicts, reasons, strict=True), strict=True)
    ]
    return {name: pa.array([pair[place] for pair in pairs], pa.string()) for place, name in enumerate(SCHEMA.names)}


class _Metas(HTMLParser):
    """Collects ``<meta name=... content=...>``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "meta":
            self.found.append(((given.get("name") or "").lower(), (given.get("content") or "").strip().lower()))

    def of(self, name: str) -> list[str]:
        return [content for found, content in self.found if found == name]


def _path(url: str) -> str:
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return path + (f"?{parts.query}" if parts.query else "")


def _as_text(path: str) -> tuple[str, ...]:
    """Endings to try with ai.txt, whose rules go by file type: a path without one is a page."""
    name = path.partition("?")[0].rpartition("/")[2]
    return ("",) if "." in name else ("", ".html", ".txt")


class DomainReport:
    """What the decisions mean, by host (without ``www.``): holds a row a host, some 90 bytes."""

    COLUMNS = ("domain", "documents", "bytes", "allow_bytes", "deny_bytes", "unknown_bytes")

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Count documents of which somebody was asked; ``batch`` has the columns ``url``, ``opt_out`` and ``text``."""
        asked = batch.column("opt_out").is_valid()
        if not asked.true_count:
            return
        sizes = pc.cast(pc.binary_length(batch.column("text")), pa.int64()).filter(asked)
        verdicts, urls = (batch.column(name).filter(asked) for name in ("opt_out", "url"))
        hosts = [(origin_of(url) or "").partition("://")[2].removeprefix("www.") for url in urls.to_pylist()]
        answers = [pc.if_else(pc.equal(verdicts, verdict), sizes, 0) for verdict in (ALLOW, DENY, UNKNOWN)]
        ones = pa.array(np.ones(len(hosts), np.int64))
        self._parts.append(self._sums(pa.table([pa.array(hosts), ones, sizes, *answers], names=self.COLUMNS)))
        if sum(part.num_rows for part in self._parts) > 2 * self._rows + (1 << 16):
            self._rows = self.table().num_rows

    def table(self) -> pa.Table:
        """Columns ``domain``, ``documents``, ``bytes``, ``allow_bytes``, ``deny_bytes``, ``unknown_bytes``; the host
        with most bytes first. Nothing where nobody was asked.
        """
        if not self._parts:
            return pa.table([[]] * len(self.COLUMNS), names=self.COLUMNS)
        self._parts = [self._sums(pa.concat_tables(self._parts))]
        return self._parts[0].sort_by([("bytes", "descending"), ("domain", "ascending")])

    def _sums(self, table: pa.Table) -> pa.Table:
        sums = table.group_by("domain").aggregate([(name, "sum") for name in self.COLUMNS[1:]])
        return sums.select(["domain", *(f"{name}_sum" for name in self.COLUMNS[1:])]).rename_columns(self.COLUMNS)
