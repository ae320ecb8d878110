"""Forms, filled: each field by evidence, else by an answer, else shown as missing. Never invented, never blank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from consortium.dossier.answers import Answer
from consortium.dossier.evidence import Evidence
from consortium.dossier.forms import Field, all_fields

SCHEMA = "hanse:dossier/v1"
STATUSES = ("evidence", "answered", "missing", "not_applicable")
FACTS = {  # bare numbers, for programs that judge a dossier
    "training_flops": "compute.flops",
    "own_flops": "compute.own_flops",
    "parent_flops": "compute.parent_flops",
    "consumed_tokens": "training.consumed_tokens",
    "corpus_tokens": "corpus.tokens",
    "parameters": "model.parameters",
    "language_codes": "data.language_codes",
}


def fill(evidence: Evidence, answers: Mapping[str, Answer], language: str = "en") -> dict[str, Any]:
    """``dossier.json`` of what is known and what was answered (``dossier.schema.json`` describes it)."""
    from consortium.dossier import source_facts  # brings torch, which whoever reads a dossier does without

    small = answers.get("provider_is_sme", Answer("No")).value == "Yes"
    source_facts.classify(evidence, answers.get("source_category", Answer({})).value, small=small)
    return {
        "schema": SCHEMA,
        "created": evidence["dossier.date"].value,
        "language": language,
        "model": {"name": evidence.model, "version": evidence.version},
        "facts": {name: evidence.plain(key) for name, key in FACTS.items() if evidence.plain(key) is not None},
        "fields": {field.key: _filled(field, evidence, answers) for field in all_fields().values()},
    }


def _filled(field: Field, evidence: Evidence, answers: Mapping[str, Answer]) -> dict[str, Any]:
    known = evidence.get(field.evidence) if field.evidence else None
    if known:
        cited = [asdict(one) for one in known.citations]
        if known.not_applicable:
            return {"value": None, "status": "not_applicable", "reason": known.not_applicable, "evidence": cited}
        return {"value": known.value, "status": "evidence", "evidence": cited}
    answer = answers.get(field.ask) if field.ask else None
    if answer and answer.not_applicable:
        return {"value": None, "status": "not_applicable", "reason": answer.not_applicable, "evidence": []}
    if answer:
        return {"value": answer.value, "status": "answered", "evidence": []}
    return {"value": None, "status": "missing", "reason": _why(field, evidence), "evidence": []}


def _why(field: Field, evidence: Evidence) -> str:
    why = evidence.unknown.get(field.evidence, "") if field.evidence else ""
    asked = f"asked of a person: {field.ask} in dossier.yaml" if field.ask else ""
    return "; ".join(filter(None, (why, asked))) or "nothing that the run left tells it"


def open_questions(evidence: Evidence, answers: Mapping[str, Answer]) -> list[str]:
    """Keys of the questions whose answers some field needs, in the order of the forms."""
    found = {field.ask: None for field in all_fields().values() if field.ask and not _known(field, evidence)}
    keys = [key for key in found if key]
    if evidence.plain("corpus.sources") is not None and uncategorised(evidence):
        keys.insert(0, "source_category")
    crawled = any(one == "crawled" for one in answers.get("source_category", Answer({})).value.values())
    return [*keys, "provider_is_sme"] if crawled else keys


def uncategorised(evidence: Evidence) -> list[str]:
    """Sources of which only a person can tell the category."""
    return [row["name"] for row in evidence.plain("corpus.sources", []) if not row["public"]]


def unused(evidence: Evidence, answers: Mapping[str, Answer]) -> list[str]:
    """Answers that no field takes, because evidence fills all of theirs."""
    needed = {field.ask for field in all_fields().values() if field.ask and not _known(field, evidence)}
    return sorted(set(answers) - needed - {"provider_is_sme", "source_category"})


def _known(field: Field, evidence: Evidence) -> bool:
    return bool(field.evidence) and field.evidence in evidence


def coverage(dossier: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """{form: {status: fields}}."""
    found: dict[str, dict[str, int]] = {}
    for key, field in dossier["fields"].items():
        counts = found.setdefault(key.partition(".")[0], dict.fromkeys(STATUSES, 0))
        counts[field["status"]] += 1
    return found
