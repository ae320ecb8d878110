"""Exact duplicates: texts that are equal but for case and spacing, within a language, across sources."""

from __future__ import annotations

from data_pipelines.documents import Document


class ExactDuplicates:
    """Remembers what was kept; memory grows by some 200 bytes a document."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, bytes], str] = {}

    def original_of(self, document: Document) -> str | None:
        """The id of the kept document that this one repeats, or None."""
        return self._kept.get((document.language, document.content))

    def keep(self, document: Document) -> None:
        """Make this document the one that later ones repeat."""
        self._kept.setdefault((document.language, document.content), document.id)
