"""``hanse report``: run folder, sweep or corpus -> one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from launch.sweep_record import is_sweep
from train.verb_config import ReportConfig


def run(config: ReportConfig) -> None:
    """Write the page of a run or of a sweep; where none is named, that of a corpus."""
    if config.run is None:
        from data_pipelines import corpus_page

        assert config.corpus is not None  # problems() has seen to it
        corpus_page.write(config.corpus, config.output, config.shards, config.tokenizer)
    elif is_sweep(Path(config.run)):
        from train.report import sweep

        sweep.write(config.run, config.output)
    else:
        from train.report import page

        page.write(config)
