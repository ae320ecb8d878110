"""The reader that the documentation of the checkpoint format shows, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs/how/checkpoint-format.md"


@pytest.mark.slow
def test_reader_on_the_format_page_reads_the_weights_that_export_writes(tiny_run, hanse, tmp_path):
    from safetensors.numpy import load_file

    page = PAGE.read_text(encoding="utf-8")
    program, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(compile(program, "checkpoint-format.md", "exec"), names)
    read = names["weights"](sorted((tiny_run / "checkpoints").glob("step-*"))[-1])

    assert hanse("export", f"run={tiny_run}", f"output={tmp_path / 'export'}") == 0
    exported = load_file(tmp_path / "export/model.safetensors")
    assert read.keys() == exported.keys()
    for name, weights in read.items():
        assert np.array_equal(weights, exported[name]), name
