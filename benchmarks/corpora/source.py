"""A source: what it is made of and how; written as one JSON Lines file a language, complete or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.corpora.archives import Archive
from benchmarks.corpora.texts import clean
from common.errors import HanseError
from common.files import read_json, sha256_file, write_json
from common.folders import replaced_folder, restore
from common.terminal import count, duration

FORMAT = "hanse-package-texts-1"
DESCRIPTION = "source.json"


@dataclass(frozen=True)
class Package:
    """One to be downloaded. ``version``, ``filename`` and ``sha256`` are None where the release says what it is."""

    name: str
    version: str | None = None
    filename: str | None = None
    sha256: str | None = None

    @property
    def pinned(self) -> str:
        """As the part's client asks for it."""
        return f"{self.name}{'@' if (self.filename or '').endswith('.tgz') else '=='}{self.version}"


@dataclass(frozen=True)
class Document:
    """A text, what its package calls it, and what more is known. ``license``: where it is not the source's."""

    language: str
    text: str
    id: str
    license: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Texts of one kind. ``shortest``: documents of fewer characters are left out."""

    name: str
    license: str
    packages: Sequence[Package]
    documents: Callable[[Sequence[Archive]], Iterator[Document]]
    shortest: int = 200

    def made_of(self) -> list[list[str | None]]:
        """What decides the texts, besides this program."""
        return [[one.name, one.version, one.sha256] for one in self.packages]

    def complete(self, folder: Path) -> bool:
        """Whether all its files are there, and made of what it is made of now."""
        restore(folder / self.name)
        try:
            there = read_json(folder / self.name / DESCRIPTION, "description")
            sizes = {name: (folder / self.name / name).stat().st_size for name in there["files"]}
            same = [there["format"], there["made_of"]] == [FORMAT, self.made_of()]
            return same and sizes == {name: one["file_bytes"] for name, one in there["files"].items()}
        except (HanseError, OSError, KeyError, TypeError, AttributeError):
            return False

    def write(self, folder: Path, archives: Sequence[Archive]) -> str:
        """Write its files into ``folder``, all or none; what there is to say about it, in one line.

        Raises:
            HanseError: an archive cannot be read, the place is taken, or the disk is full.
        """
        start = time.perf_counter()
        with replaced_folder(folder / self.name, FORMAT, DESCRIPTION) as partial:
            totals = self._write_files(partial, archives)
            if not totals:
                names = ", ".join(archive.path.name for archive in archives)
                raise HanseError(f"{self.name}: no texts in {names}; other versions than this program was written for")
            files = {
                f"{language}.jsonl": {"documents": number, "text_bytes": size,
                                      "file_bytes": (partial / f"{language}.jsonl").stat().st_size}
                for language, (number, size) in sorted(totals.items())
            }  # fmt: skip
            read = [{"file": one.path.name, "sha256": sha256_file(one.path)} for one in archives]
            write_json(partial / DESCRIPTION, {
                "format": FORMAT, "source": self.name, "license": self.license, "made_of": self.made_of(),
                "packages": read, "files": files})  # fmt: skip
        held = ", ".join(f"{language} {count(size, 'B')}" for language, (_, size) in sorted(totals.items()))
        number = sum(documents for documents, _ in totals.values())
        return f"{self.name}: {number:,} documents in {duration(time.perf_counter() - start)}: {held}"

    def _write_files(self, folder: Path, archives: Sequence[Archive]) -> dict[str, tuple[int, int]]:
        """{language: (documents, bytes of text)} of what is written."""
        totals: dict[str, tuple[int, int]] = {}
        files: dict[str, IO[str]] = {}
        with ExitStack() as opened:
            for document in self.documents(archives):
                text, language = clean(document.text), document.language
                if len(text) < self.shortest:
                    continue
                if language not in files:
                    files[language] = opened.enter_context((folder / f"{language}.jsonl").open("w", encoding="utf-8"))
                record = {"text": text, "source": self.name, "lang": language,
                          "license": document.license or self.license, "id": document.id, **document.more}  # fmt: skip
                files[language].write(json.dumps(record, ensure_ascii=False) + "\n")
                number, size = totals.get(language, (0, 0))
                totals[language] = (number + 1, size + len(text.encode()))
        return totals
