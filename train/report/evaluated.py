"""What ``hanse evaluate`` found, as a section of the report: text by source, samples; tasks, also the run's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.charts import Chart, Series, Table, draw, fitted
from common.page import shown_count
from train.accuracy import right_answers
from train.evaluations import Numbers, Saved, task_scores
from train.report.evidence import Evidence


@dataclass(frozen=True)
class Section:
    """What ``report.html.j2`` shows; all but ``tasks`` is of the latest evaluation.

    Attributes:
        step: of ``hanse evaluate``; 0 where it was not run, and all there is are tasks that the run asked on its way.
        tasks: accuracy over the steps that were evaluated, a chart a task.
        answers, text, harness: tables of tasks, of validation text by source, of lm-eval.
        samples: (language, prompt, what the model wrote).
    """

    step: int
    tasks: list[Chart]
    answers: Table
    text: Table = field(default_factory=lambda: Table([], []))
    harness: Table = field(default_factory=lambda: Table([], []))
    samples: list[tuple[str, str, str]] = field(default_factory=list)


def evaluated(evidence: Evidence) -> Section | None:
    """The section; None where nothing was evaluated and no task was asked."""
    scores = task_scores(evidence.records, evidence.saved)
    if not evidence.saved and not scores:
        return None
    charts, newest = _charts(evidence, scores), max(scores, default=0)
    on_its_way = _answers(scores.get(newest, {}), f"Asked after step {newest:,}. ")  # by the run itself
    if not evidence.saved:
        return Section(0, charts, on_its_way)
    latest = evidence.saved[-1]
    answers = on_its_way if newest > latest.step else _answers(latest.tasks)
    samples = [(language, prompt, _printable(text))
               for language, texts in latest.samples.items() for prompt, text in texts]  # fmt: skip
    return Section(latest.step, charts, answers, _text(latest), _harness(latest), samples)


def _charts(evidence: Evidence, scores: Mapping[int, Mapping[str, Numbers]]) -> list[Chart]:
    drawn, steps = [], list(scores)
    last = max([evidence.last_step, *steps])
    for task in dict.fromkeys(task for tasks in scores.values() for task in tasks):
        rows = [tasks.get(task, {}) for tasks in scores.values()]
        languages = sorted({name for row in rows for name in row})
        series = [Series(name, steps, [row[name]["accuracy"] if name in row else None for row in rows],
                         evidence.colour(name) if name in evidence.languages else 1) for name in languages]  # fmt: skip
        chance = max((row[name]["chance"] for row in rows for name in row), default=0.0)
        series.insert(0, Series("guessing", [0, last], [chance, chance], 0, "dashed"))
        if languages:
            values = [value for one in series for value in one.finite]
            drawn.append(draw(task.replace("_", " ").capitalize(), "accuracy; dashed: guessing", series,
                              last_step=last, scale=fitted([0.0, *values] if any(values) else [0.0, 0.1])))  # fmt: skip
    return drawn


def _answers(tasks: Mapping[str, Numbers], when: str = "") -> Table:
    names = sorted({language for languages in tasks.values() for language in languages})
    rows = [[name, *(right_answers(one.get(name), "not asked") for one in tasks.values())] for name in names]
    items = sorted({f"{row['items']:,.0f}" for one in tasks.values() for row in one.values()})
    note = (f"{when}Share of right answers, with its 95 % interval (Wilson). Questions are made of the "
            f"validation text: {' or '.join(items)} of each language.") if rows else ""  # fmt: skip
    return Table(["language", *(task.replace("_", " ") for task in tasks)], rows, note)


def _text(latest: Saved) -> Table:
    rows = []
    for language, whole in latest.languages.items():
        sources = latest.sources.get(language, {})
        named = [
            (language, whole),
            *((f"{language}, {name}", one) for name, one in sources.items() if len(sources) > 1),
        ]
        rows += [[name, f"{one['bits_per_byte']:.3f}", f"{one['loss']:.3f}", f"{one['token_accuracy']:.1%}",
                  shown_count(one["bytes"], "B")] for name, one in named]  # fmt: skip
    head = ["language, source", "bits per byte", "nats per token", "token accuracy", "text"]
    return Table(head, rows, "All validation text that was asked for, source by source where there are several.")


def _harness(latest: Saved) -> Table:
    rows = [[task, metric, f"{value:.4f}", f"{row.get('items', 0):,.0f}", f"{row.get('num_fewshot', 0):.0f}"]
            for task, row in latest.harness.items() for metric, value in row.items()
            if metric not in ("items", "num_fewshot")]  # fmt: skip
    return Table([f"lm-eval {latest.harness_version}", "metric", "value", "questions", "shots"], rows)


def _printable(text: str) -> str:
    """A model may write any byte."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
