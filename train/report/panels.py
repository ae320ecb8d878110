"""Charts of a run's report."""

from __future__ import annotations

import math
from collections import Counter

from common.charts import PALETTE, Bar, Bars, Chart, Series, draw, fitted
from train.report.evidence import Evidence

WARM_UP = 2  # steps of a start that train/metrics.py leaves out of its means


def validation_panels(evidence: Evidence) -> list[tuple[str, Chart]]:
    """(language, chart) of bits per byte beside the unigram baseline, all on one scale."""
    scores = {
        name: [record["evaluation"].get(name, {}).get("bits_per_byte") for record in evidence.evaluations]
        for name in evidence.languages
    }
    steps = [record["step"] for record in evidence.evaluations]
    shown = {name: values for name, values in scores.items() if any(value is not None for value in values)}
    finite = [v for values in shown.values() for v in values if v is not None and math.isfinite(v)]
    scale = fitted([*finite, *(evidence.unigram[name] for name in shown if name in evidence.unigram)])
    panels = []
    for name, values in shown.items():
        series = [Series("model", steps, values, evidence.colour(name))]
        if name in evidence.unigram:
            ends = [0, max(evidence.last_step, 1)]
            series.insert(0, Series("unigram", ends, [evidence.unigram[name]] * 2, 0, "dashed"))
        chart = draw(f"Validation, {name}", "bits per byte", series, last_step=evidence.last_step, scale=scale)
        panels.append((name, chart))
    return panels


def accuracy_chart(evidence: Evidence) -> Chart | None:
    """How often the likeliest token was right, of each language; None where it was not measured."""
    steps = [record["step"] for record in evidence.evaluations]
    series = []
    for name in evidence.languages:
        found = [record["evaluation"].get(name, {}).get("token_accuracy") for record in evidence.evaluations]
        values = [None if value is None else 100 * value for value in found]
        series.append(Series(name, steps, values, evidence.colour(name)))
    if not any(one.finite for one in series):
        return None
    return draw("Token accuracy", "% of validation labels", series, last_step=evidence.last_step, zero=True)


def loss_chart(evidence: Evidence) -> Chart:
    """The training loss, of all languages together and of each."""
    steps = [record["step"] for record in evidence.steps]
    named = evidence.languages if len(evidence.languages) <= PALETTE else []
    series = [
        Series(name, steps, [record.get("loss_by_language", {}).get(name) for record in evidence.steps],
               evidence.colour(name), "thin")
        for name in named
    ]  # fmt: skip
    series.append(Series("all", steps, [record["loss"] for record in evidence.steps]))
    marks = {kind: [event["step"] for event in evidence.events if event["event"] == kind]
             for kind in ("checkpoint", "resume", "stage")}  # fmt: skip
    return draw("Training loss", "nats per token", series, last_step=evidence.last_step, events=marks)


def machine_charts(evidence: Evidence) -> list[Chart]:
    """Throughput, utilisation, learning rate, gradient norm."""
    steps = [record["step"] for record in evidence.steps]

    def chart(title: str, unit: str, factor: float = 1.0, **keys: str) -> Chart:
        lines = []
        for colour, (key, name) in enumerate(keys.items(), 1):
            found = [record.get(key) for record in evidence.steps]
            if colour == 1 or any(value is not None for value in found):
                values = [None if value is None else factor * value for value in found]
                lines.append(Series(name, steps, values, colour))
        return draw(title, unit, lines, last_step=evidence.last_step, zero=True)

    known = any(record.get("mfu_data_sheet") is not None for record in evidence.steps)
    peaks = "% of the measured matrix peak" + (", and of the data sheet's in bf16" if known else "")
    return [
        chart("Throughput", "tokens per second, all ranks", tokens_per_second="throughput"),
        chart("Model FLOPs utilisation", peaks, 100, mfu="of the measured peak", mfu_data_sheet="of the data sheet's"),
        chart("Learning rate", "AdamW", learning_rate="learning rate"),
        chart("Gradient norm", "L2, before clipping", gradient_norm="gradient norm"),
    ]  # fmt: skip


def time_bars(evidence: Evidence) -> Bars | None:
    """What the loop's time went into (train/stopwatch.py); None where no step says."""
    told = [record["seconds_by_part"] for record in evidence.steps if "seconds_by_part" in record][WARM_UP:]
    shares, overhead = evidence.totals.get("time_shares"), evidence.totals.get("overhead_seconds")
    if not shares and told:
        seconds: Counter[str] = Counter()
        for parts in told:
            seconds.update(parts)
        shares = {part: value / (seconds.total() or 1.0) for part, value in seconds.items()}
        overhead = seconds["loop"] / len(told)
    if not shares or max(shares.values()) <= 0:
        return None
    highest = max(shares.values())
    rows = [Bar(part, 100 * max(share, 0.0) / highest, f"{share:.1%}", 1) for part, share in shares.items()]
    said = "" if overhead is None else f"; what is no other part, loop, takes {1000 * overhead:.1f} ms a step"
    return Bars("Where the time went", f"rank 0, without the first {WARM_UP} steps{said}", rows)
