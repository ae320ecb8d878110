"""``hanse report``: run folder or corpus -> one self-contained HTML page."""

from __future__ import annotations

from train.verb_config import ReportConfig


def run(config: ReportConfig) -> None:
    """Write the page."""
    from train.report import page

    page.write(config)
