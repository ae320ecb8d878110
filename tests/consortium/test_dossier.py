"""Forms, answers, filling and writing: what the AI Act's documents hold, whatever a person writes into them."""

import html.parser
import json
import re

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import HanseError
from consortium.dossier import answers, data_facts, fill, source_facts
from consortium.dossier.answers import Answer
from consortium.dossier.data_facts import Corpora, Corpus
from consortium.dossier.document import document, words
from consortium.dossier.evidence import Citation, Evidence
from consortium.dossier.forms import HERE, KINDS, LANGUAGES, all_fields, band_of, load_forms
from consortium.dossier.rounding import significant
from consortium.dossier.writers import WRITERS
from data_pipelines.manifest import CorpusManifest, Tally
from data_pipelines.shards import ShardEntry, ShardsManifest

SHA256 = "ab" * 32
NASTY = "<script>alert(1)</script> | [x](javascript:y) \x07 # *b*\n- ü"


@pytest.fixture
def evidence():
    """A little evidence: some known, one ruled out, one with a reason for being unknown."""
    found = Evidence("m", "step-1")
    found.know("dossier.date", "2026-11-25")
    found.know("model.parameters", 2_651_008, Citation("runs/m/manifest.json", SHA256, "tensors"))
    found.rule_out("data.image_size", "text only", Citation("runs/m/state.json", SHA256, "model"))
    found.miss("energy.text", "no energy ledger")
    rows = [
        dict.fromkeys(("version", "url", "obtained", "corpus"), "")
        | {
            "name": name,
            "language": "fr",
            "license": "CC0-1.0",
            "date": date,
            "reader": "jsonl",
            "public": public,
            "documents": 1,
            "bytes": size,
        }
        for name, public, size, date in (
            ("a", True, 97, "2025-01"),
            ("b", True, 3, "2025"),
            ("c", False, 50, "2024-03-02"),
        )
    ]
    found.know("corpus.sources", rows, Citation("data/corpus/manifest.json", SHA256, "config.sources"))
    found.know("sources.domains_by_source", {"c": {f"d{i:04d}.org": 10_000 - i for i in range(101)}})
    return found  # fmt: skip


# --- forms ----------------------------------------------------------------------------------------------------------


def test_every_field_is_told_in_five_languages_and_has_a_place_to_come_from():
    for form in load_forms().values():
        for section in form.sections:
            for texts in (form.title, section.title, *(field.label for field in section.fields)):
                assert set(texts) == set(LANGUAGES)
                assert all(isinstance(text, str) and text.strip() for text in texts.values()), texts
    for field in all_fields().values():
        assert field.kind in KINDS
        assert field.evidence or field.ask
        assert field.kind not in ("choice",) or field.choices
    assert len(all_fields()) == sum(len(list(form.fields)) for form in load_forms().values()), "a key stands twice"


def test_every_question_is_asked_by_a_field_and_explained():
    asked = {field.ask for field in all_fields().values() if field.ask}
    assert asked | set(answers.APART) == set(answers.questions())
    assert len({frozenset(words(language)) for language in LANGUAGES}) == 1


def test_one_answer_fills_fields_of_one_kind_only():
    kinds = {}
    for field in all_fields().values():
        if field.ask:
            kinds.setdefault(field.ask, set()).add((field.kind, field.choices))
    assert all(len(found) == 1 for found in kinds.values()), kinds


@pytest.mark.parametrize(("form", "clauses"), [
    ("public_summary", "0 1.1 1.2 1.3 2.1 2.2.1 2.2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3"),
    ("annex_xi", "1(1) 1(2)(a) 1(2)(b) 1(2)(c) 1(2)(d) 1(2)(e) 2"),
    ("annex_xii", "1 2"),
    ("model_documentation_form", "1 2 3 4 5 6 7 8"),
    ("copyright_policy", "1.1 1.2 1.3 1.4 1.5"),
])  # fmt: skip
def test_forms_have_the_sections_of_their_models(form, clauses):
    assert [section.clause for section in load_forms()[form].sections] == clauses.split()


def test_annexes_ask_for_every_point():
    found = {field.clause for field in load_forms()["annex_xi"].fields}
    assert found >= {f"1(1)({letter})" for letter in "abcdef"} | {f"1(2)({letter})" for letter in "abcde"}
    assert {field.clause for field in load_forms()["annex_xii"].fields} == (
        {f"1({letter})" for letter in "abcdefgh"} | {f"2({letter})" for letter in "abc"})  # fmt: skip


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "written"), [
    (0, "0"), (7.34e10, "7.3*10^10"), (2_651_008, "2.7*10^6"), (9.97e5, "10*10^5"), (4646, "4600"), (0.0689, "0.069"),
    (12.34, "12"), (999.9, "1000"), (1.0e25, "1.0*10^25"), (0.000123, "1.2*10^-4"),
])  # fmt: skip
def test_two_significant_figures(number, written):
    assert significant(number) == written.replace("10*10^5", "1.0*10^6")


def test_bands_begin_at_their_lower_bound():
    assert band_of("tokens", 999_999_999) == "Less than 1 billion tokens"
    assert band_of("tokens", 10**9) == "1 billion to 10 trillion tokens"
    assert band_of("tokens", 10**13) == "More than 10 trillion tokens"
    assert [band_of("parameters", size) for size in (1, 7e9, 7e10, 2e12)] == [
        "1-500M",
        "5B-15B",
        "50B-100B",
        "More than 1T",
    ]
    assert [band_of("wall_months", months) for months in (0.9, 1, 5, 6)] == [
        "Less than 1 month", "1-3 months", "3-6 months", "More than 6 months"]  # fmt: skip


def test_domains_that_are_listed():
    sizes = {f"{i}.org": i for i in range(1, 101)}
    assert source_facts.top_domains(sizes, small=False) == [f"{i}.org" for i in range(100, 90, -1)]
    assert source_facts.top_domains(sizes, small=True) == [f"{i}.org" for i in range(100, 95, -1)]
    assert source_facts.top_domains({"one.org": 5}, small=True) == ["one.org"]
    assert len(source_facts.top_domains({f"{i}.org": i for i in range(30)}, small=False)) == 3
    many = {f"{i}.org": i for i in range(40_000)}
    assert len(source_facts.top_domains(many, small=True)) == 1_000
    assert len(source_facts.top_domains(many, small=False)) == 4_000
    assert source_facts.top_domains({}, small=False) == []


@pytest.mark.parametrize(("url", "domain"), [
    ("https://news.example.com/a", "example.com"), ("http://www.bbc.co.uk:8080/x", "bbc.co.uk"), ("mailto:a@b", None),
    ("https://a.b.example.gouv.fr/", "example.gouv.fr"), (None, None), ("http://127.0.0.1/x", "127.0.0.1"),
])  # fmt: skip
def test_registrable_domains(url, domain):
    assert source_facts.registrable(url) == domain


# --- answers --------------------------------------------------------------------------------------------------------


def test_questions_are_appended_and_answers_kept(tmp_path):
    path = tmp_path / "dossier.yaml"
    assert answers.ask(path, ["provider_name", "placement_date"], "de") == ["provider_name", "placement_date"]
    text = path.read_text().replace("provider_name:", "provider_name: Hanse eV   # mine")
    path.write_text(text)
    assert answers.ask(path, ["provider_name", "model_links"], "de") == ["model_links"]
    assert path.read_text().startswith(text)
    assert "# Name des Anbieters [public_summary 1.1" in text
    assert answers.check(path, answers.read(path)) == {"provider_name": Answer("Hanse eV")}
    before = path.read_bytes()
    assert answers.ask(path, ["model_links"], "de") == []
    assert path.read_bytes() == before


def test_answers_take_the_form_of_their_fields(tmp_path):
    path = tmp_path / "dossier.yaml"
    path.write_text(
        "placement_date: 2026-11-25\ncontinuous_training: no\ncode_signatory: 'Yes'\nmodel_links: https://a.org\n"
        "representative_name: 'N/A: established in the Union'\ncrawler_names: [a, b]\nprovider_name:\n"
        "source_category: {a: crawled, b: }\nprovider_is_sme: yes\ntraining_energy: 0.5\n"
    )
    assert answers.check(path, answers.read(path)) == {
        "placement_date": Answer("2026-11-25"), "continuous_training": Answer("No"), "code_signatory": Answer("Yes"),
        "model_links": Answer(["https://a.org"]), "representative_name": Answer(None, "established in the Union"),
        "crawler_names": Answer(["a", "b"]), "source_category": Answer({"a": "crawled"}),
        "provider_is_sme": Answer("Yes"), "training_energy": Answer("0.5"),
    }  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [
    ("provider_nam: x", "did you mean 'provider_name'"),
    ("provider_name: x\nprovider_name: y", "stands twice"),
    ("provider_name: [x, y]", "text is wanted"),
    ("provider_name: N/A", "say why"),
    ("code_signatory: perhaps", "one of Yes, No"),
    ("source_category: {a: stolen}", "public, licensed"),
    ("provider_name: {", "not readable as YAML"),
    ("- a", "question: answer"),
    ("provider_name: !!python/object:os.system x", "not readable as YAML"),
])  # fmt: skip
def test_wrong_answers_are_named(tmp_path, text, said):
    path = tmp_path / "dossier.yaml"
    path.write_text(text)
    with pytest.raises(HanseError, match=re.escape(said)):
        answers.check(path, answers.read(path))


def test_an_answers_file_behind_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("provider_name: x")
    (tmp_path / "dossier.yaml").symlink_to(tmp_path / "other")
    with pytest.raises(HanseError, match="link"):
        answers.read(tmp_path / "dossier.yaml")


# --- filling --------------------------------------------------------------------------------------------------------


def test_every_field_has_content_or_says_why_not(evidence):
    given = {"provider_name": Answer("P"), "representative_name": Answer(None, "in the Union")}
    fields = fill.fill(evidence, given)["fields"]
    assert set(fields) == set(all_fields())
    assert fields["annex_xi.general.parameters"] == {
        "value": 2_651_008, "status": "evidence",
        "evidence": [{"file": "runs/m/manifest.json", "sha256": SHA256, "at": "tensors"}]}  # fmt: skip
    assert fields["public_summary.provider.name"]["status"] == "answered"
    assert fields["model_documentation_form.general.legal_name"]["value"] == "P"
    assert fields["public_summary.provider.representative_name"]["reason"] == "in the Union"
    assert fields["public_summary.data.image_size"]["status"] == "not_applicable"
    assert fields["annex_xi.energy.consumption"]["reason"].startswith("no energy ledger; asked of a person")
    for key, field in fields.items():
        known = field["status"] in ("evidence", "answered")
        assert (field["value"] is not None) == known, key
        assert known or field["reason"], key


def test_evidence_goes_before_an_answer_and_the_answer_is_told_of(evidence):
    evidence.know("energy.text", "1.2 MWh (measured)")
    given = {"training_energy": Answer("5"), "provider_name": Answer("P")}
    assert fill.fill(evidence, given)["fields"]["annex_xi.energy.consumption"]["value"] == "1.2 MWh (measured)"
    evidence.know("energy.rounded", "1.2 MWh")
    assert fill.unused(evidence, given) == ["training_energy"]


def test_a_source_that_nobody_can_place_leaves_every_kind_open(evidence):
    fields = fill.fill(evidence, {})["fields"]
    assert fields["public_summary.public.used"]["value"] == "Yes"
    assert fields["public_summary.licensed.used"]["status"] == "missing"
    assert "category of c" in fields["public_summary.licensed.used"]["reason"]
    assert fill.open_questions(evidence, {})[0] == "source_category"
    assert fill.uncategorised(evidence) == ["c"]


def test_kinds_of_sources(evidence):
    given = {"source_category": Answer({"c": "crawled"})}
    fields = fill.fill(evidence, given)["fields"]
    large = fields["public_summary.public.large_datasets"]["value"]
    assert [row["name"] for row in large] == ["a"], "3 % is not more than 3 %"
    assert "1 datasets" in fields["public_summary.public.other_datasets"]["value"]
    assert fields["public_summary.crawled.period"]["value"] == "03/2024 to 03/2024"
    domains = fields["public_summary.crawled.domains"]["value"]
    assert (len(domains), domains[1]) == (1 + 11, "d0000.org (10,000 bytes)")
    assert fields["public_summary.synthetic.used"]["value"] == "No"
    assert fields["public_summary.synthetic.market_models"]["status"] == "not_applicable"
    assert fields["public_summary.crawled.behaviour"]["status"] == "missing"
    assert "provider_is_sme" in fill.open_questions(evidence, given)
    small = fill.fill(evidence, {**given, "provider_is_sme": Answer("Yes")})["fields"]
    assert len(small["public_summary.crawled.domains"]["value"]) == 1 + 6
    again = fill.fill(evidence, {"source_category": Answer({"c": "user"})})["fields"]
    assert again["public_summary.crawled.used"]["value"] == "No"
    assert again["public_summary.user.model_interactions"]["status"] == "missing", "of which kind, a person must say"


def test_the_json_is_as_its_schema_says(evidence):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((HERE / "dossier.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    dossier = fill.fill(evidence, {"provider_name": Answer("P"), "source_category": Answer({"c": "crawled"})})
    check.validate(json.loads(json.dumps(dossier)))
    dossier["fields"]["annex_xi.general.licence"] = {"value": None, "status": "answered"}
    assert list(check.iter_errors(dossier))


# --- writing --------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.targets, self.language, self.text = [], [], [], None, ""

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.targets += [given[key] for key in ("href", "src") if key in given]
        self.language = given.get("lang", self.language)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_in_every_language(evidence, tmp_path, language):
    given = {
        "provider_name": Answer(NASTY),
        "model_links": Answer([NASTY, "b"]),
        "source_category": Answer({"c": "crawled"}),
    }
    dossier = fill.fill(evidence, given)
    for name, form in load_forms().items():
        page = document(form, dossier, language)
        for ending in ("md", "html"):
            WRITERS[ending](page, tmp_path / f"{name}.{ending}")
        found = Page()
        found.feed((tmp_path / f"{name}.html").read_text())
        assert found.language == language
        assert "script" not in found.tags
        assert len(set(found.ids)) == len(found.ids)
        assert all(one.startswith("#") and one[1:] in found.ids for one in found.targets), "nothing from elsewhere"
        text = (tmp_path / f"{name}.md").read_text()
        for field in form.fields:
            label = field.label[language]
            assert label in found.text
            assert f"### {label}" in text
        assert "<script>" not in text
    text = (tmp_path / "public_summary.md").read_text()
    assert r"\<script\>alert(1)\</script\> \| \[x\](javascript:y)" in text
    assert "| a |" in text


@pytest.mark.parametrize("form", ["public_summary", "annex_xii"])
def test_word_documents(evidence, tmp_path, form):
    given = {"provider_name": Answer(NASTY), "model_links": Answer([NASTY, "b"])}
    page = document(load_forms()[form], fill.fill(evidence, given), "de")
    WRITERS["docx"](page, tmp_path / "form.docx")
    word = docx.Document(str(tmp_path / "form.docx"))
    held = "\n".join(cell.text for table in word.tables for row in table.rows for cell in row.cells)
    for entry in (entry for section in page.sections for entry in section.entries):
        assert entry.label in held
    assert held.count(words("de")["missing"]) == len(page.missing) > 0
    assert word.core_properties.language == "de-DE"


def test_choices_are_told_in_the_language(evidence):
    dossier = fill.fill(evidence, {"code_signatory": Answer("No")})
    page = document(load_forms()["public_summary"], dossier, "fr")
    (entry,) = [one for section in page.sections for one in section.entries if one.anchor.endswith("code_signatory")]
    assert entry.lines == ["Non"]


# --- documentation --------------------------------------------------------------------------------------------------


def test_the_guide_counts_every_field_of_every_form():
    page = (HERE.parents[1] / "docs/guide/dossier.md").read_text()
    found = re.findall(r"^    \| ([\w().]+) \| (.+) \| (evidence|N/A by evidence|a person) \|$", page, re.MULTILINE)
    told = [(field.clause, field.label["en"]) for field in all_fields().values()]
    assert [row[:2] for row in found] == told
    for (_, label, who), field in zip(found, all_fields().values(), strict=True):
        assert field.ask if who == "a person" else field.evidence, label
    people = sum(row[2] == "a person" for row in found)
    nothing = sum(row[2] == "N/A by evidence" for row in found)
    assert f"| **all** | {len(found)} | {len(found) - people} | {nothing} | {people} |" in page


def test_the_example_s_answers_are_answers():
    path = HERE.parents[1] / "docs/examples/demo-dossier.yaml"
    assert len(answers.check(path, answers.read(path))) > 40


# --- data -----------------------------------------------------------------------------------------------------------


def corpora_of(folder, *, snapshot, removed, license_="CC-BY-4.0"):
    """Manifests of a corpus of one crawled source, and of its shards with a sidecar, as the pipeline writes them."""
    source = {"reader": "warc", "language": "fr", "license": license_, "obtained": "own crawl", "url": "", "hub": None,
              "snapshot_date": "2025-03", "package": None}  # fmt: skip
    annotate = {"opt_out_snapshot": snapshot, "quality": True, "personal_data": False, "evaluation_sets": {}}
    select = {"opt_out": ["deny"], "licenses": [license_], "near_duplicate_similarity": 0.75, "quality": True,
              "min_characters": 100, "language_min_confidence": 0.5}  # fmt: skip
    config = {"sources": {"web": source}, "annotate": annotate, "select": select}
    (folder / "corpus").mkdir(parents=True)
    (folder / "shards/train").mkdir(parents=True)
    kept = Tally("fr", license_, 10, 10 - sum(removed.values()), 1000, 700, 0, 0, removed)
    corpus = CorpusManifest("web", "f" * 64, config, {"hanse": "1"}, {"web": kept}, {}, folder / "corpus")
    corpus.write()
    rows = [("web", "https://a.example.co.uk/x", 500), ("web", "http://b.org/", 200), ("web", None, 5)]
    columns = dict(zip(("source", "url", "bytes"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "shards/train/fr.docs.parquet")
    entry = ShardEntry("train/fr", "train", "fr", 3, 90, 705)
    shards = ShardsManifest("t" * 64, 32, 0, "x", corpus.merkle_root, [entry], folder / "shards")
    shards.write()
    return Corpora((Corpus(shards, corpus),), {}, (), ())


def test_what_opt_outs_did_and_which_domains_were_crawled(tmp_path):
    (tmp_path / "snapshot").mkdir()
    told = {"format": "hanse.opt-out/1", "first_fetched": "2025-01-02", "last_fetched": "2025-01-05", "sha256": SHA256}
    (tmp_path / "snapshot/manifest.json").write_text(json.dumps(told))
    evidence = Evidence("m", "1")
    evidence.know("dossier.date", "2026-11-25")
    corpora = corpora_of(tmp_path, snapshot=str(tmp_path / "snapshot"), removed={"opt_out": 2, "near_duplicate": 1})
    data_facts.describe(evidence, corpora)
    source_facts.tell(evidence, corpora)
    fields = fill.fill(evidence, {"source_category": Answer({"web": "crawled"})})["fields"]

    def value(key):
        return fields[key]["value"]

    assert value("copyright_policy.reservations.outcome") == ["French (fr): 2 documents removed"]
    assert "2025-01-02 to 2025-01-05" in value("copyright_policy.reservations.snapshot")[0]
    assert value("public_summary.reservations.protocols")[0] == "robots.txt (RFC 9309)"
    assert "deny" in value("copyright_policy.reservations.decision")[0]
    assert value("copyright_policy.access.licence_filter") == "Only documents under: CC-BY-4.0"
    assert "removed: 1 documents" in value("copyright_policy.output.near_duplicates")[1]
    assert value("public_summary.crawled.domains") == [
        "1 of 2 domain names, the largest 10 % by bytes of text", "example.co.uk (500 bytes)"]  # fmt: skip
    assert value("public_summary.data.latest_acquisition") == "03/2025"
    assert value("public_summary.crawled.period") == "03/2025 to 03/2025"
    assert fields["public_summary.public.used"]["value"] == "No"


def test_no_snapshot_is_said_to_be_none(tmp_path):
    evidence = Evidence("m", "1")
    source_facts.tell(evidence, corpora_of(tmp_path, snapshot=None, removed={}))
    assert evidence.plain("opt_out.protocols") == ["None by hanse: no snapshot of opt-outs was consulted"]
    assert "no snapshot" in evidence["opt_out.outcome"].not_applicable


def test_a_snapshot_that_is_gone_is_not_made_up(tmp_path):
    evidence = Evidence("m", "1")
    source_facts.tell(evidence, corpora_of(tmp_path, snapshot=str(tmp_path / "gone"), removed={}))
    assert "not here any more" in evidence.unknown["opt_out.snapshot"]


# --- the verb -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "said"), [
    (["run=nowhere"], "no such folder"), (["run=.", "languages=[en,pt]"], "each of en, fr, de, es, it once"),
    (["run=.", "formats=[pdf]"], "each of md, html, docx once"), (["run=.", "date=25.11.2026"], "YYYY-MM-DD"),
    (["run=.", "registry=nowhere"], "registry=nowhere"), (["run=."], "no complete checkpoint"),
])  # fmt: skip
def test_wrong_settings_are_told_without_a_traceback(hanse, tmp_path, monkeypatch, capsys, settings, said):
    monkeypatch.chdir(tmp_path)
    assert hanse("dossier", *settings) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())
