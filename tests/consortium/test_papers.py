"""Model papers: each valid by its own format's tools, all of one mind with the evidence, and nothing made up."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from consortium.dossier.evidence import gather
from consortium.papers.citation import _tex
from tests.consortium.answers import SAID, documented_corpus, write_answers
from train.card import cell

DATE = "date=2026-11-25"


def test_text_of_strangers_stays_in_its_cell_and_its_braces():
    assert cell("a | b\n| c <script>") == "a \\| b \\| c &lt;script>"
    assert _tex("50% of {A_B} & \\C") == r"50\% of \{A\_B\} \& \textbackslash{}C"


@pytest.fixture(scope="module")
def run(tiny_run, tiny_data, tmp_path_factory, hanse) -> Path:
    """A copy of the tiny run with its papers, as of one day."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("papers") / "run"))
    documented_corpus(tiny_data / "corpus", folder.parent / "corpus")
    write_answers(folder / "dossier.yaml")
    assert hanse("papers", f"run={folder}", f"corpus={folder.parent / 'corpus'}", DATE) == 0
    return folder


@pytest.fixture(scope="module")
def evidence(run):
    return gather(run, corpus=run.parent / "corpus", today="2026-11-25")


def read(run: Path, name: str):
    return json.loads((run / "papers" / name).read_text(encoding="utf-8"))


def front(run: Path) -> dict:
    return yaml.safe_load((run / "papers/README.md").read_text(encoding="utf-8").split("\n---\n")[0].strip("-\n"))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.6", "1.7"])
def test_the_bill_of_materials_is_strictly_valid(run, version):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib (extra interop)")
    from cyclonedx.schema import SchemaVersion

    bom = read(run, "mlbom.cdx.json")
    assert bom["specVersion"] == "1.6"
    validator = validation.JsonStrictValidator(SchemaVersion.from_version(version))
    assert validator.validate_str(json.dumps({**bom, "specVersion": version})) is None
    refs = {one["bom-ref"] for one in bom["components"]}
    assert set(bom["dependencies"][0]["dependsOn"]) == refs
    assert len(refs) == len(bom["components"])


@pytest.mark.slow
def test_croissant_leads_to_every_document_of_the_corpus(run, evidence):
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant (extra interop)")
    shutil.copyfile(run / "papers/croissant-tiny.json", run.parent / "corpus/croissant.json")
    dataset = croissant.Dataset(jsonld=str(run.parent / "corpus/croissant.json"))
    assert not dataset.metadata.issues.errors
    assert not dataset.metadata.issues.warnings
    for source in evidence["corpus.sources"].value:
        records = list(dataset.records(source["language"]))
        assert len(records) == source["documents"]
        assert sum(len(record[f"{source['language']}/text"]) for record in records) == source["bytes"]


@pytest.mark.slow
def test_the_crate_is_read_and_lists_its_files_as_they_are(run):
    rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate (extra interop)")
    crate = rocrate.ROCrate(run)
    files = [one for one in crate.get_entities() if one.type == "File"]
    assert {"metrics.jsonl", "papers/mlbom.cdx.json", "checkpoints/step-00000012/manifest.json"} <= {
        one.id for one in files
    }
    for one in files:
        data = (run / one.id).read_bytes()
        assert (one["sha256"], one["contentSize"]) == (sha256(data).hexdigest(), str(len(data)))
    action = crate.dereference("#training")
    assert action["result"][0].id == "checkpoints/step-00000012/"
    assert action["startTime"] <= action["endTime"]
    graph = json.loads((run / "ro-crate-metadata.json").read_text())["@graph"]
    ids = [one["@id"] for one in graph]
    assert len(set(ids)) == len(ids)
    named = set(re.findall(r'\{"@id": "([^"]+)"\}', json.dumps(graph)))
    assert {one for one in named if not one.startswith("https://w3id.org/ro/crate")} <= set(ids)


@pytest.mark.slow
def test_the_citation_is_valid(run):
    cff = yaml.safe_load((run / "papers/CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert (cff["authors"], cff["license"], cff["date-released"]) == (
        [{"name": SAID["provider_name"]}], "Apache-2.0", "2026-11-25")  # fmt: skip
    assert r"author       = {{Hanse \& Söhne\_100\%}}" in (run / "papers/citation.bib").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_head_of_the_card_is_what_the_hub_reads(run, evidence):
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "papers/README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["de", "es", "fr", "it"]
    results = {one.dataset_config: one.metric_value for one in card.data.eval_results}
    assert results == evidence["evaluation.bits_per_byte"].value


@pytest.mark.slow
def test_all_papers_say_the_same(run, evidence):
    bom, crate = read(run, "mlbom.cdx.json"), json.loads((run / "ro-crate-metadata.json").read_text())["@graph"]
    card = (run / "papers/README.md").read_text(encoding="utf-8")
    model = bom["metadata"]["component"]
    figures = {one["name"]: one["value"] for one in model["properties"]}
    entities = {one["@id"]: one for one in crate}
    for key, name, entity in (
        ("model.parameters", "hanse:parameters", "#parameters"),
        ("training.consumed_tokens", "hanse:consumed_tokens", "#consumed_tokens"),
        ("compute.flops", "hanse:training_flops", "#training_computation"),
    ):
        assert figures[name] == str(evidence[key].value)
        assert entities[entity]["value"] == evidence[key].value
    scores = evidence["evaluation.bits_per_byte"].value
    metrics = {one["slice"]: float(one["value"])
               for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
               if one["type"] == "bits_per_byte"}  # fmt: skip
    assert metrics == scores == {one: entities[f"#bits_per_byte_{one}"]["value"] for one in scores}
    for language, tokens in evidence["corpus.tokens_by_language"].value.items():
        assert re.search(rf"\| {language} \| [\d,]+ \| \S+ kB \| {tokens:,} \|", card)
    assert f"`{evidence['model.merkle_root'].value}`" in card
    assert model["hashes"][0]["content"] == evidence["model.manifest_sha256"].value
    sources = {one["name"] for one in bom["components"] if one["type"] == "data"}
    assert sources == {one["name"] for one in evidence["corpus.sources"].value}


@pytest.mark.slow
def test_papers_cite_where_their_values_stand(run, evidence):
    manifest = read(run, "papers.json")
    assert manifest["version"] == evidence.version
    for name, digest in manifest["files"].items():
        assert sha256((run / "papers" / name).read_bytes()).hexdigest() == digest
    assert manifest["evidence"].keys() <= evidence.keys()
    cited = manifest["evidence"]["training.consumed_tokens"][0]
    assert cited["sha256"] == sha256((run / "checkpoints/step-00000012/state.json").read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_same_facts_give_the_same_bytes(run, hanse, tmp_path):
    again = tmp_path / "again"
    assert hanse("papers", f"run={run}", f"corpus={run.parent / 'corpus'}", f"output={again}", DATE) == 0
    for path in (run / "papers").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_without_answers_nothing_is_made_up(run, hanse, tmp_path, capfd):
    papers = tmp_path / "papers"
    assert hanse("papers", f"run={run}", f"answers={tmp_path / 'none.yaml'}", f"output={papers}", DATE) == 0
    said = capfd.readouterr().out
    assert "model_licence is not answered" in said
    assert "provider_name is not answered" in said
    assert not (papers / "CITATION.cff").exists()
    assert "licenses" not in json.loads((papers / "mlbom.cdx.json").read_text())["metadata"]["component"]
    card = (papers / "README.md").read_text(encoding="utf-8")
    assert "license:" not in card.split("\n---\n")[0]
    assert "Of the weights: not stated yet." in card


@pytest.mark.slow
def test_what_somebody_else_wrote_is_not_replaced(run, hanse, tmp_path, capfd):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "ro-crate-metadata.json").write_text('{"@graph": [{"@id": "mine"}]}')
    assert hanse("papers", f"run={copy}", DATE) == 2
    assert "was not written by hanse" in capfd.readouterr().err
    (copy / "ro-crate-metadata.json").unlink()
    (copy / "papers/papers.json").unlink()
    assert hanse("papers", f"run={copy}", DATE) == 2
    assert "was not written by this verb" in capfd.readouterr().err
    assert hanse("papers", f"run={tmp_path}") == 2
    assert "no run folder of 'hanse train'" in capfd.readouterr().err
