"""What a key of ``data.mixture`` draws from: a language, one source of it, or what other keys leave of it.

    {fr: 2, de: 1, de/wikipedia: 3}     all of fr; wikipedia of de; all else of de

A pool is known by its name: ``fr``, ``de/wikipedia``, ``de/(all but wikipedia)``. Pools of equal names are the same
text in the same order, whatever stage draws from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import HanseError

if TYPE_CHECKING:
    from data_pipelines.shards import ShardEntry, ShardsManifest
    from train.config import TrainConfig


@dataclass(frozen=True)
class Pool:
    """Text of one language: of one ``source``, or of all but some; all of it where neither is given."""

    language: str
    source: str | None = None
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if self.source is not None:
            return f"{self.language}/{self.source}"
        return f"{self.language}/(all but {', '.join(self.without)})" if self.without else self.language

    @property
    def whole(self) -> bool:
        """Whether it is all of its language."""
        return self.source is None and not self.without

    def holds(self, source: str) -> bool:
        """Whether text of this source of its language is in it."""
        return source == self.source if self.source is not None else source not in self.without

    def parts(self, sizes: Iterable[tuple[str, int]]) -> list[tuple[int, int]]:
        """Spans of a shard that are its text, from the (source, size) that lie there one after the other; neighbours
        are one span."""
        spans, start = list[tuple[int, int]](), 0
        for source, size in sizes:
            if self.holds(source):
                joined = spans and spans[-1][1] == start
                spans[-1:] = [(spans[-1][0], start + size)] if joined else [*spans[-1:], (start, start + size)]
            start += size
        return spans


def language_of(name: str) -> str:
    """The language of a pool, or of a mixture's key."""
    return name.partition("/")[0]


def pools_of(mixture: Mapping[str, float]) -> dict[Pool, float]:
    """{pool: weight}, by name."""
    named = [(language, source) for language, slash, source in (key.partition("/") for key in mixture) if slash]
    found = {}
    for key, weight in mixture.items():
        language, slash, source = key.partition("/")
        others = () if slash else tuple(sorted(source for of, source in named if of == language))
        found[Pool(language, source if slash else None, others)] = float(weight)
    return dict(sorted(found.items(), key=lambda one: one[0].name))


def parts_of_languages(config: TrainConfig) -> list[Pool]:
    """The pools of all stages that are not a whole language."""
    return [pool for pool in dict.fromkeys(pool for stage in config.timeline for pool in pools_of(stage.data.mixture))
            if not pool.whole]  # fmt: skip


def spans_in(manifest: ShardsManifest, entries: Sequence[ShardEntry], pool: Pool) -> list[tuple[int, int, int]]:
    """(number of the shard, first token, token behind the last) of a pool in the shards of its language."""
    return [(number, *span) for number, entry in enumerate(entries)
            for span in pool.parts(manifest.sources_of(entry).items())]  # fmt: skip


def sources_in(manifest: ShardsManifest) -> dict[str, dict[str, int]]:
    """{language: {source: tokens}} of the training text; {} for a language whose shards do not tell, or not all.

    Raises:
        HanseError: a sidecar is not readable.
    """
    found: dict[str, dict[str, int]] = {}
    silent = set()
    for entry in manifest.of("train"):
        told, sums = manifest.sources_of(entry), found.setdefault(entry.language, {})
        silent |= {entry.language} if entry.tokens and not told else set()
        for source, tokens in told.items():
            sums[source] = sums.get(source, 0) + tokens
    return {language: {} if language in silent else sums for language, sums in found.items()}


def mixture_problems(mixture: Mapping[str, object]) -> list[str]:
    """What is wrong with a mixture, whatever it is to be drawn from; one line each."""
    found = []
    for key, weight in mixture.items():
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):  # a stranger's may be anything
            found.append(f"data.mixture.{key}={weight}: a weight is a finite number, 0 or more")
        if "" in (key if isinstance(key, str) else "").split("/", 1):
            found.append(f"data.mixture.{key}: a key is a language, or one of its sources as LANGUAGE/SOURCE")
    if mixture and not any(isinstance(weight, int | float) and weight > 0 for weight in mixture.values()):
        found.append("data.mixture: at least one language needs a weight above 0")
    return found


def check_mixtures(config: TrainConfig, manifest: ShardsManifest) -> None:
    """See that there is text for all that the mixtures of a run name.

    Raises:
        HanseError: naming what is not there, and what there is.
    """
    languages = sorted({entry.language for entry in manifest.of("train")})
    sources = sources_in(manifest) if parts_of_languages(config) else {}
    for stage in config.timeline:
        pools = pools_of(stage.data.mixture)
        unknown = [pool.name for pool in pools if pool.language not in languages
                   or (pool.source is not None and pool.source not in sources[pool.language])]  # fmt: skip
        if unknown:
            there = ", ".join(languages) or "none"
            named = sorted({language_of(name) for name in unknown if "/" in name} & {*languages})
            there += "".join(f"; of {one}: {', '.join(sources[one]) or 'its shards do not tell sources apart'}"
                             for one in named)  # fmt: skip
            raise HanseError(f"{stage.where}data.mixture: no training shards for {', '.join(unknown)} in "
                             f"{manifest.folder}; there are {there}")  # fmt: skip
        for pool, weight in pools.items():
            if pool.without and weight and not any(map(pool.holds, sources[pool.language])):
                raise HanseError(f"{stage.where}data.mixture.{pool.language}: each source of it is named by itself, "
                                 f"nothing is left; leave the key {pool.language} out")  # fmt: skip
