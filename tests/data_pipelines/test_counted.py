"""Counting a corpus holds a row group, whatever the file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.corpus import KEPT
from data_pipelines.counted import Kept


def test_counting_holds_one_row_group(tmp_path):
    """40 row groups of 1 MB of text in few rows: counted in the memory of a few, not of the file."""
    rows = [{"id": f"web:{number}:0", "text": chr(97 + number % 26) * 10**5, "language": "fr", "license": "CC0-1.0",
             "cluster_size": 1 + number} for number in range(400)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, KEPT), tmp_path / "fr.parquet", row_group_size=10)
    own, usual = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(own)
    try:
        kept = Kept.of(tmp_path / "fr.parquet", "fr")
    finally:
        pa.set_memory_pool(usual)
    assert (kept.documents, kept.bytes) == (400, 400 * 10**5)
    assert [cluster.size for cluster in kept.largest] == [400, 399, 398]
    assert 10**6 < own.max_memory() < 10**7
