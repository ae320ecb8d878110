"""``README.md`` of a corpus: what is in it, where it comes from, what was removed and why. Also its card on the Hub.

The head names a configuration for each language, so that ``datasets.load_dataset(FOLDER, "fr")`` finds the documents
and leaves out what was removed. Everything else is counted in the files as they are written; no model of the text, no
opinion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import yaml

from common.files import write_text
from common.terminal import count
from data_pipelines.annotate import personal_data
from data_pipelines.counted import SHOWN, Example, Kept, Removed, excerpt, files_of, sites_of
from data_pipelines.manifest import CorpusManifest, Tally
from data_pipelines.select import REASONS

EXCERPT = 90  # characters of an example
DOMAINS = 20


def write(manifest: CorpusManifest) -> None:
    """Write the page into the corpus's folder."""
    kept = {language: Kept.of(path, language) for language, path in files_of(manifest, "documents")}
    removed = {language: Removed.of(path, language) for language, path in files_of(manifest, "removed")}
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}\n",
        f"Made by hanse {manifest.tools['hanse']}. Merkle root of the files and counts: `{manifest.merkle_root}`.\n",
        "## Languages\n",
        _languages(manifest.languages),
        "## Sources\n",
        _sources(manifest),
        *(f"Language of {name}: {said}.\n" for name, said in manifest.language_checks.items()),
        "## Licences\n",
        _shares("licence", kept, "licenses"),
        "## Addresses\n",
        _shares("host", kept, "domains", DOMAINS),
        "## Opt-out\n",
        _shares("answer", kept, "opt_out"),
        _sites(manifest),
        "## Personal data replaced\n",
        _kinds(kept),
        "## Distributions\n",
        _distributions(kept),
        "## What was removed\n",
        _removed(manifest.languages),
        *(_shown(language, one.examples) for language, one in removed.items()),
    ]
    write_text(manifest.folder / "README.md", "\n".join(sections))


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


def _shares(what: str, kept: dict[str, Kept], name: str, most: int | None = None) -> str:
    """Bytes by value, the largest first, in each language."""
    total: Counter[str] = Counter()
    for one in kept.values():
        total.update(getattr(one, name))
    rows = [[value, count(number, "B"), *(count(getattr(one, name)[value], "B") for one in kept.values())]
            for value, number in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:most]]  # fmt: skip
    left = f"\n{len(total) - most} more.\n" if most and len(total) > most else ""
    return _table([what, "bytes", *kept], rows) + left


def _sites(manifest: CorpusManifest) -> str:
    """What sites answer that deny, and the largest, of all that came in."""
    rows, number = sites_of(manifest, DOMAINS)
    if not rows:
        return ""
    sizes = ("bytes", "allow_bytes", "deny_bytes", "unknown_bytes")
    cells = [[row["domain"] or "none", row["language"], row["documents"], *(count(row[name], "B") for name in sizes)]
             for row in rows]  # fmt: skip
    head = ["came in from", "language", "documents", "bytes", "allow", "deny", "unknown"]
    more = f"\n{number - len(rows)} more in" if number > len(rows) else "\nThe same is in"
    return f"{_table(head, cells)}{more} `opt_out/LANGUAGE.parquet`.\n"


def _kinds(kept: dict[str, Kept]) -> str:
    names = [name for name in (one.removeprefix(personal_data.PREFIX) for one in personal_data.SCHEMA.names)
             if any(counts.personal_data[name] for counts in kept.values())]  # fmt: skip
    return _table(["kind", *kept], [[name, *(one.personal_data[name] for one in kept.values())] for name in names])


def _distributions(kept: dict[str, Kept]) -> str:
    rows = [[what, *(" / ".join(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in one.percentiles(name))
                     if name in one.values else "" for one in kept.values())]
            for name, what in SHOWN.items() if any(name in one.values for one in kept.values())]  # fmt: skip
    return _table(["5th, 50th, 95th percentile of documents", *kept], rows)


def _removed(tallies: dict[str, Tally]) -> str:
    reasons = [reason for reason in REASONS if any(reason in one.removed for one in tallies.values())]
    return _table(["reason", *tallies], [[reason, *(one.removed.get(reason, 0) for one in tallies.values())]
                                         for reason in reasons])  # fmt: skip


def _shown(language: str, examples: list[Example]) -> str:
    cells = [[one.reason, one.detail, f"`{one.id}`", excerpt(one.text, EXCERPT).replace("<", "&lt;").replace("`", "'")]
             for one in examples]  # fmt: skip
    return f"Examples, {language}:\n\n{_table(['reason', 'detail', 'document', 'begins'], cells, numbers=False)}"
