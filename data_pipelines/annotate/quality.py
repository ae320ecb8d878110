"""Quality of text in one language: signals of every text, and the thresholds that a text may fail.

Signals (:mod:`~data_pipelines.annotate.quality_signals`) are computed for all texts and delete nothing. Thresholds
stand apart, in ``configs/quality/LANGUAGE.yaml``: other ones are tried without computing a signal again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import ConfigError, HanseError
from data_pipelines.annotate.quality_signals import PREFIX, SCHEMA, SIGNALS, Vocabulary, signals_of
from data_pipelines.annotate.text_arrays import TextArrays, batches

BATCH_CHARACTERS = 1 << 18  # what is worked on at a time: small enough for the caches
LONGEST = 1 << 23  # characters of a text that are looked at, so that memory stays below 1 GB whatever the text


@dataclass(frozen=True)
class Bounds:
    """The values of a signal that pass: at least ``min``, at most ``max``."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Quality:
    """Signals and thresholds of one language; the shipped ones are ``configs/quality/LANGUAGE.yaml``."""

    language: str
    stop_words: tuple[str, ...]
    policy_phrases: tuple[str, ...] = ()
    thresholds: Mapping[str, Bounds] = field(default_factory=dict)  # signal without its prefix -> ...

    @classmethod
    @functools.cache
    def of(cls, language: str) -> Quality:
        """What is shipped for a language (ISO 639 code).

        Raises:
            HanseError: nothing is.
        """
        shipped = resources.files("configs") / "quality"
        if language not in shipped_languages():
            raise HanseError(
                f"no quality thresholds for language '{language}' (there are {', '.join(shipped_languages())}); "
                f"write a {language}.yaml like them and load it with Quality.read"
            )
        return cls.parse((shipped / f"{language}.yaml").read_text(encoding="utf-8"), f"configs/quality/{language}.yaml")

    @classmethod
    def read(cls, path: Path) -> Quality:
        """Stop words and thresholds from a YAML file.

        Raises:
            HanseError: no such file, or not YAML.
            ConfigError: all that is wrong with its content.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise HanseError(f"{path}: {error.strerror}") from None

    @classmethod
    def parse(cls, text: str, name: str) -> Quality:
        """The same from the content of a YAML file called ``name``."""
        import yaml

        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise HanseError(f"{name}: not YAML ({' '.join(str(error).split())})") from None
        problems = [f"{name}: {problem}" for problem in _problems(value)]
        if problems:
            raise ConfigError(problems)
        return cls(
            language=value["language"],
            stop_words=tuple(dict.fromkeys(value["stop_words"].split())),
            policy_phrases=tuple(value.get("policy_phrases") or ()),
            thresholds={signal: Bounds(**bounds) for signal, bounds in (value.get("thresholds") or {}).items()},
        )

    def signals(self, texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.RecordBatch:
        """The signals of texts: a row a text, the columns of :data:`SCHEMA`. Missing texts are as empty ones."""
        given = texts.to_pylist() if isinstance(texts, (pa.Array, pa.ChunkedArray)) else texts
        filled = [text or "" for text in given]
        parts = [self.signals_of(TextArrays.of(part)) for part in batches(filled, BATCH_CHARACTERS, LONGEST)]
        return self.columns(parts, filled)

    def signals_of(self, arrays: TextArrays) -> dict[str, NDArray[Any]]:
        """The signals of texts that are arrays already."""
        return signals_of(arrays, Vocabulary(self.stop_words, self.policy_phrases))

    @staticmethod
    def columns(parts: Sequence[Mapping[str, NDArray[Any]]], texts: Sequence[str]) -> pa.RecordBatch:
        """What :meth:`signals_of` gave for batches of ``texts``, as columns."""
        columns = {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in SIGNALS}
        columns["characters"] = np.array([len(text) for text in texts], np.int64)  # of cut texts, too
        return pa.RecordBatch.from_arrays(
            [pa.array(columns[name].astype(kind.to_pandas_dtype())) for name, (kind, _) in SIGNALS.items()],
            schema=SCHEMA,
        )

    def failures(self, signals: pa.RecordBatch | pa.Table) -> list[tuple[str, str]]:
        """(signal, detail) of the first threshold that each row fails, in the order of the YAML; ("", "") if none.

        Example: ``("quality_stop_word_share", "0.021 < 0.1")``.
        """
        found = [("", "")] * signals.num_rows
        for name, bounds in reversed(list(self.thresholds.items())):
            values = signals.column(PREFIX + name).to_numpy(zero_copy_only=False)
            for limit, sign in ((bounds.max, ">"), (bounds.min, "<")):
                if limit is not None:
                    stored = values.dtype.type(limit)  # compared as stored, so that 0.1 is not above 0.1
                    for row in np.flatnonzero(values > stored if sign == ">" else values < stored):
                        found[row] = (PREFIX + name, f"{values[row]:.4g} {sign} {limit:g}")
        return found


def shipped_languages() -> list[str]:
    """The languages with stop words and thresholds in ``configs/quality``."""
    names = (entry.name for entry in (resources.files("configs") / "quality").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _problems(value: Any) -> list[str]:
    """Everything wrong with the content of a YAML file, one line each."""
    keys = ("language", "stop_words", "policy_phrases", "thresholds")
    if not isinstance(value, dict):
        return [f"no mapping; write {', '.join(keys)}"]
    found = [f"{key}: unknown; use {', '.join(keys)}" for key in value if key not in keys]
    found += [f"{key}: must be text" for key in keys[:2] if not _has_word(value.get(key))]
    phrases, thresholds = value.get("policy_phrases") or [], value.get("thresholds") or {}
    if not isinstance(phrases, list) or not all(map(_has_word, phrases)):
        found.append("policy_phrases: must be a list of phrases")
    if not isinstance(thresholds, dict):
        return [*found, "thresholds: must be a mapping of signals to {min: number, max: number}"]
    for signal, bounds in thresholds.items():
        if signal not in SIGNALS:
            found.append(f"thresholds.{signal}: no such signal; use one of {', '.join(SIGNALS)}")
        elif not isinstance(bounds, dict) or not bounds or not all(map(_is_bound, bounds, bounds.values())):
            found.append(f"thresholds.{signal}: must be {{min: number, max: number}}, or one of the two")
        elif bounds.get("min", -np.inf) > bounds.get("max", np.inf):
            found.append(f"thresholds.{signal}: min {bounds['min']} is above max {bounds['max']}: nothing passes")
    return found


def _has_word(value: Any) -> bool:
    return isinstance(value, str) and any(map(str.isalnum, value))


def _is_bound(key: Any, value: Any) -> bool:
    return key in ("min", "max") and isinstance(value, (int, float)) and not isinstance(value, bool)
