"""Debian 12: manuals and their translations, epigrams, and a text to evaluate on. 165 MB of packages.

The release says which version of a package there is; the licences are those of the packages' copyright files.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from benchmarks.corpora.archives import LARGEST_BYTES, Archive
from benchmarks.corpora.source import Document, Package, Source
from benchmarks.corpora.texts import chunks, lyx, mallard, page, troff

FOUR = "fr|de|es|it"
BOOK = ("navheader", "navfooter", "toc")  # what DocBook puts around the text of a page
SPHINX = ("sphinxsidebar", "related", "headerlink", "footer")
APACHE = ("toplang", "bottomlang", "up", "qv", "#page-header", "#quickview", "#footer", "#path", "#menu")
Documents = Callable[[Sequence[Archive]], Iterator[Document]]


def found(archives: Sequence[Archive], pattern: str, without: str = r"^\b$") -> Iterator[tuple[str, str, bytes]]:
    """(language, package/name, content, unpacked) of members whose name the pattern matches as a whole.

    The pattern's first group is the language; ``without`` is a pattern of file names that are passed over.
    """
    whole, passed_over = re.compile(pattern), re.compile(without)
    for archive in archives:
        for name, content in archive.members(whole.fullmatch):
            match = whole.fullmatch(name)
            if match and not passed_over.search(PurePosixPath(name).name):
                language = "en" if match[1] == "C" else match[1][:2].lower()
                yield language, f"{archive.package}/{name}", _unpacked(content) if name.endswith(".gz") else content


def _unpacked(content: bytes) -> bytes:
    with gzip.open(io.BytesIO(content)) as file:
        return file.read(LARGEST_BYTES)


def pages(pattern: str, skip_files: str = r"^\b$", **options: Any) -> Documents:
    """A document an HTML page; ``options``: those of :func:`page`."""

    def documents(archives: Sequence[Archive]) -> Iterator[Document]:
        for language, name, content in found(archives, pattern, skip_files):
            yield Document(language, page(content, **options).removeprefix("Download the ebook").lstrip(), name)

    return documents


# Package, without its language: where its pages are, and the licence where it is not the source's.
MANUALS = {
    "debian-reference": (rf"usr/share/debian-reference/[^/]*\.({FOUR})\.html", None),
    "aptitude-doc": (rf".*/html/({FOUR})/[^/]*\.html", None),
    "maint-guide": (rf".*[/.]({FOUR})(?:/.*)?\.html", None),
    "developers-reference": (rf".*/({FOUR})/.*\.html", None),
    "debian-faq": (rf".*[/.]({FOUR})(?:/.*)?\.html", None),
    "debian-edu-doc": (rf".*-doc-({FOUR})/debian-edu-bookworm-manual\.html", None),
    "apache2-doc": (rf"usr/share/doc/apache2-doc/manual/({FOUR})/.*\.html", "Apache-2.0"),
    "live-manual-txt": (rf".*/live-manual\.({FOUR})\.txt\.gz", "GPL-3.0-or-later"),
}


def manuals(archives: Sequence[Archive]) -> Iterator[Document]:
    """Manuals of Debian and of Apache; of those that are one huge page, documents of some 8,000 characters."""
    for archive in archives:
        package = re.sub(rf"-({FOUR})$", "", archive.package)
        pattern, license = MANUALS[package]
        for language, name, content in found([archive], pattern, r"^(index|toc|genindex|search)"):
            if name.endswith(".html"):
                text = page(content, without=(*BOOK, *SPHINX, *APACHE))
            else:
                text = content.decode("utf-8", "replace")
            if package in ("debian-edu-doc", "live-manual-txt"):
                for number, part in enumerate(chunks(text.split("\n\n"), 8000)):
                    yield Document(language, part, f"{name}#{number}", license)
            else:
                yield Document(language, text, name, license)


def gnome(archives: Sequence[Archive]) -> Iterator[Document]:
    """GNOME's help: Mallard and DocBook."""
    for language, name, content in found(
        archives, r"usr/share/help/(fr|de|es|it|C|pt|ca|nl)/.*\.(?:page|xml)", "^legal"
    ):
        yield Document(language, mallard(content), name)


def manpages(archives: Sequence[Archive]) -> Iterator[Document]:
    """Manual pages that are translated."""
    for language, name, content in found(archives, rf"usr/share/man/({FOUR})/man[^/]*/.*\.gz"):
        text = content.decode("utf-8", "replace")
        if not text.startswith(".so "):  # a page that only names another
            yield Document(language, troff(text), name)


def lyx_manuals(archives: Sequence[Archive]) -> Iterator[Document]:
    """LyX's manuals, in documents of some 6,000 characters."""
    pattern = r"usr/share/lyx/doc/(fr|de|es|it|nl|pt|ca)/[^/]*\.lyx"
    for language, name, content in found(archives, pattern, "LFUN|Shortcuts|LaTeXConfig|Dummy|template"):
        for number, part in enumerate(chunks(list(lyx(content.decode("utf-8", "replace"))), 6000)):
            yield Document(language, part, f"{name}#{number}")


def fortunes(archives: Sequence[Archive]) -> Iterator[Document]:
    """Epigrams and anecdotes; drawings are left out."""
    for archive in archives:
        language = archive.package.rpartition("-")[2]
        for _, name, content in found(
            [archive], r"usr/share/games/(fortunes)/.*", r"\.(dat|u8)$|asciiart|translations"
        ):
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            for number, quote in enumerate(re.split(r"\n%+\s*\n", text)):
                if not re.search(r"[|/\\_]{4,}", quote):
                    yield Document(language, re.sub(r"[ \t]*\n[ \t]+", " ", quote), f"{name}#{number}")


DASHER = {"french_FR": "fr", "german_DE": "de", "spanish_ES": "es", "italian_IT": "it", "dutch_NL": "nl",
          "portuguese_BR": "pt", "english_GB": "en"}  # fmt: skip


def dasher(archives: Sequence[Archive]) -> Iterator[Document]:
    """News, novels, law: a register that nothing else here has, to be held out."""
    for _, name, content in found(archives, rf"usr/share/dasher/training_({'|'.join(DASHER)})\.txt"):
        held = name.rpartition("training_")[2].removesuffix(".txt")
        lines = content.decode("utf-8", "replace").split("\n")
        for number, part in enumerate(chunks(lines, 3000)):
            yield Document(DASHER[held], part.replace("\n\n", "\n"), f"{held}#{number}")


def packages(*names: str) -> tuple[Package, ...]:
    """Packages by their names; ``NAME-{fr,de}`` are two."""
    return tuple(
        Package(before + one)
        for name in names
        for before, _, languages in [name.partition("{")]
        for one in languages.rstrip("}").split(",")
    )


SOURCES = (
    Source("debian-libreoffice-help", "MPL-2.0", packages("libreoffice-help-{fr,de,es,it,en-us}"),
           pages(r"usr/share/libreoffice/help/(fr|de|es|it|en-US)/text/.*\.html", where='//*[@id="DisplayArea"]',
                 without=("howtoget", "relatedtopics"))),
    Source("debian-manpages", "GPL-3.0-or-later", packages("manpages-{fr,de,es,it}"), manpages),
    Source("debian-misc-docs", "GPL-2.0-or-later",
           packages("debian-reference-{fr,de,es,it}", "aptitude-doc-{fr,es,it}", "maint-guide-{fr,de,es,it}",
                    "developers-reference-{fr,de,it}", "debian-faq-{fr,de,it}", "debian-edu-doc-{fr,de,es,it}",
                    "apache2-doc", "live-manual-txt"), manuals),
    Source("debian-lilypond", "GFDL-1.3-or-later", packages("lilypond-doc-html-{fr,de,es,it}"),
           pages(rf"usr/share/doc/lilypond/html/Documentation/[^/]*/[^/]*\.({FOUR})\.html",
                 "index|free-documentation|_toc|_abt", where='//*[@id="main"]',
                 without=("nav_table", "footer", "#footer"), skip=("pre",))),
    Source("debian-handbook", "GPL-2.0-or-later OR CC-BY-SA-3.0", packages("debian-handbook"),
           pages(r"usr/share/doc/debian-handbook/html/(fr-FR|de-DE|es-ES|it-IT|en-US|pt-BR|nl-NL|ca-ES)/[^/]*\.html",
                 "^index", without=("docnav", "toc", "previous", "next", "#title"))),
    Source("debian-install-guide", "GPL-2.0-only", packages("installation-guide-amd64"),
           pages(r"usr/share/doc/installation-guide-amd64/(fr|de|es|it|en|pt|nl|ca)/[^/]*\.html",
                 "^(index|ap[de]s?0?)", without=BOOK)),
    Source("debian-gnome-help", "CC-BY-SA-3.0", packages("gnome-user-docs"), gnome),
    Source("debian-lyx", "GPL-2.0-or-later", packages("lyx-common"), lyx_manuals),
    Source("debian-fortunes", "NOASSERTION", packages("fortunes-{de,es,it}"), fortunes, shortest=60),
    Source("eval-dasher", "NOASSERTION", packages("dasher-data"), dasher),
)  # fmt: skip
