"""Some files of a source -> one annotated Parquet file: every document that came in, with all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import HanseError
from data_pipelines import boilerplate
from data_pipelines.annotate import evaluation, language, opt_out, personal_data, quality_signals
from data_pipelines.annotate.evaluation import EvaluationSets
from data_pipelines.annotate.language import LanguageIdentifier
from data_pipelines.annotate.opt_out import OptOut
from data_pipelines.annotate.quality import BATCH_CHARACTERS, LONGEST, Quality, shipped_languages
from data_pipelines.annotate.signature import BYTES, signatures
from data_pipelines.annotate.text_arrays import TextArrays, batches
from data_pipelines.config import AnnotateConfig, SourceConfig
from data_pipelines.documents import Document, content_of, document, id_of
from data_pipelines.runner import Tell
from data_pipelines.sources import Record, first_line, read

FACTS = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "language", "source", "title", "url", "license", "date")]
)
SIGNAL_COLUMNS = pa.schema(
    [*language.SCHEMA, *quality_signals.SCHEMA, *personal_data.SCHEMA, *opt_out.SCHEMA, *evaluation.SCHEMA]
)
INTERNAL = pa.schema(
    [
        ("reason", pa.string()),  # why there is no text; empty for all others
        ("detail", pa.string()),
        ("split_group", pa.string()),  # what the split goes by; none: the content
        ("content", pa.binary(32)),  # equal for exact duplicates
        ("signature", pa.binary(BYTES)),
    ]
)
ANNOTATED = pa.schema([*FACTS, *SIGNAL_COLUMNS, *INTERNAL])
COUNTS = b"hanse.part"  # key of the counts in a file's Parquet metadata
MOST_ROWS = 20_000  # in memory at once, of documents that have hardly any text


@dataclass(frozen=True)
class Part:
    """Files of one source that become one annotated file (none: a dataset that is read by name)."""

    name: str
    source: SourceConfig
    files: tuple[Path, ...]
    downloads: Path
    config: AnnotateConfig
    batch_bytes: int
    opt_out: OptOut | None = None
    evaluation: EvaluationSets | None = None
    boilerplate: Path | None = None  # list of the lines to remove

    @property
    def longest(self) -> int:
        """Bytes of a record beyond which it is set aside unread."""
        return self.config.max_document_megabytes * 10**6


def count_lines(part: Part, path: Path, tell: Tell) -> None:
    """Write how many documents of a part each line stands in (the first pass of :mod:`data_pipelines.boilerplate`)."""

    def documents() -> Iterator[Document]:
        size = 0
        for record in _records(part):
            one = document(record, part.source, part.longest)
            size += len(one.text)
            tell(record.position, size)
            yield one

    boilerplate.count(documents(), part.config.boilerplate.by, path)


def annotate(part: Part, path: Path, tell: Tell) -> None:
    """Write the annotated file of a part; its row groups hold about ``batch_bytes`` of text.

    Its metadata say how many documents and bytes came in; so many are in it.
    """
    annotator = Annotator(part.name, part.source, part.config, part.opt_out, part.evaluation)
    documents = size = 0
    removed = boilerplate.Removed()
    with pq.ParquetWriter(path, ANNOTATED, compression="zstd") as writer:
        for batch, share in _batches(part, removed):
            columns = annotator(batch)
            writer.write_batch(columns)
            documents += len(batch)
            size += _bytes(columns.column("text"))
            tell(share, size)
            del batch, columns  # or they would be held while the next are read
        counts: dict[str, Any] = {"documents": documents, "bytes": size}
        if part.boilerplate:
            counts["boilerplate"] = asdict(removed)
        writer.add_key_value_metadata({COUNTS: json.dumps(counts)})


def counts_of(path: Path) -> tuple[int, int]:
    """(documents, bytes of text) that an annotated file says came in.

    Raises:
        HanseError: it is no annotated file, or damaged.
    """
    counts = _counts(path)
    return counts["documents"], counts["bytes"]


def repeated_of(path: Path) -> dict[str, Any] | None:
    """The repeated lines that were removed from an annotated file, as of :class:`~data_pipelines.boilerplate.Removed`;
    None where nobody looked for them.

    Raises:
        HanseError: it is no annotated file, or damaged.
    """
    return _counts(path).get("boilerplate")


def _counts(path: Path) -> dict[str, Any]:
    try:
        counts = json.loads(pq.read_metadata(path).metadata[COUNTS])
        return {"documents": counts["documents"], "bytes": counts["bytes"], **counts}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise HanseError(f"{path}: damaged ({first_line(error)}); delete it and run the same command again") from None


def _records(part: Part) -> Iterator[Record]:
    return read(part.source, part.downloads, part.files or None, part.longest)


def _batches(part: Part, removed: boilerplate.Removed) -> Iterator[tuple[list[Document], float]]:
    """Documents in batches, with the share of the input that is read by then."""
    batch: list[Document] = []
    held, share = 0, 0.0
    remover = boilerplate.Boilerplate(part.boilerplate, part.config.boilerplate.by) if part.boilerplate else None
    for record in _records(part):
        one = document(record, part.source, part.longest)
        batch.append(remover(one, removed) if remover else one)
        held, share = held + len(batch[-1].text), record.position
        if held >= part.batch_bytes or len(batch) >= MOST_ROWS:
            yield batch, share
            batch, held = [], 0
    if batch:
        yield batch, 1.0


class Annotator:
    """Adds the columns to documents of one source. What cannot be found out, or was not asked for, is missing there."""

    def __init__(
        self,
        name: str,
        source: SourceConfig,
        config: AnnotateConfig,
        opt_out: OptOut | None = None,
        evaluation: EvaluationSets | None = None,
    ):
        self.name, self.source, self.config = name, source, config
        self.identify = LanguageIdentifier(config.language_characters, config.language_detector)
        self.quality = quality_of(source.language, config)
        self.opt_out, self.evaluation = opt_out, evaluation

    def __call__(self, documents: list[Document]) -> pa.RecordBatch:
        """The columns of :data:`ANNOTATED`: a row a document."""
        texts = pa.array([one.text for one in documents], pa.string())
        columns: dict[str, pa.Array] = {}
        if self.config.personal_data:
            redacted = personal_data.redact(texts, self.source.language)
            texts = redacted.texts
            columns |= _columns(redacted.counts)
        strings = texts.to_pylist()
        columns |= self._facts(documents, texts, strings)
        columns |= _columns(self.identify.columns(strings))
        columns |= self._of_arrays(strings)
        if self.opt_out:
            columns |= _columns(self.opt_out.columns(one.url for one in documents))
        if any(one.objection for one in documents):
            columns |= opt_out.with_objections(columns, [one.objection for one in documents])
        missing = [pa.nulls(len(documents), kind) for kind in ANNOTATED.types]
        return pa.RecordBatch.from_arrays(list(map(columns.get, ANNOTATED.names, missing)), schema=ANNOTATED)

    def _facts(self, documents: list[Document], texts: pa.Array, strings: list[str]) -> dict[str, pa.Array]:
        ids = [id_of(self.name, one.key, text) for one, text in zip(documents, strings, strict=True)]
        given = {name: [getattr(one, name) for one in documents] for name in
                 ("title", "url", "license", "date", "reason", "detail")}  # fmt: skip
        given |= {"id": ids, "split_group": [one.group for one in documents]}
        given |= {"language": [self.source.language] * len(ids), "source": [self.name] * len(ids)}
        content = pa.array(map(content_of, strings), pa.binary(32), size=len(strings))
        return {name: pa.array(values, pa.string()) for name, values in given.items()} | {
            "text": texts, "content": content,
        }  # fmt: skip

    def _of_arrays(self, strings: list[str]) -> dict[str, pa.Array]:
        """What comes of words: they are found once for all."""
        signed, signals, matched = [], [], []
        for part in batches(strings, BATCH_CHARACTERS, LONGEST):
            arrays = TextArrays.of(part)
            signed.append(signatures(arrays))
            if self.quality:
                signals.append(self.quality.signals_of(arrays))
            if self.evaluation:
                matched.append(self.evaluation.matches(arrays))
        columns = {"signature": pa.concat_arrays(signed)}
        if self.quality:
            columns |= _columns(Quality.columns(signals, strings))
        if self.evaluation:
            counts, first = map(np.concatenate, zip(*matched, strict=True))
            columns |= _columns(self.evaluation.columns(counts, first))
        return columns


def quality_of(code: str, config: AnnotateConfig) -> Quality | None:
    """Stop words and thresholds of a language: the user's, else the shipped ones; None where there are none.

    Raises:
        HanseError: the YAML is not right.
    """
    if not config.quality:
        return None
    own = Path(config.quality_folder) / f"{code}.yaml" if config.quality_folder else None
    if own and own.is_file():
        return Quality.read(own)
    return Quality.of(code) if code in shipped_languages() else None


def _columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _bytes(texts: pa.Array) -> int:
    return pc.sum(pc.binary_length(texts)).as_py() or 0
