"""Annotated documents -> the reason for which each is removed, or none. The only place where anything is removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.annotate.quality import Quality
from data_pipelines.annotate.text_arrays import Bools
from data_pipelines.config import SelectConfig
from data_pipelines.dedup import Originals

# In the order in which they are tried: a document is counted under the first that applies.
REASONS = (
    "malformed", "too_long", "truncated", "broken_file", "empty", "too_short", "wrong_language", "license", "opt_out",
    "quality", "evaluation", "duplicate", "near_duplicate",
)  # fmt: skip


class Verdicts:
    """(reason, detail) of each document of a batch; empty for those that stay."""

    def __init__(self, batch: pa.RecordBatch):
        self.reason: list[str] = batch.column("reason").to_pylist()
        self.detail: list[str] = batch.column("detail").to_pylist()
        self.staying = np.array([not reason for reason in self.reason], bool)

    def remove(self, which: Bools, reason: str, detail: Callable[[int], str]) -> None:
        """Remove those that still stay, each with its detail."""
        for row in np.flatnonzero(which & self.staying).tolist():
            self.reason[row], self.detail[row] = reason, detail(row)
        self.staying &= ~which


def judge(
    batch: pa.RecordBatch,
    config: SelectConfig,
    *,
    languages: Sequence[str],
    quality: Quality | None,
    originals: Originals,
) -> Verdicts:
    """The verdicts on annotated documents of one source; batches come in order.

    ``wrong_language``: none of the ``languages`` (if there are any) was detected, but another with at least the
    configured probability; below that, the declaration is believed. ``quality``: thresholds of the language, if they
    are to be applied.
    """
    verdicts = Verdicts(batch)
    characters = pc.utf8_length(batch.column("text")).to_numpy()
    verdicts.remove(characters == 0, "empty", lambda row: "")
    verdicts.remove(characters < config.min_characters, "too_short", lambda row: f"{characters[row]} characters")
    if languages:
        detected, score = batch.column("language_detected"), _numbers(batch, "language_score", -1)
        wrong = ~_is_in(detected, languages) & (score >= np.float32(config.language_min_confidence))
        verdicts.remove(wrong, "wrong_language", lambda row: f"{detected[row]} with {score[row]:.2f}")
    if config.licenses:
        licenses = batch.column("license").to_pylist()
        allowed = {one: any(fnmatchcase(one, pattern) for pattern in config.licenses) for one in set(licenses)}
        verdicts.remove(np.array([not allowed[one] for one in licenses]), "license", licenses.__getitem__)
    objects, why = batch.column("opt_out"), batch.column("opt_out_reason")
    verdicts.remove(_is_in(objects, config.opt_out), "opt_out", lambda row: f"{objects[row]}: {why[row]}")
    if quality:
        failed = quality.failures(batch)
        verdicts.remove(np.array([bool(signal) for signal, _ in failed]), "quality", lambda row: ": ".join(failed[row]))
    matches, names = _numbers(batch, "evaluation_matches", 0), batch.column("evaluation_set")
    found = matches > config.max_evaluation_matches
    verdicts.remove(found, "evaluation", lambda row: f"{matches[row]:.0f} in {names[row]}")
    ids, contents = batch.column("id").to_pylist(), batch.column("content").to_pylist()
    repeated = {row: (original, equal) for row, original, equal in originals.judge(ids, contents, verdicts.staying)}
    for reason, wanted in (("duplicate", True), ("near_duplicate", False)):
        which = np.zeros(len(ids), bool)
        which[[row for row, (_, equal) in repeated.items() if equal == wanted]] = True
        verdicts.remove(which, reason, lambda row: repeated[row][0])
    return verdicts


def _numbers(batch: pa.RecordBatch, name: str, missing: float) -> np.ndarray:
    return pc.fill_null(batch.column(name), missing).to_numpy(zero_copy_only=False)


def _is_in(values: pa.Array, wanted: Sequence[str]) -> Bools:
    return pc.is_in(values, value_set=pa.array(wanted, pa.string())).to_numpy(zero_copy_only=False)
