"""An export is the model that was trained: its weights bit for bit, and the validation loss that training reported."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.files import merkle_root, sha256_file
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths
from train import export
from train.evaluate import Evaluation
from train.run_folder import RunFolder, read_metrics
from train.stream import IGNORED, open_sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    """A copy of the tiny run that these tests may write in."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("export") / "run"))


@pytest.fixture(scope="module")
def exported(run, hanse) -> Path:
    assert hanse("export", f"run={run}") == 0
    return run / "export"


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, put together from its files alone."""
    shapes = json.loads((checkpoint / "manifest.json").read_text())["tensors"]
    flat = {name: torch.full((math.prod(shape),), math.nan) for name, shape in shapes.items()}
    for file in (checkpoint / "model").iterdir():
        for key, values in load_file(file).items():
            name, _, span = key[:-1].partition("[")
            start, stop = map(int, span.split(":"))
            flat[name][start:stop] = values
    return {name: values.view(shapes[name]) for name, values in flat.items()}


def test_the_weights_are_those_of_the_latest_checkpoint_bit_for_bit(run, exported):
    expected, found = weights_of(run / "checkpoints/step-00000012"), load_file(exported / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stranger_without_a_network_gets_the_logits_of_the_trained_model(run, exported):
    """In a process that knows nothing of ours: plain transformers, offline, sockets forbidden."""
    program = """
import json, socket, sys
def refuse(*_): raise OSError("no network")
socket.socket.connect = refuse
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("Und es geschah in den Tagen", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
assert not any(name.split(".")[0] in ("train", "deepspeed") for name in sys.modules)
print(json.dumps({"ids": inputs.input_ids[0].tolist(), "logits": logits.tolist()}))
"""
    done = subprocess.run([sys.executable, "-c", program, str(exported)], capture_output=True, text=True, check=True,
                          cwd="/", env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
    said = json.loads(done.stdout)
    from train.trained import open_trained

    trained = open_trained(str(run), None, None, None)
    assert said["ids"] == trained.tokenizer.encode("Und es geschah in den Tagen").ids
    with torch.no_grad():
        expected = trained.model()(torch.tensor([said["ids"]])).logits[0]
    assert (torch.tensor(said["logits"]) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_the_exported_model_alone_reaches_the_validation_loss_that_training_reported(run, exported, tiny_data):
    model = AutoModelForCausalLM.from_pretrained(exported)
    reported = [record for record in read_metrics(run / "metrics.jsonl") if "evaluation" in record][-1]["evaluation"]
    shards = ShardsManifest.read(tiny_data / "shards")
    windows = Evaluation(open_sources(shards, "validation", 64, 0), 512, 1, token_byte_lengths(tiny_data / "tokenizer"))
    nll, labels = dict.fromkeys(reported, 0.0), dict.fromkeys(reported, 0)
    for language, batch in windows.batches:
        name, edges = windows.languages[language], np.flatnonzero(np.diff(batch.documents[0])) + 1
        for ids, wanted in zip(np.split(batch.input_ids[0], edges), np.split(batch.labels[0], edges), strict=True):
            logits, target = model(torch.from_numpy(ids)[None]).logits[0], torch.from_numpy(wanted)
            nll[name] += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORED))
            labels[name] += int((wanted != IGNORED).sum())
    for name, score in reported.items():
        assert nll[name] / labels[name] == pytest.approx(score["loss"], rel=1e-5)


def test_the_folder_says_where_it_came_from_and_holds_nothing_that_could_run(run, exported, tiny_data):
    papers = json.loads((exported / "hanse.json").read_text())
    checkpoint = json.loads((run / "checkpoints/step-00000012/manifest.json").read_text())
    assert (papers["step"], papers["consumed_tokens"]) == (12, 12 * 8 * 64)
    assert papers["checkpoint_merkle_root"] == checkpoint["merkle_root"]
    assert papers["data_merkle_root"] == ShardsManifest.read(tiny_data / "shards").merkle_root
    assert papers["tokenizer_sha256"] == sha256_file(exported / "tokenizer.json")
    hashes = {path.name: sha256_file(path) for path in exported.iterdir() if path.name != "hanse.json"}
    assert {name: entry["sha256"] for name, entry in papers["files"].items()} == hashes
    assert papers["merkle_root"] == merkle_root(hashes)
    assert {path.suffix for path in exported.iterdir()} == {".json", ".md", ".safetensors"}
    assert papers["max_abs_logit_difference"].keys() == {"de", "es", "fr", "it"}
    assert max(papers["max_abs_logit_difference"].values()) <= 1e-5
    assert all(path.stat().st_mode & 0o444 == (exported / "hanse.json").stat().st_mode & 0o444
               for path in exported.iterdir())  # fmt: skip


def test_the_model_card_tells_the_data_and_the_scores(run, exported):
    text = (exported / "README.md").read_text()
    last = [record for record in read_metrics(run / "metrics.jsonl") if "evaluation" in record][-1]["evaluation"]
    for language, score in last.items():
        assert f"| {language} | {score['bits_per_byte']:.3f} |" in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["language"] == ["de", "es", "fr", "it"]
    found = {one["dataset"]["config"]: one["metrics"][0]["value"] for one in head["model-index"][0]["results"]}
    assert found == {language: score["bits_per_byte"] for language, score in last.items()}
    assert "public-domain" in text


def test_the_summary_says_where_the_export_is(run, exported):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["paths"]["export"] == str(exported)
    assert {"shards", "checkpoint"} <= summary["paths"].keys()


def test_an_earlier_step_in_half_the_bytes_elsewhere(run, hanse, tmp_path):
    assert hanse("export", f"run={run}", "step=6", "dtype=bf16", f"output={tmp_path / 'half'}") == 0
    found, expected = load_file(tmp_path / "half/model.safetensors"), weights_of(run / "checkpoints/step-00000006")
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert json.loads((tmp_path / "half/hanse.json").read_text())["step"] == 6


def test_a_large_model_is_written_as_several_files(run, hanse, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", "100KB")
    assert hanse("export", f"run={run}", f"output={tmp_path / 'many'}") == 0
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    loaded, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "many"), weights_of(
        run / "checkpoints/step-00000012")  # fmt: skip
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)


def test_a_model_that_was_changed_on_the_way_is_refused_and_the_export_before_it_stays(
    run, exported, hanse, monkeypatch, capfd
):
    before = {path.name: sha256_file(path) for path in exported.iterdir()}
    write = export.write_model

    def write_and_spoil(trained, model, dtype, folder):
        write(trained, model, dtype, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1e-2
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_model", write_and_spoil)
    assert hanse("export", f"run={run}") == 2
    assert "it is not the model that was trained" in capfd.readouterr().err
    assert {path.name: sha256_file(path) for path in exported.iterdir()} == before
    assert not list(run.glob("export.*"))


def test_a_tokenizer_that_transformers_reads_in_another_way_is_refused(run, hanse, tiny_data, tmp_path, capfd):
    folder = Path(shutil.copytree(tiny_data / "tokenizer", tmp_path / "tokenizer"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "GPT2Tokenizer"}))
    assert hanse("export", f"run={run}", f"tokenizer={folder}", f"output={tmp_path / 'out'}") == 2
    assert "in another way than the shards were written with" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_config_gets_one_that_reads_it_right(run, hanse, tiny_data, tmp_path):
    folder = Path(shutil.copytree(tiny_data / "tokenizer", tmp_path / "tokenizer"))
    (folder / "tokenizer_config.json").unlink()
    assert hanse("export", f"run={run}", f"tokenizer={folder}", f"output={tmp_path / 'out'}") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|endoftext|>"


def test_wrong_input_is_one_line_each_and_leaves_nothing_behind(run, hanse, tiny_data, tmp_path, capfd):
    def complaint(*arguments: str) -> str:
        assert hanse("export", f"run={run}", f"output={tmp_path / 'out'}", *arguments) == 2
        assert not (tmp_path / "out").exists()
        return capfd.readouterr().err

    assert "no checkpoint of that step" in complaint("step=7")
    assert "there are 6, 12" in complaint("step=7")
    assert "dtype=fp16: one of fp32, bf16" in complaint("dtype=fp16")
    assert "no such folder" in complaint(f"shards={tmp_path / 'nowhere'}")
    other = Path(shutil.copytree(tiny_data / "tokenizer", tmp_path / "other"))
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    assert "not the tokenizer of" in complaint(f"tokenizer={other}")
    assert hanse("export", "run=runs/nobody") == 2
    assert "no run folder of 'hanse train'" in capfd.readouterr().err


def test_a_folder_that_is_not_an_export_is_not_replaced(run, hanse, tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear ...")
    assert hanse("export", f"run={run}", f"output={tmp_path / 'mine'}") == 2
    assert "was not written by this verb" in capfd.readouterr().err
    assert (tmp_path / "mine/letter.txt").read_text() == "dear ..."


def test_a_damaged_checkpoint_is_not_exported(run, hanse, tmp_path, capfd):
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    file = broken / "checkpoints/step-00000012/model/rank-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert hanse("export", f"run={broken}", f"output={tmp_path / 'out'}") == 2
    assert "is damaged" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert RunFolder(broken).checkpoints.is_dir()
