"""Croissant 1.1 (https://docs.mlcommons.org/croissant/) of a corpus: its files with hashes, and what their columns are.

Addresses of files are relative: the document describes the corpus from within its folder.
"""

from __future__ import annotations

from typing import Any

from consortium.dossier.data_facts import language_name
from consortium.papers.facts import Facts
from consortium.papers.licences import parts, table
from data_pipelines.annotate import personal_data
from data_pipelines.manifest import CorpusManifest

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET = "application/x-parquet"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}  # as the specification gives it
COLUMNS = {
    "id": "stable identifier of the document, derived from its content",
    "text": "the document",
    "language": "language of the document, ISO 639-1",
    "source": "the source that it was read from",
    "url": "address of the document, where its source states one",
    "license": "licence of the document, an SPDX identifier where there is one",
    "date": "date of the document, as its source states it",
}


def croissant(manifest: CorpusManifest, facts: Facts) -> dict[str, Any]:
    """The document of a corpus."""
    licences = dict.fromkeys(part for tally in manifest.sources.values() for part in parts(tally.license))
    kinds = [name.removeprefix(personal_data.PREFIX) for name in personal_data.SCHEMA.names]
    value: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "description": _description(manifest),
        "version": "1.0.0",
        "identifier": f"sha256:{manifest.merkle_root}",
        "url": f"urn:sha256:{manifest.merkle_root}",
        "license": [_licence(name) for name in licences],
        "inLanguage": manifest.kept_languages,
        "datePublished": facts.get("dossier.date"),
        "citeAs": f"{manifest.name}, Merkle root {manifest.merkle_root}",
        "rai:dataCollection": "; ".join(_collection(manifest)),
        "rai:dataPreprocessingProtocol": facts.get("corpus.curation", []),
        "rai:personalSensitiveInformation": (
            [f"Patterns looked for and replaced: {', '.join(kinds)}"] if manifest.config["annotate"]["personal_data"]
            else ["None was looked for"]
        ),
        "distribution": [_file(manifest, language) for language in manifest.kept_languages],
        "recordSet": [_records(language) for language in manifest.kept_languages],
    }  # fmt: skip
    provider = facts.text("provider_name")
    return value | ({"creator": {"@type": "sc:Organization", "name": provider}} if provider else {})


def _description(manifest: CorpusManifest) -> str:
    held = [f"{language_name(name)}: {tally.documents_kept:,} documents, {tally.bytes_kept:,} bytes"
            for name, tally in manifest.languages.items() if tally.documents_kept]  # fmt: skip
    return f"Text corpus made by hanse {manifest.tools['hanse']}. {'; '.join(held)}."


def _collection(manifest: CorpusManifest) -> list[str]:
    lines = []
    for name, told in manifest.config["sources"].items():
        how = ", ".join(filter(None, (told["obtained"], told["url"], told["snapshot_date"])))
        lines.append(f"{name}: {how or 'not stated'}")
    return lines


def _licence(name: str) -> str:
    """Its address where the table knows one: the format asks for an address or a name."""
    return (table().get(name.lower()) or {"url": ""})["url"] or name


def _file(manifest: CorpusManifest, language: str) -> dict[str, Any]:
    name = f"documents/{language}.parquet"
    entry = manifest.files[name]
    return {
        "@type": "cr:FileObject",
        "@id": f"file-{language}",
        "name": name,
        "description": f"Documents in {language_name(language)}",
        "contentUrl": name,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": PARQUET,
        "sha256": entry.sha256,
    }


def _records(language: str) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{language}/{column}",
            "name": column,
            "description": description,
            "dataType": "sc:Text",
            "source": {"fileObject": {"@id": f"file-{language}"}, "extract": {"column": column}},
        }
        for column, description in COLUMNS.items()
    ]
    return {"@type": "cr:RecordSet", "@id": language, "name": language,
            "description": f"A record a document in {language_name(language)}", "key": {"@id": f"{language}/id"},
            "field": fields}  # fmt: skip
