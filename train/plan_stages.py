"""What a plan says of the stages of a run: sizes, learning rates, what each draws of each language, and how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from common.terminal import count, say, table
from data_pipelines.shards import ShardsManifest
from train.config import TrainConfig
from train.mixture import Share, repeated, shares
from train.order import drawn_in, stage_draws, windows_of
from train.pools import check_mixtures, language_of, parts_of_languages
from train.schedule import learning_rate
from train.stages import Stage


@dataclass(frozen=True)
class StagePlan:
    """A stage; ``rates``: of its first step, the highest, and of its last.

    Attributes:
        shares: of each pool (:mod:`train.pools`), as asked and as obtained; ``epochs`` there are of this stage alone.
    """

    stage: Stage
    rates: tuple[float, float, float]
    shares: dict[str, Share]


def plan_stages(train: TrainConfig, manifest: ShardsManifest | None) -> list[StagePlan]:
    """Every stage of a run; without shards, what can be said of it.

    Raises:
        HanseError: UniMax, and the text does not suffice; or a mixture names what is not there.
    """
    if manifest is None:
        return [StagePlan(stage, _rates(stage, train), {}) for stage in train.timeline]
    check_mixtures(train, manifest)
    windows_at, found = windows_of(manifest, train.data.packing, parts_of_languages(train)), []
    for stage, piece, draws in stage_draws(train, windows_at, train.steps):
        found.append(StagePlan(stage, _rates(stage, train), shares(piece.weights, draws, windows_at(stage.length))))
    return found


def _rates(stage: Stage, train: TrainConfig) -> tuple[float, float, float]:
    tops = [course.first_step + course.schedule.warmup_steps for course in train.courses]  # it rises until there only
    steps = {min(max(step, stage.first_step), stage.stop_step - 1) for top in tops for step in (top - 1, top)}
    first, last = (learning_rate(step, train) for step in (stage.first_step, stage.stop_step - 1))
    return first, max(first, last, *(learning_rate(step, train) for step in steps)), last


def whole(plans: list[StagePlan], train: TrainConfig, manifest: ShardsManifest) -> dict[str, Share]:
    """{language: share} of the whole run, by tokens."""
    drawn = drawn_in(train, windows_of(manifest, train.data.packing), train.steps)
    tokens, asked = sum(one.tokens for one in drawn.values()), dict.fromkeys(drawn, 0.0)
    for one in plans:
        for name, share in one.shares.items():
            asked[language_of(name)] += share.asked if len(plans) == 1 else share.asked * one.stage.tokens / tokens
    return {name: Share(asked[name], one.samples, one.tokens / max(tokens, 1), one.epochs or 0.0)
            for name, one in drawn.items()}  # fmt: skip


def show_stages(plans: list[StagePlan], total: dict[str, Share], train: TrainConfig) -> None:
    """Print sizes and rates where there is more than one, then what is drawn, and warn of repetition."""
    several, split = len(plans) > 1, bool(parts_of_languages(train))
    if several:
        table("\nstages of the run", ["stage", "steps", "sequences", "of tokens", "tokens", "learning rate"], [
            [one.stage.name, f"{one.stage.steps:,}", f"{one.stage.size:,}", f"{one.stage.length:,}",
             count(one.stage.tokens), " - ".join(f"{rate:.2g}" for rate in dict.fromkeys(one.rates))] for one in plans
        ])  # fmt: skip
    if not total:
        say("no shards yet: the vocabulary is that of train.model.vocabulary_size, languages and epochs are not known")
        return
    parts: list[tuple[str, int, dict[str, Share]]] = []
    if several or split:
        parts = [(one.stage.name or "run", one.stage.length, one.shares) for one in plans]
    rows = [[*([where] if parts else []), name, f"{one.asked:.2%}", f"{one.share:.2%}", count(one.samples * length),
             f"{one.epochs:.2f}"] for where, length, shares in parts for name, one in shares.items()]  # fmt: skip
    tokens = train.timeline.tokens(train.steps)
    rows += [[*(["all"] if parts else []), name, f"{one.asked:.2%}", f"{one.share:.2%}", count(one.share * tokens),
              f"{one.epochs:.2f}"] for name, one in total.items()]  # fmt: skip
    table("\nwhat is drawn", [*(["stage"] if parts else []), "language", "asked", "obtained", "tokens", "epochs"],
          rows)  # fmt: skip
    parts_drawn: dict[str, Share] = {}  # sources by name: how often in all stages
    for name, share in ((name, share) for one in plans for name, share in one.shares.items()):
        if language_of(name) != name:
            before = parts_drawn[name].epochs if name in parts_drawn else 0.0
            parts_drawn[name] = replace(share, epochs=before + share.epochs)
    for warning in repeated({**total, **parts_drawn}):
        say(f"WARNING: {warning}")


def as_json(plans: list[StagePlan]) -> list[dict[str, Any]]:
    """The stages for programs; [] of a run without."""
    return [
        {"name": one.stage.name, "steps": one.stage.steps, "tokens": one.stage.tokens,
         "sequence_length": one.stage.length, "global_batch_size": one.stage.size, "learning_rates": list(one.rates),
         "mixture": {name: asdict(share) for name, share in one.shares.items()}} for one in plans if one.stage.name
    ]  # fmt: skip
