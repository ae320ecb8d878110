"""``hanse report``: run folder -> one HTML page that needs nothing else: no network, no other file, not even a script.

It shows what is there: a run that is finished, that was resumed, or that has made three steps so far.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import math
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.configuration import same_again
from common.errors import HanseError
from common.files import read_json, write_text
from common.terminal import count, duration, next_step, say
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import ShardsManifest
from train import ledger
from train.charts import PALETTE, Chart, Series, Table, draw, fitted
from train.config import TrainConfig
from train.data_table import corpus_of, data_table, say_losses
from train.energy.page import energy_line, energy_note, energy_rows
from train.energy.slurm import ask
from train.energy.totals import EnergyTotals, energy_totals
from train.fairness import fairness, section
from train.run_folder import RunFolder, read_metrics
from train.verb_config import ReportConfig

Record = dict[str, Any]
SHOWN_CHECKPOINTS = 10


def run(config: ReportConfig) -> None:
    """Write the page."""
    evidence = read_evidence(config)
    output = Path(config.output)
    write_text(output, page(evidence))
    evidence.folder.update_summary({"paths": {"report": str(output)}})
    validated = evidence.evaluations[-1]["evaluation"] if evidence.evaluations else {}
    say_losses({name: (found["bits_per_byte"], evidence.unigram.get(name)) for name, found in validated.items()})
    say(energy_line(evidence.energy.to_json()))
    say(f"wrote {output} ({count(output.stat().st_size, 'B')}, {evidence.status}): open it in a browser")
    if evidence.last_step >= evidence.config.steps:
        experiment = same_again(evidence.config.name)
        next_step(
            f"hanse generate run={config.run} 'prompts=[\"...\"]' temperature=0.5",
            f"hanse train {experiment} run={config.run}-longer tokens={4 * evidence.config.tokens:_}",
        )
    else:
        next_step(f"hanse train {same_again(evidence.config.name)}: the same command goes on where it stopped")


@dataclass(frozen=True)
class Evidence:
    """Everything that a run folder says, and what its shards and corpus say where they are still there."""

    folder: RunFolder
    config: TrainConfig
    records: list[Record]
    summary: dict[str, Any]
    shards: ShardsManifest | None
    corpus: CorpusManifest | None
    energy: EnergyTotals

    @cached_property
    def steps(self) -> list[Record]:
        return [record for record in self.records if "loss" in record]

    @cached_property
    def evaluations(self) -> list[Record]:
        return [record for record in self.records if "evaluation" in record]

    @cached_property
    def events(self) -> list[Record]:
        return [record for record in self.records if "event" in record]

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def status(self) -> str:
        """How far it came."""
        if self.last_step >= self.config.steps:
            return f"finished, {self.last_step:,} steps"
        return f"step {self.last_step:,} of {self.config.steps:,}"

    @property
    def start(self) -> Record:
        """The latest start or resume: how and where the newest steps were made."""
        return next((event for event in reversed(self.events) if event["event"] in ("start", "resume")), {})

    @property
    def totals(self) -> Record:
        """``summary.json``, as long as it speaks of the last step."""
        return self.summary if self.summary.get("steps") == self.last_step else {}

    @cached_property
    def languages(self) -> list[str]:
        """Languages that were trained on or validated, in alphabetical order."""
        found = {name for record in self.steps for name in record.get("loss_by_language", {})}
        return sorted(found | {name for record in self.evaluations for name in record["evaluation"]})

    def colour(self, language: str) -> int:
        """The same colour for a language in every chart; one for all where the palette is too small."""
        return 1 + self.languages.index(language) if len(self.languages) <= PALETTE else 1

    @cached_property
    def unigram(self) -> dict[str, float]:
        """Bits per byte of the unigram baseline, {} where it cannot be told.

        A run that was never stopped in good order has no summary: its baseline is counted from the shards.
        """
        said = {name: row.get("unigram_bits_per_byte") for name, row in self.summary.get("languages", {}).items()}
        known = {name: value for name, value in said.items() if value is not None}
        if known or not self.evaluations or self.shards is None:
            return known
        try:
            return count_unigram(self.config, self.shards)
        except HanseError:  # shards or tokenizer are not intact: the report does without
            return {}


def read_evidence(config: ReportConfig) -> Evidence:
    """Read a run folder.

    Raises:
        HanseError: its configuration, metrics, summary or a ledger is missing or not readable.
    """
    folder = RunFolder(config.run)
    settings, summary = folder.read_config(), folder.path / "summary.json"
    shards = _there(Path(config.shards or settings.data.shards))
    corpus = corpus_of(shards, Path(config.corpus) if config.corpus else None) if shards else None
    ask(folder)
    return Evidence(
        folder=folder,
        config=settings,
        records=read_metrics(folder.metrics),
        summary=read_json(summary, "summary") if summary.is_file() else {},
        shards=shards,
        corpus=corpus,
        energy=energy_totals(folder.path),
    )


def _there(folder: Path) -> ShardsManifest | None:
    """The shards' manifest; None where they are no longer there (a run folder that was copied elsewhere)."""
    try:
        return ShardsManifest.read(folder)
    except HanseError:
        return None


def count_unigram(config: TrainConfig, shards: ShardsManifest) -> dict[str, float]:
    """What ``hanse train`` says of the unigram baseline at its end, {language: bits per byte}."""
    from data_pipelines.tokenizer import token_byte_lengths
    from train.evaluate import Evaluation
    from train.stream import open_sources

    length, mixtures = config.data.sequence_length, [stage.data.mixture for stage in config.timeline]
    validation, training = (open_sources(shards, split, length, config.seed) for split in ("validation", "train"))
    used = {
        name: source for name, source in training.items() if any(not one or one.get(name, 0) > 0 for one in mixtures)
    }
    evaluation = Evaluation(validation, config.evaluate.tokens_per_language, config.batch.micro_batch_size,
                            token_byte_lengths(config.data.tokenizer))  # fmt: skip
    return {name: loss.bits_per_byte for name, loss in evaluation.unigram(used, shards.vocabulary_size).items()}


def page(evidence: Evidence) -> str:
    """The page as HTML. Everything that comes out of files is escaped by the template."""
    loader = PackageLoader("train", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    script = (Path(__file__).parent / "templates/report.js").read_text(encoding="utf-8")
    style = (Path(__file__).parent / "templates/report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        evidence=evidence,
        config=evidence.config,
        subtitle=_subtitle(evidence),
        tiles=_tiles(evidence),
        notes=_notes(evidence),
        panels=validation_panels(evidence),
        results=results(evidence),
        fairness=section(
            fairness(
                evidence.config,
                evidence.records,
                evidence.shards,
                evidence.last_step,
                ledger.skipped(record for _, record in ledger.lines(evidence.folder.ledger)),
            ),
            {name: evidence.colour(name) for name in evidence.languages},
        ),
        loss=loss_chart(evidence),
        charts=machine_charts(evidence),
        data=data(evidence),
        events=events(evidence),
        energy=Table(["", ""], energy_rows(evidence.energy), energy_note(evidence.energy), text=True),
        machine=machine(evidence),
        files=files(evidence),
        config_text=evidence.folder.config.read_text(encoding="utf-8"),
        written=_time(datetime.now(UTC).timestamp()),
        version=importlib.metadata.version("hanse"),
        style=Markup(style),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        # Only this very script may run, and nothing may be fetched, whatever a name in a file tries.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _subtitle(evidence: Evidence) -> str:
    config, start = evidence.config, evidence.start
    parts = [
        config.model.architecture,
        f"{count(evidence.summary['parameters'])} parameters" if "parameters" in evidence.summary else "",
        f"{len(evidence.languages)} languages" if evidence.languages else "",
        f"ZeRO-{start.get('zero_stage', config.engine.zero_stage)} on {start.get('ranks', config.ranks)} ranks",
        str(start.get("precision", config.engine.precision)),
        f"started {_time(evidence.events[0]['time'])} UTC" if evidence.events else "",
    ]
    return " · ".join(filter(None, parts))


def _tiles(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(number, what it is, what to compare it with) of the headlines."""
    tiles, config, totals = [], evidence.config, evidence.totals
    if evidence.evaluations:
        last, base = evidence.evaluations[-1]["evaluation"], evidence.unigram
        mean = statistics.fmean(score["bits_per_byte"] for score in last.values())
        both = [name for name in last if name in base]
        beside = f"mean of {len(last)} languages"
        if both:
            difference = statistics.fmean(last[name]["bits_per_byte"] / base[name] - 1 for name in both)
            beside = f"{abs(100 * difference):.1f} % {'under' if difference < 0 else 'above'} unigram"
        tiles.append((f"{mean:.3f}", "validation bits per byte", beside))
    if evidence.steps:
        loss = evidence.steps[-1]["loss"]
        tiles.append((f"{loss:.3f}", "training loss, last step", f"first step {evidence.steps[0]['loss']:.3f}"))
    tokens, line = config.timeline.tokens(evidence.last_step), config.timeline
    tiles.append((count(tokens), "tokens trained", f"{tokens / line.tokens(line.steps):.0%} of the budget"))
    if evidence.steps:
        speed = totals.get("tokens_per_second") or statistics.median(r["tokens_per_second"] for r in evidence.steps)
        mfu = totals.get("mfu") or statistics.median(r["mfu"] for r in evidence.steps)
        seconds = totals.get("wall_seconds") or sum(record["seconds"] for record in evidence.steps)
        tiles += [
            (count(speed), "tokens per second", f"over {evidence.start.get('ranks', config.ranks)} ranks"),
            (f"{mfu:.0%}", "model FLOPs utilisation", "of the measured matrix peak"),
            (duration(seconds), "training time", f"{evidence.last_step:,} steps"),
        ]
    return tiles


def _notes(evidence: Evidence) -> list[str]:
    """What a reader must know to trust the numbers."""
    notes = []
    if not evidence.steps:
        notes.append("No step has been made yet.")
    broken = [record["step"] for record in evidence.steps if not math.isfinite(record["loss"])]
    if broken:
        notes.append(f"The loss of {len(broken)} steps is not a number, first at step {broken[0]:,}.")
    if any((record.get("mfu") or 0) > 1 for record in evidence.steps):
        notes.append("Some steps reached more than the measured matrix peak: it was measured while the machine was "
                     "busy with something else, so utilisation is overstated.")  # fmt: skip
    if evidence.shards is None:
        notes.append(f"The shards are not at {evidence.config.data.shards}: what only they tell is left out "
                     "(hanse report shards=... says where they are).")  # fmt: skip
    return notes


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


def results(evidence: Evidence) -> Table:
    """The last validation, language by language."""
    rows = []
    for name, score in (evidence.evaluations[-1]["evaluation"] if evidence.evaluations else {}).items():
        ours, base = score["bits_per_byte"], evidence.unigram.get(name)
        beside = ["not known", ""] if base is None else [f"{base:.3f}", _percent(ours / base - 1)]
        rows.append([name, f"{ours:.3f}", *beside, f"{score['loss']:.3f}"])
    head = ["language", "bits per byte", "unigram", "difference", "nats per token"]
    if not rows:
        return Table(head, rows)
    note = (f"At step {evidence.evaluations[-1]['step']:,}. Bits per byte compares models with different tokenizers; "
            "lower is better. The unigram model knows only how often each token occurs in the language's training "
            "text.")  # fmt: skip
    return Table(head, rows, note)


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

    def chart(title: str, unit: str, key: str, factor: float = 1.0) -> Chart:
        found = [record.get(key) for record in evidence.steps]
        values = [None if value is None else factor * value for value in found]
        return draw(title, unit, [Series(title.lower(), steps, values, 1)], last_step=evidence.last_step, zero=True)

    return [
        chart("Throughput", "tokens per second, all ranks", "tokens_per_second"),
        chart("Model FLOPs utilisation", "% of the measured matrix peak", "mfu", 100),
        chart("Learning rate", "AdamW", "learning_rate"),
        chart("Gradient norm", "L2, before clipping", "gradient_norm"),
    ]


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
        cells = [row.language, f"{row.documents:,}", f"{row.validation_documents:,}", _count(size, "B"), f"{tokens:,}",
                 f"{size / max(tokens - row.documents, 1):.2f}"]  # fmt: skip
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
    rows = [[_time(event["time"]), f"{event['step']:,}", str(event["event"]), _facts(event)]
            for event in evidence.events if id(event) not in hidden]  # fmt: skip
    note = f"{len(hidden)} earlier checkpoints are not listed." if hidden else ""
    return Table(["time (UTC)", "step", "event", "with"], rows, note, text=True)


def _facts(event: Record) -> str:
    known = {"step", "event", "time"}
    return ", ".join(_fact(key, value) for key, value in event.items() if key not in known)


def _fact(key: str, value: Any) -> str:
    if key == "peak_flops_per_second" and isinstance(value, dict):
        return "matrix peak a rank " + ", ".join(f"{name} {_count(rate, 'FLOP/s')}" for name, rate in value.items())
    return str(value) if key == "path" else f"{key.replace('_', ' ')} {value}"


def machine(evidence: Evidence) -> Table:
    """Where it ran: the summary's words, or those of the latest start."""
    said = evidence.summary.get("machine", {})
    memory = said.get("memory_bytes")
    start = evidence.start
    peaks = start.get("peak_flops_per_second", {})
    rows = [
        ["host", said.get("host") or start.get("host")],
        ["processor", said.get("processor")],
        ["cores", said.get("cores")],
        ["memory", f"{memory / 2**30:.1f} GiB" if memory else None],
        ["matrix peak a rank", ", ".join(f"{name} {_count(rate, 'FLOP/s')}" for name, rate in peaks.items())],
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


def _count(number: float, unit: str) -> str:
    """A number whose unit stays beside it."""
    return count(number, unit).replace(" ", "\N{NO-BREAK SPACE}")


def _percent(share: float) -> str:
    """A difference with its sign, which zero has not."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %".replace("-", "\N{MINUS SIGN}").replace("+0.0", "0.0")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
