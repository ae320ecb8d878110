"""The model card of a published model: that of an export, filled from the evidence of the lineage, with more to say."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from tokenizers import Tokenizer

from common.terminal import count, many
from consortium.papers.citation import bibtex
from consortium.papers.facts import Facts
from train import card
from train.card import Card, LanguageRow, cell
from train.evaluations import card_section
from train.fairness import written
from train.run_folder import RunFolder

HUB_DATASET = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)")
HUB_MODEL = re.compile(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)")


def model_card(facts: Facts) -> str:
    """``README.md``."""
    head = facts.lineage.head
    assert head.config
    assert head.folder
    export = facts.export or {}
    return card.render(Card(
        name=facts.get("model.name"),
        parameters=facts.get("model.parameters"),
        architecture=facts.get("model.config")["model_type"],
        made_by=str(facts.get("software.versions", {}).get("hanse", "of an unknown version")),
        consumed_tokens=facts.get("training.consumed_tokens", head.tokens),
        step=head.step,
        steps=head.config.steps,
        languages=_languages(facts),
        scores=card.scores(head.folder, head.step),
        engine=f"DeepSpeed ZeRO-{head.config.engine.zero_stage}, {facts.get('training.precision')}, "
               f"{many(head.checkpoint.state['ranks'], 'rank')}",
        optimizer=facts.get("training.optimizer")["name"],
        learning_rate=facts.get("training.optimizer")["learning_rate"],
        **card.sizes(head.config),
        identities=_identities(facts),
        end_of_document=_end_of_document(facts),
        dtype=export.get("dtype"),
        differences=export.get("max_abs_logit_difference"),
        transformers=export.get("tools", {}).get("transformers"),
        continued="on from " + " and ".join(f"{cell(name)} (`{sha256[:12]}`)" for name, sha256 in facts.parents)
                  if facts.parents else "",
        license=_front_licence(facts),
        front=_front(facts),
        sections={title: text for title, text in _sections(facts).items() if text},
    ))  # fmt: skip


def _languages(facts: Facts) -> list[LanguageRow]:
    tokens, consumed = facts.get("corpus.tokens_by_language", {}), facts.get("training.tokens_by_language", {})
    licences: dict[str, dict[str, None]] = defaultdict(dict)
    for source in facts.get("corpus.sources", []):
        licences[source["language"]][source["license"]] = None
    documents, size = facts.get("corpus.documents_by_language", {}), facts.get("corpus.bytes_by_language", {})
    total = sum(consumed.values())
    return [LanguageRow(name, documents.get(name, 0), size.get(name, 0), tokens[name],
                        f"{consumed.get(name, 0) / total:.1%}" if total else "not known",
                        " + ".join(licences[name]) or None)
            for name in sorted(tokens)]  # fmt: skip


def _identities(facts: Facts) -> dict[str, str]:
    head = facts.lineage.head
    found = {f"checkpoint `{head.checkpoint.folder.name}`, Merkle root": facts.get("model.merkle_root"),
             "its manifest.json, sha256": facts.get("model.manifest_sha256"),
             "token shards, Merkle root": head.checkpoint.state["data_merkle_root"]}  # fmt: skip
    for name, root in zip(facts.get("corpus.name", []), facts.get("corpus.merkle_root", []), strict=True):
        found[f"corpus {name}, Merkle root"] = root
    return found | {"tokenizer.json, sha256": facts.get("tokenizer.sha256")}


def _end_of_document(facts: Facts) -> str | None:
    head = facts.lineage.head
    corpus = facts.corpora.by_run.get(head.identity)
    file = f"{head.config.data.tokenizer}/tokenizer.json" if head.config else ""
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception:  # the library raises nothing finer; the card does without
        return None
    found = tokenizer.id_to_token(corpus.shards.end_of_document_id) if corpus else None
    return str(found) if found else None


def _front_licence(facts: Facts) -> str | None:
    if facts.licence is None:
        return None
    return facts.licence.spdx.lower() if facts.licence.spdx else "other"


def _front(facts: Facts) -> dict[str, Any]:
    """Datasets and base models by their ids on the Hub, emissions; what is not known is left out."""
    front: dict[str, Any] = {}
    if facts.licence and not facts.licence.spdx:
        front |= {"license_name": facts.licence.name} | (
            {"license_link": facts.licence.url} if facts.licence.url else {}
        )
    urls = [source["url"] for source in facts.get("corpus.sources", [])]
    datasets = dict.fromkeys(found[1] for url in urls if (found := HUB_DATASET.match(url)))
    bases = facts.answer("model_dependencies") or []
    models = dict.fromkeys(found[1] for one in ([bases] if isinstance(bases, str) else bases)
                           if (found := HUB_MODEL.fullmatch(str(one).strip())))  # fmt: skip
    if datasets:
        front["datasets"] = list(datasets)
    if models:
        front["base_model"] = list(models)
    kilograms = facts.get("energy.kg_co2e")
    if kilograms is not None:
        hardware = facts.get("compute.hardware", [])
        front["co2_eq_emissions"] = {"emissions": round(1000 * kilograms, 3), "training_type": "pre-training",
                                     "source": f"{facts.words('energy.how')}: {facts.words('energy.method')}",
                                     "hardware_used": "; ".join(hardware)}  # fmt: skip
    return front


def _sections(facts: Facts) -> dict[str, str]:
    """{title: Markdown}; empty where there is nothing to say."""
    return {
        "Intended use": facts.text("intended_tasks") or "",
        "Restricted use": "\n\n".join(
            filter(None, (facts.text("restricted_uses"), facts.text("acceptable_use_policy")))
        ),
        "Tasks": card_section(RunFolder(facts.run), facts.lineage.head.step),
        "Fairness between languages": _fairness(facts),
        "Computation and energy": _cost(facts),
        "Lineage": _lineage(facts),
        "Licence": _licence(facts),
        "Citation": f"```bibtex\n{entry}```" if (entry := bibtex(facts)) else "",
    }


def _fairness(facts: Facts) -> str:
    rows = [
        f"| {cell(one.measure.replace('_', ' '))} | {written(one.measure, one.best_value)} "
        f"({cell(one.best)}) | {written(one.measure, one.worst_value)} ({cell(one.worst)}) | {cell(one.told)} |"
        for one in facts.fairness.gaps
        if one.ratio > 1
    ]
    if not rows:
        return ""
    return ("How far the worst language is from the best; 1 is parity.\n\n| measure | best | worst | worst to best |\n"
            "| --- | ---: | ---: | ---: |\n" + "\n".join(rows))  # fmt: skip


def _cost(facts: Facts) -> str:
    """Each figure with how it was come by."""
    lines = [f"- Computation: {facts.get('compute.flops_text', 'not known')} ({facts.get('compute.method')})",
             f"- Time: {facts.get('compute.wall_text', 'not known')}; "
             f"{facts.get('compute.device_hours_text', 'device hours not known')}",
             *(f"- Machine: {one}" for one in facts.get("compute.hardware", []))]  # fmt: skip
    joules = facts.get("energy.joules")
    if joules is None:
        lines.append(f"- Energy: not known ({facts.evidence.unknown.get('energy.joules', 'nothing measured it')})")
    else:
        lines.append(f"- Energy ({facts.words('energy.how')}): {count(joules, 'J')}; {facts.words('energy.method')}")
    kilograms = facts.get("energy.kg_co2e")
    if kilograms is not None:
        lines.append(f"- Emissions ({facts.words('energy.how')}): {kilograms:.3g} kg CO2e")
    return "\n".join(lines)


def _lineage(facts: Facts) -> str:
    runs, lost = facts.get("lineage.runs", []), facts.get("lineage.lost", [])
    if len(runs) < 2 and not lost:
        return ""
    rows = [f"| {cell(one['run'])} | {one['step']:,} | {one['tokens']:,} | `{one['identity'][:16]}` |" for one in runs]
    missing = "".join(f"\n\nNot found: {cell(one)}." for one in lost)
    return "| run | steps | tokens | lock |\n| --- | ---: | ---: | --- |\n" + "\n".join(rows) + missing


def _licence(facts: Facts) -> str:
    data = "; ".join(facts.get("corpus.licences", [])) or "not known"
    model = facts.licence
    if model is None:
        return f"Of the weights: not stated yet. Of the training text: {data}."
    return f"Of the weights: {model.name}{f' (<{model.url}>)' if model.url else ''}. Of the training text: {data}."
