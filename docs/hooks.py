"""Writes the configuration reference out of configs/ at every build, so that it cannot go stale."""

from __future__ import annotations

from pathlib import Path

from hanse import VERBS

CONFIGS = Path(__file__).parents[1] / "configs"
MARK = "<!-- configs -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


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


def _code(file: Path) -> str:
    return f"```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
