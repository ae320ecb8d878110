"""A page that needs nothing else: no network, no other file. ``common/templates`` holds its style, script and parts."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.terminal import count

TEMPLATES = Path(__file__).parent / "templates"


def render(package: str, template: str, *, title: str, folder: Path, dated: bool = True, **shown: Any) -> str:
    """The page as HTML. Everything that comes out of files is escaped by the templates.

    Args:
        package: whose ``templates/`` hold ``template``, which extends ``page.html.j2``.
        title: of the page.
        folder: what it is about.
        dated: say when it was written; one that is not is the same in every run.
        shown: what the template shows.
    """
    loader = ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("common", "templates")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        title=title,
        folder=folder,
        written=f" on {shown_time(datetime.now(UTC).timestamp())} UTC" if dated else "",
        version=importlib.metadata.version("hanse"),
        style=Markup(style),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        # Only this very script may run, and nothing may be fetched, whatever a name in a file tries.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **shown,
    )


def shown_count(number: float, unit: str = "") -> str:
    """A number whose unit stays beside it."""
    return count(number, unit).replace(" ", "\N{NO-BREAK SPACE}")


def shown_time(seconds: float) -> str:
    """Seconds since 1970 as a date and a time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
