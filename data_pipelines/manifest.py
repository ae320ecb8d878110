"""``manifest.json`` of a corpus: what went in, what stayed, what was removed and why, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.errors import HanseError
from common.files import from_json, inside, merkle_root, read_json, sha256_file, write_json

FORMAT = "hanse.corpus/1"
COUNTS = "manifest.json"  # name of the Merkle leaf for what a manifest says beside the files' hashes


@dataclass
class Tally:
    """Documents and bytes of UTF-8 of one source; what goes in is either kept or removed."""

    language: str
    license: str
    documents_in: int = 0
    documents_kept: int = 0
    bytes_in: int = 0
    bytes_kept: int = 0
    validation_documents: int = 0
    validation_bytes: int = 0
    removed: dict[str, int] = field(default_factory=dict)  # reason -> documents

    def check(self, name: str) -> None:
        """Every document that went in came out on one side."""
        out = self.documents_kept + sum(self.removed.values())
        assert self.documents_in == out, f"{name}: {self.documents_in} documents in, {out} out"

    def add(self, other: Tally) -> None:
        """Add another source's counts to these."""
        for key in (
            "documents_in",
            "documents_kept",
            "bytes_in",
            "bytes_kept",
            "validation_documents",
            "validation_bytes",
        ):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        for reason, number in other.removed.items():
            self.removed[reason] = self.removed.get(reason, 0) + number


@dataclass(frozen=True)
class FileEntry:
    """A file of the corpus folder."""

    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, rows: int) -> FileEntry:
        """The entry of a file of so many rows."""
        return cls(rows, path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class CorpusManifest:
    """``manifest.json`` of a corpus folder."""

    name: str
    fingerprint: str  # of the configuration and the input files: an equal one makes a rerun needless
    config: dict[str, Any]
    tools: dict[str, str]  # versions of what decided: the language identifier, the Parquet writer
    sources: dict[str, Tally]
    files: dict[str, FileEntry]  # path within the folder -> ...
    folder: Path = Path(".")
    language_checks: dict[str, str] = field(default_factory=dict)  # source -> in how far its language was not checked

    @property
    def merkle_root(self) -> str:
        """One hash for all files and counts; not for where and with which configuration they were made."""
        counts = {
            "sources": {name: asdict(tally) for name, tally in self.sources.items()},
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }
        return merkle_root({name: entry.sha256 for name, entry in self.files.items()} | {COUNTS: fingerprint(counts)})

    @property
    def languages(self) -> dict[str, Tally]:
        """The sources' tallies added up by language, in order of first appearance."""
        sums: dict[str, Tally] = {}
        for tally in self.sources.values():
            total = sums.setdefault(tally.language, Tally(tally.language, ""))
            total.license = " + ".join(dict.fromkeys(filter(None, [*total.license.split(" + "), tally.license])))
            total.add(tally)
        return sums

    @property
    def kept_languages(self) -> list[str]:
        """The languages of which documents were kept."""
        return [language for language, tally in self.languages.items() if tally.documents_kept]

    def splits(self, language: str) -> list[str]:
        """The splits (``train``, ``validation``) that hold documents of a language."""
        tally = self.languages[language]
        train = tally.documents_kept - tally.validation_documents
        return [split for split, number in (("train", train), ("validation", tally.validation_documents)) if number]

    def documents(self, language: str, *, hashes: bool = True) -> Path:
        """The Parquet file of a language's kept documents, after checking that it is the one described here.

        Raises:
            HanseError: it is missing or another.
        """
        return self.file(f"documents/{language}.parquet", hashes=hashes)

    def file(self, name: str, *, hashes: bool = True) -> Path:
        """A file of the corpus, after checking that it is the one described here.

        Raises:
            HanseError: it is missing or another.
        """
        if name not in self.files:
            raise HanseError(f"{self.folder}: has no {name}; make the corpus again with 'hanse corpus'")
        path, entry = inside(self.folder, name), self.files[name]
        again = "make the corpus again with 'hanse corpus'"
        if not path.is_file():
            raise HanseError(f"{path}: missing; {again}")
        if path.stat().st_size != entry.bytes or (hashes and sha256_file(path) != entry.sha256):
            raise HanseError(f"{path}: not the file that {self.folder / 'manifest.json'} describes; {again}")
        return path

    def is_intact(self) -> bool:
        """All files are there, unchanged."""
        paths = {inside(self.folder, name): entry.sha256 for name, entry in self.files.items()}
        return all(path.is_file() and sha256_file(path) == digest for path, digest in paths.items())

    def write(self) -> None:
        """Write ``manifest.json`` atomically."""
        value = {"format": FORMAT, "merkle_root": self.merkle_root, **asdict(self)}
        value["languages"] = self._languages()
        del value["folder"]
        if not self.language_checks:
            del value["language_checks"]
        write_json(self.folder / "manifest.json", value)

    def _languages(self) -> dict[str, Any]:
        return {name: asdict(tally) for name, tally in self.languages.items()}

    @classmethod
    def read(cls, folder: Path) -> CorpusManifest:
        """Read and check ``manifest.json`` of a corpus folder.

        Raises:
            HanseError: there is none, or it is not intact.
        """

        def made(value: dict[str, Any]) -> CorpusManifest:
            languages = value.pop("languages")
            value["sources"] = {name: from_json(Tally, tally) for name, tally in value["sources"].items()}
            value["files"] = {name: from_json(FileEntry, entry) for name, entry in value["files"].items()}
            manifest = from_json(cls, {**value, "folder": folder})
            if manifest._languages() != languages:
                raise edited(path)
            return manifest

        path = folder / "manifest.json"
        manifest = read_manifest(path, "corpus manifest ('hanse corpus' writes one)", FORMAT, made)
        for name in [*manifest.files, *(f"documents/{language}.parquet" for language in manifest.kept_languages)]:
            inside(folder, name)
            if name not in manifest.files:
                raise HanseError(f"{path}: describes no {name}")
        return manifest


class Rooted(Protocol):
    """A manifest with one hash over everything it vouches for."""

    @property
    def merkle_root(self) -> str: ...


Read = TypeVar("Read", bound=Rooted)


def read_manifest(path: Path, what: str, kind: str, made: Callable[[dict[str, Any]], Read], again: str = "") -> Read:
    """Read a manifest and check that it says what its Merkle root was taken of.

    Args:
        what: what a user calls it.
        kind: the ``format`` that it must have.
        made: the manifest of what else the file says.
        again: what to do about one that is not right.

    Raises:
        HanseError: there is none, it is another kind's, or it was edited.
    """
    value = read_json(path, what)
    try:
        if value.pop("format") != kind:
            raise HanseError(f"{path}: not a manifest of {kind}{again}")
        root, manifest = value.pop("merkle_root"), made(value)
        intact = manifest.merkle_root == root
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise HanseError(f"{path}: not a manifest of {kind} ({error}){again}") from None
    if not intact:
        raise edited(path)
    return manifest


def edited(path: Path) -> HanseError:
    """The error for a manifest that does not say what it said."""
    return HanseError(f"{path}: its Merkle root does not match what it says: the manifest was edited")


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()
