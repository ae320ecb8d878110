"""A given number of bytes of each language, drawn by document hash: no language pays for another's size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.manifest import CorpusManifest
from data_pipelines.memory import parquet_batches

BATCH_ROWS = 256


def train_bytes(corpus: CorpusManifest, language: str) -> int:
    """Bytes of UTF-8 in the training split of a language."""
    return int(_sizes(corpus, language)[1].sum())


def drawn_texts(corpus: CorpusManifest, language: str, budget_bytes: int) -> Iterator[str]:
    """Texts of the training split of a language, ``budget_bytes`` of UTF-8 in all, none twice.

    Documents are drawn by the hash of their ids, so that a small budget is not spent on the first file; the last one
    drawn is cut, at most 3 bytes short because a character is never cut.
    """
    rows, sizes, keys = _sizes(corpus, language)
    drawn = np.argsort(keys, kind="stable")
    before = np.cumsum(sizes[drawn]) - sizes[drawn]
    within = before < budget_bytes
    allowed = dict(zip(rows[drawn[within]].tolist(), (budget_bytes - before[within]).tolist(), strict=True))
    row = 0
    for batch in parquet_batches(pq.ParquetFile(corpus.documents(language, hashes=False)), BATCH_ROWS, ["text"]):
        for text in batch.column("text").to_pylist():
            if row in allowed:
                data = text.encode("utf-8")
                yield text if len(data) <= allowed[row] else data[: allowed[row]].decode("utf-8", "ignore")
            row += 1


def texts_of(corpus: CorpusManifest, language: str, split: str) -> Iterator[list[str]]:
    """Batches of texts of one split of a language, in the order of the file."""
    columns = ["text", "split"]
    for batch in parquet_batches(pq.ParquetFile(corpus.documents(language, hashes=False)), BATCH_ROWS, columns):
        yield batch.filter(pc.equal(batch.column("split"), split)).column("text").to_pylist()


def _sizes(corpus: CorpusManifest, language: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row number, bytes, hash of the id) of each training document of a language; its file's hash is checked."""
    sizes, keys, train = [], [], []
    columns = ["id", "text", "split"]
    for batch in parquet_batches(pq.ParquetFile(corpus.documents(language)), BATCH_ROWS, columns):
        sizes.append(pc.binary_length(batch.column("text")).to_numpy())
        train.append(np.asarray(batch.column("split").to_pylist()) == "train")
        keys += [
            int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in batch.column("id").to_pylist()
        ]
    rows = np.flatnonzero(np.concatenate(train))
    return rows, np.concatenate(sizes).astype(np.int64)[rows], np.asarray(keys, dtype=np.uint64)[rows]
