"""The validation documents of a shards folder as text, with their titles: what tasks and samples are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from data_pipelines.shards import SIDECAR, ShardsManifest, TokenShard, beside
from train.data_table import corpus_of

MOST_DOCUMENTS = 1024  # of a language that tasks look at, evenly over its shard
MOST_TOKENS = 16_384  # of each, from its beginning: a question about a book need not read all of it


@dataclass(frozen=True)
class ValidationText:
    """Shards with the tokenizer that they were written with; ``corpus``: theirs, if it is not beside them."""

    shards: ShardsManifest
    tokenizer_folder: Path
    corpus: str | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the shards were written with it."""
        return Tokenizer.from_file(str(self.tokenizer_folder / "tokenizer.json"))

    @property
    def validation_languages(self) -> list[str]:
        """Languages with validation documents."""
        return sorted({entry.language for entry in self.shards.of("validation") if entry.documents})

    @cached_property
    def _opened(self) -> dict[str, TokenShard]:
        return {}

    def _shard(self, language: str) -> TokenShard:
        if language not in self._opened:  # once: opening compares a hash
            entry = next(entry for entry in self.shards.of("validation") if entry.language == language)
            self._opened[language] = self.shards.open(entry)
        return self._opened[language]

    def validation_document(self, language: str, number: int = 0) -> np.ndarray:
        """The ids of a validation document of a language, 1-D int64, without the one that ends it."""
        shard = self._shard(language)
        ids = shard.document(number % shard.documents).astype(np.int64)
        return ids[:-1] if len(ids) and ids[-1] == self.shards.end_of_document_id else ids

    def validation_texts(self, language: str) -> dict[int, str]:
        """{number of a validation document: its text}, of as many and as long ones as a task looks at."""
        documents = self._shard(language).documents
        count = min(documents, MOST_DOCUMENTS)
        numbers = [index * documents // count for index in range(count)]
        ids = [self.validation_document(language, number)[:MOST_TOKENS].tolist() for number in numbers]
        return dict(zip(numbers, self.tokenizer.decode_batch(ids), strict=True))

    def validation_titles(self, language: str, numbers: Sequence[int]) -> dict[int, str]:
        """{number of a validation document: its title}; empty where the corpus is not here, or says none."""
        corpus = corpus_of(self.shards, Path(self.corpus) if self.corpus else None)
        if corpus is None:
            return {}
        import pyarrow.compute as pc
        import pyarrow.dataset as ds  # not at the top: few ask for titles

        ids = pq.read_table(beside(self._shard(language).prefix, SIDECAR), columns=["id"])["id"]
        wanted = ids.take(list(numbers))
        # Of a large corpus not all is held, nor hashed: ids are made of the documents' content.
        corpus_rows = ds.dataset(corpus.documents(language, hashes=False))
        rows = corpus_rows.to_table(columns=["id", "title"], filter=pc.field("id").isin(wanted.combine_chunks()))
        titles = dict(zip(rows["id"].to_pylist(), rows["title"].to_pylist(), strict=True))
        return {number: title for number, one in zip(numbers, wanted.to_pylist(), strict=True)
                if (title := titles.get(one))}  # fmt: skip
