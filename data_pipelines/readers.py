"""Files of one format each -> records: every reader yields what it finds, and tells of what it cannot read."""

from __future__ import annotations

import io
import json
import lzma
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HanseError
from data_pipelines.html import page_of
from data_pipelines.memory import parquet_batches
from data_pipelines.source_config import SourceConfig
from data_pipelines.warc import pages

LONGEST = 1 << 30  # bytes of a record where nobody says less
BATCH_ROWS, BATCH_BYTES = 256, 1 << 23  # of Parquet held in memory at once, at most
TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip


@dataclass  # not frozen: that would make it four times as slow to build
class Record:
    """One record as read: its key within the source, its fields, or what is wrong with it.

    ``position`` says how far into the source it stands (0 to 1; 0 where that is not known). A text that is not UTF-8
    stays ``bytes``. ``reason``: why there is no text (malformed, too_long, truncated, broken_file), if ``problem`` says
    anything. ``objection``: with which words a web page objects to training, if it does.
    """

    key: str
    fields: Mapping[str, Any]
    problem: str = ""
    position: float = 0.0
    reason: str = "malformed"
    objection: str = ""


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
                yield Record(key_of(fields, source, f"{key}:{number}"), fields, problem, position())
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
                record = Record(key_of(fields, source, name), fields, "", position())
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
        for batch in parquet_batches(file, _batch_rows(file.metadata), here):
            columns = {name: _column(batch.column(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                fields = dict(zip(columns, values, strict=True))
                yield Record(key_of(fields, source, f"{key}:{number}"), fields, "", number / rows)
                number += 1


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """So many rows that the largest row group's mean gives some 8 MB."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    return int(min(max(BATCH_BYTES / max(largest, 1), 1), BATCH_ROWS))


def _column(column: pa.Array) -> list[Any]:
    """Python values; where one string of a column is bad, on which Arrow gives up, they are decoded one by one."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not any(is_type(column.type) for is_type in TEXT_TYPES):
        return column.to_pylist()
    binary = column.cast(pa.large_binary())
    try:
        return binary.cast(pa.large_string()).to_pylist()
    except pa.ArrowInvalid:
        return [None if value is None else _decoded(value) for value in binary.to_pylist()]


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
            yield Record(key_of(fields, source, f"{key}:{number}"), fields)


def _read_warc(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with _opened(path) as (stream, position):
        for number, page in enumerate(pages(stream, longest)):
            name = f"{key}:{number}"
            if page.problem:
                yield Record(name, page.fields, page.problem, position(), page.reason)
            else:
                fields = {**page.fields, source.text_field: _decoded(page.text)}
                yield Record(key_of(fields, source, name), fields, "", position(), objection=page.objection)


def _read_html(path: Path, key: str, source: SourceConfig, longest: int) -> Iterator[Record]:
    with _opened(path) as (stream, _):
        body = stream.read(longest + 1)
    if len(body) > longest:
        yield Record(key, {}, f"more than {longest} bytes", 1.0, "too_long")
        return
    page = page_of(body)
    yield Record(key, {**page.fields, source.text_field: page.text}, page.problem, 1.0, objection=page.objection)


FILE_READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "tsv": _read_tsv, "text": _read_text,
                "sqlite": _read_sqlite, "warc": _read_warc, "html": _read_html}  # fmt: skip


def _fields(source: SourceConfig) -> list[str]:
    named = (source.id_field, source.title_field, source.url_field, source.date_field, source.license_field,
             source.split_field, *source.where, *source.at_least)  # fmt: skip
    return list(dict.fromkeys([source.text_field, *(name for name in named if name)]))


def key_of(fields: Mapping[str, Any], source: SourceConfig, otherwise: str) -> str:
    """The record's own name within its source, or another."""
    value = fields.get(source.id_field) if source.id_field else None
    return otherwise if value is None or isinstance(value, bytes) else str(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
