"""What is counted in the files of a corpus, language by language: of what was kept, and of what was removed.

Everything comes out of the files as they were written; no model of the text, no opinion. Texts that are shown have gone
through the search for personal data once more, whatever the corpus was made with: a page shows placeholders only.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipelines.annotate import personal_data
from data_pipelines.annotate.opt_out_snapshot import origin_of
from data_pipelines.manifest import CorpusManifest
from data_pipelines.row_groups import row_groups
from data_pipelines.select import REASONS

EXAMPLES = 3  # of each reason, of each language
SEEN = 2_000  # characters of a text that are looked at for an example
MOST = 1 << 18  # values of a column that are held of a language
LARGEST = 3  # clusters of repeated documents of each language
SHOWN = {  # column: what it is
    "quality_characters": "characters",
    "quality_words": "words",
    "quality_mean_word_length": "mean word length",
    "quality_stop_word_share": "share of stop words",
    "quality_punctuated_lines": "lines that end a sentence",
    "quality_duplicate_5_grams": "text in repeated runs of 5 words",
    "language_score": "probability of the language",
}
NO_EXCERPT = ("opt_out", "license")  # whose text is not ours to show


@dataclass(frozen=True)
class Example:
    """A document of a corpus. ``text`` is its beginning, without personal data; empty where it is not ours to show."""

    reason: str
    detail: str
    id: str
    text: str


@dataclass(frozen=True)
class Cluster:
    """Documents that repeat each other: how many, and the one that stays."""

    size: int
    id: str
    text: str


class Evenly:
    """Every n-th of a stream of numbers: as many as fit into :data:`MOST`, whatever their number."""

    def __init__(self) -> None:
        self.values: NDArray[np.floating] = np.zeros(0)
        self._step, self._next = 1, 0  # of those that are taken, and how many to go past first

    def add(self, found: NDArray[np.floating]) -> None:
        """Take what is due of the next numbers."""
        taken = found[self._next :: self._step]
        self._next += len(taken) * self._step - len(found)
        self.values = np.concatenate([self.values, taken])
        while len(self.values) > MOST:
            self._next += self._step * (len(self.values) % 2)  # one that would stand in an odd place is gone past
            self.values, self._step = self.values[::2], 2 * self._step


@dataclass
class Kept:
    """The kept documents of one language; what has no other unit is bytes of text.

    Attributes:
        personal_data: {kind: places replaced}.
        values: {column of :data:`SHOWN`: of the documents that have one; of many, of :data:`MOST` or half as many,
            evenly over the file}.
        cluster_sizes: {documents in the cluster: how many of those that stay}.
    """

    documents: int = 0
    bytes: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    opt_out: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    cluster_sizes: Counter[int] = field(default_factory=Counter)
    largest: list[Cluster] = field(default_factory=list)
    values: dict[str, NDArray[np.floating]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, language: str = "") -> Kept:
        """Count a file of ``documents/``."""
        kept, largest = cls(), list[tuple[int, str, str]]()
        drawn = {name: Evenly() for name in SHOWN}
        columns = ["id", "text", "license", "url", "opt_out", "cluster_size", *personal_data.SCHEMA.names, *SHOWN]
        for batch, _ in row_groups(path, columns):
            kept._add(batch)
            largest = _largest(batch, largest)
            for name in SHOWN:
                drawn[name].add(batch.column(name).drop_null().to_numpy(zero_copy_only=False))
            del batch
        kept.values = {name: one.values for name, one in drawn.items() if len(one.values)}
        texts = without_personal_data([text for _, _, text in largest], language)
        kept.largest = [Cluster(size, one, text) for (size, one, _), text in zip(largest, texts, strict=True)]
        return kept

    def percentiles(self, name: str) -> list[float]:
        """The 5th, 50th and 95th of a column."""
        return np.percentile(self.values[name], (5, 50, 95)).tolist()

    def _add(self, batch: pa.RecordBatch) -> None:
        size = pc.binary_length(batch.column("text")).to_pylist()
        self.documents += len(size)
        self.bytes += sum(size)
        for name, holder in (("license", self.licenses), ("opt_out", self.opt_out)):
            for value, number in zip(batch.column(name).to_pylist(), size, strict=True):
                holder[value or "not asked"] += number
        for url, number in zip(batch.column("url").to_pylist(), size, strict=True):
            host = (origin_of(url) or "").partition("://")[2].removeprefix("www.")
            self.domains[host or "none"] += number
        for name in personal_data.SCHEMA.names:
            self.personal_data[name.removeprefix(personal_data.PREFIX)] += pc.sum(batch.column(name)).as_py() or 0
        self.cluster_sizes.update(batch.column("cluster_size").to_pylist())


def _largest(batch: pa.RecordBatch, before: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    sizes = batch.column("cluster_size").to_numpy(zero_copy_only=False)
    rows = [row for row in np.argsort(-sizes, kind="stable")[:LARGEST].tolist() if sizes[row] > 1]
    texts = pc.utf8_slice_codeunits(batch.column("text").take(pa.array(rows, pa.int64())), 0, SEEN).to_pylist()
    found = [(int(sizes[row]), batch.column("id")[row].as_py(), text) for row, text in zip(rows, texts, strict=True)]
    return sorted([*before, *found], key=lambda one: -one[0])[:LARGEST]


@dataclass
class Removed:
    """The removed documents of one language.

    Attributes:
        details: {reason: {what decided: documents}}: the signal, the language detected, the site's answer.
        examples: of each reason the few whose ids hash lowest: the same in every run, from anywhere in the file.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    details: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, language: str = "") -> Removed:
        """Count a file of ``removed/``."""
        removed, drawn = cls(), dict[str, list[tuple[int, str, str, str]]]()
        for batch, _ in row_groups(path, ["reason", "detail", "id", "text"]):
            removed._add(batch)
            _draw(batch, drawn)
            del batch
        for reason in sorted(drawn, key=REASONS.index):
            rows = sorted(drawn[reason], reverse=True)  # the keys are negative
            _, *columns = zip(*rows, strict=True)
            ids, details, texts = (without_personal_data(list(map(str, column)), language) for column in columns)
            for one, detail, text in zip(ids, details, texts, strict=True):
                removed.examples.append(Example(reason, detail, one, "" if reason in NO_EXCERPT else text))
        return removed

    def _add(self, batch: pa.RecordBatch) -> None:
        reasons, details = batch.column("reason").to_pylist(), batch.column("detail").to_pylist()
        for reason, detail, size in zip(reasons, details, pc.binary_length(batch.column("text")).to_pylist(),
                                        strict=True):  # fmt: skip
            self.bytes[reason] += size
            self.details.setdefault(reason, Counter())[_decided(reason, detail)] += 1


def _draw(batch: pa.RecordBatch, drawn: dict[str, list[tuple[int, str, str, str]]]) -> None:
    """Keep of each reason the rows with the lowest hash of the id."""
    ids, reasons = batch.column("id").to_pylist(), batch.column("reason").to_pylist()
    for row, (one, reason) in enumerate(zip(ids, reasons, strict=True)):
        held, key = drawn.setdefault(reason, []), -zlib.crc32(one.encode())
        if len(held) < EXAMPLES or key > held[0][0]:
            entry = (key, one, batch.column("detail")[row].as_py(), batch.column("text")[row].as_py()[:SEEN])
            (heapq.heappush if len(held) < EXAMPLES else heapq.heapreplace)(held, entry)


def _decided(reason: str, detail: str) -> str:
    """What of a detail many documents have in common."""
    match reason:
        case "quality" | "broken_file":
            return detail.partition(":")[0]
        case "wrong_language":
            return detail.partition(" ")[0]
        case "evaluation":
            return detail.partition(" in ")[2]
        case "opt_out" | "license" | "malformed":
            return detail
    return ""


def without_personal_data(texts: Sequence[str], language: str) -> list[str]:
    """Texts with placeholders; nothing changes where there are placeholders already."""
    return personal_data.redact(list(texts), language).texts.to_pylist()


def files_of(manifest: CorpusManifest, side: str) -> Iterator[tuple[str, Path]]:
    """(language, file) of one side (``documents``, ``removed``) of a corpus, for the languages that have one."""
    for language in manifest.languages:
        if f"{side}/{language}.parquet" in manifest.files:
            yield language, manifest.folder / side / f"{language}.parquet"


def sites_of(manifest: CorpusManifest, most: int) -> tuple[list[dict[str, Any]], int]:
    """(the ``most`` hosts that deny most, then the largest; how many there are), of all documents that came in and of
    which somebody was asked: rows of :class:`~data_pipelines.annotate.opt_out.DomainReport`, one a language.
    """
    tables = [(language, pq.read_table(path)) for language, path in files_of(manifest, "opt_out")]
    keys = [("deny_bytes", "descending"), ("bytes", "descending"), ("domain", "ascending")]
    first = [{"language": language, **row} for language, table in tables
             for row in table.take(pc.select_k_unstable(table, most, keys)).to_pylist()]  # fmt: skip
    ordered = sorted(first, key=lambda row: (-row["deny_bytes"], -row["bytes"], row["domain"], row["language"]))
    return ordered[:most], sum(table.num_rows for _, table in tables)


def excerpt(text: str, characters: int) -> str:
    """The beginning of a text on one line."""
    start = " ".join(text[: 2 * characters].split())[:characters]
    return start + ("…" if len(text) > len(start) else "")
