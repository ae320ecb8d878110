"""The linter finds what is planted, says nothing of what is right, and survives whatever JSON holds."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from consortium.dossier.check import DEEPEST, Report, check, from_json, read_dossier, run_check
from consortium.dossier.criteria import CRITERIA, SEVERITIES, Finding, numbers
from consortium.dossier.fill import SCHEMA
from consortium.dossier.forms import HERE, all_fields

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


def test_the_demos_dossier_has_no_findings():
    """demo.json is what 'hanse dossier' wrote of a run of the demo's data with an energy ledger, and of the answers in
    docs/examples/demo-dossier.yaml."""
    assert findings(json.loads((DOSSIERS / "demo.json").read_text(encoding="utf-8"))) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["complete", "wrong", "demo"])
def test_all_are_of_the_published_schema(name):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((HERE / "dossier.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads((DOSSIERS / f"{name}.json").read_text(encoding="utf-8")), schema)


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


@pytest.mark.slow
def test_of_thirty_faults_together_at_least_28_are_found():
    together = found(json.loads((DOSSIERS / "wrong.json").read_text(encoding="utf-8")))
    missed = [fault["fault"] for fault in PLANTED if not found(plant(COMPLETE, fault["set"])) & together]
    assert len(missed) <= 2, missed


# --- every criterion ------------------------------------------------------------------------------------------------

P, XI, FORM = "public_summary", "annex_xi", "model_documentation_form"
NO = {"value": None, "status": "not_applicable", "reason": "This does not apply to the model."}
CASES = {  # what is changed in the complete dossier, so that the criterion finds something
    "unanswered": {f"{P}.data.languages": {"status": "missing", "reason": "not found"}},
    "blank": {f"{P}.summary.previous_versions": []},
    "bare-not-applicable": {f"{XI}.data.biases": {"status": "not_applicable", "reason": "n/a"}},
    "placeholder": {f"{XI}.data.biases": "Methods: to be defined.", f"{XI}.data.selection": "[name] chose them",
                    f"{P}.illegal.measures": "À compléter avant la publication par le service juridique."},
    "unknown-choice": {f"{P}.reservations.code_signatory": "Perhaps"},
    "wrong-type": {f"{P}.model.links": "https://ostsee-modelle.eu/model"},
    "date-format": {f"{P}.model.placement_date": "2026-02-30"},
    "link-malformed": {"copyright_policy.policy.summary_link": "on our website"},
    "link-not-public": {f"{P}.model.links": ["https://wiki.intranet/models/7b"]},
    "told-elsewhere": {f"{P}.illegal.measures": "Please refer to our code of conduct on content."},
    "hedged": {f"{P}.illegal.measures": "Pages with child abuse material können nach Möglichkeit entfernt werden."},
    "told-twice": {},
    "evidence-malformed": {f"{P}.data.modalities": {"status": "evidence", "value": ["Text"],
                                                    "evidence": [{"file": "state.json", "sha256": "ab12"}]}},
    "evidence-uncited": {f"{P}.data.modalities": {"status": "evidence", "value": ["Text"]}},
    "unknown-field": {},
    "too-long": {f"{FORM}.properties.architecture": "A transformer. " * 21},
    "summary-version": {f"{P}.summary.version": "final"},
    "earlier-versions": {f"{P}.summary.previous_versions": NO},
    "update-after-dossier": {f"{P}.summary.last_update": "01/12/2026"},
    "contact-malformed": {f"{P}.provider.contact": "Mengstraße 4, Lübeck"},
    "contact-general": {f"{P}.provider.contact": "info@ostsee-modelle.eu"},
    "provider-name": {f"{P}.provider.name": "https://ostsee-modelle.eu"},
    "model-unversioned": {f"{P}.model.names": ["Ostsee"]},
    "model-named-otherwise": {f"{P}.model.names": ["Nordsee-7B 1.0"]},
    "dependency-without-summary": {f"{P}.model.dependency_summaries": ["still to come"]},
    "dependency-unversioned": {f"{P}.model.dependencies": ["Hansa"]},
    "dates-out-of-order": {f"{P}.crawled.period": "04/2026 to 02/2025"},
    "modalities-contradict": {f"{P}.public.modalities": ["Text", "Video"]},
    "modality-unknown": {f"{P}.synthetic.modalities": ["Multimodal"]},
    "text-size-band": {f"{P}.data.text_size": "Less than 1 billion tokens"},
    "languages-counted": {f"{P}.data.languages": ["More than 1000 languages"]},
    "union-languages-unnamed": {f"{P}.data.languages": ["fr", "de"]},
    "language-totals": {f"{P}.data.languages": ["French (60 %)", "German (30 %)"]},
    "data-points-disagree": {f"{FORM}.data.number": ["Training: 9.0*10^11 tokens"]},
    "counting-untold": {f"{P}.data.comments": "Sizes are those after curation."},
    "characteristics-incomplete": {f"{P}.data.other_characteristics": "Mostly pages of France and Germany."},
    "section-contradicts": {f"{P}.user.description": "Conversations of the years 2024 and 2025 with our assistant."},
    "dataset-unversioned": {f"{P}.public.large_datasets": ["FineWeb-2, latest, https://huggingface.co/datasets/fineweb"]},
    "dataset-without-link": {f"{P}.public.large_datasets": ["FineWeb-2 v2.0.1, all of it"]},
    "dataset-part-unexplained": {f"{P}.public.large_datasets[2].part": "subset"},
    "dataset-too-small-to-list": {f"{P}.public.large_datasets[2].share": "1.2 %"},
    "crawler-unidentified": {f"{P}.crawled.crawlers": ["Common Crawl", "OstseeBot/1.2"]},
    "crawler-behaviour-incomplete": {f"{P}.crawled.behaviour": "It reads robots.txt, stops at captchas and logins."},
    "period-malformed": {f"{P}.crawled.period": "since 2025"},
    "domains-too-few": {f"{P}.crawled.domains": ["stat.fi", "kiel.de"]},
    "domains-malformed": {f"{P}.crawled.domains[3]": "https://www.kiel.de/de/index.php"},
    "synthetic-without-model": {f"{P}.synthetic.market_models": ["a large language model"]},
    "other-datasets-vague": {f"{P}.public.other_datasets": "Some smaller collections of high quality."},
    "licence-unknown": {f"{XI}.general.licence": "Open Source"},
    "robots-not-told": {f"{P}.reservations.measures": "We respect opt-outs of 2026.",
                        f"{P}.reservations.protocols": ["TDMRep"]},
    "protocol-unknown": {f"{P}.reservations.protocols": ["all of them"]},
    "reservations-undated": {f"{P}.reservations.measures": "Our crawls obey robots.txt.",
                             "copyright_policy.reservations.snapshot": NO},
    "illegal-content-unnamed": {f"{P}.illegal.measures": "A classifier for toxicity removed many pages."},
    "too-short-to-describe": {f"{P}.illegal.measures": "Filters against terrorism."},
    "general-purpose-threshold": {f"{XI}.compute.details": ["Training stayed under 1e23 FLOP"]},
    "systemic-risk-threshold": {f"{XI}.compute.flops": "2.5e25 FLOP"},
    "one-third-rule": {f"{P}.model.dependencies": ["Hansa-7B 0.9 (2.4e23 FLOP), of which ours is under 1/3"]},
    "original-compute-unknown": {f"{P}.model.dependencies": ["Hansa-7B 0.9 of 2025-11"]},
    "flops-disagree": {f"{FORM}.compute.flops_magnitude": "10^22 FLOP"},
    "flops-implausible": {f"{XI}.general.parameters": 72_000_000_000},
    "size-band": {f"{FORM}.properties.size_band": "15B-50B"},
    "time-band": {f"{FORM}.compute.time_band": "3-6 months"},
    "rounding": {f"{FORM}.energy.training": "1312 MWh, measured"},
    "energy-without-unit": {f"{XI}.energy.consumption": "1,300 (measured)"},
    "energy-not-said-estimated": {f"{XI}.energy.method": ["Rated power of 512 devices, estimated"]},
    "authenticity-without-hash": {f"{FORM}.general.authenticity": ["The weights are signed"]},
    "maximum-size-without-number": {f"{FORM}.properties.input_size": "Long enough for most documents"},
}  # fmt: skip
ELSEWHERE = ("form-missing", "form-left-out", "evidence-changed", "no-source")  # have tests of their own


def test_every_criterion_has_a_case():
    assert set(CRITERIA) == {*CASES, *ELSEWHERE}


@pytest.mark.parametrize("name", CASES)
def test_a_criterion_finds_its_case(name):
    changes = {key: new if isinstance(new, dict) or "[" in key else {"status": "answered", "value": new}
               for key, new in CASES[name].items()}  # fmt: skip
    value = plant(COMPLETE, changes)
    if name == "told-twice":
        value["fields"][f"{FORM}.general.legal_name"] = {"status": "answered", "value": "Ostsee-Modelle"}
    if name == "unknown-field":
        value["fields"][f"{P}.summary.versoin"] = {"status": "answered", "value": "2.0"}
    mine = [one for one in findings(value) if one.criterion == name]
    assert mine
    assert all(one.severity == CRITERIA[name].severity for one in mine)
    assert all(one.what and one.fix for one in mine)


def test_forms_that_are_not_there():
    value = plant(COMPLETE)
    value["fields"] = {key: one for key, one in value["fields"].items() if key.startswith("annex_xi.")}
    there = found(value)
    assert {("form-missing", f"{P}"), ("form-missing", "copyright_policy"), ("form-left-out", "annex_xii")} <= there
    assert not any(criterion == "unanswered" for criterion, _ in there)


def test_no_source_at_all():
    value = plant(COMPLETE, *({f"{P}.{one}.used": {"status": "answered", "value": "No"}}
                              for one in ("public", "crawled", "synthetic")))  # fmt: skip
    assert ("no-source", f"{P}.public.used") in found(value)


def test_a_cited_file_is_hashed_where_it_can_be_read(tmp_path):
    file = "runs/ostsee/checkpoints/step-00250000/manifest.json"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("manifest")  # what complete.json cites is the SHA-256 of this word
    assert findings(COMPLETE, tmp_path) == ()
    (tmp_path / file).write_text("manifest, changed")
    assert {one.criterion for one in findings(COMPLETE, tmp_path)} == {"evidence-changed"}
    (tmp_path / file).unlink()
    (tmp_path / "secret").write_text("elsewhere")
    (tmp_path / file).symlink_to(tmp_path / "secret")  # no link is followed
    assert findings(COMPLETE, tmp_path) == ()


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.json", "a/../../outside.json", "\0", "a\\b"])
def test_no_file_outside_is_read(tmp_path, name):
    (tmp_path / "outside.json").write_text("x")
    (tmp_path / "folder").mkdir()
    value = plant(COMPLETE, {f"{P}.data.modalities": {"status": "evidence", "value": ["Text"],
                                                      "evidence": [{"file": name, "sha256": "0" * 64}]}})  # fmt: skip
    assert not [one for one in findings(value, tmp_path / "folder") if one.criterion == "evidence-changed"]


# --- answers that are right, written otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [
    (f"{P}.summary.last_update", "20/11/2026"),
    (f"{P}.summary.version", "v2"),
    (f"{P}.data.latest_acquisition", "2026-05"),
    (f"{P}.data.languages", ["Deutsch: 900,000,000,000 tokens", "Français: 900 billion tokens"]),
    (f"{P}.crawled.period", "2025-02 to 2026-04"),
    (f"{P}.provider.contact", "https://ostsee-modelle.eu/ai-act"),
    (f"{P}.public.large_datasets", ["FineWeb-2 v2.0.1 (https://huggingface.co/datasets/HuggingFaceFW/fineweb-2), whole",
                                    "Common Crawl CC-MAIN-2025-47, https://commoncrawl.org/, pages in German"]),
    (f"{P}.public.large_datasets", [{"name": "Laws", "version": "2025-03-24", "link": "10.5281/zenodo.123"}]),
    (f"{P}.crawled.domains", ["1,000 of 800,000 domain names, the largest 5 % or 1,000, whichever is less (SME)",
                              *(f"site-{number}.eu" for number in range(1000))]),
    (f"{P}.crawled.domains", ["1 of 2 domain names, the largest 10 %", "münchen.de (1 bytes)"]),
    (f"{XI}.general.licence", "EUPL-1.2 OR Apache-2.0"),
    (f"{XI}.general.licence", "LicenseRef-Ostsee (https://ostsee-modelle.eu/licence)"),
    (f"{XI}.compute.flops", 1.56e23),
    (f"{XI}.compute.flops", "1.56 × 10²³ FLOP"),
    (f"{XI}.energy.consumption", "1.3 GWh, estimated from rated power"),
    (f"{P}.illegal.measures", "Between May and July pages with child abuse material were removed by hash."),
    (f"{XI}.general.tasks", "It may be used for translation, and could have other uses; Nutzer können es anpassen."),
    (f"{XI}.data.selection", "Se utilizó todo el corpus; nombres sustituidos por un placeholder de <5 letras>."),
    (f"{XI}.data.selection", "Names were replaced by a placeholder; what is to be added by users stays theirs."),
    (f"{XI}.general.acceptable_use", "See https://ostsee-modelle.eu/acceptable-use"),
    (f"{P}.data.text_types", "Texts on none other than kings; see-saws; todos os dias; Maier & Söhne GmbH."),
])  # fmt: skip
def test_right_answers_pass(key, value):
    assert not [one for one in findings(changed(key, value)) if one.severity != "note"]


@pytest.mark.parametrize(("text", "value"), [
    ("1,234", [1234]), ("1 234 567", [1234567]), ("1.5e23 FLOP", [1.5e23]), ("1.2*10^10", [1.2e10]),
    ("10^23", [10, 23]),
    ("3 x 10^-5 days", [3e-5]), ("7B", [7e9]), ("1.3 million tokens", [1.3e6]), ("2,5", [2, 5]), ("", []),
    ("1" * 500, []), ("1e400", []), ("1.7 × 10²³", [1.7e23]),
])  # fmt: skip
def test_numbers_in_texts(text, value):
    assert numbers(text) == pytest.approx(value)


def test_the_documentation_lists_every_criterion():
    """docs/hooks.py writes the table at every build, out of the criteria's own docstrings."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("docs_hooks", root / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((root / "docs/reference/dossier-criteria.md").read_text(encoding="utf-8"))
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert {row[0] for row in rows} == {f"| `{name}`" for name in CRITERIA}
    assert len(rows) == len(CRITERIA)
    assert all(len(row) == 4 for row in rows)
    assert "<!--" not in page


# --- grades and output ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocking", "warnings", "grade"), [
    (0, 0, "A"), (0, 1, "B"), (0, 3, "B"), (0, 4, "C"), (1, 0, "C"), (3, 9, "C"), (4, 0, "D"),
])  # fmt: skip
def test_grades(blocking, warnings, grade):
    severities = ["blocking"] * blocking + ["warning"] * warnings + ["note"] * 2
    made = [Finding("one", severity, "field", "what", "fix") for severity in severities]
    assert Report(from_json(COMPLETE, "test", Path()), tuple(made)).grade == grade


def test_the_verb(hanse, tmp_path, capsys):
    assert hanse("dossier", f"check={DOSSIERS}/complete.json") == 0
    assert hanse("dossier", f"check={DOSSIERS}/wrong.json", f"report={tmp_path}/report.json") == 1
    assert (tmp_path / "report.json").is_file()
    assert hanse("dossier", f"check={tmp_path}/none.json") == 2
    assert "no readable dossier" in capsys.readouterr().err
    for wrong in ([], [f"run={tmp_path}", f"check={DOSSIERS}/wrong.json"], [f"run={tmp_path}", "report=report.json"]):
        assert hanse("dossier", *wrong) == 2


def test_exit_codes_table_and_report(tmp_path, capsys):
    assert run_check(DOSSIERS / "complete.json") == 0
    assert "grade A" in capsys.readouterr().out
    assert run_check(DOSSIERS / "wrong.json", tmp_path / "report.json") == 1
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["schema"] == "hanse:dossier-check/v1"
    assert report["grade"] == "D"
    assert sum(report["counts"].values()) == len(report["findings"]) >= 28
    for one in report["findings"]:
        assert set(one) == {"criterion", "severity", "field", "what", "fix"}
        assert one["criterion"] in shown
        assert one["field"] in shown
    order = [SEVERITIES.index(one["severity"]) for one in report["findings"]]
    assert order == sorted(order)


def test_nothing_that_a_terminal_obeys_is_printed(tmp_path, capsys):
    value = plant(COMPLETE, {f"{P}.summary.version": {"status": "answered", "value": "\x1b[2J\x07[bold]v"}})
    value["model"] = {"name": "\x1b]0;owned\x07[red]x[/red]"}
    value["fields"]["\x1b[31mfield"] = {"status": "answered", "value": "x"}
    (tmp_path / "dossier.json").write_text(json.dumps(value))
    assert run_check(tmp_path / "dossier.json") == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]x[/red]" in shown


# --- what is no dossier ---------------------------------------------------------------------------------------------

ONE = {"status": "answered", "value": "1.0"}


def dossier(**keys):
    return {"schema": SCHEMA, "created": "2026-11-20", "fields": {f"{P}.summary.version": ONE}, **keys}


@pytest.mark.parametrize(("content", "said"), [
    (b"", "not readable as JSON"),
    (b"{", "not readable as JSON"),
    (b"\xff\xfe", "not readable as JSON"),
    (b'{"schema": "a", "schema": "b"}', "twice"),
    (b'{"a": NaN}', "not a number"),
    (b"[" * 100_000, "too deep"),
    (b"[" * 100 + b"]" * 100, f"more than {DEEPEST} deep"),
    (b"[]", "schema"),
    (b'"text"', "schema"),
    (b'{"schema": "hanse:dossier/v9", "fields": {}}', "schema"),
    (dossier(fields=[]), "'fields'"),
    (dossier(fields={}), "'fields'"),
    (dossier(fields={str(number): ONE for number in range(3_000)}), "3,000 fields"),
    (dossier(fields={"a": "1.0"}), "'a' must be an object"),
    (dossier(fields={"a": {"value": "1.0"}}), "status"),
    (dossier(fields={"a": {"status": "perhaps"}}), "status"),
    (dossier(fields={"a": {"status": ["answered"]}}), "status"),
    (dossier(fields={"a": {**ONE, "reason": 5}}), "reason"),
    (dossier(fields={"a": {**ONE, "evidence": "x"}}), "evidence"),
    (dossier(fields={"a": {**ONE, "evidence": ["x"]}}), "evidence"),
    (dossier(model="Ostsee"), "'model'"),
    (dossier(created=20261120), "'created'"),
    (dossier(facts=[]), "'facts'"),
])  # fmt: skip
def test_what_is_no_dossier_is_one_clear_error(tmp_path, content, said):
    path = tmp_path / "dossier.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(HanseError, match=re.escape(said)) as error:
        read_dossier(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


def test_no_file_a_folder_a_link_a_large_file(tmp_path):
    (tmp_path / "link.json").symlink_to(DOSSIERS / "complete.json")
    (tmp_path / "large.json").write_bytes(b" " * ((16 << 20) + 1))
    for name, said in (("none.json", "no readable dossier"), (".", "no readable dossier"), ("link.json", "is a link"),
                       ("large.json", "more than")):  # fmt: skip
        with pytest.raises(HanseError, match=said):
            read_dossier(tmp_path / name)


# --- any JSON that is of the schema ---------------------------------------------------------------------------------

WORDS = st.sampled_from([
    "n/a", "", "1.2e23 FLOP", "10^25 FLOP", "99/99/9999", "31/12/9999", "12/9999", "0000-00", "02/2026 to 01/2025",
    "5 of 0 domain names",
    "1,000 of 12 domain names, the largest 5 %", "yes", "No", "French (fr): 5 tokens (101%)", "fr", "https://[::1", "https://a.b:99999999/",
    "a@b", "www.", "http://", "less than a third", "below 10^23", "9" * 400 + " tokens", "1e999 MWh",
    "²³", "١٢ tokens", "1" * 5000,
    "Common Crawl", "\ud7ff\x00\x1b", "x" * 3000, "estimated", "٣/٢٠٢٦", "1.0*10^999 FLOP", "10^999", "xn--",
    "http://a." + "é" * 70 + ".eu", "𝟏𝟐/𝟐𝟎𝟐𝟔",
])  # fmt: skip
TEXT = WORDS | st.text(max_size=40) | st.lists(WORDS, max_size=3).map(" ".join)
NUMBER = st.integers(-(10**400), 10**400) | st.floats(allow_nan=False, allow_infinity=False) | st.just(-0.0)
LEAF = TEXT | NUMBER | st.booleans() | st.none()
NAMES = st.sampled_from(["name", "version", "link", "part", "share", "flops", "summary", "language"]) | st.text(
    max_size=8
)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)
CITED = st.fixed_dictionaries({}, optional={"file": LEAF, "sha256": LEAF | st.just("0" * 64), "at": LEAF})
ENTRY = st.fixed_dictionaries(
    {"status": st.sampled_from(["evidence", "answered", "answered", "missing", "not_applicable"])},
    optional={"value": VALUE, "reason": TEXT | st.none(), "evidence": st.lists(CITED, max_size=2) | st.none()},
)
KEYS = st.sampled_from(sorted(FIELDS)) | st.text(max_size=20)
FACTS = st.sampled_from(["training_flops", "own_flops", "parent_flops", "consumed_tokens", "corpus_tokens"])
DOSSIER = st.fixed_dictionaries(
    {"schema": st.just(SCHEMA), "fields": st.dictionaries(KEYS, ENTRY, min_size=1)},
    optional={"created": TEXT, "model": st.dictionaries(NAMES, VALUE, max_size=3), "language": VALUE,
              "facts": st.dictionaries(FACTS, VALUE)},
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60)
@given(DOSSIER)
def test_no_dossier_of_the_schema_crashes_the_linter(value):
    report = check(from_json(value, "test", Path("nowhere")))
    assert report.grade in "ABCD"
    json.dumps(report.as_json(), allow_nan=False)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from(sorted(FIELDS)), ENTRY, st.sampled_from(sorted(FIELDS)), ENTRY)
def test_no_change_of_the_complete_dossier_crashes_the_linter(one, first, other, second):
    value = {**COMPLETE, "fields": {**COMPLETE["fields"], one: first, other: second}}
    assert check(from_json(value, "test", Path("nowhere"))).grade in "ABCD"
