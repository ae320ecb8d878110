"""What a person reads: durations, counts, tables that cut no number, progress that fits a log."""

import pytest

from common import terminal
from common.terminal import Progress, count, duration, many, next_step, say, table


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (356_400, "4d03h")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [(0, "", "0"), (456, "", "456"), (1230, "B", "1.23 kB"), (1_230_000, "", "1.23 M"), (7.8e9, "B", "7.8 GB"),
     (2.5e13, "B", "25 TB"), (7.92e15, "FLOP/s", "7.92 PFLOP/s"), (12, "B", "12 B"), (-1500, "", "-1.5 k"),
     (999.6, "", "1 k"), (999_499, "", "999 k"), (999_999, "B", "1 MB")],
)  # fmt: skip
def test_counts(number, unit, shown):
    assert count(number, unit).strip() == shown


def test_a_table_wider_than_the_terminal_cuts_no_number(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(terminal, "console", type(terminal.console)(highlight=False, soft_wrap=True))
    rows = [["français", *("1,234,567,890" for _ in range(6))], ["all", *("9,999,999,999" for _ in range(6))]]
    table("wide", ["language", *(f"column {number}" for number in range(6))], rows, total=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["wide"]
    assert rows[0] in lines
    assert rows[1] in lines


def test_text_is_printed_as_it_is(capsys):
    say("[bold]not markup[/bold] [/x]")
    next_step("hanse one", "hanse two")
    assert capsys.readouterr().out == "[bold]not markup[/bold] [/x]\nnext: hanse one\n      hanse two\n"


def test_progress_in_a_log_is_a_line_now_and_then_and_one_at_the_end(capsys):
    progress = Progress("reading", 1000, "B")
    for _ in range(100):
        progress.advance(10, "fr")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("reading 100%")
    assert lines[0].endswith("ETA 0s  fr")
    progress = Progress("reading", 0, "B", enabled=False)
    progress.update(0)
    assert capsys.readouterr().out == ""


def test_names_are_shown_as_they_are(capsys):
    name = "bible_es:v:13 [red] :it:"
    say(name)
    table(name, [name], [[name]])
    assert capsys.readouterr().out.count(name) == 4


def test_a_number_of_things():
    assert [many(1, "node"), many(1024, "node"), many(0, "corpus", "corpora")] == ["1 node", "1,024 nodes", "0 corpora"]
