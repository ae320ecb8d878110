"""``make demo``, command by command as the Makefile has it, with eight steps in place of hundreds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.demo.makefile import demo_commands

FEWER_STEPS = ("tokens=8_192", "schedule.warmup_steps=1", "evaluate.tokens_per_language=2048")
SUMMARY = {
    "languages", "tokens_per_second", "mfu", "parameters", "steps", "consumed_tokens", "wall_seconds", "paths",
}  # fmt: skip
LANGUAGE = {"bits_per_byte", "unigram_bits_per_byte", "documents", "bytes", "tokens"}
PATHS = {"corpus", "shards", "checkpoint", "export", "report"}


@pytest.mark.slow
def test_demo_leads_from_text_to_a_report_and_a_second_time_does_nothing_twice(hanse, demo_folder, monkeypatch, capfd):
    monkeypatch.chdir(demo_folder)
    commands = demo_commands()
    for command in commands[3:]:
        assert hanse(*command, *(FEWER_STEPS if command[0] == "train" else ())) == 0, command

    summary = json.loads(Path("runs/demo/summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= SUMMARY
    assert (summary["finished"], summary["steps"], summary["consumed_tokens"]) == (True, 8, 8_192)
    assert summary["languages"].keys() == {"fr", "de", "es", "it"}
    for language in summary["languages"].values():
        assert all(language[key] > 0 for key in LANGUAGE)
    assert all(Path(summary["paths"][key]).exists() for key in PATHS)

    checkpoint = Path(summary["paths"]["checkpoint"], "manifest.json")
    before = [path.stat().st_mtime_ns for path in (checkpoint, Path("data/demo/shards/manifest.json"))]
    capfd.readouterr()
    for command in commands[:4]:
        assert hanse(*command, *(FEWER_STEPS if command[0] == "train" else ())) == 0, command
    assert capfd.readouterr().out.count("nothing to") == 4
    assert before == [path.stat().st_mtime_ns for path in (checkpoint, Path("data/demo/shards/manifest.json"))]
