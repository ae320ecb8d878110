"""Fairness between languages: what each was given, what each got, and how far the worst is from the best.

A model that is good on average may be poor in one language. What a run leaves behind tells how much text each had
(tokens, epochs), into how many pieces the tokenizer cuts it (fertility: Petrov et al., Language Model Tokenizers
Introduce Unfairness Between Languages, arXiv 2305.15425), and what was learned (bits per byte, task scores).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.charts import PALETTE, Bar, Bars, Chart, Series, Table, draw, fitted
from common.errors import HanseError
from common.files import read_json
from common.terminal import count
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import tokenizer_sha256
from train import ledger
from train.config import TrainConfig
from train.data_table import data_table
from train.evaluations import read_evaluations, with_task_scores
from train.order import drawn_in, windows_of
from train.pools import language_of
from train.run_folder import RunFolder, read_metrics

LOSSES = ("bits_per_byte", "loss")  # of an evaluation; any other number of a language in it is a task score
MEASURES = {  # name: (what it is, whether the best language has the highest)
    "consumed_tokens": ("tokens trained on", True),
    "epochs": ("epochs of its own text", False),
    "tokens_per_word": ("tokens per word", False),
    "bits_per_byte": ("bits per byte", False),
}


@dataclass(frozen=True)
class Language:
    """One language of a run. What cannot be known is None: no number is estimated.

    Attributes:
        consumed_tokens: positions of the sequences that the model was trained on so far.
        epochs: of the language's training text, so far; the order of data draws its windows over and over.
        training_tokens, training_bytes: of the training text in the shards; bytes of UTF-8.
        tokens_per_word, bytes_per_token: fertility on validation text, words parted by white space, as
            ``hanse tokenizer`` measured it.
        bits_per_byte, scores: of the latest evaluation; ``scores`` has the higher number for the better model.
    """

    language: str
    consumed_tokens: int | None = None
    epochs: float | None = None
    training_tokens: int | None = None
    training_bytes: int | None = None
    tokens_per_word: float | None = None
    bytes_per_token: float | None = None
    bits_per_byte: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gap:
    """How far apart the languages are in one measure.

    ``ratio`` is 1 at parity and never less; at parity ``best`` and ``worst`` are the same language, any of them. It is
    infinite where the worst has nothing right of what the best has something right of.
    """

    measure: str
    best: str
    best_value: float
    worst: str
    worst_value: float

    @property
    def ratio(self) -> float:
        high, low = max(self.best_value, self.worst_value), min(self.best_value, self.worst_value)
        return high / low if low else math.inf

    @property
    def told(self) -> str:
        """The ratio for a table."""
        return f"{self.ratio:.3f}" if math.isfinite(self.ratio) else f"{self.worst} has none right"


@dataclass(frozen=True)
class Moment:
    """The evaluation after ``step``: {measure: {language: value}}, finite values only."""

    step: int
    values: dict[str, dict[str, float]]

    def gap(self, measure: str) -> Gap | None:
        """The gap of a measure at that step."""
        return gap(measure, self.values.get(measure, {}))


@dataclass(frozen=True)
class Fairness:
    """All languages of a run after ``step`` steps, in alphabetical order, and how they came there."""

    step: int
    languages: list[Language]
    history: list[Moment]

    @cached_property
    def gaps(self) -> list[Gap]:
        """The gap of every measure that two languages or more have, tasks last."""
        found = [gap(name, {one.language: value for one in self.languages
                            if (value := getattr(one, name)) is not None}) for name in MEASURES]  # fmt: skip
        found += [gap(task, {one.language: one.scores[task] for one in self.languages if task in one.scores})
                  for task in self.tasks]  # fmt: skip
        return [one for one in found if one]

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the task scores that any language has."""
        return sorted({task for one in self.languages for task in one.scores})


def fairness(
    config: TrainConfig, records: Sequence[Mapping[str, Any]], shards: ShardsManifest | None, step: int,
    skipped: Sequence[tuple[int, int]] = (),
) -> Fairness:  # fmt: skip
    """What a run says of its languages.

    Args:
        config: of the run.
        records: of its ``metrics.jsonl``.
        shards: that it was trained on; None where they are no longer there, and less can be told.
        step: steps done.
        skipped: ranges of samples that the run went past (:func:`train.ledger.skipped`).
    """
    moments = [_moment(record) for record in records if "evaluation" in record]
    latest = moments[-1].values if moments else {}
    drawn, fertility = _drawn(config, shards, step, skipped), _fertility(config, shards)
    held = {row.language: row for row in data_table(shards, None)} if shards else {}
    names = {*held, *drawn, *(name for values in latest.values() for name in values)}
    languages = []
    for name in sorted(names):
        row, (tokens, epochs) = held.get(name), drawn.get(name, (0 if drawn else None, 0.0 if drawn else None))
        languages.append(Language(
            language=name,
            consumed_tokens=tokens,
            epochs=epochs,
            training_tokens=row.training_tokens if row else None,
            training_bytes=row.training_bytes if row else None,
            tokens_per_word=fertility.get(name, {}).get("tokens_per_word"),
            bytes_per_token=fertility.get(name, {}).get("bytes_per_token"),
            bits_per_byte=latest.get("bits_per_byte", {}).get(name),
            scores={task: values[name] for task, values in latest.items() if task not in LOSSES and name in values},
        ))  # fmt: skip
    return Fairness(step, languages, moments)


def fairness_of(run: Path | str, shards: Path | str | None = None, step: int | None = None) -> Fairness:
    """:func:`fairness` of a run folder; ``shards`` says where they are now, if they were moved.

    Args:
        run: the folder.
        shards: of the run.
        step: as it stood after that many steps (None: after the last).

    Raises:
        HanseError: the run's configuration or metrics are missing or not readable.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    records = with_task_scores(read_metrics(folder.metrics), read_evaluations(folder)[0])
    done = max((record["step"] for record in records if "loss" in record), default=0)
    until = done if step is None else min(step, done)
    try:
        manifest = ShardsManifest.read(Path(shards or config.data.shards))
    except HanseError:
        manifest = None
    passed = ledger.skipped(record for _, record in ledger.lines(folder.ledger))
    return fairness(config, [record for record in records if record["step"] <= until], manifest, until, passed)


def gap(measure: str, values: Mapping[str, float]) -> Gap | None:
    """The gap between languages; None where fewer than two have a value above 0, or in a score, fewer than one."""
    zero = measure not in MEASURES  # nothing right is a score as well
    known = {name: value for name, value in values.items() if 0 < value < math.inf or (zero and value == 0)}
    if len(known) < 2 or not any(known.values()):
        return None
    highest_is_best = MEASURES[measure][1] if measure in MEASURES else True
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    best, worst = (high, low) if highest_is_best else (low, high)
    return Gap(measure, best, known[best], worst, known[worst])


def _drawn(
    config: TrainConfig, shards: ShardsManifest | None, step: int, skipped: Sequence[tuple[int, int]]
) -> dict[str, tuple[int, float | None]]:
    """{language: (tokens, epochs)} that the order of data has given in so many steps; {} where it cannot be told."""
    mixtures = [stage.data.mixture for stage in config.timeline]
    if not shards and not all(mixtures):
        return {}
    unknown = dict.fromkeys(sorted({language_of(key) for mixture in mixtures for key in mixture}), 0)
    found = drawn_in(
        config, windows_of(shards, config.data.packing) if shards else lambda length: unknown, step, skipped
    )
    return {name: (drawn.tokens, drawn.epochs) for name, drawn in found.items()}


def _fertility(config: TrainConfig, shards: ShardsManifest | None) -> dict[str, dict[str, float]]:
    """``fertility.json`` of the run's tokenizer; {} where there is none, or the tokenizer is another one."""
    folder = Path(config.data.tokenizer)
    try:
        if shards is None or tokenizer_sha256(folder) != shards.tokenizer_sha256:
            return {}
        found = read_json(folder / "fertility.json", "fertility table")
        return {str(name): {key: float(row[key]) for key in ("tokens_per_word", "bytes_per_token")}
                for name, row in found.items()}  # fmt: skip
    except (HanseError, AttributeError, KeyError, TypeError, ValueError):
        return {}


def _moment(record: Mapping[str, Any]) -> Moment:
    values: dict[str, dict[str, float]] = {}
    for language, scores in record["evaluation"].items():
        for name, value in scores.items():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(name, {})[language] = float(value)
    return Moment(record["step"], values)


# --- the section of the report --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """What ``report.html.j2`` shows: bars of every measure, the two tables, and the gaps over the evaluations."""

    bars: list[Bars]
    table: Table
    gaps: Table
    charts: list[Chart]


def section(found: Fairness, colours: Mapping[str, int]) -> Section | None:
    """The section of the report; None where there are not two languages to compare."""
    if len(found.languages) < 2:
        return None
    return Section(_bars(found, colours), _table(found), _gaps(found), _charts(found, colours))


def _bars(found: Fairness, colours: Mapping[str, int]) -> list[Bars]:
    def bars(measure: str, values: Mapping[str, float]) -> Bars | None:
        apart = gap(measure, values)
        highest = max(values.values(), default=0.0)
        if apart is None or not math.isfinite(highest):
            return None
        rows = [Bar(name, 100 * value / highest, written(measure, value), colours.get(name, 1))
                for name, value in values.items()]  # fmt: skip
        said = f"worst {apart.worst}, best {apart.best}: factor {apart.ratio:.2f}"
        said = said if math.isfinite(apart.ratio) else f"best {apart.best}; {apart.told}"
        return Bars(_title(measure), "the same in every language" if apart.ratio == 1 else said, rows)

    named = {measure: {one.language: value for one in found.languages if (value := getattr(one, measure)) is not None}
             for measure in MEASURES}  # fmt: skip
    named |= {task: {one.language: one.scores[task] for one in found.languages if task in one.scores}
              for task in found.tasks}  # fmt: skip
    return [drawn for measure, values in named.items() if (drawn := bars(measure, values))]


def _table(found: Fairness) -> Table:
    """A row a language; columns that no language can fill are left out."""
    columns = {
        "tokens trained on": [written("consumed_tokens", one.consumed_tokens) for one in found.languages],
        "epochs": [written("epochs", one.epochs) for one in found.languages],
        "training text": [_count(one.training_bytes, "B") for one in found.languages],
        "its tokens": [written("training_tokens", one.training_tokens) for one in found.languages],
        "tokens per word": [written("tokens_per_word", one.tokens_per_word) for one in found.languages],
        "bytes per token": [written("bytes_per_token", one.bytes_per_token) for one in found.languages],
        "bits per byte": [written("bits_per_byte", one.bits_per_byte) for one in found.languages],
        **{_title(task): [written(task, one.scores.get(task)) for one in found.languages] for task in found.tasks},
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    rows = [[one.language, *(cells[number] or "not known" for cells in shown.values())]
            for number, one in enumerate(found.languages)]  # fmt: skip
    return Table(["language", *shown], rows,
                 "Tokens per word and bytes per token were measured on validation text by hanse tokenizer. Bits per "
                 "byte depend on the language too: scripts of several bytes a character have fewer.")  # fmt: skip


def _gaps(found: Fairness) -> Table:
    def said(one: Gap, language: str, value: float) -> str:
        return f"{'all' if one.ratio == 1 else language} {written(one.measure, value)}"

    rows = [[_title(one.measure), said(one, one.best, one.best_value), said(one, one.worst, one.worst_value),
             one.told] for one in found.gaps]  # fmt: skip
    return Table(["gap", "best", "worst", "worst to best"], rows, "1 is parity.")


def _charts(found: Fairness, colours: Mapping[str, int]) -> list[Chart]:
    """The gap of every measured quality over the evaluations, and where the languages stood."""
    moments, steps = found.history, [moment.step for moment in found.history]
    measures = sorted({name for moment in moments for name in moment.values if name != "loss" and moment.gap(name)})
    if not measures:
        return []
    gaps = []
    for number, name in enumerate(measures):
        apart = [moment.gap(name) for moment in moments]
        values = [one.ratio if one and math.isfinite(one.ratio) else None for one in apart]
        gaps.append(Series(_title(name), steps, values, number % PALETTE + 1 if number else 0))
    highest = [value for one in gaps for value in one.finite]
    charts = [draw("Gap between languages", "worst to best, 1 is parity", gaps, last_step=found.step,
                   scale=fitted([1.0, *highest]))]  # fmt: skip
    standing = _standing(found, colours)
    return charts if standing is None else [*charts, standing]


def _standing(found: Fairness, colours: Mapping[str, int]) -> Chart | None:
    """Where each language stands beside the mean; of many, the three that are last and the three that are first."""
    history = [(moment.step, moment.values.get("bits_per_byte", {})) for moment in found.history]
    known = [(step, values, sum(values.values()) / len(values)) for step, values in history if values]
    if not known:
        return None
    latest = known[-1][1]
    order, unit = sorted(latest, key=latest.__getitem__, reverse=True), "bits per byte, mean of the languages = 1"
    if len(order) > PALETTE:
        unit += f", {PALETTE // 2} worst and best of {len(order)}"
        order = [*order[: PALETTE // 2], *order[-(PALETTE // 2) :]]
        colours = {name: number for number, name in enumerate(order, 1)}
    steps = [step for step, _, _ in known]
    series = [Series(name, steps, [values[name] / mean if name in values and mean else None
                                   for _, values, mean in known], colours.get(name, 1))
              for name in order]  # fmt: skip
    return draw("Each language beside the mean", unit, series, last_step=found.step)


def _title(measure: str) -> str:
    return MEASURES[measure][0] if measure in MEASURES else measure.replace("_", " ")


def written(measure: str, value: float | None) -> str:
    """A value of a measure for a table; empty for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if measure == "epochs" else f"{value:.3f}"


def _count(number: int | None, unit: str) -> str:
    return "" if number is None else count(number, unit).replace(" ", "\N{NO-BREAK SPACE}")
