"""Megatron's checkpoints: real models of megatron-core load what we write and write what we read, logit for logit and
bit for bit; and no code of a stranger's file is run."""

from __future__ import annotations

import enum
import importlib.util
import json
import pickle
import re
import shutil
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import HanseError
from launch.local import run_ranks
from tests.train.multirank import losses
from train.agreement import disagreements
from train.checkpoint import Checkpoint
from train.checkpoint_writer import finish, write_share
from train.initial import check
from train.megatron_files import merged, open_megatron
from train.megatron_model import arguments, join_qkv, joined, names, settings_of, split_qkv
from train.model import build_model
from train.pickled import MEGATRON, MetadataUnpickler, load_pickled
from train.trained import configuration_in, model_of
from train.weights import CheckpointWeights

VOCABULARY, PADDED = 100, 128
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64}  # fmt: skip
ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}  # fmt: skip
MODELS = {
    "llama": AutoConfig.for_model("llama", **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "qwen3": AutoConfig.for_model("qwen3", **SMALL, tie_word_embeddings=True),
    "scaled": AutoConfig.for_model("llama", **SMALL | {"head_dim": 8, "num_key_value_heads": 4,
                                                       "max_position_embeddings": 16384},
                                   rms_norm_eps=1e-5, rope_parameters=ROPE, tie_word_embeddings=True),
}  # fmt: skip
STATE = {"step": 12, "consumed_samples": 96, "consumed_tokens": 6144, "data_merkle_root": "d", "tokenizer_sha256": "t",
         "precision": "bf16", "wall_seconds": 1.5, "ranks": 1, "zero_stage": 1, "engine": {}}  # fmt: skip
ORIGIN = {"parents": [{"manifest_sha256": "a" * 64, "role": "init"}]}
IDS = torch.randint(0, VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(3))


def checkpoint(folder: Path, model) -> Path:
    """One of ours with weights alone, none of which is what a model begins with."""
    built = build_model(model, 1)
    torch.manual_seed(5)
    named = {name: torch.randn_like(one) * 0.2 + ("norm" in name) for name, one in built.named_parameters()}
    parts = {"model": {f"{name}[0:{one.numel()}]": one.reshape(-1) for name, one in named.items()}}
    files = write_share(parts, folder / "partial", 0)
    shapes = {name: tuple(one.shape) for name, one in named.items()}
    finish(folder / "partial", folder / "step-00000012", files, shapes, {**STATE, "model": model.to_dict()},
           origin=ORIGIN)  # fmt: skip
    return folder / "step-00000012"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each of MODELS."""
    return {name: checkpoint(tmp_path_factory.mktemp(name), model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory, hanse) -> dict[str, Path]:
    """The same, as ``layout=megatron`` writes them."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, path in ours.items():
        written = f"output={folder / name}"
        assert hanse("checkpoint", f"folder={path}", "action=convert", "layout=megatron", written) == 0
    return {name: folder / name for name in ours}


def classic(folder: Path, source: Path, ranks: int) -> Path:
    """A checkpoint of ours in Megatron's format ``torch``, cut here by the rules of its layers."""
    one = Checkpoint(source)
    model, weights = configuration_in(one.state["model"], source), one.weights()
    shards = [{} for _ in range(ranks)]
    for name, inner in names(model).items():
        parts = [weights[part] for part in inner]
        for rank, shard in enumerate(shards):
            axis = 1 if name.endswith(("proj.weight", "fc2.weight")) else 0
            cut = parts if parts[0].dim() == 1 else [part.chunk(ranks, axis)[rank] for part in parts]
            if "qkv.weight" in name:
                cut = [join_qkv(*cut, groups=model.num_key_value_heads // ranks)]
            if ranks == 1:  # without Transformer Engine
                name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")  # noqa: PLW2901
                name = name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")  # noqa: PLW2901
            shard[name] = torch.cat(cut)
            shard["decoder.layers.0.mlp.linear_fc2._extra_state"] = None
    args = arguments(model, "bf16", {"consumed_samples": 40})
    args.tensor_model_parallel_size = ranks
    for rank, shard in enumerate(shards):
        place = folder / f"iter_0000007/mp_rank_{rank:02d}"
        place.mkdir(parents=True)
        torch.save({"model": shard, "args": args, "iteration": 7, "checkpoint_version": 3.0, "optimizer": {}},
                   place / "model_optim_rng.pt")  # fmt: skip
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


def same(found: Path, right: Path) -> bool:
    """Whether two checkpoints of ours have the same bits in their weights."""
    found, right = Checkpoint(found).weights(), Checkpoint(right).weights()
    return found.keys() == right.keys() and all(torch.equal(found[name], right[name]) for name in right)


# --- without Megatron -----------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_qkv_and_gate_are_the_same_there_and_back_at_any_heads_groups_and_tensor_parallelism(
    local_groups, per_group, size, columns, ranks
):
    groups = local_groups * ranks
    query = torch.arange(groups * per_group * size * columns).reshape(-1, columns).float()
    key, value = (-1000.0 * n - torch.arange(groups * size * columns).reshape(-1, columns) for n in (1, 2))
    whole = join_qkv(query, key, value, groups)
    assert whole[per_group * size :][:size].equal(key[:size])  # behind the queries of its group
    assert all(one.equal(right) for one, right in
               zip(split_qkv(whole, groups, size), (query, key, value), strict=True))  # fmt: skip
    cut = [join_qkv(*(one.chunk(ranks)[rank] for one in (query, key, value)), groups=local_groups)
           for rank in range(ranks)]  # fmt: skip
    assert merged("decoder.layers.0.self_attention.linear_qkv.weight", cut).equal(whole)
    gate, up = query[: groups * size], key
    cut = [torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]]) for rank in range(ranks)]
    assert merged("decoder.layers.0.mlp.linear_fc1.weight", cut).equal(torch.cat([gate, up]))


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_it_is_the_same_checkpoint(ours, theirs, hanse, tmp_path, name, capfd):
    assert hanse("checkpoint", f"folder={theirs[name]}", "action=convert", f"output={tmp_path / 'back'}") == 0
    assert same(tmp_path / "back", ours[name])
    back, right = Checkpoint(tmp_path / "back"), Checkpoint(ours[name])
    assert (back.state, back.parents, back.shapes) == (right.state, right.parents, right.shapes)
    assert hanse("checkpoint", f"folder={theirs[name]}", "action=check") == 0
    said = capfd.readouterr().out
    assert "hashes are those of hanse.json, every tensor is whole" in said
    assert "num_layers 4, hidden_size 32" in said
    for value in open_megatron(theirs[name] / "iter_0000012").args.values():
        assert not isinstance(value, Namespace)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_older_format_is_read_from_any_tensor_parallelism(ours, hanse, tmp_path, ranks, capfd):
    folder = classic(tmp_path / "classic", ours["qwen3"], ranks)
    assert hanse("checkpoint", f"folder={folder}") == 0
    assert f"torch, {ranks} tensor-parallel ranks" in capfd.readouterr().out
    assert hanse("checkpoint", f"folder={folder}", "action=convert", f"output={tmp_path / 'back'}") == 0
    assert "left out: the state of the optimizer" in capfd.readouterr().out
    assert same(tmp_path / "back", ours["qwen3"])
    state = Checkpoint(tmp_path / "back").state
    assert (state["step"], state["consumed_samples"], state["consumed_tokens"]) == (7, 40, 40 * 64)
    assert disagreements(state["model"], MODELS["qwen3"].to_dict()) == {}
    check(CheckpointWeights(tmp_path / "back"), MODELS["qwen3"], "of any tokenizer")  # as init_from does


def test_a_hugging_face_folder_becomes_one_of_megatron(ours, hanse, tmp_path):
    model_of(Checkpoint(ours["qwen3"])).save_pretrained(tmp_path / "hub")
    assert hanse("checkpoint", f"folder={tmp_path / 'hub'}", "action=convert", "layout=megatron",
                 f"output={tmp_path / 'theirs'}") == 0  # fmt: skip
    assert hanse("checkpoint", f"folder={tmp_path / 'theirs'}", "action=convert", f"output={tmp_path / 'back'}") == 0
    assert same(tmp_path / "back", ours["qwen3"])


@pytest.mark.slow
def test_a_run_begins_with_it_as_with_the_checkpoint_it_was_made_of(tiny_run, tiny_settings, hanse, tmp_path):
    before = tiny_run / "checkpoints/step-00000012"
    written = f"output={tmp_path / 'theirs'}"
    assert hanse("checkpoint", f"folder={before}", "action=convert", "layout=megatron", written) == 0
    common = tmp_path / "theirs/iter_0000012/common.pt"
    held = torch.load(common, weights_only=False)
    torch.save({key: value for key, value in held.items() if key != "hanse"}, common)  # as if Megatron had trained it
    (tmp_path / "theirs/hanse.json").unlink()
    back = f"output={tmp_path / 'back'}"
    assert hanse("checkpoint", f"folder={tmp_path / 'theirs'}", "action=convert", back) == 0
    settings = [one for one in tiny_settings if not one.startswith(("model.", "tokens="))]
    settings += ["tokens=2048", "model=from_checkpoint"]
    for name, folder in (("a", before), ("b", tmp_path / "back")):
        assert hanse("train", f"run={tmp_path / name}", f"init_from={folder}", *settings) == 0
    assert len(losses(tmp_path / "a")) == 4
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


class Backend(enum.Enum):  # a class of Megatron's, as far as its file tells
    FLASH = "flash"


def test_a_member_of_an_enumeration_is_read_as_any_python_stores_it(ours, hanse, tmp_path, monkeypatch, capfd):
    """Python 3.11.2 stores ``getattr(class, name)``, later ones the class and a value."""
    monkeypatch.setattr(enum.Enum, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
    monkeypatch.setattr(Backend, "__module__", "megatron.core.enums")
    monkeypatch.setitem(sys.modules, "megatron.core.enums", sys.modules[__name__])
    written = tmp_path / "dist"
    assert hanse("checkpoint", f"folder={ours['llama']}", "action=convert", "layout=megatron", f"output={written}") == 0
    assert b"getattr" in (written / "iter_0000012/.metadata").read_bytes()
    older = classic(tmp_path / "classic", ours["llama"], 1)
    file = older / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    held = torch.load(file, weights_only=False)
    held["args"].attention_backend = Backend.FLASH
    torch.save(held, file)
    for folder in (written, older):
        back = tmp_path / f"back-{folder.name}"
        assert hanse("checkpoint", f"folder={folder}", "action=convert", f"output={back}") == 0, capfd.readouterr().err
        assert same(back, ours["llama"])


@pytest.mark.parametrize("path", ["pathlib.PosixPath", "megatron.core.enums.Backend", "builtins.dict",
                                  "torch.distributed.checkpoint.metadata.Metadata"])  # fmt: skip
def test_an_attribute_of_a_class_is_never_called(tmp_path, path):
    """Though ``getattr`` is read: of a listed class it is a stand-in, which cannot be called; of others nothing."""
    module, _, name = path.rpartition(".")
    code = f"cbuiltins\ngetattr\n(c{module}\n{name}\nVtouch\ntR(V{tmp_path / 'ran'}\ntR."
    (tmp_path / ".metadata").write_bytes(code.encode())
    with (tmp_path / ".metadata").open("rb") as file, pytest.raises((HanseError, TypeError)):
        MetadataUnpickler(tmp_path / ".metadata", file).load()
    torch.save({"x": 1}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for entry in good.namelist():
            evil.writestr(entry, code.encode() if entry.endswith("data.pkl") else good.read(entry))
    with pytest.raises(HanseError, match="holds"):
        load_pickled(tmp_path / "evil.pt", MEGATRON)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def complaint(hanse, capfd, folder: Path, *more: str) -> str:
    """What is said of a folder that cannot be converted; nothing may be left behind."""
    output = folder.parent / "out"
    assert hanse("checkpoint", f"folder={folder}", "action=convert", f"output={output}", *more) == 2
    said = capfd.readouterr().err
    assert said.count("\n") < 4
    assert "Traceback" not in said
    assert not output.exists()
    return said


def test_a_file_that_would_run_code_is_refused_and_runs_none(ours, theirs, hanse, tmp_path, capfd):
    evil = Evil(tmp_path / "ran")
    folder = classic(tmp_path / "classic", ours["llama"], 1)
    file = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    held = torch.load(file, weights_only=False)
    torch.save(held | {"evil": evil}, file)
    assert re.search(r"holds pathlib\.(_local\.)?Path, which is never read", complaint(hanse, capfd, folder))
    held["args"].spec = evil  # among what stands in for its classes
    torch.save(held, file)
    assert "unpickling it could run code" in complaint(hanse, capfd, folder)
    file.write_bytes(pickle.dumps(evil))
    assert "not a readable file of torch.save" in complaint(hanse, capfd, folder)
    folder = Path(shutil.copytree(theirs["llama"], tmp_path / "dist"))
    (folder / "hanse.json").unlink()
    place = folder / "iter_0000012"
    (place / ".metadata").write_bytes(pickle.dumps(evil))
    assert ".metadata: holds" in complaint(hanse, capfd, folder)
    shutil.copy(theirs["llama"] / "iter_0000012/.metadata", place)
    torch.save({"iteration": 1, "args": evil}, place / "common.pt")
    assert "common.pt: holds" in complaint(hanse, capfd, folder)
    assert not (tmp_path / "ran").exists()


def test_what_is_truncated_missing_a_link_or_of_another_size_is_named(ours, theirs, hanse, tmp_path, capfd):
    folder = classic(tmp_path / "classic", ours["llama"], 2)
    second = folder / "iter_0000007/mp_rank_01"
    file, kept = second / "model_optim_rng.pt", tmp_path / "kept"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert f"{file}: not a readable file of torch.save" in complaint(hanse, capfd, folder)
    file.rename(kept)
    file.symlink_to(kept)
    assert "not the name of a file in this folder" in complaint(hanse, capfd, folder)
    shutil.rmtree(second)
    assert "mp_rank_01: is missing: it was written by 2 tensor-parallel ranks" in complaint(hanse, capfd, folder)
    folder = Path(shutil.copytree(theirs["llama"], tmp_path / "dist"))
    piece = folder / "iter_0000012/__2_0.distcp"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:5000] + bytes(9) + whole[5009:])
    assert "is damaged: its sha256 is not the one in hanse.json" in complaint(hanse, capfd, folder)
    piece.write_bytes(whole[:5000])
    assert f"{piece}: has 5000 bytes instead of" in complaint(hanse, capfd, folder)
    piece.unlink()
    assert f"{piece}: is missing" in complaint(hanse, capfd, folder)
    (folder / "iter_0000012/.metadata").write_bytes(b"\x80\x04")
    assert ".metadata: not readable; it was truncated" in complaint(hanse, capfd, folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("13")
    assert "iter_0000013: is missing, and latest_checkpointed_iteration.txt" in complaint(hanse, capfd, folder)


def test_another_model_is_refused_in_a_line(ours, hanse, tmp_path, capfd):
    folder = classic(tmp_path / "classic", ours["llama"], 1)
    config = tmp_path / "config"
    right = {key: value for key, value in MODELS["llama"].to_dict().items() if key != "model_type"}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}  # matrices of the same shapes
    for wrong, told in ((heads, "num_attention_heads is 4 there and 8 in config.json"),
                        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-06 there and 1e-05 in"),
                        ({"attention_bias": True}, "this is one with biases"),
                        ({"vocab_size": 101}, "word_embeddings.weight is [100, 32] there and [101, 32]")):  # fmt: skip
        AutoConfig.for_model("llama", **right | wrong).save_pretrained(config)
        assert told in complaint(hanse, capfd, folder, f"model_folder={config}")
    MODELS["llama"].save_pretrained(config)
    right = f"model_folder={config}", f"output={tmp_path / 'right'}"
    assert hanse("checkpoint", f"folder={folder}", "action=convert", *right) == 0
    file = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    held = torch.load(file, weights_only=False)
    for key, value in {"num_experts": 8, "normalization": "LayerNorm", "position_embedding_type": "none"}.items():
        args = Namespace(**vars(held["args"]) | {key: value})
        torch.save(held | {"args": args}, file)
        assert f"this one has {key}={value}" in complaint(hanse, capfd, folder)
    torch.save({key: value for key, value in held.items() if key != "args"}, file)
    assert "model_folder: must be set (model_folder=...)" in complaint(hanse, capfd, folder)
    held["model"]["decoder.layers.0.mlp.linear_fc1.bias"] = torch.zeros(96)
    torch.save(held, file)
    assert "decoder.layers.0.mlp.linear_fc1.bias is [96] there and absent" in complaint(hanse, capfd, folder)
    torch.save(held | {"model": {"language_model": {}}}, file)
    assert "a model from before megatron-core" in complaint(hanse, capfd, folder)


def test_what_megatron_has_no_arguments_for_is_not_written(hanse, tmp_path, capfd):
    for kind, more, told in (("llama", {"attention_bias": True}, "one with biases"),
                             ("mistral", {"sliding_window": 16}, "one with a sliding window"),
                             ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
                             ("olmo2", {"pad_token_id": 0}, "a olmo2")):  # fmt: skip
        values = SMALL if kind != "olmo2" else {k: v for k, v in SMALL.items() if k != "head_dim"}
        source = checkpoint(tmp_path / told.replace(" ", ""), AutoConfig.for_model(kind, **values, **more))
        assert told in complaint(hanse, capfd, source, "layout=megatron")


def test_layout_is_for_checkpoints_of_ours(theirs, hanse, tmp_path, capfd):
    assert "is none of ours, and becomes one; leave it out" in complaint(
        hanse, capfd, theirs["llama"], "layout=megatron")  # fmt: skip
    assert hanse("checkpoint", f"folder={theirs['llama']}", "layout=megatron") == 2
    assert "layout=megatron: is for action=convert" in capfd.readouterr().err


# --- with Megatron --------------------------------------------------------------------------------------------------


def megatron_settings(model) -> dict:
    """Keywords of megatron-core's configuration."""
    return {"num_layers": model.num_hidden_layers, "hidden_size": model.hidden_size,
            "ffn_hidden_size": model.intermediate_size, "num_attention_heads": model.num_attention_heads,
            "num_query_groups": model.num_key_value_heads, "kv_channels": model.head_dim,
            "layernorm_epsilon": model.rms_norm_eps, "qk_layernorm": model.model_type == "qwen3"}  # fmt: skip


def job(name: str, load: Path | None, tensor: int = 1, pipeline: int = 1, **more) -> dict:
    model = MODELS[name]
    args = vars(arguments(model, "fp32", {}))
    rope = model.rope_parameters
    return {"name": f"{name}-{tensor}-{pipeline}{'' if load else '-own'}", "tensor": tensor, "pipeline": pipeline,
            "model": megatron_settings(model), "vocabulary": PADDED, "tied": model.tie_word_embeddings,
            "rope": {"rotary_base": rope["rope_theta"], "rope_scaling": rope["rope_type"] == "llama3"},
            "load": str(load / "iter_0000012") if load else None,
            "args": {key: value for key, value in args.items() if "parallel_size" not in key}, **more}  # fmt: skip


@pytest.fixture(scope="module")
def megatron(theirs, tmp_path_factory) -> tuple[list[dict], Path]:
    """What two ranks of real Megatron made of what we wrote (and of weights of their own)."""
    if importlib.util.find_spec("megatron") is None:
        pytest.skip("megatron-core is not installed (extra interop)")
    folder = tmp_path_factory.mktemp("megatron")
    jobs = [job(name, theirs[name], tensor) for name in MODELS for tensor in (1, 2)]
    jobs += [job("llama", theirs["llama"], 1, 2), job("qwen3", theirs["qwen3"], 1, 2),
             job("scaled", theirs["scaled"], 1, 2, virtual=2),
             job("llama", None, 2), job("qwen3", None, 1, metadata={"singleton_local_shards": True})]  # fmt: skip
    (folder / "request.json").write_text(json.dumps({"ids": IDS.tolist(), "jobs": jobs}))
    program = str(Path(__file__).with_name("megatron_program.py"))
    command = [sys.executable, program, str(folder / "request.json"), str(folder)]
    assert run_ranks(command, 2, 1, folder / "logs") == 0, f"see {folder}/logs"
    return jobs, folder


@torch.no_grad()
def logits(source: Path) -> torch.Tensor:
    """Of ``transformers``, computed as anybody would."""
    model = model_of(Checkpoint(source), attention="eager")
    assert isinstance(model, AutoModelForCausalLM._model_mapping[type(model.config)])
    return model(IDS).logits


@pytest.mark.slow
def test_real_megatron_loads_strictly_and_gives_the_same_logits(megatron, ours):
    jobs, folder = megatron
    compared = [one for one in jobs if one["load"] and one["pipeline"] == 1]
    assert len(compared) == 6
    for one in compared:
        found = torch.load(folder / one["name"] / "logits.pt")[..., :VOCABULARY]
        right = logits(ours[one["name"].split("-")[0]])
        torch.testing.assert_close(found, right, rtol=0, atol=1e-5 * float(right.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dist", "classic"])
def test_what_real_megatron_saves_comes_back_bit_for_bit(megatron, ours, hanse, tmp_path, form):
    jobs, folder = megatron
    for one in (one for one in jobs if one["load"]):
        name = one["name"].split("-")[0]
        MODELS[name].save_pretrained(tmp_path / "config")  # whose vocabulary ends before the rows that fill up
        source, output = folder / one["name"] / form, tmp_path / one["name"]
        for more, rows in (([], PADDED), ([f"model_folder={tmp_path / 'config'}"], VOCABULARY)):
            assert hanse("checkpoint", f"folder={source}", "action=convert", f"output={output}", *more) == 0
            back = Checkpoint(output)
            assert back.shapes["model.embed_tokens.weight"] == (rows, 32)
            assert disagreements(back.state["model"], MODELS[name].to_dict()) == {}
        assert same(output, ours[name]), one["name"]


@pytest.mark.slow
def test_weights_that_megatron_drew_give_the_same_logits_here(megatron, hanse, tmp_path):
    jobs, folder = megatron
    for one in (one for one in jobs if not one["load"]):
        for form in ("dist", "classic"):
            output = tmp_path / one["name"] / form
            output.parent.mkdir(exist_ok=True)
            source = f"folder={folder / one['name'] / form}"
            assert hanse("checkpoint", source, "action=check") == 0
            assert hanse("checkpoint", source, "action=convert", f"output={output}") == 0
            found, right = logits(output), torch.load(folder / one["name"] / "logits.pt")
            torch.testing.assert_close(found, right, rtol=0, atol=1e-5 * float(right.abs().max()))
        assert same(tmp_path / one["name"] / "dist", tmp_path / one["name"] / "classic")


def test_arguments_tell_the_model_they_were_made_of():
    for model in MODELS.values():
        told = settings_of(vars(arguments(model, "bf16", {})))
        assert disagreements(told, model.to_dict()) == {}
        assert joined("output_layer.weight", [torch.ones(2)], model).equal(torch.ones(2))
