"""Parquet files a row group at a time: what they were written in, for its bytes, where rows may be of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HanseError
from data_pipelines.memory import give_back
from data_pipelines.sources import first_line


def row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.RecordBatch, float]]:
    """(rows, share of the file that is read by then). Whoever lets go of the rows before the next holds one row group.

    Raises:
        HanseError: the file cannot be read.
    """
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            try:
                # In this thread, so that what is freed can be given back: allocators keep it where it was taken.
                table = file.read_row_group(number, columns=columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise HanseError(
                    f"{path}: damaged ({first_line(error)}); delete it and run the same command again"
                ) from None
            batches = table.combine_chunks().to_batches()
            del table
            while batches:
                yield batches.pop(0), (number + 1) / file.num_row_groups
            give_back()
