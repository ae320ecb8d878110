"""``README.md`` of a corpus: what is in it, where it comes from, what was removed and why. Also its card on the Hub.

The head names a configuration for each language, so that ``datasets.load_dataset(FOLDER, "fr")`` finds the documents
and leaves out what was removed. Everything else is counted in the files as they are written; no model of the text, no
opinion.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from common.files import write_text
from common.terminal import count
from data_pipelines.annotate import personal_data
from data_pipelines.annotate.opt_out_snapshot import origin_of
from data_pipelines.manifest import CorpusManifest, Tally
from data_pipelines.select import REASONS

EXAMPLES = 3  # of each reason, of each language
EXCERPT = 90  # characters of an example
DOMAINS = 20
SHOWN = {  # column: what it is; its 5th, 50th and 95th percentile are shown
    "quality_characters": "characters",
    "quality_words": "words",
    "quality_mean_word_length": "mean word length",
    "quality_stop_word_share": "share of stop words",
    "quality_punctuated_lines": "lines that end a sentence",
    "quality_duplicate_5_grams": "text in repeated runs of 5 words",
    "language_score": "probability of the language",
}
NO_EXCERPT = ("opt_out", "license")  # whose text is not ours to show


def write(manifest: CorpusManifest) -> None:
    """Write the page into the corpus's folder."""
    kept = {language: _Counts.of(path) for language, path in _files(manifest, "documents")}
    removed = {language: _examples(path) for language, path in _files(manifest, "removed")}
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}\n",
        f"Made by hanse {manifest.tools['hanse']}. Merkle root of the files and counts: `{manifest.merkle_root}`.\n",
        "## Languages\n",
        _languages(manifest.languages),
        "## Sources\n",
        _sources(manifest),
        "## Licences\n",
        _shares("licence", kept, "licenses"),
        "## Addresses\n",
        _shares("host", kept, "domains", DOMAINS),
        "## Opt-out\n",
        _shares("answer", kept, "opt_out"),
        "## Personal data replaced\n",
        _kinds(kept),
        "## Distributions\n",
        _distributions(kept),
        "## What was removed\n",
        _removed(manifest.languages),
        *(_shown(language, rows) for language, rows in removed.items()),
    ]
    write_text(manifest.folder / "README.md", "\n".join(sections))


class _Counts:
    """What is counted in the kept documents of one language; bytes are of text."""

    def __init__(self) -> None:
        self.licenses: Counter[str] = Counter()
        self.domains: Counter[str] = Counter()
        self.opt_out: Counter[str] = Counter()
        self.personal_data: Counter[str] = Counter()
        self.percentiles: dict[str, list[float]] = {}

    @classmethod
    def of(cls, path: Path) -> _Counts:
        counts, kinds, values = cls(), personal_data.SCHEMA.names, defaultdict(list)
        columns = ["text", "license", "url", "opt_out", *kinds, *SHOWN]
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                counts._add(batch, kinds)
                for name in SHOWN:
                    values[name].append(batch.column(name).drop_null().to_numpy(zero_copy_only=False))
        for name, parts in values.items():
            found = np.concatenate(parts)
            if len(found):
                counts.percentiles[name] = np.percentile(found, (5, 50, 95)).tolist()
        return counts

    def _add(self, batch: pa.RecordBatch, kinds: Sequence[str]) -> None:
        size = pc.binary_length(batch.column("text")).to_pylist()
        for name, holder in (("license", self.licenses), ("opt_out", self.opt_out)):
            for value, number in zip(batch.column(name).to_pylist(), size, strict=True):
                holder[value or "not asked"] += number
        for url, number in zip(batch.column("url").to_pylist(), size, strict=True):
            host = (origin_of(url) or "").partition("://")[2].removeprefix("www.")
            self.domains[host or "none"] += number
        for name in kinds:
            self.personal_data[name.removeprefix(personal_data.PREFIX)] += pc.sum(batch.column(name)).as_py() or 0


def _files(manifest: CorpusManifest, side: str) -> Iterator[tuple[str, Path]]:
    for language in manifest.languages:
        if f"{side}/{language}.parquet" in manifest.files:
            yield language, manifest.folder / side / f"{language}.parquet"


def _front_matter(manifest: CorpusManifest) -> str:
    paths = [{"config_name": language, "data_files": f"documents/{language}.parquet"}
             for language in manifest.kept_languages]  # fmt: skip
    head = {"pretty_name": manifest.name, "language": manifest.kept_languages, "configs": paths}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: bool = True) -> str:
    if not rows:
        return "None.\n"
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else " ".join(str(value).replace("|", "\\|").split())


def _languages(tallies: dict[str, Tally]) -> str:
    rows = [
        [language, one.documents_in, count(one.bytes_in, "B"), one.documents_kept, count(one.bytes_kept, "B"),
         one.validation_documents, sum(one.removed.values())]
        for language, one in tallies.items()
    ]  # fmt: skip
    return _table(["language", "documents", "bytes", "kept", "kept bytes", "for validation", "removed"], rows)


def _sources(manifest: CorpusManifest) -> str:
    rows = []
    for name, one in manifest.sources.items():
        told = manifest.config["sources"][name]
        rows.append([name, one.language, one.license, one.documents_in, one.documents_kept, count(one.bytes_kept, "B"),
                     told["obtained"], told["snapshot_date"], told["url"]])  # fmt: skip
    head = ["source", "language", "licence", "documents", "kept", "kept bytes", "obtained", "dated", "from"]
    return _table(head, rows, numbers=False)


def _shares(what: str, kept: dict[str, _Counts], name: str, most: int | None = None) -> str:
    """Bytes by value, the largest first, in each language."""
    total: Counter[str] = Counter()
    for one in kept.values():
        total.update(getattr(one, name))
    rows = [[value, count(number, "B"), *(count(getattr(one, name)[value], "B") for one in kept.values())]
            for value, number in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:most]]  # fmt: skip
    left = f"\n{len(total) - most} more.\n" if most and len(total) > most else ""
    return _table([what, "bytes", *kept], rows) + left


def _kinds(kept: dict[str, _Counts]) -> str:
    names = [name for name in (one.removeprefix(personal_data.PREFIX) for one in personal_data.SCHEMA.names)
             if any(counts.personal_data[name] for counts in kept.values())]  # fmt: skip
    return _table(["kind", *kept], [[name, *(one.personal_data[name] for one in kept.values())] for name in names])


def _distributions(kept: dict[str, _Counts]) -> str:
    rows = [[what, *(" / ".join(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in one.percentiles[name])
                     if name in one.percentiles else "" for one in kept.values())]
            for name, what in SHOWN.items() if any(name in one.percentiles for one in kept.values())]  # fmt: skip
    return _table(["5th, 50th, 95th percentile of documents", *kept], rows)


def _removed(tallies: dict[str, Tally]) -> str:
    reasons = [reason for reason in REASONS if any(reason in one.removed for one in tallies.values())]
    return _table(["reason", *tallies], [[reason, *(one.removed.get(reason, 0) for one in tallies.values())]
                                         for reason in reasons])  # fmt: skip


def _examples(path: Path) -> list[dict[str, str]]:
    """The first few removed documents of each reason."""
    found: Counter[str] = Counter()
    rows = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["reason", "detail", "id", "text"]):
            reasons = batch.column("reason")
            for reason in pc.unique(reasons).to_pylist():
                wanted = pc.indices_nonzero(pc.equal(reasons, reason))[: EXAMPLES - found[reason]]
                found[reason] += len(wanted)
                rows += pa.Table.from_batches([batch]).take(wanted).to_pylist()
    return sorted(rows, key=lambda row: REASONS.index(row["reason"]))


def _shown(language: str, rows: list[dict[str, str]]) -> str:
    cells = []
    for row in rows:
        begins = "" if row["reason"] in NO_EXCERPT else _excerpt(row["text"])
        cells.append([row["reason"], row["detail"], f"`{row['id']}`", begins])
    return f"Examples, {language}:\n\n{_table(['reason', 'detail', 'document', 'begins'], cells, numbers=False)}"


def _excerpt(text: str) -> str:
    start = " ".join(text[: 2 * EXCERPT].split())[:EXCERPT]
    return start.replace("<", "&lt;").replace("`", "'") + ("…" if len(text) > len(start) else "")
