"""Writes the references out of configs/ and of the linter's criteria at every build, so that they cannot go stale."""

from __future__ import annotations

from pathlib import Path

from consortium.dossier.check import GRADES, all_criteria
from hanse import VERBS

CONFIGS = Path(__file__).parents[1] / "configs"


def on_page_markdown(markdown: str, **_: object) -> str:
    for mark, write in WRITTEN.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown


def reference() -> str:
    """A chapter a verb with its commented defaults, then a chapter a group with all its choices."""
    parts = []
    for verb in VERBS.values():
        parts += [f"## hanse {verb.name}", verb.line, _code(CONFIGS / f"{verb.name}.yaml")]
    groups = sorted(path for path in CONFIGS.iterdir() if path.is_dir() and list(path.rglob("*.yaml")))
    for group in groups:
        parts += [f"## {group.name}=", f"Choices of the group `{group.name}`: files in `configs/{group.name}/`."]
        for file in sorted(group.rglob("*.yaml")):
            name = file.relative_to(group).with_suffix("").as_posix()
            parts.append(f'??? note "{name}"\n' + _indented(_code(file)))
    return "\n\n".join(parts)


def dossier_criteria() -> str:
    """A row a criterion of ``hanse dossier check=FILE``."""
    rows = [f"`{one.name}` | {one.meaning} | {one.severity} | {one.source}" for one in all_criteria()]
    return "\n".join(f"| {row} |" for row in rows)


def dossier_grades() -> str:
    """A row a grade of the same."""
    return "\n".join(f"| {grade} | {rule} |" for grade, rule in GRADES.items())


def _code(file: Path) -> str:
    return f"```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


WRITTEN = {
    "<!-- configs -->": reference,
    "<!-- dossier criteria -->": dossier_criteria,
    "<!-- dossier grades -->": dossier_grades,
}
