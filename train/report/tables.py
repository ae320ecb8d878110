"""Headlines and tables of a run's report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from common.charts import Table
from common.page import shown_count, shown_time
from common.terminal import count, duration, many
from train.data_table import data_table
from train.report.evidence import Evidence, Record

SHOWN_CHECKPOINTS = 10


def subtitle(evidence: Evidence) -> str:
    """What was trained, how and when, in one line."""
    config, start = evidence.config, evidence.start
    parts = [
        config.model.architecture,
        f"{count(evidence.summary['parameters'])} parameters" if "parameters" in evidence.summary else "",
        f"{many(len(evidence.languages), 'language')}" if evidence.languages else "",
        f"ZeRO-{start.get('zero_stage', config.engine.zero_stage)} on {many(start.get('ranks', config.ranks), 'rank')}",
        str(start.get("precision", config.engine.precision)),
        f"started {shown_time(evidence.events[0]['time'])} UTC" if evidence.events else "",
    ]
    return " · ".join(filter(None, parts))


def headlines(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(number, what it is, what to compare it with) of the headlines."""
    tiles, config, totals = [], evidence.config, evidence.totals
    if evidence.evaluations:
        last, base = evidence.evaluations[-1]["evaluation"], evidence.unigram
        mean = statistics.fmean(score["bits_per_byte"] for score in last.values())
        both = [name for name in last if name in base]
        beside = f"mean of {many(len(last), 'language')}"
        if both:
            difference = statistics.fmean(last[name]["bits_per_byte"] / base[name] - 1 for name in both)
            beside = f"{abs(100 * difference):.1f} % {'under' if difference < 0 else 'above'} unigram"
        tiles.append((f"{mean:.3f}", "validation bits per byte", beside))
    if evidence.steps:
        loss = evidence.steps[-1]["loss"]
        tiles.append((f"{loss:.3f}", "training loss, last step", f"first step {evidence.steps[0]['loss']:.3f}"))
    line = config.timeline
    tokens = line.tokens(evidence.last_step)
    tiles.append((count(tokens), "tokens trained", f"{tokens / line.tokens(line.steps):.0%} of the budget"))
    if evidence.steps:
        speed = totals.get("tokens_per_second") or statistics.median(r["tokens_per_second"] for r in evidence.steps)
        mfu = totals.get("mfu") or statistics.median(r["mfu"] for r in evidence.steps)
        by_step = [r["mfu_data_sheet"] for r in evidence.steps if r.get("mfu_data_sheet") is not None]
        of_sheet = totals.get("mfu_data_sheet") or (statistics.median(by_step) if by_step else None)
        beside = f"; {of_sheet:.0%} of the data sheet's bf16 peak" if of_sheet else ""
        seconds = totals.get("wall_seconds") or sum(record["seconds"] for record in evidence.steps)
        tiles += [
            (count(speed), "tokens per second", f"over {many(evidence.start.get('ranks', config.ranks), 'rank')}"),
            (f"{mfu:.0%}", "model FLOPs utilisation", f"of the measured matrix peak{beside}"),
            (duration(seconds), "training time", f"{many(evidence.last_step, 'step')}"),
        ]
    return tiles


def remarks(evidence: Evidence) -> list[str]:
    """What a reader must know to trust the numbers."""
    notes = []
    if not evidence.steps:
        notes.append("No step has been made yet.")
    broken = [record["step"] for record in evidence.steps if not math.isfinite(record["loss"])]
    if broken:
        notes.append(f"The loss of {many(len(broken), 'step')} is not a number, first at step {broken[0]:,}.")
    if any((record.get("mfu") or 0) > 1 for record in evidence.steps):
        notes.append("Some steps reached more than the measured matrix peak: it was measured while the machine was "
                     "busy with something else, so utilisation is overstated.")  # fmt: skip
    if evidence.shards is None:
        notes.append(f"The shards are not at {evidence.config.data.shards}: what only they tell is left out "
                     "(hanse report shards=... says where they are).")  # fmt: skip
    return notes + evidence.wrong


def results(evidence: Evidence) -> Table:
    """The last validation, language by language."""
    rows = []
    for name, score in (evidence.evaluations[-1]["evaluation"] if evidence.evaluations else {}).items():
        ours, base = score["bits_per_byte"], evidence.unigram.get(name)
        beside = ["not known", ""] if base is None else [f"{base:.3f}", _percent(ours / base - 1)]
        rows.append([name, f"{ours:.3f}", *beside, f"{score['loss']:.3f}", _accuracy(score)])
    head = ["language", "bits per byte", "unigram", "difference", "nats per token", "token accuracy"]
    if not any(row[-1] for row in rows):  # a run of an earlier version
        head, rows = head[:-1], [row[:-1] for row in rows]
    if not rows:
        return Table(head, rows)
    note = (f"At step {evidence.evaluations[-1]['step']:,}. Bits per byte compares models with different tokenizers; "
            "lower is better. The unigram model knows only how often each token occurs in the language's training "
            "text.")  # fmt: skip
    return Table(head, rows, note)


def results_by_source(evidence: Evidence) -> Table:
    """The last validation, and what was trained on, source by source."""
    split = evidence.evaluations[-1].get("evaluation_by_source", {}) if evidence.evaluations else {}
    told = [record for record in evidence.records if "consumed_by_source" in record]
    taken = told[-1]["consumed_by_source"] if told else {}
    rows = []
    for name in sorted({*split, *taken}):
        scores, drawn = split.get(name, {}), taken.get(name, {})
        for source in dict.fromkeys([*drawn, *scores]):
            one, took = scores.get(source), drawn.get(source)
            scored = [f"{one['bits_per_byte']:.3f}", f"{one['loss']:.3f}", _accuracy(one)] if one else [""] * 3
            learnt = [f"{took['tokens']:,}", f"{took['epochs']:.2f}"] if took else [""] * 2
            rows.append([f"{name}, {source}", *(scored if split else []), *(learnt if told else [])])
    head = ["language, source", *(["bits per byte", "nats per token", "token accuracy"] if split else [])]
    note = "The same labels, by the source of their document. " if split else ""
    if not told:
        return Table(head, rows, note.rstrip())
    note += f"Trained on until step {told[-1]['step']:,}; sources drawn from together share the tokens as their text."
    return Table([*head, "tokens trained on", "epochs"], rows, note)


def _accuracy(score: Mapping[str, float]) -> str:
    return f"{score['token_accuracy']:.1%}" if "token_accuracy" in score else ""


def data(evidence: Evidence) -> Table:
    """Documents, bytes and tokens of each language, with what the corpus removed where that is known."""
    if evidence.shards is None:
        rows = [[name, *(f"{row.get(key) or 0:,}" for key in ("documents", "bytes", "tokens"))]
                for name, row in evidence.summary.get("languages", {}).items()]  # fmt: skip
        return Table(["language", "documents", "bytes", "tokens"], rows)
    table = data_table(evidence.shards, evidence.corpus)
    head = ["language", "documents", "of these validation", "text", "tokens", "bytes per token"]
    if evidence.corpus:
        head += ["removed", "licence"]
    rows = []
    for row in table:
        size, tokens = row.training_bytes + row.validation_bytes, row.training_tokens + row.validation_tokens
        cells = [row.language, f"{row.documents:,}", f"{row.validation_documents:,}", shown_count(size, "B"),
                 f"{tokens:,}", f"{size / max(tokens - row.documents, 1):.2f}"]  # fmt: skip
        if evidence.corpus:
            cells += [_removed(row.corpus.removed if row.corpus else {}), row.license or ""]
        rows.append(cells)
    return Table(head, rows, f"Merkle root of the shards {evidence.shards.merkle_root}")


def _removed(reasons: dict[str, int]) -> str:
    """``2 (2 wrong language)``."""
    told = ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in reasons.items() if number)
    return f"{sum(reasons.values()):,}" + (f" ({told})" if told else "")


def events(evidence: Evidence) -> Table:
    """Starts, resumes and other turns, and the newest checkpoints."""
    saved = [event for event in evidence.events if event["event"] == "checkpoint"]
    hidden = {id(event) for event in saved[:-SHOWN_CHECKPOINTS]}
    rows = [[shown_time(event["time"]), f"{event['step']:,}", str(event["event"]), _facts(event)]
            for event in evidence.events if id(event) not in hidden]  # fmt: skip
    note = f"{len(hidden)} earlier checkpoints are not listed." if hidden else ""
    return Table(["time (UTC)", "step", "event", "with"], rows, note, text=True)


def _facts(event: Record) -> str:
    known = {"step", "event", "time"}
    return ", ".join(_fact(key, value) for key, value in event.items() if key not in known)


def _fact(key: str, value: Any) -> str:
    if key == "peak_flops_per_second" and isinstance(value, dict):
        return f"matrix peak a rank {_peaks(value)}"
    if key == "path":
        return str(value)
    if key.endswith("peak_of_all_ranks"):
        return f"{key.replace('_', ' ')} {shown_count(value, 'FLOP/s')}"
    if key == "bytes":
        return shown_count(value, "B")
    words = key.removesuffix("_seconds").replace("_", " ")
    if isinstance(value, float):
        return f"{words} {value:.3g}{' s' * key.endswith('_seconds')}"
    return f"{words} {value}"


def _peaks(peaks: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {shown_count(rate, 'FLOP/s')}" for name, rate in peaks.items())


def machine(evidence: Evidence) -> Table:
    """Where it ran: the summary's words, or those of the latest start."""
    said = evidence.summary.get("machine", {})
    memory = said.get("memory_bytes")
    start, last = evidence.start, evidence.steps[-1].get("memory_bytes", {}) if evidence.steps else {}
    held: dict[str, Any] = evidence.totals.get("memory_bytes") or last
    rows = [
        ["host", said.get("host") or start.get("host")],
        ["processor", said.get("processor")],
        ["cores", said.get("cores")],
        ["memory", f"{memory / 2**30:.1f} GiB" if memory else None],
        *(
            [f"held at most by rank 0, {kind}", f"{held[f'{key}_peak'] / 2**30:.2f} GiB"]
            for kind, key in (("host", "host"), ("GPU", "gpu"))
            if f"{key}_peak" in held
        ),
        ["matrix peak a rank", _peaks(start.get("peak_flops_per_second", {}))],
        ["ranks", start.get("ranks")],
        ["ZeRO stage", start.get("zero_stage")],
        ["precision", start.get("precision")],
        ["system", said.get("system")],
        ["Python", said.get("python")],
        ["PyTorch", said.get("torch")],
    ]
    return Table(["", ""], [[name, str(value)] for name, value in rows if value not in (None, "")], text=True)


def files(evidence: Evidence) -> Table:
    """What the run left where."""
    paths = {"run": str(evidence.folder.path), **evidence.summary.get("paths", {})}
    return Table(["", ""], [[name, str(path)] for name, path in paths.items() if path], text=True)


def _percent(share: float) -> str:
    """A difference with its sign, which zero has not."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %".replace("-", "\N{MINUS SIGN}").replace("+0.0", "0.0")
