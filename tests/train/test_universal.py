"""DeepSpeed's universal checkpoints: what goes there and back is the same, real DeepSpeed goes on from it, and no code
of a stranger's file is run."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from common.errors import HanseError
from common.files import read_json
from launch.local import run_ranks
from tests.train.multirank import losses
from train.checkpoint import Checkpoint
from train.checkpoint_writer import finish, write_share
from train.model import build_model
from train.optimizers import MOMENTS
from train.universal import Universal

MODEL = AutoConfig.for_model("llama", vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
STATE = {"step": 12, "consumed_samples": 96, "consumed_tokens": 6144, "data_merkle_root": "d",
         "tokenizer_sha256": "t", "model": MODEL.to_dict(), "precision": "bf16", "wall_seconds": 1.5, "ranks": 2,
         "zero_stage": 1, "engine": {"skipped_updates": 2}, "skipped_samples": [[8, 16]]}  # fmt: skip
ORIGIN = {"parents": [{"manifest_sha256": "a" * 64, "role": "init"}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint with AdamW's moments, as two ranks write it."""
    folder, files = tmp_path_factory.mktemp("trained"), {}
    torch.manual_seed(5)
    named = {name: one.detach() for name, one in build_model(MODEL, 1).named_parameters()}
    for rank in range(2):
        parts = {"model": {}, "optimizer": {}}
        for name, one in named.items():
            cut = [0, one.numel() // 3, one.numel()]
            start, stop = cut[rank], cut[rank + 1]
            parts["model"][f"{name}[{start}:{stop}]"] = one.reshape(-1)[start:stop].clone()
            for key in MOMENTS:
                parts["optimizer"][f"{name}.{key}[{start}:{stop}]"] = torch.rand(stop - start)
        files |= write_share(parts, folder / "partial", rank)
    finish(folder / "partial", folder / "step-00000012", files, {name: tuple(one.shape) for name, one in named.items()},
           STATE, origin=ORIGIN)  # fmt: skip
    return folder / "step-00000012"


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory, hanse) -> Path:
    folder = tmp_path_factory.mktemp("universal") / "out"
    assert hanse("checkpoint", f"folder={trained}", "action=convert", f"output={folder}") == 0
    return folder


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of a checkpoint of ours."""
    one = Checkpoint(folder)
    out = {}
    for part in ("model", "optimizer"):
        for name, spans in one.slices(part).items():
            out[name] = torch.empty(spans[-1].stop)
            one.read(spans, 0, spans[-1].stop, out[name])
    return out


def test_there_and_back_it_is_the_same_checkpoint(trained, converted, hanse, tmp_path):
    assert hanse("checkpoint", f"folder={converted}", "action=convert", f"output={tmp_path / 'step-00000012'}") == 0
    before, after = everything(trained), everything(tmp_path / "step-00000012")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one = Checkpoint(tmp_path / "step-00000012")
    one.verify()
    assert (one.state, one.parents) == (json.loads(json.dumps(STATE)), ORIGIN["parents"])


def test_every_file_but_none_of_deepspeeds_objects_is_plain(converted):
    for path in converted.rglob("*.pt"):
        torch.load(path, weights_only=True)
    held = torch.load(converted / "step-00000012/zero/model.norm.weight/exp_avg.pt", weights_only=True)
    assert held["param"].shape == (16,)
    assert float(torch.load(converted / "step-00000012/zero/model.norm.weight/step.pt", weights_only=True)) == 10


def test_inspect_and_check_tell_what_is_in_it(trained, converted, hanse, capfd):
    assert hanse("checkpoint", f"folder={trained}") == 0
    said = capfd.readouterr().out
    assert "goes on with sample 96, 1 range gone past" in said
    assert "exp_avg, exp_avg_sq after 10 updates" in said
    assert "2 ranks, ZeRO 1; any other layout reads it" in said
    assert [word for line in said.splitlines() if "mlp.down_proj" in line for word in line.split()][:5] == [
        "model.layers.*.mlp.down_proj.weight", "2", "16", "x", "24"]  # fmt: skip
    assert hanse("checkpoint", f"folder={trained}", "action=check") == 0
    said = capfd.readouterr().out
    assert "sound: 5 hashes are those of the manifest" in said
    weights = everything(trained)["model.norm.weight"]
    line = next(line for line in said.splitlines() if line.startswith("model.norm.weight"))
    assert float(line.split()[1]) == pytest.approx(float(weights.abs().max()), rel=1e-2)
    assert float(line.split()[2]) == pytest.approx(math.sqrt(float(weights.square().mean())), rel=1e-2)
    assert hanse("checkpoint", f"folder={converted}", "action=check") == 0
    assert "hashes are those of hanse.json" in capfd.readouterr().out


def test_check_names_what_lies_in_a_checkpoint_and_is_not_of_it(trained, hanse, tmp_path, capfd):
    stray = shutil.copytree(trained, tmp_path / "step-00000012")
    (stray / "model/weights.pkl").write_bytes(b"")
    (stray / "link").symlink_to("/etc/passwd")
    assert hanse("checkpoint", f"folder={stray}", "action=check") == 0
    said = capfd.readouterr().out
    assert [name in said for name in ("not name link,", "not name model/weights.pkl,", "state.json,")] == [1, 1, 0]


def test_check_finds_a_flipped_bit_and_a_number_that_is_none(trained, copy, hanse, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(trained, run / "checkpoints/step-00000012")
    shutil.copytree(trained, run / "checkpoints/step-00000018.damaged")
    (run / "checkpoints/step-00000024.partial").mkdir()
    assert hanse("checkpoint", f"folder={run}", "action=check") == 0
    said = capfd.readouterr().out
    assert "step-00000018.damaged: set aside" in said
    assert "step-00000024.partial: half written" in said
    path = run / "checkpoints/step-00000012/optimizer/rank-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert hanse("checkpoint", f"folder={run}") == 0  # headers are right
    assert hanse("checkpoint", f"folder={run}", "action=check") == 2
    assert f"{path}: is damaged: its sha256 is not the one in manifest.json" in capfd.readouterr().err
    (copy / "hanse.json").unlink()  # as DeepSpeed writes it: no hashes
    file = copy / "step-00000012/zero/model.norm.weight/exp_avg_sq.pt"
    torch.save({"param": torch.full((16,), -1.0), "cat_dim": 0}, file)
    assert hanse("checkpoint", f"folder={copy}", "action=check") == 2
    assert "a mean of squares, is negative" in capfd.readouterr().err
    torch.save({"param": torch.full((16,), math.nan), "cat_dim": 0}, file)
    assert hanse("checkpoint", f"folder={copy}", "action=check") == 2
    assert "its exp_avg_sq hold 16 numbers that are not finite" in capfd.readouterr().err


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["zero/model.norm.weight/fp32.pt", "mp_rank_00_model_states.pt"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(copy, tmp_path, hanse, capfd, name):
    (copy / "hanse.json").unlink()
    torch.save({"param": torch.zeros(16), "evil": Evil(tmp_path / "ran")}, copy / "step-00000012" / name)
    torch.save(Evil(tmp_path / "ran"), copy / "step-00000012/zero/optimizer_state.pt")  # never opened
    for action in (["action=check"], ["action=convert", f"output={tmp_path / 'out'}"]):
        assert hanse("checkpoint", f"folder={copy}", *action) == 2
        assert "holds builtins.getattr, which is never read" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_missing_a_link_or_of_another_size_is_named(copy, tmp_path, hanse, capfd):
    def complaint() -> str:
        assert hanse("checkpoint", f"folder={copy}", "action=convert", f"output={tmp_path / 'out'}") == 2
        return capfd.readouterr().err

    path = copy / "step-00000012/zero/model.norm.weight/exp_avg.pt"
    right = path.read_bytes()
    path.write_bytes(right[:-9] + bytes(9))
    assert "is damaged: its sha256 is not the one in hanse.json" in complaint()
    (copy / "hanse.json").unlink()
    torch.save({"param": torch.zeros(15), "cat_dim": 0}, path)
    assert "does not hold a tensor of 16 elements" in complaint()
    path.unlink()
    assert f"{path}: is missing" in complaint()
    (tmp_path / "elsewhere").write_bytes(right)
    path.symlink_to(copy / "step-00000012/zero/model.norm.weight/fp32.pt")
    assert f"{path}: is a link" in complaint()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert "exp_avg.pt' is not the name of a file in this folder" in complaint()
    (copy / "latest_universal").write_text("../elsewhere")
    assert "neither a checkpoint of hanse nor a universal one" in complaint()
    with pytest.raises(HanseError, match="no universal checkpoint of DeepSpeed"):
        Universal(copy)


def test_wrong_input_is_told_at_once(trained, converted, tmp_path, hanse, capfd):
    assert hanse("checkpoint", f"folder={tmp_path / 'nowhere'}", "action=look", "shards=x") == 2
    said = capfd.readouterr().err
    for part in ("no such folder", "action=look: one of inspect, check, convert", "shards=x: is for action=convert"):
        assert part in said
    foreign = Path(shutil.copytree(converted, tmp_path / "foreign"))
    (foreign / "hanse.json").unlink()
    for path in foreign.glob("*/*_model_states.pt"):
        values = torch.load(path, weights_only=True)
        del values["hanse"]
        torch.save(values, path)
    assert hanse("checkpoint", f"folder={foreign}", "action=convert", f"output={tmp_path / 'out'}") == 2
    said = capfd.readouterr().err
    for key in ("model_folder", "shards", "sequence_length"):
        assert f"{key}: must be set" in said
    weights = Path(shutil.copytree(trained, tmp_path / "weights"))
    shutil.rmtree(weights / "optimizer")
    manifest = read_json(weights / "manifest.json", "manifest")
    from train.checkpoint import root_of

    manifest["files"] = {name: one for name, one in manifest["files"].items() if not name.startswith("optimizer/")}
    manifest["merkle_root"] = root_of(manifest["tensors"], manifest["files"], ORIGIN)
    (weights / "manifest.json").write_text(json.dumps(manifest))
    assert hanse("checkpoint", f"folder={weights}", "action=convert", f"output={tmp_path / 'out'}") == 2
    assert "'hanse export' writes weights alone" in capfd.readouterr().err


@pytest.mark.slow
def test_deepspeed_and_hanse_go_on_from_each_other_with_the_same_losses(tiny_run, tiny_settings, tmp_path, hanse):
    """fp32, two ranks; DeepSpeed with the plain model and loss, so sums are rounded in another order."""
    ours = tmp_path / "ours"
    assert hanse("checkpoint", f"folder={tiny_run}/checkpoints/step-00000006", "action=convert", f"output={ours}") == 0
    (tmp_path / "request.json").write_text(json.dumps({"overrides": tiny_settings, "ours": str(ours), "start": 6}))
    program = str(Path(__file__).with_name("universal_program.py"))
    command = [sys.executable, program, str(tmp_path / "request.json"), str(tmp_path)]
    assert run_ranks(command, 2, 1, tmp_path / "logs") == 0, f"see {tmp_path}/logs"
    found = {name: {int(step): loss for step, loss in values.items()}
             for name, values in json.loads((tmp_path / "losses.json").read_text()).items()}  # fmt: skip
    quiet = {step: loss for step, loss in losses(tiny_run).items() if step > 6}
    for name, values in found.items():
        assert values == pytest.approx(quiet, rel=1e-5), name
    assert len(found) == 7
    parents = Checkpoint(tmp_path / "run-3/checkpoints/step-00000012").parents
    assert [one["role"] for one in parents] == ["converted"]
