"""A release: loadable and checkable by tools that know nothing of ours; or refused, with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.files import sha256_file
from tests.consortium.answers import documented_corpus, write_answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tiny_run, tiny_data, tmp_path_factory, hanse) -> Path:
    """A folder with ``run`` and ``corpus``, every question answered, and a key."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(tiny_run, folder / "run")
    documented_corpus(tiny_data / "corpus", folder / "corpus")
    write_answers(folder / "run/dossier.yaml")
    assert hanse("key", f"new={folder / 'alice.key'}") == 0
    return folder


@pytest.fixture(scope="module")
def released(place, hanse) -> Path:
    output = place / "out"
    assert hanse("release", f"run={place / 'run'}", f"corpus={place / 'corpus'}", f"output={output}",
                 f"key={place / 'alice.key'}") == 0  # fmt: skip
    return output


def test_a_stranger_loads_it_without_a_network(released, place):
    program = """
import socket, sys
def refuse(*_): raise OSError("no network")
socket.socket.connect = refuse
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
print(tokenizer.decode(model.generate(**tokenizer("Und es geschah", return_tensors="pt"), max_new_tokens=4)[0]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(released)], capture_output=True, text=True, cwd="/",
                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Und es geschah")
    weights = load_file(released / "model.safetensors")
    assert {values.dtype for values in weights.values()} == {torch.bfloat16}


def test_its_checksums_and_its_seal_hold_until_something_changes(released, place, hanse, tmp_path):
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    trust = f"trust=[{place / 'alice.pub'}]"

    def check() -> tuple[int, int]:
        sums = subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=copy, check=False,
                              capture_output=True)  # fmt: skip
        return sums.returncode, hanse("seal", f"folder={copy}", f"check={copy / 'release.files.sig'}", trust)

    assert check() == (0, 0)
    summed = {line.split("  ")[1] for line in (copy / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert there - summed == {"SHA256SUMS", "release.files.sig"}
    (copy / "NOTICE.md").write_text("mine")
    assert check() == (1, 2)


def test_its_papers_speak_of_what_is_in_it(released, place):
    papers, hashes = (
        json.loads((released / "release.json").read_text()),
        json.loads((released / "hanse.json").read_text()),
    )
    checkpoint = json.loads((place / "run/checkpoints/step-00000012/manifest.json").read_text())
    assert papers["merkle_root"] == hashes["checkpoint_merkle_root"] == checkpoint["merkle_root"]
    assert (papers["licence"], papers["data_licences"]) == ("Apache-2.0", ["public-domain"])
    card = (released / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "in bf16" in card
    assert "## Fairness between languages" in card
    assert sha256_file(released / "README.md") == hashes["files"]["README.md"]["sha256"]
    crate = json.loads((released / "ro-crate-metadata.json").read_text())["@graph"]
    files = {one["@id"]: one["sha256"] for one in crate if one["@type"] == "File"}
    assert files["model.safetensors"] == sha256_file(released / "model.safetensors")
    assert (released / "CITATION.cff").is_file()
    assert (released / "dossier/fr/public_summary.docx").is_file()
    assert json.loads((released / "dossier-check.json").read_text())["counts"]["blocking"] == 0


def test_a_release_is_replaced_by_a_newer_one_and_nothing_else_is(released, place, hanse, tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear ...")
    assert hanse("release", f"run={place / 'run'}", f"corpus={place / 'corpus'}", f"output={tmp_path / 'mine'}") == 2
    assert "was not written by this verb" in capfd.readouterr().err
    assert (tmp_path / "mine/letter.txt").read_text() == "dear ..."


@pytest.mark.parametrize(("answers", "words"), [
    ({"model_licence": None}, "the licence of the model is not known"),
    ({"provider_name": None}, "public_summary.provider.name"),
    ({"model_licence": "CC-BY-NC-4.0", "placement_date": "soon"}, "placement_date"),
])  # fmt: skip
def test_a_refused_release_says_why_and_leaves_nothing_behind(place, hanse, tmp_path, capfd, answers, words):
    write_answers(tmp_path / "dossier.yaml", **answers)
    assert hanse("release", f"run={place / 'run'}", f"corpus={place / 'corpus'}", f"output={tmp_path / 'out'}",
                 f"answers={tmp_path / 'dossier.yaml'}") == 2  # fmt: skip
    said = capfd.readouterr().err
    assert words in said
    assert "nothing was written" in said
    assert {path.name for path in tmp_path.iterdir()} == {"dossier.yaml"}


@pytest.mark.parametrize("licence", ["CC-BY-SA-4.0", "unheard-of"])
def test_a_licence_of_the_data_stops_a_release_until_somebody_decides(
    place, tiny_data, hanse, tmp_path, capfd, monkeypatch, licence
):
    from consortium import release

    monkeypatch.setattr(release, "data_licences", lambda facts: ["public-domain", licence])
    arguments = ("release", f"run={place / 'run'}", f"corpus={place / 'corpus'}", f"output={tmp_path / 'out'}")
    assert hanse(*arguments) == 2
    said = capfd.readouterr().err
    assert licence in said
    assert f"decisions=FILE.yaml with a line '{licence}: " in said
    assert not list(tmp_path.iterdir())
    if licence == "unheard-of":  # one release is enough to see that a decision settles it
        return
    (tmp_path / "decisions.yaml").write_text(f"{licence}: counsel found it to be no adaptation, 2026-11-25")
    assert hanse(*arguments, f"decisions={tmp_path / 'decisions.yaml'}") == 0
    assert json.loads((tmp_path / "out/release.json").read_text())["decisions"].keys() == {licence}
    assert f"- {licence}: counsel found" in (tmp_path / "out/NOTICE.md").read_text(encoding="utf-8")


def test_wrong_settings_are_told_together(place, hanse, tmp_path, capfd):
    assert hanse("release", f"run={place / 'run'}", f"output={tmp_path / 'out'}", "dtype=fp8", "key=none.key",
                 "date=tomorrow") == 2  # fmt: skip
    said = capfd.readouterr().err
    assert all(words in said for words in ("dtype=fp8", "key=none.key", "date=tomorrow"))
