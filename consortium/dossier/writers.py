"""Documents as files: Markdown, self-contained HTML, DOCX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.files import atomic_file, write_text
from consortium.dossier.document import Document

TEMPLATES = PackageLoader("consortium.dossier", "templates")
MARKS = re.compile(r"([\\`*_{}\[\]<>|#])")  # what Markdown would take for its own


def _cell(text: str) -> str:
    return MARKS.sub(r"\\\1", " ".join(text.split()))


def _paragraph(text: str) -> str:
    lines = (_cell(line) for line in text.strip().splitlines())
    return "\n".join(re.sub(r"^(\s*)([-+]|\d+[.)])(\s)", r"\1\\\2\3", line) for line in lines)


def _notes(numbers: Iterable[int]) -> str:
    marks = "".join(f"[^{number}]" for number in numbers)
    return f" {marks}" if marks else ""


def markdown(document: Document, path: Path) -> None:
    """Markdown with footnotes."""
    environment = Environment(loader=TEMPLATES, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
    environment.filters |= {"cell": _cell, "paragraph": _paragraph, "notes": _notes}
    text = environment.get_template("document.md.j2").render(document=document)
    write_text(path, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def html(document: Document, path: Path) -> None:
    """One HTML file with everything in it; no script."""
    environment = Environment(loader=TEMPLATES, undefined=StrictUndefined, autoescape=True)
    css = TEMPLATES.get_source(environment, "document.css")[0].strip()
    write_text(path, environment.get_template("document.html.j2").render(document=document, css=css) + "\n")


def docx(document: Document, path: Path) -> None:
    """A Word document: real headings, tables and lists, the evidence as numbered notes at the end."""
    from consortium.dossier import word

    with atomic_file(path) as partial:
        word.build(document).save(str(partial))


WRITERS: dict[str, Callable[[Document, Path], None]] = {"md": markdown, "html": html, "docx": docx}
