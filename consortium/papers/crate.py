"""RO-Crate 1.1 (https://www.researchobject.org/ro-crate/): a folder that says of itself what is in it and how it came.

The training is an action with what went in and what came out, after the Process Run Crate profile; what a checkpoint
was made from is ``isBasedOn``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.files import sha256_file
from consortium.papers.facts import Facts
from train.run_folder import folder_of, read_metrics

METADATA = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
RUN_FILES = ("config.yaml", "run.lock.json", "ledger.jsonl", "metrics.jsonl", "energy.jsonl", "summary.json",
             "report.html", "dossier.yaml")  # fmt: skip
ENCODINGS = {".json": "application/json", ".jsonl": "application/jsonl", ".yaml": "application/yaml",
             ".html": "text/html", ".md": "text/markdown", ".cff": "application/yaml", ".bib": "application/x-bibtex",
             ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
             ".safetensors": "application/octet-stream", ".txt": "text/plain", ".sig": "application/json"}  # fmt: skip
Entity = dict[str, Any]


def run_crate(facts: Facts, papers: Path) -> Entity:
    """The crate of a run folder: its files, its papers and dossier, and the checkpoint that they speak of."""
    head = facts.lineage.head
    names = [name for name in RUN_FILES if (facts.run / name).is_file()]
    for folder in (papers, facts.run / "dossier"):
        if folder.is_dir() and folder.resolve().is_relative_to(facts.run.resolve()):
            names += sorted(str(path.resolve().relative_to(facts.run.resolve()))
                            for path in folder.rglob("*") if path.is_file())  # fmt: skip
    files = {name: (sha256_file(facts.run / name), (facts.run / name).stat().st_size) for name in names}
    checkpoint = folder_of(Path("checkpoints"), head.step)
    held = {f"{checkpoint}/{name}": (entry["sha256"], entry["bytes"]) for name, entry in head.checkpoint.files.items()}
    manifest = head.checkpoint.folder / "manifest.json"
    held[f"{checkpoint}/manifest.json"] = (head.manifest.sha256, manifest.stat().st_size)
    parts = [f"{checkpoint}/"]
    folder_entity = {"@id": f"{checkpoint}/", "@type": "Dataset", "name": f"checkpoint after step {head.step}",
                     "identifier": f"sha256:{facts.get('model.merkle_root')}",
                     "hasPart": _references(held)}  # fmt: skip
    return crate(facts, {**files, **held}, parts=[*files, *parts], extra=[folder_entity], results=parts)


def crate(
    facts: Facts, files: Mapping[str, tuple[str, int]], *, parts: Iterable[str], extra: Iterable[Entity] = (),
    results: Iterable[str] = (),
) -> Entity:  # fmt: skip
    """A crate.

    Args:
        facts: of the model.
        files: {path in the folder: (sha256, bytes)}.
        parts: ids of what the folder holds directly.
        extra: further entities.
        results: ids of what the training made.
    """
    root: Entity = {
        "@id": "./",
        "@type": "Dataset",
        "name": facts.title,
        "description": f"{facts.get('model.architecture_text')}. {facts.get('model.parameters'):,} parameters, trained "
                       f"on {facts.get('training.consumed_tokens', 0):,} tokens.",
        "datePublished": facts.get("dossier.date"),
        "conformsTo": {"@id": PROFILE},
        "hasPart": _references(parts),
        "mentions": {"@id": "#training"},
        "additionalProperty": _references(one["@id"] for one in _properties(facts)),
    }  # fmt: skip
    context = [{"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}]
    if provider := facts.text("provider_name"):
        root |= {"author": {"@id": "#provider"}, "publisher": {"@id": "#provider"}}
        context.append({"@id": "#provider", "@type": "Organization", "name": provider})
    if facts.licence:
        address = facts.licence.url or f"#licence-{quote(facts.licence.name)}"
        root["license"] = {"@id": address}
        context.append({"@id": address, "@type": "CreativeWork", "name": facts.licence.name})
    if basis := _basis(facts):
        root["isBasedOn"] = _references(one["@id"] for one in basis)
    descriptor = {"@id": METADATA, "@type": "CreativeWork", "about": {"@id": "./"},
                  "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}}  # fmt: skip
    graph = [descriptor, root, *context, *(_file(name, *found) for name, found in sorted(files.items())), *extra,
             *_action(facts, results), *_data(facts), *basis, *_properties(facts)]  # fmt: skip
    return {"@context": CONTEXT, "@graph": graph}


def _references(ids: Iterable[str]) -> list[Entity]:
    return [{"@id": identifier if identifier.startswith(("#", "http")) else quote(identifier)} for identifier in ids]


def _file(name: str, sha256: str, size: int) -> Entity:
    return {"@id": quote(name), "@type": "File", "name": Path(name).name, "contentSize": str(size), "sha256": sha256,
            "encodingFormat": ENCODINGS.get(Path(name).suffix, "application/octet-stream")}  # fmt: skip


def _action(facts: Facts, results: Iterable[str]) -> list[Entity]:
    """The training, and the program that did it."""
    head = facts.lineage.head
    times = [one["time"] for one in read_metrics(head.metrics.path) if "time" in one] if head.metrics else []
    version = facts.get("software.versions", {}).get("hanse")
    action: Entity = {"@id": "#training", "@type": "CreateAction", "name": f"Training of {facts.title}",
                      "instrument": {"@id": "#hanse"}, "object": _references(one["@id"] for one in _data(facts)),
                      "result": _references(results) or {"@id": "./"}}  # fmt: skip
    if times:
        action |= {"startTime": _instant(min(times)), "endTime": _instant(max(times))}
    if facts.text("provider_name"):
        action["agent"] = {"@id": "#provider"}
    tool: Entity = {"@id": "#hanse", "@type": "SoftwareApplication", "name": "hanse",
                    "url": "https://pypi.org/project/hanse/"}  # fmt: skip
    return [action, tool | ({"softwareVersion": version} if version else {})]


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _data(facts: Facts) -> list[Entity]:
    """The sources of the text, which are not in the folder."""
    found = []
    for number, source in enumerate(facts.get("corpus.sources", [])):
        entity: Entity = {"@id": f"#source-{number}-{quote(source['name'])}", "@type": "Dataset",
                          "name": source["name"], "license": source["license"], "inLanguage": source["language"],
                          "description": f"{source['documents']} documents, {source['bytes']} bytes of text after "
                                         "curation"}  # fmt: skip
        found.append(entity | {key: source[name] for key, name in (("url", "url"), ("version", "version"))
                               if source[name]})  # fmt: skip
    return found


def _basis(facts: Facts) -> list[Entity]:
    """Checkpoints that the model was made from."""
    return [{"@id": f"#parent-{sha256[:16]}", "@type": "Dataset", "name": name, "identifier": f"sha256:{sha256}",
             "description": "identified by its manifest.json"} for name, sha256 in facts.parents]  # fmt: skip


def _properties(facts: Facts) -> list[Entity]:
    """Figures of the model."""
    values = {
        "parameters": (facts.get("model.parameters"), "parameter"),
        "consumed_tokens": (facts.get("training.consumed_tokens"), "token"),
        "training_computation": (facts.get("compute.flops"), "FLOP"),
        "energy": (facts.get("energy.joules"), "J"),
        "emissions": (facts.get("energy.kg_co2e"), "kg CO2e"),
        **{f"bits_per_byte_{language}": (value, "bit/byte")
           for language, value in facts.get("evaluation.bits_per_byte", {}).items()},
    }  # fmt: skip
    return [
        {"@id": f"#{name}", "@type": "PropertyValue", "name": name.replace("_", " "), "value": value, "unitText": unit}
        for name, (value, unit) in values.items()
        if value is not None
    ]
