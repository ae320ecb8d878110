"""``hanse report``: run folder, or corpus, -> one self-contained HTML page."""

from __future__ import annotations

from train.verb_config import ReportConfig


def run(config: ReportConfig) -> None:
    """Write the page of a run; where none is named, that of a corpus."""
    if config.run is None:
        from data_pipelines import corpus_page

        assert config.corpus is not None  # problems() has seen to it
        corpus_page.write(config.corpus, config.output, config.shards, config.tokenizer)
        return
    from train.report import page

    page.write(config)
