"""A run begins with the weights of another, bit for bit and at every ZeRO stage, or is refused before it begins."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from common.errors import EXIT_DONE, EXIT_GO_ON, HanseError
from common.files import merkle_root, read_json, sha256_file
from tests.train.multirank import train_cases
from tests.train.test_vocabulary import byte_level
from train.checkpoint import Checkpoint
from train.checkpoint_writer import finish, write_share
from train.init_config import InitConfig
from train.initial import check
from train.model import build_model
from train.parametrisation import rate_factors, scale_fresh
from train.run_folder import folder_of
from train.trained import configuration_of
from train.weights import HubWeights, Weights, open_weights

SETTINGS = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
MODEL = AutoConfig.for_model("llama", **SETTINGS)
STATE = {"step": 12, "consumed_samples": 96, "data_merkle_root": "d", "tokenizer_sha256": "t",
         "model": MODEL.to_dict(), "precision": "fp32", "wall_seconds": 1.5}  # fmt: skip
RIGHT = {name: one.detach() for name, one in build_model(MODEL, 1).named_parameters()}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The weights in two files, each tensor cut in two, without the state of an optimizer."""
    final, files = tmp_path / "averaged", {}
    for rank in range(2):
        parts = {}
        for name, one in RIGHT.items():
            cut = [0, one.numel() // 3, one.numel()]
            start, stop = cut[rank], cut[rank + 1]
            parts[f"{name}[{start}:{stop}]"] = one.reshape(-1)[start:stop].clone()
        files |= write_share({"model": parts}, tmp_path / "partial", rank)
    finish(tmp_path / "partial", final, files, {name: tuple(one.shape) for name, one in RIGHT.items()}, STATE)
    return final


@pytest.fixture
def exported(tmp_path) -> Path:
    """The weights as transformers writes them, in several files."""
    build_model(MODEL, 1).save_pretrained(tmp_path / "exported", max_shard_size="10KB")
    return tmp_path / "exported"


def same(weights: Weights) -> bool:
    model = build_model(MODEL, 2)
    weights.load(model)
    return all(torch.equal(one, RIGHT[name]) for name, one in model.named_parameters())


def test_weights_are_the_same_bits_from_any_kind_of_folder(checkpoint, exported):
    for folder in (checkpoint, exported):
        weights = open_weights(folder)
        check(weights, MODEL, "t")
        assert same(weights)
        for name, right in RIGHT.items():
            for start, stop in ((0, 1), (3, 11), (right.numel() - 5, right.numel())):
                out = torch.empty(stop - start)
                weights.read(name, start, stop, out)
                assert torch.equal(out, right.reshape(-1)[start:stop])
    assert len(HubWeights(exported).files) > 1


def test_every_rank_hashes_its_share_and_the_identity_is_the_same_for_any_number(exported, checkpoint):
    weights = open_weights(exported)
    files = {path.name: sha256_file(path) for path in exported.glob("*.safetensors")}
    for ranks in (1, 2, 3):
        shares = [weights.verify(rank, ranks) for rank in range(ranks)]
        assert weights.identity({name: digest for share in shares for name, digest in share.items()}) == merkle_root(
            files
        )
    assert open_weights(checkpoint).identity({}) == sha256_file(checkpoint / "manifest.json")


def test_a_checkpoint_without_an_optimizer_is_no_place_to_go_on_from(checkpoint):
    opened = Checkpoint(checkpoint)
    assert opened.weights_only
    with pytest.raises(HanseError, match=r"a run begins with it \(init_from=...\), but cannot go on from it"):
        opened.restore(None)


def test_half_precision_is_widened(tmp_path, exported):
    files = {path.name: load_file(path) for path in exported.glob("*.safetensors")}
    for name, tensors in files.items():
        save_file({key: one.bfloat16() for key, one in tensors.items()}, exported / name)
    weights = open_weights(exported)
    out = torch.empty(40 * 16)
    weights.read("model.embed_tokens.weight", 0, 640, out)
    assert torch.equal(out, RIGHT["model.embed_tokens.weight"].bfloat16().float().reshape(-1))


@pytest.mark.parametrize(
    ("changes", "tokenizer", "message"),
    [
        ({"num_hidden_layers": 3}, "t", "model.layers.2.self_attn.q_proj.weight is absent there and [16, 16] in this"),
        ({"num_hidden_layers": 1}, "t", "model.layers.1.self_attn.q_proj.weight is [16, 16] there and absent in this"),
        ({"vocab_size": 41}, "t", "model.embed_tokens.weight is [40, 16] there and [41, 16] in this configuration"),
        ({"num_key_value_heads": 1, "head_dim": 8}, "t", "q_proj.weight is [16, 16] there and [32, 16]"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}, "t", "attention_heads is 4 there and 8"),
        ({}, "other", "its weights belong to another tokenizer than data.tokenizer"),
    ],
)  # fmt: skip
def test_weights_of_another_model_or_tokenizer_are_refused(checkpoint, changes, tokenizer, message):
    with pytest.raises(HanseError, match=r"^init_from=") as caught:
        check(open_weights(checkpoint), AutoConfig.for_model("llama", **SETTINGS | changes), tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scalars_that_no_training_changes_must_be_the_models_own(tmp_path):
    model = AutoConfig.for_model("apertus", **SETTINGS, hidden_act="xielu", eos_token_id=0, pad_token_id=0)
    build_model(model, 1).save_pretrained(tmp_path / "apertus")
    weights = open_weights(tmp_path / "apertus")
    check(weights, model, None)
    weights.load(build_model(model, 2))
    beta = "model.layers.1.mlp.act_fn.beta"
    tensors = load_file(tmp_path / "apertus/model.safetensors")
    save_file(tensors | {beta: torch.tensor(0.7)}, tmp_path / "apertus/model.safetensors")
    with pytest.raises(HanseError, match=f"{beta} is 0.7 there and 0.5 in this configuration".replace(".", "[.]")):
        open_weights(tmp_path / "apertus").load(build_model(model, 2))
    save_file(tensors | {"gamma": torch.tensor(0.7)}, tmp_path / "apertus/model.safetensors")
    with pytest.raises(HanseError, match="gamma is unknown in this configuration"):
        check(open_weights(tmp_path / "apertus"), model, None)


def test_folders_that_hold_no_weights_say_what_is_missing(tmp_path, exported):
    with pytest.raises(HanseError, match="no such folder"):
        open_weights(tmp_path / "nowhere")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(HanseError, match="a run folder; name one of its checkpoints"):
        open_weights(tmp_path / "run")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(HanseError, match=r"its \.bin files are pickle, which is never read"):
        open_weights(tmp_path / "pickled")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/manifest.json").write_text('{"format": "hanse.momentum/1"}')
    with pytest.raises(
        HanseError, match=r"is not of format hanse.checkpoint/1; get the folder again from where it came"
    ):
        open_weights(tmp_path / "damaged")
    file = sorted(exported.glob("*.safetensors"))[0]
    intact = file.read_bytes()
    file.write_bytes(intact[:100])
    with pytest.raises(HanseError, match="not a safetensors file"):
        open_weights(exported)
    file.unlink()
    (tmp_path / "elsewhere").write_bytes(intact)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HanseError, match=r"is a link|is not the name of a file in this folder"):
        open_weights(exported)


def another_tokenizer(folder: Path, settings: list[str]) -> dict[str, list[str]]:
    """A run that begins with a model of 512 tokens of its own; and one that does not say so."""
    byte_level(folder / "old.json", 500, ["<eos>"], "fr")
    changes = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "eos_token_id": 0, "bos_token_id": None}
    model = AutoConfig.for_model("llama", **SETTINGS | changes)
    build_model(model, 1).save_pretrained(folder / "french")
    shutil.copy(folder / "old.json", folder / "french/tokenizer.json")
    begun = [*settings, f"init_from={folder / 'french'}"]
    return {"adapted": [*begun, f"run={folder / 'adapted'}", f"init_tokenizer={folder / 'old.json'}"],
            "unnamed": [*begun, f"run={folder / 'unnamed'}"]}  # fmt: skip


def check_another_tokenizer(folder: Path, adapted: object, unnamed: object) -> None:
    assert "embed_tokens.weight is [512, 48] there and [1024, 48] in this configuration" in str(unnamed)
    assert adapted == EXIT_DONE
    last = Checkpoint(folder_of(folder / "adapted/checkpoints", 2))
    right, found = load_file(folder / "french/model.safetensors"), last.weights()
    old = right.pop("model.embed_tokens.weight")
    new = found.pop("model.embed_tokens.weight")
    assert all(torch.equal(found[name], one) for name, one in right.items())
    assert torch.allclose(new[0], old[0])  # what ends a document
    kept = (new[:, None, :] == old[None]).all(2).any(1).sum()
    assert 256 < int(kept) < 1024
    identity = merkle_root({"model.safetensors": sha256_file(folder / "french/model.safetensors")})
    origin = {"role": "init", "embeddings": "pieces", "tokenizer_sha256": sha256_file(folder / "old.json")}
    assert last.parents == [{"manifest_sha256": identity, **origin}]
    assert read_json(folder / "adapted/run.lock.json", "lock")["parents"] == last.parents


MUP = InitConfig(mup_base_width=12)


def wider(folder: Path, settings: list[str]) -> dict[str, list[str]]:
    """Fresh runs of four times the width that the learning rate is for, stopped after a step."""
    mup = [*settings, "model.init.mup_base_width=12", "until_step=1", "optimizer.weight_decay=0",
           "schedule.warmup_steps=0", "schedule.decay_fraction=0.0", "tokens=1024"]  # fmt: skip
    return {f"wider-{stage}": [*mup, f"run={folder / f'wider-{stage}'}", f"engine.zero_stage={stage}"]
            for stage in (1, 3)}  # fmt: skip


def check_wider(folder: Path) -> None:
    """Adam's first step is as large as the learning rate, whatever the gradient: each parameter's is seen in it."""
    for stage in (1, 3):
        last = Checkpoint(folder_of(folder / f"wider-{stage}/checkpoints", 1))
        fresh = build_model(configuration_of(last), 0)
        scale_fresh(fresh, MUP)
        factors = rate_factors(MUP, fresh)
        for name, one in fresh.named_parameters():
            moved = float((last.weights()[name] - one.detach()).abs().max())
            assert moved == pytest.approx(0.01 * factors.get(id(one), 1.0), rel=0.02), name
        assert set(factors.values()) == {0.25}


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another_at_every_stage(tiny_run, tiny_settings, tmp_path):
    """A learning rate far below rounding: after two steps the weights are still those the run began with."""
    parent = folder_of(tiny_run / "checkpoints", 12)
    right = Checkpoint(parent).weights()
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file({name: one.contiguous() for name, one in right.items()}, hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps(Checkpoint(parent).state["model"]))
    still = [*tiny_settings, "optimizer.learning_rate=1e-30", "tokens=1024", "schedule.warmup_steps=0", "seed=9",
             "evaluate.every_steps=9"]  # fmt: skip
    short = ["data.sequence_length=16", "tokens=256", "engine.precision=bf16",
             "+model.settings.max_position_embeddings=64"]  # fmt: skip
    runs = {f"{kind}-{stage}": tmp_path / f"{kind}-{stage}" for kind in ("checkpoint", "hub") for stage in (1, 2, 3)}
    cases = {
        name: [*still, *(short if name == "checkpoint-3" else []), f"run={run}", f"engine.zero_stage={name[-1]}",
               f"init_from={parent if name.startswith('checkpoint') else hub}"]
        for name, run in runs.items() if name not in {"hub-1", "hub-2"}
    }  # fmt: skip
    first, stopped = cases["checkpoint-1"], "until_step=1"
    cases |= {"checkpoint-1": [*first, stopped], "foreign": [*first, f"init_from={hub}"], "again": first,
              "other": [*first, f"run={tmp_path / 'other'}", "model.settings.num_key_value_heads=4"]}  # fmt: skip
    cases |= another_tokenizer(tmp_path, still) | wider(tmp_path, tiny_settings)
    found = train_cases(tmp_path / "ranks", 2, cases)
    assert [found.pop(name) for name in ("checkpoint-1", "wider-1", "wider-3")] == [EXIT_GO_ON] * 3
    check_another_tokenizer(tmp_path, found.pop("adapted"), found.pop("unnamed"))
    check_wider(tmp_path)
    assert "goes on from step-00000001, and began with other weights" in found.pop("foreign")
    assert re.search(r"^init_from=.*k_proj.weight is \[24, 48\] there and \[48, 48\] in this", found.pop("other"))
    assert not (tmp_path / "other/config.yaml").exists()
    assert set(found.values()) == {EXIT_DONE}
    identities = {"checkpoint": sha256_file(parent / "manifest.json"),
                  "hub": merkle_root({"model.safetensors": sha256_file(hub / "model.safetensors")})}  # fmt: skip
    for name in ["checkpoint-1", *(name for name in found if name in runs)]:
        last = Checkpoint(folder_of(runs[name] / "checkpoints", 2))
        weights = last.weights()
        assert all(torch.equal(weights[key], one) for key, one in right.items()), name
        parents = [{"manifest_sha256": identities[name.partition("-")[0]], "role": "init"}]
        assert last.parents == read_json(runs[name] / "run.lock.json", "lock")["parents"] == parents
        assert last.state["consumed_samples"] == 16
    shutil.rmtree(tmp_path / "hub-3")
