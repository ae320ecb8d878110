"""Which language a text is in, told by a model that comes with its package and needs no network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from data_pipelines.annotate.detectors import DEFAULT, DETECTORS
from data_pipelines.annotate.relatives import LARGE, Relatives

SCHEMA = pa.schema(
    [
        ("language_detected", pa.string()),
        ("language_score", pa.float32()),
        ("language_runner_up", pa.string()),
        ("language_runner_up_score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Detected:
    """The likeliest language (ISO 639) with the detector's score for it, and the next likeliest, if any."""

    language: str
    score: float
    runner_up: str | None = None
    runner_up_score: float | None = None


def accepted(language: str, detector: str = DEFAULT) -> tuple[str, ...]:
    """What a text may be taken for whose source says that it is in ``language``."""
    return (language, *DETECTORS[detector].mistaken.get(language, ()))


_relatives = functools.cache(Relatives)  # a table of 4,000 lines, which each file would read anew


class LanguageIdentifier:
    """One of the :data:`~data_pipelines.annotate.detectors.DETECTORS`, and a second opinion on near relatives.

    Sees the first ``characters`` characters of a text: enough to be sure, and the time does not depend on its length.

    Raises:
        HanseError: the detector's package cannot be loaded.
    """

    def __init__(self, characters: int = 1000, detector: str = DEFAULT):
        self.characters = characters
        self._answer, self._sure = DETECTORS[detector].load(), DETECTORS[detector].sure
        self._relatives = _relatives()

    def __call__(self, text: str) -> Detected | None:
        """The most likely language; None for a text without a letter, or of which the detector knows nothing."""
        start = text[: self.characters]
        if not any(map(str.isalpha, start)):
            return None
        best = self._answer(start)
        if not best:
            return None
        language, score = best[0]
        if language in LARGE and score < self._sure and (rather := self._relatives(start, language, score)):
            return Detected(*rather, language, 1 - rather[1])
        return Detected(language, score, *(best[1] if len(best) > 1 else ()))

    def columns(self, texts: Sequence[str]) -> pa.RecordBatch:
        """The columns of :data:`SCHEMA`: a row a text, empty where there is no language."""
        found = [self(text) for text in texts]
        values = [
            [getattr(one, name) if one else None for one in found]
            for name in ("language", "score", "runner_up", "runner_up_score")
        ]
        return pa.RecordBatch.from_arrays(list(map(pa.array, values, SCHEMA.types)), schema=SCHEMA)
