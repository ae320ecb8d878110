"""What may be configured of ``corpus``, ``tokenizer`` and ``tokenize``. Imports nothing heavy.

Defaults stand, commented, in ``configs/VERB.yaml``; these classes give the types and say what is wrong with a value.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from data_pipelines.annotate import detectors
from data_pipelines.source_config import (
    SHA256,
    HubConfig,
    PackageConfig,
    SourceConfig,
    WebConfig,
    expanded,
)

__all__ = [
    "AnnotateConfig", "BoilerplateConfig", "CorpusConfig", "HubConfig", "KnownConfig", "PackageConfig", "SelectConfig",
    "SourceConfig", "TokenizeConfig", "TokenizerConfig", "WebConfig",
]  # fmt: skip

DETECTORS = tuple(detectors.DETECTORS)
ENCODERS = ("auto", "gigatoken", "tiktoken", "tokenizers")
ENGINES = ("local", "ray")
VERDICTS = ("allow", "deny", "unknown")
WORKER = re.compile(r"\d{1,6}/[1-9]\d{0,5}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MERGES = ("frequent", "parity")
REPEATED_WITHIN = ("site", "source")
PARITY_UNITS = ("bytes", "characters", "documents")


def _name_problems(name: str) -> list[str]:
    if NAME.fullmatch(name):
        return []
    return [f"name: '{name}' cannot name a folder; use letters, digits, '.', '_' and '-'"]


@dataclass
class BoilerplateConfig:
    """Removal of lines that stand in many documents of a site or source; off while ``min_documents`` is null."""

    min_documents: int | None = None
    by: str = "site"

    def problems(self, key: str) -> list[str]:
        """Everything wrong with these settings, one line each."""
        found = []
        if self.min_documents is not None and self.min_documents < 2:
            found.append(f"{key}.min_documents: {self.min_documents}; give 2 or more, e.g. 10, or null for off")
        if self.by not in REPEATED_WITHIN:
            found.append(f"{key}.by: '{self.by}' is unknown; use one of {', '.join(REPEATED_WITHIN)}")
        return found


@dataclass
class AnnotateConfig:
    """What is found out about each document. A change here looks at all documents again."""

    language_detector: str = detectors.DEFAULT
    language_characters: int = 1000
    quality: bool = True
    quality_folder: str | None = None
    personal_data: bool = True
    opt_out_snapshot: str | None = None
    evaluation_sets: dict[str, SourceConfig] = field(default_factory=dict)
    evaluation_words: int = 13
    max_document_megabytes: int = 32
    boilerplate: BoilerplateConfig = field(default_factory=BoilerplateConfig)

    def problems(self, key: str) -> list[str]:
        """Everything wrong with these settings, one line each."""
        found = self._detector_problems(f"{key}.language_detector")
        for name in ("language_characters", "max_document_megabytes"):
            if getattr(self, name) < 1:
                found.append(f"{key}.{name}: {getattr(self, name)}; give 1 or more")
        if self.evaluation_words < 5:
            found.append(f"{key}.evaluation_words: {self.evaluation_words}; give 5 or more: fewer are common phrases")
        found += self.boilerplate.problems(f"{key}.boilerplate")
        for name, source in self.evaluation_sets.items():
            found += source.problems(f"{key}.evaluation_sets.{name}")
        return found

    def _detector_problems(self, key: str) -> list[str]:
        if self.language_detector not in DETECTORS:
            return [f"{key}: '{self.language_detector}' is unknown; use one of {', '.join(DETECTORS)}"]
        try:
            importlib.metadata.version(self.language_detector)  # recorded with what it finds
        except importlib.metadata.PackageNotFoundError:
            extra = "hanse" if self.language_detector == detectors.DEFAULT else f"hanse[{self.language_detector}]"
            return [f"{key}: the package {self.language_detector} is not installed here; pip install '{extra}', or "
                    "take another of " + ", ".join(DETECTORS)]  # fmt: skip
        return []


@dataclass
class SelectConfig:
    """What is removed because of what was found out. A change here looks at no document again."""

    min_characters: int = 100
    language_min_confidence: float = 0.5
    quality: bool = False
    licenses: list[str] = field(default_factory=list)
    opt_out: list[str] = field(default_factory=lambda: ["deny"])
    max_evaluation_matches: int = 0
    near_duplicate_similarity: float | None = 0.75
    earlier: list[str] = field(default_factory=list)

    def problems(self, key: str) -> list[str]:
        """Everything wrong with these settings, one line each."""
        found = []
        if self.min_characters < 1:
            found.append(
                f"{key}.min_characters: {self.min_characters}; give 1 or more (empty documents are always removed)"
            )
        if not 0 <= self.language_min_confidence <= 1:
            found.append(
                f"{key}.language_min_confidence: {self.language_min_confidence} is no probability; give 0 to 1"
            )
        if not set(self.opt_out) <= set(VERDICTS):
            found.append(f"{key}.opt_out: {', '.join(self.opt_out)}; name verdicts out of {', '.join(VERDICTS)}")
        if self.max_evaluation_matches < 0:
            found.append(f"{key}.max_evaluation_matches: {self.max_evaluation_matches}; give 0 or more")
        if self.near_duplicate_similarity is not None and not 0.5 <= self.near_duplicate_similarity <= 1:
            found.append(
                f"{key}.near_duplicate_similarity: {self.near_duplicate_similarity}; give 0.5 to 1, or null for exact "
                "duplicates only"
            )
        return found


@dataclass
class DedupConfig:
    """Who looks for duplicates; it makes no difference to what is found."""

    engine: str = "local"

    def problems(self, key: str) -> list[str]:
        """Everything wrong with these settings, one line each."""
        return [] if self.engine in ENGINES else [f"{key}.engine: '{self.engine}'; use one of {', '.join(ENGINES)}"]


@dataclass
class CorpusConfig:
    """Configuration of ``hanse corpus``."""

    name: str = MISSING
    languages: list[str] = field(default_factory=lambda: ["fr", "de", "es", "it"])
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    output: str = "data/${name}/corpus"
    annotated: str = "data/${name}/annotated"
    downloads: str = "data/downloads"
    download_only: bool = False
    worker: str | None = None
    processes: int = 0
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    validation_fraction: float = 0.01
    split_seed: int = 0
    part_megabytes: int = 512
    batch_megabytes: int = 16

    def __post_init__(self) -> None:
        self.sources, self._language_problems = expanded(self.sources, self.languages, self.annotate.language_detector)

    def problems(self) -> list[str]:
        """Everything wrong with the configuration, one line each."""
        found = _name_problems(self.name) + self._language_problems
        if not self.sources and not found:
            found.append("sources: none; choose some with source=[NAME,...] (configs/source/ lists them)")
        for name, source in self.sources.items():
            if not NAME.fullmatch(name):
                found.append(f"sources.{name}: not a name; use letters, digits, '.', '_' and '-'")
            found += source.problems(f"sources.{name}")
        if self.worker is not None and not WORKER.fullmatch(self.worker):
            found.append(f"worker: '{self.worker}'; write NUMBER/HOW_MANY, counted from 0, e.g. 3/16")
        elif self.worker is not None and not self.share[0] < self.share[1]:
            found.append(f"worker: '{self.worker}'; of {self.share[1]} workers the last is {self.share[1] - 1}")
        if self.processes < 0:
            found.append(f"processes: {self.processes}; give 1 or more, or 0 for one a core")
        found += self.annotate.problems("annotate") + self.select.problems("select") + self.dedup.problems("dedup")
        if self.select.quality and not self.annotate.quality:
            found.append("select.quality: true, but annotate.quality is false: there is nothing to select by")
        if not 0 <= self.validation_fraction < 1:
            found.append(f"validation_fraction: {self.validation_fraction}; give at least 0 and less than 1")
        for key in ("part_megabytes", "batch_megabytes"):
            if getattr(self, key) < 1:
                found.append(f"{key}: {getattr(self, key)} MB; give 1 or more")
        return found

    @property
    def share(self) -> tuple[int, int]:
        """(number, how many) of this worker; one does everything."""
        number, _, workers = (self.worker or "0/1").partition("/")
        return int(number), int(workers)


@dataclass
class KnownConfig:
    """A tokenizer to compare with: a file, or a member of a pinned package; ``pattern`` where the file has none."""

    path: str | None = None
    package: PackageConfig | None = None
    pattern: str | None = None

    def problems(self, key: str) -> list[str]:
        """Everything wrong with it, one line each."""
        if (self.path is None) == (self.package is None):
            return [f"{key}: give either path, the file of a tokenizer, or package"]
        return self.package.problems(f"{key}.package") if self.package else []


@dataclass
class TokenizerConfig:
    """Configuration of ``hanse tokenizer``."""

    name: str = MISSING
    corpus: str = "data/${name}/corpus"
    output: str = "data/${name}/tokenizer"
    downloads: str = "data/downloads"
    vocabulary_size: int = 16_384
    reserved_tokens: int = 6
    max_megabytes_per_language: int = 256
    sampling_exponent: float = 0.0
    min_frequency: int = 2
    merges: str = "frequent"
    parity_unit: str = "bytes"
    pattern: str = MISSING
    known: dict[str, KnownConfig] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Everything wrong with the configuration, one line each."""
        found = _name_problems(self.name)
        if not 0 <= self.reserved_tokens <= 1000:
            found.append(f"reserved_tokens: {self.reserved_tokens}; give 0 to 1000")
        least = 256 + 2 + max(self.reserved_tokens, 0)
        if not least <= self.vocabulary_size <= 2**20:
            found.append(
                f"vocabulary_size: {self.vocabulary_size}; give {least} (256 bytes and the special tokens) to {2**20}"
            )
        if self.max_megabytes_per_language < 1:
            found.append(f"max_megabytes_per_language: {self.max_megabytes_per_language} MB; give 1 or more")
        if self.min_frequency < 1:
            found.append(f"min_frequency: {self.min_frequency}; give 1 or more")
        if not 0 <= self.sampling_exponent <= 1:
            found.append(f"sampling_exponent: {self.sampling_exponent}; give 0 (equal) to 1 (as it is)")
        if self.merges not in MERGES:
            found.append(f"merges: '{self.merges}' is unknown; use one of {', '.join(MERGES)}")
        if self.parity_unit not in PARITY_UNITS:
            found.append(f"parity_unit: '{self.parity_unit}' is unknown; use one of {', '.join(PARITY_UNITS)}")
        for name, known in self.known.items():
            found += known.problems(f"known.{name}")
        if not self.pattern:
            found.append("pattern: empty; give the regular expression that cuts text into words")
        return found


@dataclass
class AdoptConfig:
    """Token files of others, of one language: ``path`` of Megatron's ``.bin`` or datatrove's ``.ds``."""

    path: str = MISSING
    license: str = MISSING
    source: str = ""


@dataclass
class TokenizeConfig:
    """Configuration of ``hanse tokenize``."""

    name: str = MISSING
    corpus: str = "data/${name}/corpus"
    tokenizer: str = "data/${name}/tokenizer"
    tokenizer_sha256: str | None = None
    output: str = "data/${name}/shards"
    end_of_document: str = "<|endoftext|>"
    encoder: str = "auto"
    parity_documents: int = 64
    batch_megabytes: int = 16
    packing_lengths: list[int] = field(default_factory=list)
    adopt: dict[str, AdoptConfig] = field(default_factory=dict)
    validation_fraction: float = 0.01

    def problems(self) -> list[str]:
        """Everything wrong with the configuration, one line each."""
        found = _name_problems(self.name)
        if self.encoder not in ENCODERS:
            found.append(f"encoder: '{self.encoder}' is unknown; use one of {', '.join(ENCODERS)}")
        if self.tokenizer_sha256 is not None and not SHA256.fullmatch(self.tokenizer_sha256):
            found.append(
                f"tokenizer_sha256: '{self.tokenizer_sha256}' is not a SHA-256; give 64 hexadecimal digits or null"
            )
        if self.parity_documents < 1:
            found.append(f"parity_documents: {self.parity_documents}; give 1 or more, e.g. 64")
        if not 0 <= self.validation_fraction < 1:
            found.append(f"validation_fraction: {self.validation_fraction}; give at least 0 and less than 1")
        for language in self.adopt:
            if not NAME.fullmatch(language):
                found.append(
                    f"adopt.{language}: not a language; use its code, e.g. adopt={{fr: {{path: ..., license: ...}}}}"
                )
        for length in self.packing_lengths:
            if not 2 <= length <= 2**24:
                found.append(f"packing_lengths: {length} tokens; give 2 to {2**24:,}")
        if self.batch_megabytes < 1:
            found.append(f"batch_megabytes: {self.batch_megabytes} MB; give 1 or more")
        return found
