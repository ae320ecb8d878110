"""The tutorial "Your own corpus" does what it says; without the demo's text, so that it takes seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_letters_of_the_tutorial_go_and_stay_for_the_reasons_it_tells(tmp_path, monkeypatch, hanse):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, DOCS / "examples/letters.py"], check=True)
    page = (DOCS / "tutorials/corpus.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(mkdir -p my/source\n.*?)```", page, re.DOTALL)
    subprocess.run(["bash", "-c", block], check=True)
    assert hanse("corpus", "--config-dir", "my", "name=harbour", "source=[letters_fr,letters_de]", "processes=1") == 0
    assert hanse("report", "corpus=data/harbour") == 0
    sources = json.loads(Path("data/harbour/corpus/manifest.json").read_text())["sources"]
    assert sources["letters_fr"]["removed"] == {"malformed": 1, "too_short": 1, "wrong_language": 1, "duplicate": 1}
    assert sources["letters_de"]["removed"] == {"malformed": 1}
    shown = Path("data/harbour/corpus/report.html").read_text(encoding="utf-8")
    assert "23125" not in shown
    assert "example.org" not in shown
    assert re.search(r"<th scope=\"row\">phone</th>", shown)
