"""Answers to every question of ``dossier.yaml``, for a corpus of the sources in tests/data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from consortium.dossier import answers
from tests.conftest import LANGUAGES

SAID = {
    "provider_name": "Hanse & Söhne_100%",
    "provider_contact": "contact@example.org, 1 Example Street, 1000 Brussels",
    "model_licence": "Apache-2.0",
    "model_links": "https://huggingface.co/example/tiny",
    "release_date": "2026-11-25",
    "intended_tasks": "Tests.",
    "source_category": {f"text_{language}": "other" for language in LANGUAGES},
    "other_description": "Prose that was typed in for tests.",
    "summary_version": "1.0",
    "summary_previous_versions": "N/A: first version",
    "text_types": "Literary prose.",
    "continuous_training": "No",
    "user_model_interactions": "No",
    "user_other_services": "No",
    "code_signatory": "No",
    "provider_is_sme": "No",
}


def write_answers(path: Path, **other: object) -> None:
    """Answer everything; ``other`` sets answers apart, None leaves one open."""
    value = {
        key: SAID.get(key, "N/A: nothing of the kind was done with this test model") for key in answers.questions()
    }
    value = {key: said for key, said in (value | other).items() if said is not None}
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")


def documented_corpus(corpus: Path, copy: Path, **licences: str) -> Path:
    """A copy of a corpus whose sources say how and when they were obtained; ``licences``: of sources, by name."""
    shutil.copytree(corpus, copy)
    path = copy / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for source in value["config"]["sources"].values():
        source |= {"obtained": "typed in for tests", "snapshot_date": "2026-11-01"}
    path.write_text(json.dumps(value), encoding="utf-8")
    return copy
