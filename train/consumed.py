"""What a run took of each source of a language: tokens, and epochs of the source's text.

Where a mixture draws from a source by name, its tokens are counted, as those of a language are. Where several sources
are drawn from as one pool, their windows come in one order that does not know them: each is told its share of the
pool's tokens. That is what it gave after each whole epoch; within one it is the expected value: of r windows drawn, a
source of share p gave r p, with a standard deviation below sqrt(r p (1 - p)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from train.config import TrainConfig
from train.order import WindowsAt, drawn_in, stage_draws
from train.pools import Pool, pools_of
from train.stages import Ranges


@dataclass(frozen=True)
class Taken:
    """What a run took of a source; ``epochs``: how often its text came."""

    tokens: int
    epochs: float


def drawn_by_source(
    config: TrainConfig, windows_at: WindowsAt, sources: Mapping[str, Mapping[str, int]], steps: int,
    skipped: Ranges = (),
) -> dict[str, dict[str, Taken]]:  # fmt: skip
    """{language: {source: what the first ``steps`` steps of a run take of it}}, of those that are drawn from.

    Args:
        config: of the run.
        windows_at: windows of each language, and of each part that is drawn from, for one epoch, by length.
        sources: {language: {source: tokens}} of the training text (:func:`train.pools.sources_in`); a language of
            which nothing is told is left out.
        steps: optimizer steps.
        skipped: ranges of samples that the run went past.
    """
    tokens, epochs = dict[tuple[str, str], float](), dict[tuple[str, str], float]()
    for stage, _, draws in stage_draws(config, windows_at, steps, skipped):
        pools = {pool.name: pool for pool in pools_of(stage.data.mixture)}
        for name, samples in draws.items():
            pool = pools.get(name, Pool(name))
            held = {source: size for source, size in sources.get(pool.language, {}).items() if pool.holds(source)}
            for source, size in held.items():
                key, share = (pool.language, source), size / max(sum(held.values()), 1)
                tokens[key] = tokens.get(key, 0) + samples * stage.length * share
                epochs[key] = epochs.get(key, 0) + samples / max(windows_at(stage.length)[name], 1)
    found: dict[str, dict[str, Taken]] = {}
    for language, source in sorted(tokens):
        found.setdefault(language, {})[source] = Taken(round(tokens[language, source]), epochs[language, source])
    return found


def consumed(
    config: TrainConfig, windows_at: WindowsAt, sources: Mapping[str, Mapping[str, int]], steps: int,
    skipped: Ranges = (),
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, dict[str, float]]]]:  # fmt: skip
    """For ``metrics.jsonl``: {language: {"tokens", "epochs"}}, and {language: {source: the same}}."""
    languages = drawn_in(config, windows_at, steps, skipped)
    split = drawn_by_source(config, windows_at, sources, steps, skipped)
    return ({name: {"tokens": one.tokens, "epochs": one.epochs} for name, one in languages.items()},
            {name: {source: asdict(one) for source, one in held.items()} for name, held in split.items()})  # fmt: skip
