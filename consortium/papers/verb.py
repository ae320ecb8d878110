"""``hanse papers``: the evidence of a run -> model card, ML-BOM, Croissant, RO-Crate and citation, all of one mind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, sha256_file, write_json, write_text
from common.folders import replaced_folder, restore
from common.terminal import next_step, say
from consortium.dossier.config import PapersConfig
from consortium.papers.citation import bibtex, citation_cff
from consortium.papers.crate import METADATA, run_crate
from consortium.papers.croissant import croissant
from consortium.papers.facts import Facts, gather_facts
from consortium.papers.mlbom import ml_bom
from consortium.papers.model_card import model_card

FORMAT = "hanse.papers/1"
MANIFEST = "papers.json"
CARD, BOM, CITATION, BIBTEX = "README.md", "mlbom.cdx.json", "CITATION.cff", "citation.bib"


def run(config: PapersConfig) -> None:
    """Write the papers, and the crate that the run's folder becomes by them."""
    folder, crate = Path(config.output), Path(config.run) / METADATA
    restore(folder)
    _check_ours(crate)
    facts = gather_facts(
        config.run, answers_file=Path(config.answers), registry=config.registry, step=config.step,
        parents=config.parents, shards=config.shards, corpus=config.corpus, date=config.date,
    )  # fmt: skip
    with replaced_folder(folder, FORMAT, MANIFEST) as partial:
        names = write(facts, partial)
    write_json(crate, run_crate(facts, folder))
    say(f"wrote {folder}/: {', '.join(names)}; and {crate}")
    for line in open_points(facts, config):
        say(f"note: {line}")
    next_step(f"hanse release run={config.run} output=FOLDER")


def write(facts: Facts, folder: Path, but: str = "") -> list[str]:
    """Write all papers but the crate, and but one that stands elsewhere, into a folder; their names."""
    names = []
    for name, content in papers(facts):
        if name == but:
            continue
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / name, text)
        names.append(name)
    write_json(folder / MANIFEST, {
        "format": FORMAT,
        "model": facts.evidence.model,
        "version": facts.evidence.version,
        "files": {name: sha256_file(folder / name) for name in names},
        "evidence": {key: [asdict(one) for one in cited] for key, cited in sorted(facts.used.items())},
    })  # fmt: skip
    return names


def papers(facts: Facts) -> Iterator[tuple[str, str | dict[str, Any]]]:
    """(name, content) of every paper that can be written."""
    yield CARD, model_card(facts)
    yield BOM, ml_bom(facts)
    for number, manifest in enumerate(facts.corpora.manifests):
        name = re.sub(r"[^\w.-]+", "-", manifest.name)  # it comes out of a file, and becomes the name of one
        yield f"croissant-{f'{number}-' if number else ''}{name}.json", croissant(manifest, facts)
    for name, text in ((CITATION, citation_cff(facts)), (BIBTEX, bibtex(facts))):
        if text:
            yield name, text


def open_points(facts: Facts, config: PapersConfig) -> list[str]:
    """What a person still has to say, or to find."""
    asked = {"model_licence": "the card and the ML-BOM name no licence",
             "provider_name": "there is no CITATION.cff and no BibTeX entry"}  # fmt: skip
    found = [f"{key} is not answered in {config.answers}: {why}" for key, why in asked.items() if not facts.text(key)]
    if not facts.corpora.manifests:
        found.append("no corpus was found, so there is no Croissant (corpus=... says where it is)")
    return found + [f"not found: {one}" for one in facts.get("lineage.lost", [])]


def _check_ours(crate: Path) -> None:
    """Refuse to replace a crate that somebody else wrote.

    Raises:
        HanseError: it is there.
    """
    if crate.is_file():
        value = read_json(crate, "RO-Crate")
        graph = value.get("@graph") if isinstance(value, dict) else None
        if not any(isinstance(one, dict) and one.get("@id") == "#hanse" for one in graph or []):
            raise HanseError(f"{crate}: was not written by hanse; move it away")
