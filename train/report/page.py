"""Run folder -> one HTML page that needs nothing else: no network, no other file, not even a script.

It shows what is there: a run that is finished, that was resumed, or that has made three steps so far.
"""

from __future__ import annotations

from pathlib import Path

from common.charts import Table
from common.configuration import same_again
from common.files import write_text
from common.page import render
from common.terminal import count, next_step, say
from train import ledger
from train.data_table import say_losses
from train.energy.page import energy_line, energy_note, energy_rows
from train.evaluations import with_task_scores
from train.fairness import fairness, section
from train.report.evaluated import evaluated
from train.report.evidence import Evidence, read_evidence
from train.report.panels import accuracy_chart, loss_chart, machine_charts, time_bars, validation_panels
from train.report.tables import (
    data,
    events,
    files,
    headlines,
    machine,
    remarks,
    results,
    results_by_source,
    subtitle,
)
from train.verb_config import ReportConfig


def write(config: ReportConfig) -> None:
    """Write the page."""
    evidence = read_evidence(config)
    output = Path(config.output) if config.output else evidence.folder.path / "report.html"
    write_text(output, page(evidence))
    evidence.folder.update_summary({"paths": {"report": str(output)}})
    validated = evidence.evaluations[-1]["evaluation"] if evidence.evaluations else {}
    say_losses({name: (found["bits_per_byte"], evidence.unigram.get(name)) for name, found in validated.items()})
    say(energy_line(evidence.energy.to_json()))
    say(f"wrote {output} ({count(output.stat().st_size, 'B')}, {evidence.status}): open it in a browser")
    experiment = same_again(evidence.config.name)
    known = experiment.startswith("experiment=")  # else the command is its author's alone
    if evidence.last_step >= evidence.config.steps:
        longer = f"hanse train {experiment} run={config.run}-longer tokens={4 * evidence.config.tokens:_}"
        next_step(f"hanse generate run={config.run} 'prompts=[\"...\"]' temperature=0.5", *[longer] * known)
    else:
        again = f"hanse train {experiment}: " if known else ""
        next_step(f"{again}the same command goes on where it stopped")


def page(evidence: Evidence) -> str:
    """The page as HTML."""
    return render(
        "train",
        "report.html.j2",
        title=evidence.config.name,
        folder=evidence.folder.path,
        evidence=evidence,
        config=evidence.config,
        subtitle=subtitle(evidence),
        tiles=headlines(evidence),
        notes=remarks(evidence),
        panels=validation_panels(evidence),
        results=results(evidence),
        accuracy=accuracy_chart(evidence),
        by_source=results_by_source(evidence),
        fairness=section(
            fairness(
                evidence.config,
                with_task_scores(evidence.records, evidence.saved),
                evidence.shards,
                evidence.last_step,
                ledger.skipped(record for _, record in ledger.lines(evidence.folder.ledger)),
            ),
            {name: evidence.colour(name) for name in evidence.languages},
        ),
        evaluated=evaluated(evidence),
        legend={name: evidence.colour(name) for name in evidence.languages} if evidence.colours_differ else {},
        loss=loss_chart(evidence),
        charts=machine_charts(evidence),
        data=data(evidence),
        events=events(evidence),
        energy=Table(["", ""], energy_rows(evidence.energy), energy_note(evidence.energy), text=True),
        time=time_bars(evidence),
        machine=machine(evidence),
        files=files(evidence),
        config_text=evidence.folder.config.read_text(encoding="utf-8"),
    )
