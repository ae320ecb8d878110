"""How to cite the model: ``CITATION.cff`` (Citation File Format 1.2.0) and BibTeX."""

from __future__ import annotations

import re
from typing import Any

import yaml

from consortium.config import DAY
from consortium.papers.facts import Facts

MESSAGE = "If you use this model, please cite it as below."
TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # fmt: skip


def citation_cff(facts: Facts) -> str | None:
    """``CITATION.cff``; None while ``provider_name`` is not answered: a citation without an author is none."""
    provider, released = facts.text("provider_name"), facts.text("release_date") or ""
    if not provider:
        return None
    value: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": MESSAGE,
        "type": "software",
        "title": facts.get("model.name"),
        "version": facts.get("model.version"),
        "authors": [{"name": provider}],
        "abstract": f"{facts.get('model.architecture_text')}; {facts.get('model.parameters'):,} parameters, trained on "
                    f"{facts.get('training.consumed_tokens', 0):,} tokens.",
        "keywords": ["language model", *facts.get("data.language_codes", [])],
        "identifiers": [{"type": "other", "value": f"sha256:{facts.get('model.merkle_root')}",
                         "description": "RFC 6962 Merkle root over all weight files"}],
    }  # fmt: skip
    if DAY.fullmatch(released):
        value["date-released"] = released
    if facts.licence and facts.licence.spdx:
        value["license"] = facts.licence.spdx
    elif facts.licence and facts.licence.url:
        value["license-url"] = facts.licence.url
    if facts.links:
        value["url"] = facts.links[0]
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def bibtex(facts: Facts) -> str | None:
    """A BibTeX entry; None while ``provider_name`` is not answered."""
    provider, released = facts.text("provider_name"), facts.text("release_date") or ""
    if not provider:
        return None
    name, version = facts.get("model.name"), facts.get("model.version")
    fields = {
        "author": f"{{{_tex(provider)}}}",  # one name, not a first and a last one
        "title": f"{_tex(name)}, {_tex(version)}",
        "year": (released if DAY.fullmatch(released) else facts.get("dossier.date"))[:4],
        "version": _tex(version),
        "note": f"Language model, {facts.get('model.parameters'):,} parameters",
    }
    if facts.links:
        fields["howpublished"] = f"\\url{{{facts.links[0]}}}"
    key = re.sub(r"[^a-z0-9]+", "-", f"{name}-{version}".lower()).strip("-")
    lines = "".join(f"  {field:12s} = {{{value}}},\n" for field, value in fields.items())
    return f"@misc{{{key},\n{lines}}}\n"


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))
