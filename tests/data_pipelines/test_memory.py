"""What is read is let go of, and tokenizing needs no more memory for a larger corpus."""

import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.manifest import CorpusManifest, FileEntry, Tally
from data_pipelines.memory import parquet_batches, resident_bytes

MEASURED = """
import re, sys
from pathlib import Path
from data_pipelines import tokenize
from data_pipelines.config import TokenizeConfig
tokenize.run(TokenizeConfig("x", sys.argv[1], sys.argv[2], output=sys.argv[1] + "/shards", batch_megabytes=1))
status = Path("/proc/self/status").read_text()  # getrusage would count what pytest held when it started this process
print(re.search("VmHWM:\\s+([0-9]+) kB", status)[1])
"""


def test_reading_holds_a_row_group_and_not_what_was_read_before(tmp_path):
    rng, held, rows = random.Random(0), [], []
    texts = [rng.randbytes(2_000).hex() for _ in range(4_000)]  # 16 MB, a row group for each
    pq.write_table(pa.table({"number": range(4_000), "text": texts}), tmp_path / "x.parquet", row_group_size=250)
    before = pa.total_allocated_bytes()
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        for batch in parquet_batches(file, 120, ["number", "text"]):
            held.append(pa.total_allocated_bytes() - before)
            rows += batch.column("number").to_pylist()
            assert batch.num_rows == 125  # two of a row group, and no rest of ten
            del batch
    assert rows == list(range(4_000))
    assert max(held) < 8 * 10**6  # some row groups; a reader of pyarrow's that goes on by itself holds all 17.6 MB


def test_resident_memory_is_known_here():
    before = resident_bytes()
    held = bytearray(64 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])  # every page
    assert resident_bytes() > before + 32 * 2**20


@pytest.mark.slow
def test_tokenizing_eight_times_the_text_takes_no_more_memory(tmp_path, tiny_data, prose):
    """At most 12 MB more at the highest point, of 28 MB more text."""
    passages, peaks, rng = prose("fr"), [], random.Random(0)
    for megabytes in (4, 32):
        texts = [" ".join(rng.sample(passages, 10)) for _ in range(megabytes * 250)]  # 4 kB each
        sizes = [len(text.encode()) for text in texts]
        folder = tmp_path / f"{megabytes}"
        path = folder / "documents/fr.parquet"
        path.parent.mkdir(parents=True)
        columns = {"id": [f"s:{number:012x}" for number in range(len(texts))], "text": texts}
        columns |= {name: [name] * len(texts) for name in ("source", "license", "language", "url")}
        columns["split"] = ["train"] * len(texts)
        pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=250)
        tally = Tally("fr", "CC0-1.0", len(texts), len(texts), sum(sizes), sum(sizes))
        files = {"documents/fr.parquet": FileEntry.of(path, len(texts))}
        CorpusManifest("x", "x", {}, {}, {"s": tally}, files, folder).write()
        command = [sys.executable, "-c", MEASURED, folder, tiny_data / "tokenizer"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        peaks.append(int(told.stdout.splitlines()[-1]) / 1000)
    assert peaks[1] < peaks[0] + 12, peaks
