"""Counting a corpus holds a row group, whatever the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.corpus import KEPT

# Another process, because Arrow's peak is that of a process; it begins anew where counting begins.
MEASURED = """
import sys
from pathlib import Path
import pyarrow as pa
from data_pipelines.counted import Kept
before = pa.default_memory_pool().max_memory()
kept = Kept.of(Path(sys.argv[1]), "fr")
print(kept.documents, kept.bytes, *(one.size for one in kept.largest), before, pa.default_memory_pool().max_memory())
"""


@pytest.mark.slow
def test_counting_holds_a_row_group(tmp_path):
    """40 row groups of 1 MB of text in few rows: counted in the memory of a few, not of the file."""
    rows = [{"id": f"web:{number}:0", "text": chr(97 + number % 26) * 10**5, "language": "fr", "license": "CC0-1.0",
             "cluster_size": 1 + number} for number in range(400)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, KEPT), tmp_path / "fr.parquet", row_group_size=10)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "fr.parquet")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    documents, size, *largest, before, peak = map(int, ended.stdout.split())
    assert (documents, size, largest) == (400, 400 * 10**5, [400, 399, 398])
    assert before < 10**5 < 10**6 < peak < 10**7
