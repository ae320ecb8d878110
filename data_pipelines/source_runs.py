"""Which tokens of a shard come from which source: documents of one source lie together, as the corpus wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import HanseError


def runs_in(sidecar: Path) -> dict[str, int]:
    """{source: tokens of its documents}, in the order in which they lie in the shard of this ``.docs.parquet``.

    Empty where that cannot be said: there is no sidecar, or a source's documents lie in more than one place. Of row
    groups that hold one source only the statistics are read.

    Raises:
        HanseError: the file is not a sidecar.
    """
    if not sidecar.is_file():
        return {}
    try:
        ends = [list(group)[-1] for _, group in groupby(_ends(pq.ParquetFile(sidecar)), key=lambda one: one[0])]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise HanseError(f"{sidecar}: not a readable sidecar ({error}); write the shards again with "
                         "'hanse tokenize'") from None  # fmt: skip
    names = [name for name, _ in ends]
    if len(set(names)) < len(names):
        return {}
    return dict(zip(names, np.diff([0, *(end for _, end in ends)]).tolist(), strict=True))


def _ends(file: pq.ParquetFile) -> Iterator[tuple[str, int]]:
    """(source, token behind its last document) of row groups of one source, and of the parts of others."""
    columns = {name: number for number, name in enumerate(file.schema_arrow.names)}
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        source, end = (group.column(columns[name]).statistics for name in ("source", "token_end"))
        if source and end and source.has_min_max and not source.null_count and source.min == source.max:
            yield source.min, end.max
            continue
        table = file.read_row_group(number, columns=["source", "token_end"])
        runs = pc.run_end_encode(table.column("source").combine_chunks().cast(pa.string()).fill_null(""))
        last = table.column("token_end").to_numpy()[runs.run_ends.to_numpy() - 1]
        yield from zip(runs.values.to_pylist(), last.tolist(), strict=True)
