"""Every line of a ledger follows from the one before; a crash costs half a line, an edit is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from common.errors import HanseError
from train.ledger import Ledger, lines, steps


def written(path, count=5, first=1):
    ledger = Ledger(path)
    for step in range(first, first + count):
        ledger.write("step", {"step": step, "loss": step / 3})
    return ledger


def test_numbers_come_back_exactly_and_a_later_start_goes_on_with_the_chain(tmp_path):
    written(tmp_path / "ledger.jsonl")
    written(tmp_path / "ledger.jsonl", first=6)
    records = [record for _, record in lines(tmp_path / "ledger.jsonl")]
    assert [float.fromhex(record["loss"]) for record in records] == [step / 3 for step in range(1, 11)]


def test_steps_done_again_after_a_resume_replace_those_before(tmp_path):
    ledger = written(tmp_path / "ledger.jsonl")
    ledger.write("start", {"step": 3})
    ledger.write("step", {"step": 4, "loss": 7.0})
    found = steps(record for _, record in lines(tmp_path / "ledger.jsonl"))
    assert sorted(found) == [1, 2, 3, 4]
    assert found[4]["loss"] == (7.0).hex()


def test_states_are_told_apart_from_steps_and_replaced_like_them(tmp_path):
    ledger = written(tmp_path / "ledger.jsonl")
    for step, root in ((2, "a"), (4, "b")):
        ledger.write("state", {"step": step, "root": root})
    ledger.write("start", {"step": 3})
    found = steps((record for _, record in lines(tmp_path / "ledger.jsonl")), "state")
    assert {step: line["root"] for step, line in found.items()} == {2: "a"}


@settings(deadline=None)
@given(cut=some.integers(0, 10_000))
def test_cut_anywhere_the_whole_lines_stay_and_the_chain_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    written(path)
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    written(path, count=1, first=99)
    records = [record for _, record in lines(path)]
    assert [record["step"] for record in records] == [*range(1, whole[:cut].count(b"\n") + 1), 99]


@settings(deadline=None)
@given(place=some.integers(0, 10_000), value=some.integers(0, 255))
def test_no_changed_byte_goes_unnoticed_before_the_last_line(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    written(path)
    whole = bytearray(path.read_bytes())
    place %= whole.rindex(b"\n", 0, len(whole) - 1)  # the last line is bound by nothing yet
    if whole[place] == value:
        return
    whole[place] = value
    path.write_bytes(whole)
    with pytest.raises(HanseError, match=r"line \d does not follow"):
        list(lines(path))


def test_lines_that_change_places_or_leave_are_found(tmp_path):
    path = tmp_path / "ledger.jsonl"
    written(path)
    one, two, *rest = path.read_bytes().splitlines(keepends=True)
    for wrong in ([two, one, *rest], [one, *rest], [one, one, two, *rest]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(HanseError, match="does not follow"):
            Ledger(path)
