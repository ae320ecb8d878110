"""A corpus -> one HTML page: what is in it, where it comes from, what was removed and why. ``hanse report corpus=...``

It needs nothing else: no network, no other file. Shards and tokenizer are looked at where they are there and belong to
the corpus; texts in it are untrusted, and are shown escaped, short, and without personal data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import HanseError
from common.files import read_json, write_text
from common.page import render
from common.terminal import count, next_step, say
from data_pipelines import corpus_figures as figures
from data_pipelines import fertility_plot
from data_pipelines.counted import Kept, Removed, files_of
from data_pipelines.fertility_plot import Compared, colours_of
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import SIDECAR, ShardsManifest, beside
from data_pipelines.sources import first_line


@dataclass(frozen=True)
class Evidence:
    """Everything that the page shows.

    Attributes:
        kept, removed: counts of the files, language by language.
        tokens: {source: tokens} in the corpus's shards; empty where they were not found.
        fertility: of the corpus's tokenizer; None where it was not found.
        notes: what a reader must know.
    """

    manifest: CorpusManifest
    kept: dict[str, Kept]
    removed: dict[str, Removed]
    tokens: dict[str, int]
    fertility: Compared | None
    notes: list[str]

    @cached_property
    def colours(self) -> dict[str, int]:
        return colours_of(list(self.manifest.languages))

    def tokens_of(self, language: str) -> int | None:
        """Tokens of a language's sources; None where there are no shards."""
        sources = [name for name, one in self.manifest.sources.items() if one.language == language]
        return sum(self.tokens.get(name, 0) for name in sources) if self.tokens else None


def write(corpus: str, output: str | None, shards: str | None, tokenizer: str | None) -> None:
    """Write the page of a corpus.

    Args:
        corpus: the folder that ``hanse corpus`` wrote, or the one around it (``data/NAME``).
        output: file to write; None: ``report.html`` in the corpus's folder.
        shards, tokenizer: what was made of it; None: beside it, if anywhere.

    Raises:
        HanseError: there is no corpus, a file of it is not what its manifest says, or what was named does not belong.
    """
    folder = corpus_folder(corpus)
    try:
        evidence = gather(folder, shards, tokenizer)
        text = page(evidence)
    except HanseError:
        raise
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"its files are not those of a corpus of this version ({first_line(error)})"
        raise HanseError(f"{folder}: {why}; make it again with 'hanse corpus'") from None
    path = Path(output) if output else folder / "report.html"
    write_text(path, text)
    for note in evidence.notes:
        say(f"note: {note}")
    say(f"wrote {path} ({count(path.stat().st_size, 'B')}): open it in a browser")
    if not evidence.tokens:
        next_step(f"hanse tokenize name={evidence.manifest.name} corpus={folder}")


def corpus_folder(path: str) -> Path:
    """The folder of a corpus, given that or the one around it."""
    folder = Path(path)
    around = folder / "corpus"
    return around if (around / "manifest.json").is_file() and not (folder / "documents").is_dir() else folder


def gather(folder: Path, shards: str | None, tokenizer: str | None) -> Evidence:
    """Read a corpus, and what was made of it."""
    manifest = CorpusManifest.read(folder)
    for side in ("documents", "removed", "opt_out"):
        for language, _ in files_of(manifest, side):
            manifest.file(f"{side}/{language}.parquet")
    kept = {language: Kept.of(path, language) for language, path in files_of(manifest, "documents")}
    removed = {language: Removed.of(path, language) for language, path in files_of(manifest, "removed")}
    notes: list[str] = []
    tokens = _tokens(manifest, shards, notes)
    fertility = _fertility(manifest, tokenizer, notes)
    return Evidence(manifest, kept, removed, tokens, fertility, notes)


def _tokens(manifest: CorpusManifest, shards: str | None, notes: list[str]) -> dict[str, int]:
    """Tokens of every source, counted in what lies beside the shards."""
    folder = Path(shards) if shards else manifest.folder.parent / "shards"
    if not shards and not (folder / "manifest.json").is_file():
        notes.append("No shards beside the corpus: tokens are not known (hanse tokenize makes them).")
        return {}
    try:
        found = ShardsManifest.read(folder)
        if found.corpus_merkle_root != manifest.merkle_root:
            raise HanseError(f"{folder}: made of another corpus; set shards=... to those of this one")
        tokens = Counter[str]()
        for entry in found.shards:
            found.open(entry)
            tokens.update(_by_source(beside(found.folder / entry.name, SIDECAR), entry.tokens))
        return dict(tokens)
    except HanseError as error:
        if shards:
            raise
        notes.append(f"Tokens are not shown: {error}")
        return {}


def _by_source(sidecar: Path, tokens: int) -> dict[str, int]:
    try:
        table = pq.read_table(sidecar, columns=["source", "token_start", "token_end"])
        sums = table.append_column("tokens", pc.subtract(table["token_end"], table["token_start"]))
        rows = sums.group_by("source").aggregate([("tokens", "sum")]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise HanseError(f"{sidecar}: not readable ({first_line(error)})") from None
    found = {row["source"]: row["tokens_sum"] for row in rows}
    if sum(found.values()) != tokens:
        raise HanseError(f"{sidecar}: its tokens are not those of the shard; write the shards again")
    return found


def _fertility(manifest: CorpusManifest, tokenizer: str | None, notes: list[str]) -> Compared | None:
    folder = Path(tokenizer) if tokenizer else manifest.folder.parent / "tokenizer"
    if not tokenizer and not (folder / "manifest.json").is_file():
        return None
    try:
        made_of = read_json(folder / "manifest.json", "tokenizer manifest").get("training", {})
        if made_of.get("corpus_merkle_root") != manifest.merkle_root:
            raise HanseError(f"{folder}: measured on another corpus; train it on this one with 'hanse tokenizer'")
        return Compared.read(folder)
    except HanseError as error:
        if tokenizer:
            raise
        notes.append(f"Fertility is not shown: {error}")
        return None


def page(evidence: Evidence) -> str:
    """The page as HTML."""
    manifest = evidence.manifest
    return render(
        "data_pipelines",
        "corpus.html.j2",
        title=manifest.name,
        folder=manifest.folder,
        manifest=manifest,
        notes=evidence.notes,
        subtitle=figures.subtitle(evidence),
        tiles=figures.headlines(evidence),
        languages=figures.languages(evidence),
        language_bars=figures.language_bars(evidence),
        stages=figures.stages(evidence),
        removed=figures.removed(evidence),
        reasons=figures.reasons(evidence),
        sources=figures.sources(evidence),
        distributions=figures.distributions(evidence),
        origins=figures.origins(evidence),
        opt_out=figures.opt_out(evidence),
        sites=figures.sites(evidence),
        personal_data=figures.personal_data_kinds(evidence),
        clusters=figures.clusters(evidence),
        largest=figures.largest_clusters(evidence),
        fertility=fertility_plot.section(evidence.fertility) if evidence.fertility else None,
        legend=evidence.colours if len(set(evidence.colours.values())) > 1 else {},
        made=figures.made(evidence),
    )
