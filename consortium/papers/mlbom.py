"""A CycloneDX ML-BOM (https://cyclonedx.org/capabilities/mlbom/): the model, its data, its software, as one inventory.

Written as plain JSON, because the field's Python library has no class for model cards; valid, strictly, as 1.6 and 1.7.
The same facts give the same document: the serial number is derived from them.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from consortium.papers.facts import Facts
from consortium.papers.licences import table

SPEC_VERSION = "1.6"
KWH = 3.6e6  # joules


def ml_bom(facts: Facts) -> dict[str, Any]:
    """The document."""
    data, software = _data(facts), _software(facts)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": _metadata(facts, [one["bom-ref"] for one in data]),
        "components": [*data, *software],
        "dependencies": [{"ref": "model", "dependsOn": sorted(one["bom-ref"] for one in (*data, *software))}],
    }
    name = json.dumps(bom, sort_keys=True)
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, name)}", **bom}


def _metadata(facts: Facts, datasets: list[str]) -> dict[str, Any]:
    date = datetime.fromisoformat(facts.get("dossier.date")).replace(tzinfo=UTC)
    told: dict[str, Any] = {"timestamp": date.isoformat(), "component": _model(facts, datasets)}
    provider, hanse = facts.text("provider_name"), facts.get("software.versions", {}).get("hanse")
    if provider:
        told["manufacturer"] = {"name": provider}
    if hanse:
        told["tools"] = {"components": [{"type": "application", "name": "hanse", "version": hanse}]}
    return told


def _model(facts: Facts, datasets: list[str]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.get("model.name"),
        "version": facts.get("model.version"),
        "description": facts.get("model.architecture_text"),
        "hashes": [{"alg": "SHA-256", "content": facts.get("model.manifest_sha256")}],
        "modelCard": _card(facts, datasets),
        "properties": _properties(facts),
    }
    if facts.licence:
        component["licenses"] = [_licence(facts.licence.spdx or facts.licence.name, facts.licence.url)]
    ancestors = [
        {"type": "machine-learning-model", "name": name, "version": sha256,
         "hashes": [{"alg": "SHA-256", "content": sha256}]}
        for name, sha256 in facts.parents
    ]  # fmt: skip
    if ancestors:
        component["pedigree"] = {"ancestors": ancestors}
    if facts.links:
        component["externalReferences"] = [{"type": "distribution", "url": link} for link in facts.links]
    return component


def _properties(facts: Facts) -> list[dict[str, str]]:
    """Facts that the format has no place for."""
    values = {
        "hanse:merkle_root": facts.get("model.merkle_root"),
        "hanse:parameters": facts.get("model.parameters"),
        "hanse:consumed_tokens": facts.get("training.consumed_tokens"),
        "hanse:training_flops": facts.get("compute.flops"),
        "hanse:tokenizer_sha256": facts.get("tokenizer.sha256"),
        "hanse:code_sha256": facts.get("software.code", {}).get("sha256"),
        "hanse:energy": facts.get("energy.how"),
    }
    return [{"name": name, "value": str(value)} for name, value in values.items() if value is not None]


def _card(facts: Facts, datasets: list[str]) -> dict[str, Any]:
    metrics = [{"type": "bits_per_byte", "value": str(value), "slice": language}
               for language, value in facts.get("evaluation.bits_per_byte", {}).items()]  # fmt: skip
    metrics += [{"type": task, "value": str(value), "slice": one.language}
                for one in facts.fairness.languages for task, value in one.scores.items()]  # fmt: skip
    card: dict[str, Any] = {"modelParameters": {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "architectureFamily": "transformer",
        "modelArchitecture": facts.get("model.architecture"),
        "datasets": [{"ref": ref} for ref in datasets],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }}  # fmt: skip
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    considerations = _considerations(facts)
    return card | ({"considerations": considerations} if considerations else {})


def _considerations(facts: Facts) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, question in (("useCases", "intended_tasks"), ("technicalLimitations", "restricted_uses")):
        if text := facts.text(question):
            told[name] = [text]
    gaps = [one for one in facts.fairness.gaps if one.measure not in ("consumed_tokens", "epochs")
            and one.ratio > 1]  # fmt: skip
    if gaps:
        told["fairnessAssessments"] = [
            {"groupAtRisk": f"speakers of {one.worst}",
             "harms": f"{one.measure} {one.worst_value:.4g}, against {one.best_value:.4g} of {one.best}"
                      + (f": factor {one.told}" if one.worst_value else "")}
            for one in gaps
        ]  # fmt: skip
    joules = facts.get("energy.joules")
    if joules is not None:
        told["environmentalConsiderations"] = {"energyConsumptions": [_energy(facts, joules)]}
    return told


def _energy(facts: Facts, joules: float) -> dict[str, Any]:
    kwh = {"value": joules / KWH, "unit": "kWh"}
    provider = {"organization": {"name": "not stated"}, "energySource": "unknown", "energyProvided": kwh,
                "description": f"{facts.words('energy.how')}: {facts.words('energy.method')}"}  # fmt: skip
    found: dict[str, Any] = {"activity": "training", "energyProviders": [provider], "activityEnergyCost": kwh}
    kilograms = facts.get("energy.kg_co2e")
    return found | ({"co2CostEquivalent": {"value": kilograms / 1000, "unit": "tCO2eq"}} if kilograms else {})


def _data(facts: Facts) -> list[dict[str, Any]]:
    components = []
    for number, source in enumerate(facts.get("corpus.sources", [])):
        described = {"type": "dataset", "name": source["name"],
                     "description": f"{source['documents']} documents, {source['bytes']} bytes of text after curation, "
                                    f"language {source['language']}"}  # fmt: skip
        if source["url"]:
            described["contents"] = {"url": source["url"]}
        sensitive = [str(one) for one in facts.get("corpus.personal_data", []) if not str(one).startswith("none")]
        if sensitive:
            described["sensitiveData"] = sensitive
        component = {"type": "data", "bom-ref": f"data-{number}-{source['name']}", "name": source["name"],
                     "licenses": [_licence(source["license"])], "data": [described]}  # fmt: skip
        components.append(component | ({"version": source["version"]} if source["version"] else {}))
    return components


def _software(facts: Facts) -> list[dict[str, Any]]:
    found = []
    for name, version in sorted(facts.get("software.versions", {}).items()):
        purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"
        found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return found


def _licence(name: str, url: str = "") -> dict[str, Any]:
    """By its SPDX identifier where the table knows it; the schema takes no other identifiers."""
    known = (table().get(name.lower()) or {"id": ""})["id"]
    return {"license": ({"id": known} if known else {"name": name}) | ({"url": url} if url else {})}
