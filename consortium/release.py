"""``hanse release``: the folder that a consortium publishes, or the reasons why it must not.

Whatever speaks against publication is looked for first, and told all at once: licences that do not fit together, and
what the dossier's linter calls blocking. Only then is anything written, and the folder is there whole or not at all.

A verb of its own, not a switch of ``hanse export``: an export belongs to training, which knows nothing of dossiers and
keys; a release brings them together.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from transformers.utils.logging import disable_progress_bar

from common.errors import HanseError
from common.files import atomic_file, sha256_file, write_json, write_text
from common.folders import replaced_folder, restore
from common.terminal import count, many, next_step, say
from consortium import seal
from consortium.dossier import check, fill
from consortium.dossier import verb as dossier_verb
from consortium.dossier.config import DOSSIER_FORMATS, DOSSIER_LANGUAGES, ReleaseConfig
from consortium.keys import fingerprint, load_private, public_path
from consortium.papers import verb as papers_verb
from consortium.papers.crate import METADATA, crate
from consortium.papers.facts import Facts, gather_facts
from consortium.papers.licences import conflicts, credit, read_decisions, table
from consortium.papers.model_card import model_card
from train.export import export
from train.trained import Trained, open_trained

FORMAT = "hanse.release/1"
MANIFEST, CHECKSUMS, SEAL, NOTICE = "release.json", "SHA256SUMS", "release.files.sig", "NOTICE.md"
SHOWN = 4  # fields of one kind of finding in an error


def run(config: ReleaseConfig) -> None:
    """Refuse with reasons, or write the folder."""
    folder = Path(config.output)
    restore(folder)
    disable_progress_bar()
    key = load_private(Path(config.key)) if config.key else None
    facts = gather_facts(
        config.run, answers_file=Path(config.answers), registry=config.registry, step=config.step,
        parents=config.parents, shards=config.shards, corpus=config.corpus, date=config.date,
    )  # fmt: skip
    decisions = read_decisions(Path(config.decisions)) if config.decisions else {}
    dossier = fill.fill(facts.evidence, facts.given)
    report = check.check(check.from_json(dossier, config.answers, Path(config.run)))
    licences = data_licences(facts)
    reasons = [one.why for one in conflicts(facts.licence, licences, decisions)] + blocking(report)
    if reasons:
        many = f"{len(reasons)} reasons speak" if len(reasons) > 1 else "a reason speaks"
        raise HanseError(f"{config.run} is not released: {many} against it; nothing was written\n  "
                         + "\n  ".join(reasons))  # fmt: skip
    trained = open_trained(config.run, facts.lineage.head.step, config.shards, config.tokenizer)
    with replaced_folder(folder, FORMAT, MANIFEST) as partial:
        assemble(facts, trained, config.dtype, partial, dossier=dossier, report=report, licences=licences,
                 decisions=decisions)  # fmt: skip
        if key:
            _seal(partial, key, folder.name)
    _tell(folder, config, key, report)


def blocking(report: check.Report) -> list[str]:
    """What blocks publication, a line for each criterion and way to fix it, with the fields that it is about."""
    groups: dict[tuple[str, str], list[check.Finding]] = {}
    for one in report.findings:
        if one.severity == "blocking":
            groups.setdefault((one.criterion, one.fix), []).append(one)
    lines = []
    for (_, fix), found in groups.items():
        said = "; ".join(f"{one.field}: {one.what}" for one in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more fields" if len(found) > SHOWN else ""
        lines.append(f"the dossier: {said}{more} (to do: {fix})")
    return lines


def data_licences(facts: Facts) -> list[str]:
    """Licences of the training text, those of most documents first: what sources state, and what documents do."""
    found: Counter[str] = Counter()
    for source in facts.get("corpus.sources", []):
        found[source["license"]] += source["documents"]
    for one in facts.corpora.found:
        columns = one.document_columns(["license"]) if one.corpus else None
        if columns:
            found.update({str(name): 0 for name in columns["license"] if name})
    return [name for name, _ in found.most_common()]


def assemble(
    facts: Facts, trained: Trained, dtype: str, folder: Path, *, dossier: dict[str, Any], report: check.Report,
    licences: list[str], decisions: dict[str, str],
) -> None:  # fmt: skip
    """Write everything but the seal into an empty folder."""

    def card(provenance: dict[str, Any]) -> str:
        facts.export = provenance
        return model_card(facts)

    export(trained, dtype, folder, card)
    papers = folder / "papers"
    papers.mkdir()
    for name in papers_verb.write(facts, papers, but=papers_verb.CARD):
        if name == papers_verb.CITATION:  # where the forges look for it
            shutil.copyfile(papers / name, folder / name)
    (folder / "dossier").mkdir()
    dossier_verb.write(dossier, folder / "dossier", DOSSIER_LANGUAGES, DOSSIER_FORMATS)
    write_json(folder / "dossier-check.json", report.as_json())
    write_text(folder / NOTICE, notice(facts, licences, decisions))
    write_json(folder / MANIFEST, {
        "format": FORMAT,
        "model": facts.evidence.model,
        "version": facts.evidence.version,
        "merkle_root": facts.get("model.merkle_root"),
        "licence": facts.licence.name if facts.licence else None,
        "data_licences": licences,
        "decisions": decisions,
        "dossier_grade": report.grade,
        "date": facts.get("dossier.date"),
    })  # fmt: skip
    files = {name: (sha256_file(folder / name), (folder / name).stat().st_size) for name in _names(folder)}
    write_json(folder / METADATA, crate(facts, files, parts=files))
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in _names(folder))
    write_text(folder / CHECKSUMS, sums)


def _names(folder: Path) -> list[str]:
    """Paths of all files in a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def notice(facts: Facts, licences: Iterable[str], decisions: dict[str, str]) -> str:
    """``NOTICE.md``: the licences of model and data, whom to credit, and what a person decided."""
    assert facts.licence
    lines = [f"# {facts.title}", "", f"Licence of the weights: {facts.licence.name} {facts.licence.url}".rstrip(), ""]
    lines += ["## Training text", "", "| source | licence | version | from |", "| --- | --- | --- | --- |"]
    named = set(credit(licences))
    for source in facts.get("corpus.sources", []):
        cells = (source["name"], source["license"], source["version"] or "not stated", source["url"] or "not stated")
        lines.append("| " + " | ".join(" ".join(str(one).replace("|", "\\|").split()) for one in cells) + " |")
    if named:
        lines += [
            "",
            f"These licences ask that their sources be credited, as this file does: {', '.join(sorted(named))}.",
        ]
    addresses = [(name, entry["url"]) for name in licences if (entry := table().get(name.lower())) and entry["url"]]
    lines += ["", *(f"- {name}: {url}" for name, url in addresses)] if addresses else []
    if decisions:
        lines += ["", "## Decisions on licences", "", *(f"- {name}: {why}" for name, why in decisions.items())]
    return "\n".join(lines) + "\n"


def _seal(folder: Path, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    content = seal.make(folder, key, "files", name=name)
    with atomic_file(folder / SEAL) as partial:
        partial.write_bytes(content)


def _tell(folder: Path, config: ReleaseConfig, key: ec.EllipticCurvePrivateKey | None, report: check.Report) -> None:
    names = _names(folder)
    size = sum((folder / name).stat().st_size for name in names)
    say(f"wrote {folder}/: {many(len(names), 'file')}, {count(size, 'B')}; dossier grade {report.grade}, "
        f"{report.counts['warning']} warnings")  # fmt: skip
    say(f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")
    checks = [f"(cd {folder} && sha256sum --check --quiet {CHECKSUMS})"]
    if key and config.key:
        say(f"sealed with the key {fingerprint(key.public_key())}")
        checks.append(f"hanse seal folder={folder} check={folder / SEAL} trust=[{public_path(Path(config.key))}]")
    else:
        say("not sealed: key=NAME.key would do it")
    next_step(*checks)
