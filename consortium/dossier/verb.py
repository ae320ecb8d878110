"""``hanse dossier``: evidence and answers -> ``dossier.json`` and the documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import EXIT_DONE, HanseError
from common.files import inside, read_json, sha256_file, write_json
from common.folders import replaced_folder
from common.terminal import next_step, say, table
from consortium.dossier import answers, fill
from consortium.dossier.check import run_check
from consortium.dossier.config import DossierConfig
from consortium.dossier.document import document
from consortium.dossier.evidence import Evidence, gather
from consortium.dossier.forms import load_forms
from consortium.dossier.writers import WRITERS

FORMAT = "hanse.dossier/1"
MANIFEST = "manifest.json"


def run(config: DossierConfig) -> int:
    """Check a dossier, or ask what must be asked and write one; the exit code."""
    if config.check is not None:
        return run_check(Path(config.check), Path(config.report) if config.report else None)
    assert config.run is not None  # problems() sees to it
    path, first = Path(config.answers), config.languages[0]
    given = answers.check(path, answers.read(path))
    evidence = gather(config.run, config.registry, step=config.step, parents=config.parents, shards=config.shards,
                      corpus=config.corpus, today=config.date)  # fmt: skip
    dossier = fill.fill(evidence, given, first)
    asked = answers.ask(path, fill.open_questions(evidence, given), first, fill.uncategorised(evidence))
    _check_untouched(Path(config.output))
    with replaced_folder(Path(config.output), FORMAT) as folder:
        write(dossier, folder, config.languages, config.formats)
    _show(dossier, evidence, config, asked, fill.unused(evidence, given))
    return EXIT_DONE


def write(dossier: dict[str, Any], folder: Path, languages: Iterable[str], formats: Iterable[str]) -> None:
    """Write ``dossier.json``, every form in every language and format, and last the manifest."""
    write_json(folder / "dossier.json", dossier)
    for language in languages:
        for name, form in load_forms().items():
            page = document(form, dossier, language)
            for ending in formats:
                WRITERS[ending](page, folder / language / f"{name}.{ending}")
    write_json(folder / MANIFEST, {"format": FORMAT, "files": _hashes(folder)})


def _hashes(folder: Path) -> dict[str, str]:
    """{path in the folder: sha256} of all its files but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files if path != folder / MANIFEST}


def _check_untouched(folder: Path) -> None:
    """Refuse to replace documents that somebody has worked on.

    Raises:
        HanseError: a file in the folder is not as it was written.
    """
    if not (folder / MANIFEST).is_file():
        return
    written = read_json(folder / MANIFEST, "manifest of a dossier").get("files", {})
    there = _hashes(folder)
    changed = sorted(name for name, sha256 in there.items() if written.get(name) != sha256)
    if changed:
        name = inside(folder, changed[0])
        raise HanseError(f"{name}: was changed or added since it was written; move it away, or set another output=...")


def _show(
    dossier: dict[str, Any], evidence: Evidence, config: DossierConfig, asked: list[str], unused: list[str]
) -> None:
    head = ["form", *(status.replace("_", " ") for status in fill.STATUSES)]
    rows = [[name, *counts.values()] for name, counts in fill.coverage(dossier).items()]
    table("fields", head, [*rows, ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]], total=True)
    for line in evidence.plain("lineage.lost", []):
        say(f"note: not found: {line}; totals that need it are shown as missing (registry=..., parents=[...])")
    for key in unused:
        say(f"note: {config.answers}: the answer to {key} is not used: the evidence says it")
    if asked:
        say(f"{len(asked)} new questions in {config.answers}")
    say(f"wrote {config.output}/: dossier.json; {', '.join(config.languages)} as {', '.join(config.formats)}")
    if any(field["status"] == "missing" for field in dossier["fields"].values()):
        next_step(f"answer what is empty in {config.answers}, then the same command again")
    else:
        next_step(f"hanse dossier check={config.output}/dossier.json")
