"""Sums over labels that were predicted: of all, and of each source that their documents come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import HanseError
from data_pipelines.shards import SIDECAR, beside
from train.stream import IGNORED, MicroBatch, Source


@dataclass(frozen=True)
class Score:
    """Sums over labels: negative log-likelihood in nats, labels, those the model ranked first, their UTF-8 bytes.

    Bits per byte (Gao et al., arXiv 2101.00027): negative log-likelihood in bits over the UTF-8 bytes of the labels;
    it compares models with different tokenizers. The end-of-document label counts in the bits and has no bytes.
    """

    nll: float
    targets: int
    correct: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / max(self.bytes, 1)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / max(self.targets, 1)

    @property
    def token_accuracy(self) -> float:
        """Share of the labels that the model held for the likeliest token."""
        return self.correct / max(self.targets, 1)

    def rates(self) -> dict[str, float]:
        """What the sums amount to."""
        return {"bits_per_byte": self.bits_per_byte, "loss": self.loss, "token_accuracy": self.token_accuracy}

    def to_json(self) -> dict[str, float]:
        """The sums and what they amount to."""
        return {**self.rates(), **asdict(self)}


def total(scores: Iterable[Score]) -> Score:
    """The sum, rounded once."""
    held = list(scores)
    return Score(math.fsum(one.nll for one in held), sum(one.targets for one in held),
                 sum(one.correct for one in held), sum(one.bytes for one in held))  # fmt: skip


def _sources_of(sidecar: Path) -> pa.ChunkedArray:
    try:
        # Not by read_table(), which imports pyarrow's data sets, and these pandas: 0.6 s of every start. So would a
        # null here, pa.array() and to_numpy() below.
        with pq.ParquetFile(sidecar) as file:
            column = file.read(columns=["source"]).column(0)
        column = column.cast(pa.string())
        return column.fill_null("") if column.null_count else column
    except (OSError, pa.ArrowException, IndexError) as error:
        raise HanseError(f"{sidecar}: not a readable sidecar ({error}); write the shards again with "
                         "'hanse tokenize'") from None  # fmt: skip


@dataclass(frozen=True)
class Origins:
    """Which source each document of a language's shards comes from.

    Attributes:
        names: of the sources, in alphabetical order.
        numbers: of each shard, in the order of ``source.shards``: place in ``names`` of every document's source.
    """

    source: Source
    names: list[str]
    numbers: list[np.ndarray]

    @classmethod
    def read(cls, source: Source) -> Origins:
        """From the shards' sidecars.

        Raises:
            HanseError: one of them is missing or not readable.
        """
        columns = [_sources_of(beside(shard.prefix, SIDECAR)) for shard in source.shards]
        known = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).unique()
        known = known.take(pc.sort_indices(known))
        numbers = [np.from_dlpack(pc.index_in(column, value_set=known).combine_chunks()) for column in columns]
        return cls(source, known.to_pylist(), numbers)

    @staticmethod
    def are_known(source: Source) -> bool:
        """Whether every shard has its sidecar: training and validation go without."""
        return all(beside(shard.prefix, SIDECAR).is_file() for shard in source.shards)

    def of(self, window: int, documents: np.ndarray) -> np.ndarray:
        """Number of the source of each position of a window, from its documents, counted in the window's shard."""
        shard = self.source.place(window)[0]
        return self.numbers[self.source.shards.index(shard)][documents]

    def split(
        self, windows: Sequence[int], batch: MicroBatch, nll: np.ndarray, first: np.ndarray, token_bytes: np.ndarray
    ) -> dict[int, Score]:  # fmt: skip
        """{number of a source: the sums over its labels}, added up label by label and rounded once.

        Args:
            windows: the batch's first sequences; what else it holds does not count.
            batch: B sequences of L tokens.
            nll, first: (B, L), of each label: negative log-likelihood, and whether it is the likeliest token.
            token_bytes: UTF-8 bytes of every token.
        """
        count, found = len(windows), {}
        labels = batch.labels[:count]
        of = np.stack([self.of(window, row) for window, row in zip(windows, batch.documents[:count], strict=True)])
        for number in np.unique(of[labels != IGNORED]).tolist():
            where = (of == number) & (labels != IGNORED)
            found[number] = Score(math.fsum(nll[:count][where].tolist()), int(where.sum()),
                                  int(first[:count][where].sum()), int(token_bytes[labels[where]].sum()))  # fmt: skip
        return found
