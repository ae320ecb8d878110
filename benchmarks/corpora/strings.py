"""What programs say, translated: the text in small languages that packages have most of. 110 MB of packages.

Messages of six words or more, put together to documents of 300 characters and more; what also stands in another
language of the same source is left out, as it was not translated.
"""

from __future__ import annotations

import gettext
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from zipfile import ZipFile

from benchmarks.corpora.archives import Archive
from benchmarks.corpora.debian import packages
from benchmarks.corpora.source import Document, Source

LANGUAGES = frozenset("an ast ca co es fr frp fur gl it lij lmo oc pms pt rm ro sc vec wa".split())  # noqa: SIM905
PLACEHOLDERS = re.compile(
    r"<[^>]*>|\{\{[^}]*\}\}|\{[^}]*\}|%\([^)]*\)[a-z]|%[-0-9.$l]*[a-zA-Z]|&[a-zA-Z#0-9]+;|\$\w+|https?://\S+|\[\[|\]\]"
    r"|'''?|\\n|-{2,}\S*"
)
MARKS = str.maketrans("", "", "_&~")  # of the key that a letter stands for
SHORTEST = 300  # characters of a document


def said(text: str) -> str:
    """A message without placeholders and marks; empty where it is no sentence."""
    plain = " ".join(PLACEHOLDERS.sub(" ", text.rpartition("\x04")[2]).translate(MARKS).split())
    sentence = len(plain) >= 40 and len(plain.split()) >= 6 and sum(map(str.isalpha, plain)) >= 0.7 * len(plain)
    return plain if sentence else ""


Messages = Iterator[tuple[str, str]]  # (language, message)


def catalogues(pattern: str) -> Callable[[Archive], Messages]:
    """gettext's, in folders whose name, the pattern's first group, is the language."""
    whole = re.compile(pattern)

    def messages(archive: Archive) -> Messages:
        for name, content in archive.members(whole.fullmatch):
            match = whole.fullmatch(name)
            language = match[1].partition("_")[0].partition("@")[0] if match else ""
            if language in LANGUAGES:
                held = gettext.GNUTranslations(io.BytesIO(content))._catalog  # type: ignore[attr-defined]
                for key, message in held.items():
                    if key and message != key:
                        yield language, message

    return messages


def mozilla(archive: Archive) -> Messages:
    """Fluent files and properties in a language pack; continued lines are put together."""
    for name, content in archive.members(lambda name: name.endswith(".xpi")):
        language = PurePosixPath(name).name.removeprefix("langpack-").partition("@")[0].partition("-")[0]
        with ZipFile(io.BytesIO(content)) as pack:
            for member in pack.namelist():
                if member.endswith((".ftl", ".properties")):
                    text = re.sub(r"\n +(?![*.\[}])", " ", pack.read(member).decode("utf-8", "replace"))
                    for line in re.findall(r"^[\w. -]+=(.*)$", text, re.MULTILINE):
                        yield language, line


def mediawiki(archive: Archive) -> Messages:
    """Messages of the program and its extensions."""
    whole = re.compile(r".*/i18n/(?:.*/)?([a-z]+)\.json")
    for name, content in archive.members(whole.fullmatch):
        match = whole.fullmatch(name)
        if match and match[1] in LANGUAGES:
            held = json.loads(content)
            yield from (
                (match[1], one) for key, one in held.items() if not key.startswith("@") and isinstance(one, str)
            )


def documents(messages: Callable[[Archive], Messages]) -> Callable[[Sequence[Archive]], Iterator[Document]]:
    """Documents out of messages, in the order in which they come."""

    def made(archives: Sequence[Archive]) -> Iterator[Document]:
        held: dict[str, dict[str, str]] = defaultdict(dict)
        languages: dict[str, set[str]] = defaultdict(set)
        for archive in archives:
            for language, message in messages(archive):
                if plain := said(message):
                    held[language].setdefault(plain, archive.package)
                    languages[plain].add(language)
        for language, known in held.items():
            text, number = "", 0
            for plain, package in known.items():
                if len(languages[plain]) == 1:
                    text = f"{text} {plain}".lstrip()
                if len(text) >= SHORTEST:
                    yield Document(language, text, f"{package}#{number}")
                    text, number = "", number + 1

    return made


TRANSLATED = ("vlc-l10n", "gimp-data", "evolution-common", "libgtk-3-common", "libgtk2.0-common", "pidgin-data", "kio",
              "caja-common", "filezilla-common", "audacity-data", "poedit-common", "gedit-common", "nautilus-data",
              "gnome-terminal-data")  # fmt: skip
SOURCES = (
    Source("strings-gettext", "NOASSERTION", packages(*TRANSLATED),
           documents(catalogues(r"usr/share/locale/([^/]+)/LC_MESSAGES/[^/]+\.mo"))),
    Source("strings-mediawiki", "GPL-2.0-or-later", packages("mediawiki"), documents(mediawiki)),
    Source("strings-mozilla", "MPL-2.0",
           packages("firefox-esr-l10n-{oc,ast,rm,gl,ca,fr,it,es-es,pt-pt}"), documents(mozilla)),
    Source("strings-libreoffice", "MPL-2.0", packages("libreoffice-l10n-{oc,ast,gl,ca}"),
           documents(catalogues(r"usr/lib/libreoffice/program/resource/([^/]+)/LC_MESSAGES/[^/]+\.mo"))),
)  # fmt: skip
