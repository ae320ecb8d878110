"""The linter finds what is planted, says nothing of what is right, and survives whatever JSON holds."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from consortium.dossier.check import check, from_json
from consortium.dossier.forms import all_fields

DOSSIERS = Path(__file__).parent / "dossiers"
COMPLETE = json.loads((DOSSIERS / "complete.json").read_text(encoding="utf-8"))
PLANTED = yaml.safe_load((DOSSIERS / "planted.yaml").read_text(encoding="utf-8"))
FIELDS = all_fields()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Evidence is looked for below the working folder, where a run of the same name may lie."""
    monkeypatch.chdir(tmp_path)


def findings(value, folder=Path("nowhere")):
    return check(from_json(value, "test", folder)).findings


def found(value):
    """{(criterion, field)} of what is found, without what only says that two documents differ."""
    return {(one.criterion, one.field) for one in findings(value) if one.criterion != "told-twice"}


def plant(value, *changes):
    """A copy of a dossier with values set as in planted.yaml, in every field that the same question fills."""
    value = copy.deepcopy(value)
    value.pop("facts", None)  # whoever writes a dossier by hand writes none
    for change in changes:
        for place, new in change.items():
            name, item, part = re.fullmatch(r"([\w.]+?)(?:\[(\d+)\](?:\.(\w+))?)?", place).groups()
            asked = FIELDS[name]
            for key, field in FIELDS.items():
                if (field.ask, field.evidence, field.kind) == (asked.ask, asked.evidence, asked.kind):
                    if part:
                        value["fields"][key]["value"][int(item)][part] = new
                    elif item:
                        value["fields"][key]["value"][int(item)] = new
                    else:
                        value["fields"][key] = new
    return value


def changed(key, value, status="answered"):
    """The complete dossier with one answer changed."""
    return plant(COMPLETE, {key: {"status": status, "value": value}})


# --- what is right --------------------------------------------------------------------------------------------------


def test_a_complete_dossier_has_no_findings():
    report = check(from_json(COMPLETE, "test", Path("nowhere")))
    assert report.findings == ()
    assert report.grade == "A"
    assert findings(plant(COMPLETE)) == ()


# --- what is planted ------------------------------------------------------------------------------------------------


def test_thirty_faults_of_thirty_kinds():
    assert len({fault["fault"] for fault in PLANTED}) == 30
    kept = json.loads((DOSSIERS / "wrong.json").read_text(encoding="utf-8"))
    assert kept == plant(COMPLETE, *(fault["set"] for fault in PLANTED))


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault["fault"][:50])
def test_a_fault_alone_is_found_where_it_is(fault):
    named = {re.sub(r"\[.*", "", place) for place in fault["set"]}
    same = {key for key in FIELDS for name in named
            if (FIELDS[key].ask, FIELDS[key].evidence) == (FIELDS[name].ask, FIELDS[name].evidence)}  # fmt: skip
    same |= {fault.get("at")}
    assert {key for _, key in found(plant(COMPLETE, fault["set"]))} & same


def test_of_thirty_faults_together_at_least_28_are_found():
    together = found(json.loads((DOSSIERS / "wrong.json").read_text(encoding="utf-8")))
    missed = [fault["fault"] for fault in PLANTED if not found(plant(COMPLETE, fault["set"])) & together]
    assert len(missed) <= 2, missed
