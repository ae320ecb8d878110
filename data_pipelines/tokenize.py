"""``hanse tokenize``: curated corpus + tokenizer -> token shards, their sidecars, manifest.

One shard a language and split. Every document is its tokens and one end-of-document id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from common.configuration import same_again
from common.errors import HanseError
from common.folders import replaced_folder, restore
from common.terminal import Progress, count, next_step, say, table
from data_pipelines.adopt import adopt_all, identity
from data_pipelines.config import TokenizeConfig
from data_pipelines.encoders import Encoder, choose, reference
from data_pipelines.manifest import CorpusManifest
from data_pipelines.memory import give_back, parquet_batches
from data_pipelines.packing import PackingManifest, make_plans
from data_pipelines.parity import OtherIdsError, Parity, text_bytes
from data_pipelines.shards import FORMAT, SPLITS, ShardEntry, ShardsManifest, token_dtype
from data_pipelines.split_shard import SplitShard, sums_of, with_ends
from data_pipelines.tokenizer import described_sha256, token_byte_lengths, tokenizer_sha256

COLUMNS = ["id", "text", "source", "license", "language", "url", "split"]
LEAST_ROWS, MOST_ROWS = 64, 100_000  # read at once, whatever the size of a text


@dataclass(frozen=True)
class LoadedTokenizer:
    """A ``tokenizer.json`` after all checks."""

    path: Path
    sha256: str
    vocabulary_size: int
    end_of_document_id: int
    byte_lengths: np.ndarray  # unsigned (vocabulary_size,), as narrow as they allow: it is looked into for every token
    reference: Encoder  # with `tokenizers`


def run(config: TokenizeConfig) -> None:
    """Write the shards, unless the same ones are there already."""
    folder = Path(config.output)
    corpus = None if config.adopt else CorpusManifest.read(Path(config.corpus))
    root = corpus.merkle_root if corpus else identity(config)
    tokenizer = load(config)
    restore(folder)
    manifest = _finished(folder, root, tokenizer)
    speeds: dict[str, float] = {}
    if manifest:
        say(f"{folder}/ holds these shards already: nothing to do (delete it to write them again)")
    else:
        with replaced_folder(folder, FORMAT) as partial:
            entries, encoders, speeds = (
                _encode_all(config, corpus, tokenizer, partial) if corpus else adopt_all(config, tokenizer, partial)
            )
            manifest = ShardsManifest(
                tokenizer_sha256=tokenizer.sha256,
                vocabulary_size=tokenizer.vocabulary_size,
                end_of_document_id=tokenizer.end_of_document_id,
                encoder=encoders,
                corpus_merkle_root=root,
                shards=sorted(entries, key=lambda entry: SPLITS.index(entry.split)),
                folder=partial,
            )
            manifest.write()
        say(f"wrote {folder}/ (Merkle root {manifest.merkle_root[:16]})")
    _show(config.name, manifest, speeds)
    for length in config.packing_lengths:
        for plan, there in make_plans(ShardsManifest.read(folder), length):
            show_plan(plan, there)
    next_step(f"hanse train {same_again(config.name)}")


def load(config: TokenizeConfig) -> LoadedTokenizer:
    """The tokenizer of the configuration.

    Raises:
        HanseError: it is missing, was changed since it was trained, is not the expected one, or does not fit.
    """
    folder = Path(config.tokenizer)
    path, found = folder / "tokenizer.json", tokenizer_sha256(folder / "tokenizer.json")
    if found != described_sha256(folder, found):
        raise HanseError(
            f"{path}: not the file that its manifest.json describes; train it again with 'hanse tokenizer'"
        )
    if config.tokenizer_sha256 not in (None, found):
        raise HanseError(f"{path}: sha256 is {found}, but tokenizer_sha256 asks for {config.tokenizer_sha256}")
    lengths = token_byte_lengths(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing finer
        raise HanseError(f"{path}: not a readable tokenizer ({error}); train one with 'hanse tokenizer'") from None
    end = tokenizer.token_to_id(config.end_of_document)
    if end is None:
        raise HanseError(
            f"{path}: has no token {config.end_of_document!r}; set end_of_document to the one that ends a text"
        )
    narrow = lengths.astype(np.min_scalar_type(lengths.max()))
    return LoadedTokenizer(path, found, len(lengths), end, narrow, reference(tokenizer))


def _finished(folder: Path, root: str, tokenizer: LoadedTokenizer) -> ShardsManifest | None:
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = ShardsManifest.read(folder)
        for entry in manifest.shards:
            manifest.open(entry, hashes=True)
    except HanseError as error:
        say(f"writing the shards again: {error}")
        return None
    made_of = (manifest.corpus_merkle_root, manifest.tokenizer_sha256, manifest.end_of_document_id)
    return manifest if made_of == (root, tokenizer.sha256, tokenizer.end_of_document_id) else None


def _encode_all(
    config: TokenizeConfig, corpus: CorpusManifest, tokenizer: LoadedTokenizer, folder: Path
) -> tuple[list[ShardEntry], str, dict[str, float]]:
    """Write all shards of a corpus; also the encoders, and the MB/s at which each language was encoded."""
    entries: list[ShardEntry] = []
    used, speeds, dtype = [], {}, token_dtype(tokenizer.vocabulary_size)
    progress = Progress("tokenize", sum(tally.bytes_kept for tally in corpus.languages.values()), "B")
    encoder, remarks = choose(config.encoder, tokenizer.path, [], tokenizer.reference)
    for language in corpus.kept_languages:
        path = corpus.documents(language)
        while True:
            for remark in remarks:
                say(f"{language}: passed over {remark}")
            shards = [SplitShard(folder, split, language, dtype) for split in corpus.splits(language)]
            before, seconds = progress.done, 0.0
            try:
                for size, spent in _write(path, shards, encoder, tokenizer, config):
                    progress.advance(size, language)
                    seconds += spent
                break
            except OtherIdsError as error:
                progress.done, remarks = before, [f"{encoder.name}: {error}"]
            if config.encoder != "auto":
                raise HanseError(f"{path}: encoder {remarks[0]}; use encoder=auto")
            encoder, more = choose("auto", tokenizer.path, [], tokenizer.reference, after=encoder.name)
            remarks += more
        remarks = []
        used.append(f"{encoder.name} {encoder.version}")
        entries += [shard.entry() for shard in shards]
        speeds[language] = sum(shard.bytes for shard in shards) / 1e6 / max(seconds, 1e-9)
    encoders = ", ".join(dict.fromkeys(used))
    say(f"encoded with {encoders}: ids equal to those of tokenizers on a sample of each file and on hard texts")
    return entries, encoders, speeds


def _write(
    path: Path, shards: Sequence[SplitShard], encoder: Encoder, tokenizer: LoadedTokenizer, config: TokenizeConfig
) -> Iterator[tuple[int, float]]:
    """Encode a language's file into the shards of its splits; (bytes of text, seconds of the encoder), by batches.

    Raises:
        OtherIdsError: the encoder's ids are not those of ``tokenizers``; nothing is left of the shards.
        HanseError: a document's tokens do not stand for as many bytes as it has.
    """
    file = pq.ParquetFile(path)
    parity = Parity(tokenizer.reference, config.parity_documents, file.metadata.num_rows)
    with ExitStack() as stack:
        for shard in shards:
            stack.enter_context(shard)
        rows = rows_of(file, config.batch_megabytes * 10**6)
        for batch in parquet_batches(file, rows, COLUMNS):
            done = _write_batch(batch, shards, encoder, tokenizer, parity)
            del batch  # or it would be held while the next is read
            give_back()
            yield done


def _write_batch(
    batch: pa.RecordBatch,
    shards: Sequence[SplitShard],
    encoder: Encoder,
    tokenizer: LoadedTokenizer,
    parity: Parity,
) -> tuple[int, float]:
    """Encode some documents into the shards of their splits; (bytes of text, seconds of the encoder)."""
    start = time.perf_counter()
    ids, lengths = encoder.encode(batch["text"])
    spent = time.perf_counter() - start
    ends = np.cumsum(lengths, dtype=np.int64)
    parity.check(batch["id"], batch["text"], ids, ends, encoder)
    sizes = np.diff(text_bytes(batch["text"])[0])
    # Parity is seen on a sample; that nothing is lost is checked on every document.
    wrong = np.flatnonzero(sums_of(tokenizer.byte_lengths, ids, ends) != sizes)
    if len(wrong):
        name = batch["id"][int(wrong[0])].as_py()
        raise HanseError(f"document {name}: {encoder.name} loses text; use encoder=tokenizers")
    closed = with_ends(ids, ends, tokenizer.end_of_document_id, shards[0].dtype)
    for shard in shards:
        shard.extend(batch, pc.equal(batch["split"], shard.split), closed, lengths + 1, sizes)
    return int(sizes.sum()), spent


def rows_of(file: pq.ParquetFile, batch_bytes: int) -> int:
    """Rows of a Parquet file that are some ``batch_bytes`` of its text."""
    text = [name.partition(".")[0] for name in (column.path for column in file.schema)].index("text")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    held = sum(group.column(text).total_uncompressed_size for group in groups)
    return int(min(max(batch_bytes * file.metadata.num_rows // max(held, 1), LEAST_ROWS), MOST_ROWS))


def _show(name: str, manifest: ShardsManifest, speeds: dict[str, float]) -> None:
    rows = [
        [shard.name, f"{shard.documents:,}", f"{shard.tokens:,}", count(shard.bytes, "B"),
         f"{shard.bytes / max(shard.tokens - shard.documents, 1):.3f}",
         *([f"{speeds[shard.language]:.0f}"] if speeds else [])]
        for shard in manifest.shards
    ]  # fmt: skip
    head = ["shard", "documents", "tokens", "bytes", "bytes/token", *(["MB/s"] if speeds else [])]
    sums = [sum(getattr(shard, key) for shard in manifest.shards) for key in ("documents", "tokens", "bytes")]
    last = ["all", f"{sums[0]:,}", f"{sums[1]:,}", count(sums[2], "B"), f"{sums[2] / max(sums[1] - sums[0], 1):.3f}"]
    table(f"shards {name}", head, [*rows, [*last, *([""] if speeds else [])]], total=True)


def show_plan(plan: PackingManifest, there: bool) -> None:
    """Tell what a packing plan saves."""
    say(f"{plan.folder}/ {'holds this plan already' if there else f'written (Merkle root {plan.merkle_root[:16]})'}")
    one, rows = plan.sequence_length + 1, []
    for entry in plan.plans:
        padding = entry.padding / max(entry.bins * one, 1)
        rows.append([entry.name, f"{entry.bins:,}", f"{entry.fragments / max(entry.bins, 1):.1f}", f"{padding:.3%}",
                     f"{entry.cut:,}", f"{entry.cut_by_concatenation:,}"])  # fmt: skip
    head = ["shard", "sequences", "fragments each", "padding", "longer documents", "others, cut without it"]
    alone = " of one source each" if plan.by_source else ""
    table(f"packed for sequences of {plan.sequence_length:,} tokens{alone}", head, rows)
