"""Annotated documents -> the reason for which each is removed, or none. The only place where anything is removed."""

from __future__ import annotations

from data_pipelines.documents import Document

# In the order in which they are tried: a document is counted under the first that applies.
REASONS = ("malformed", "empty", "too_short", "wrong_language", "duplicate")


def removal(document: Document, *, min_characters: int, check_language: bool, min_confidence: float) -> tuple[str, str]:
    """(reason, detail) for an annotated document; ("", "") when it stays.

    ``wrong_language``: another language than the declared one was detected with at least ``min_confidence``; below
    that, the declaration is believed.
    """
    if document.reason:
        return document.reason, document.detail
    if not document.text:
        return "empty", ""
    if len(document.text) < min_characters:
        return "too_short", f"{len(document.text)} characters"
    detected, score = document.language_detected, document.language_score
    if check_language and detected != document.language and score is not None and score >= min_confidence:
        return "wrong_language", f"{detected} with {score:.2f}"
    if document.duplicate_of:
        return "duplicate", document.duplicate_of
    return "", ""
