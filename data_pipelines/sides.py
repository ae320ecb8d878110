"""The files of a corpus while they are written: one language's at a time, so that memory grows with no language."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.manifest import FileEntry


class ParquetWriter:
    """Writes rows to a zstd Parquet file, a row group for about every ``batch_bytes`` of text."""

    def __init__(self, path: Path, schema: pa.Schema, batch_bytes: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, self.batch_bytes = 0, batch_bytes
        self._held: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, rows: pa.RecordBatch) -> None:
        """Append rows."""
        self._held.append(rows)
        self.rows += rows.num_rows
        if sum(batch.nbytes for batch in self._held) >= self.batch_bytes:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._held)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._held = []

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._held:
            self._flush()
        self._writer.close()


class Sides:
    """The files of one language, a side each (``documents``, ``signatures``, ``removed``), opened at its first row."""

    def __init__(self, folder: Path, name: str, batch_bytes: int):
        self.folder, self.name, self.batch_bytes = folder, name, batch_bytes
        self._writers: dict[str, ParquetWriter] = {}

    def add(self, side: str, rows: pa.RecordBatch) -> None:
        """Append rows to a side."""
        if rows.num_rows and side not in self._writers:
            writer = ParquetWriter(self.folder / side / self.name, rows.schema, self.batch_bytes)
            self._writers[side] = self._stack.enter_context(writer)
        if rows.num_rows:
            self._writers[side].add(rows)

    def entries(self) -> dict[str, FileEntry]:
        """What the manifest says of the closed files."""
        found = {f"{side}/{self.name}": writer.rows for side, writer in self._writers.items()}
        return {name: FileEntry.of(self.folder / name, rows) for name, rows in found.items()}

    def __enter__(self) -> Sides:
        self._stack = ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
