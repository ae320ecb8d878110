"""Checkpoints: whole or absent, put together from any cut, and never believed when a bit of them is another."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from contextlib import suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from common.errors import HanseError
from common.files import sha256_file
from tests.disk import small_disk
from train import checkpoint
from train.checkpoint import Checkpoint, Damaged
from train.checkpoint_writer import Writer, Written, finish, write_share
from train.config import CheckpointConfig
from train.optimizers import MOMENTS
from train.ranks import Place
from train.retention import best_steps, prune, sweep
from train.run_folder import complete_steps, folder_of
from train.shares import Fragment

STATE = {
    "step": 12, "consumed_samples": 96, "data_merkle_root": "d", "tokenizer_sha256": "t", "model": {"layers": 2},
    "precision": "fp32", "wall_seconds": 1.5,
}  # fmt: skip
SHAPES = {"embed.weight": (5, 3), "layers.0.norm.weight": (3,), "layers.0.mlp.weight": (3, 4)}

Cuts = dict[str, list[tuple[int, int, int]]]  # {tensor: [(start, stop, rank)]}


def values_of(shapes) -> dict[str, dict[str, torch.Tensor]]:
    """{name: {"master" and each moment: numbers that occur nowhere else}}."""
    at, out = 0, {}
    for name, shape in shapes.items():
        out[name] = {}
        for key in ("master", *MOMENTS):
            size = math.prod(shape)
            out[name][key], at = torch.arange(at, at + size, dtype=torch.float32), at + size
    return out


def fragments(values, cuts: Cuts, rank: int) -> list[Fragment]:
    """What a rank owns under a cut: copies, so that writing into them changes nothing else."""
    return [
        Fragment(name, start, stop, 0, 0, *_parts(values[name], start, stop))
        for name, spans in cuts.items() for start, stop, owner in spans if owner == rank
    ]  # fmt: skip


def _parts(values, start, stop):
    return values["master"][start:stop].clone(), {key: values[key][start:stop].clone() for key in MOMENTS}


def write(checkpoints: Path, shapes, cuts: Cuts, step: int = 12) -> Path:
    """A checkpoint as its ranks write it, one after the other instead of at once."""
    final = folder_of(checkpoints, step)
    partial = final.with_name(final.name + ".partial")
    files = {}
    for rank in range(1 + max(owner for spans in cuts.values() for *_, owner in spans)):
        parts = {"model": {}, "optimizer": {}}
        for fragment in fragments(values_of(shapes), cuts, rank):
            for part, ending, values in fragment.tensors():
                parts[part][f"{fragment.name}{ending}[{fragment.start}:{fragment.stop}]"] = values
        files |= write_share(parts, partial, rank)
    finish(partial, final, files, shapes, {**STATE, "step": step})
    return final


def save(share, checkpoints: Path, state, place: Place) -> Written:
    """Begin and wait."""
    writer = Writer(checkpoints, place, CheckpointConfig(every_steps=6, keep_last=9))
    writer.begin(share, state)
    return writer.wait()


def whole(shapes, rank: int = 0) -> Cuts:
    return {name: [(0, math.prod(shape), rank)] for name, shape in shapes.items()}


HALVES: Cuts = {name: [(0, size := math.prod(shape) // 2, 0), (size, math.prod(shape), 1)]
                for name, shape in SHAPES.items()}  # fmt: skip


class Share:
    """Of an engine, what reading and writing a checkpoint needs: one rank's fragments under some cut."""

    kind, swapped = "adamw", False

    def __init__(self, values, cuts: Cuts, rank: int, shapes=None):
        self.owned, self.shapes, self.step = fragments(values, cuts, rank), shapes, 0

    def fragments(self, *, changed=False):
        return iter(self.owned)

    def set_state(self, step, state):
        self.step = step


# --- any layout -----------------------------------------------------------------------------------------------------


@st.composite
def cuts_of(draw, shapes) -> Cuts:
    """Any cut of any tensor, each piece with any rank."""
    ranks, out = draw(st.integers(1, 5)), {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        edges = [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=4)) if size > 1 else ()), size]
        pieces = [(*pair, draw(st.integers(0, ranks - 1))) for pair in pairwise(edges)]
        out[name] = draw(st.permutations(pieces))
    return out


names = st.text("ab.[]:0", min_size=1, max_size=6)
shapes = st.dictionaries(names, st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


@given(st.data(), shapes)
@settings(max_examples=60)
def test_what_any_ranks_wrote_any_other_ranks_read(data, shapes):
    before, after = data.draw(cuts_of(shapes)), data.draw(cuts_of(shapes))
    values = values_of(shapes)
    with tempfile.TemporaryDirectory() as folder:
        found = Checkpoint(write(Path(folder), shapes, before))
        found.verify()
        found.check_model(shapes)
        for name, tensor in found.weights().items():
            assert torch.equal(tensor, values[name]["master"].view(shapes[name]))
        nothing = {
            name: {key: torch.full_like(value, -1) for key, value in held.items()} for name, held in values.items()
        }
        for rank in range(5):
            share = Share(nothing, after, rank)
            found.restore(share)
            assert share.step == STATE["step"]
            for got, right in zip(share.owned, fragments(values, after, rank), strict=True):
                assert torch.equal(got.master, right.master)
                assert all(torch.equal(got.moments[key], right.moments[key]) for key in MOMENTS)


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Place(0, 1)
    dist.destroy_process_group()


def test_saving_leaves_one_folder_with_the_files_its_manifest_lists(one_rank, tmp_path):
    written = save(Share(values_of(SHAPES), whole(SHAPES), 0, SHAPES), tmp_path, STATE, one_rank)
    folder = written.folder
    assert written.step == STATE["step"]
    assert written.bytes == sum(path.stat().st_size for path in folder.glob("*/*"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name] == ["step-00000012"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert files - {"manifest.json"} == manifest["files"].keys()
    assert {(folder / name).stat().st_mode & 0o777 for name in files} == {
        (folder / "state.json").stat().st_mode & 0o777
    }
    assert json.loads((folder / "state.json").read_text()) == STATE


def test_the_root_is_the_one_that_the_format_page_describes(tmp_path):
    manifest = json.loads((write(tmp_path, SHAPES, HALVES) / "manifest.json").read_text())
    said = json.dumps({key: manifest[key] for key in ("files", "tensors")}, sort_keys=True, ensure_ascii=False)
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    hashes["manifest.json"] = sha256(said.encode()).hexdigest()
    leaves = [sha256(f"\0{name}\0{hashes[name]}".encode()).digest() for name in sorted(hashes)]

    def node(left: bytes, right: bytes) -> bytes:
        return sha256(b"\1" + left + right).digest()

    assert len(leaves) == 6  # four and two
    four = node(node(*leaves[:2]), node(*leaves[2:4]))
    assert manifest["merkle_root"] == node(four, node(*leaves[4:])).hex()


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("intact"), SHAPES, HALVES)


@pytest.fixture
def folder(intact, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(intact, tmp_path / intact.name))


def open_all(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that is checked before a run goes on."""
    found = Checkpoint(folder)
    found.verify()
    found.check_model(SHAPES)
    found.restore(Share(values_of(SHAPES), whole(SHAPES), 0))
    return found.weights()


def refusal(folder: Path) -> str:
    with pytest.raises(HanseError) as caught:
        open_all(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FILES = ["manifest.json", "state.json", "model/rank-00000.safetensors", "model/rank-00001.safetensors",
         "optimizer/rank-00000.safetensors", "optimizer/rank-00001.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_noticed_and_its_file_is_named(folder, name):
    open_all(folder)
    path = folder / name
    intact = path.read_bytes()

    @given(st.integers(0, len(intact) - 1), st.integers(0, 7))
    @settings(max_examples=150)
    def flip(at, bit):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1 << bit]) + intact[at + 1 :])
        assert str(path) in refusal(folder)

    flip()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_cut_or_a_link_is_named(folder, name):
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    assert str(path) in refusal(folder)
    path.write_bytes(data[: len(data) // 2])
    assert str(path) in refusal(folder)
    path.unlink()
    (folder / "elsewhere").write_bytes(data)
    path.symlink_to(folder / "elsewhere")
    assert f"{path}: is a link" in refusal(folder)
    path.unlink()
    path.symlink_to((folder / "elsewhere").rename(folder.parent / "elsewhere"))
    assert name in refusal(folder)


def test_a_damaged_checkpoint_says_how_to_go_on_without_it(folder):
    (folder / "model/rank-00001.safetensors").unlink()
    assert refusal(folder) == (f"{folder / 'model/rank-00001.safetensors'}: is missing; delete {folder} to go on from "
                               "the checkpoint before it")  # fmt: skip


def test_every_rank_verifies_its_share_and_together_all_files(folder):
    for name in FILES[2:]:
        path = folder / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        for ranks in (1, 2, 3, 7):
            opened, caught = Checkpoint(folder), 0
            for rank in range(ranks):
                try:
                    opened.verify(rank, ranks)
                except HanseError:
                    caught += 1
            assert caught == 1
        path.write_bytes(intact)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({**SHAPES, "embed.weight": (5, 4)}, "embed.weight is [5, 3] there and [5, 4] in this configuration"),
        ({**SHAPES, "layers.1.norm.weight": (3,)}, "layers.1.norm.weight is absent there and [3] in this"),
        ({"embed.weight": (5, 3)}, "layers.0.norm.weight is [3] there and absent in this configuration"),
    ],
)
def test_a_checkpoint_of_another_model_names_the_first_tensor_that_differs(folder, model, message):
    with pytest.raises(HanseError, match="a checkpoint of another model") as caught:
        Checkpoint(folder).check_model(model)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


# --- hostile: all hashes right, by somebody who wants something else -------------------------------------------------


def forge(folder: Path, change) -> None:
    """Change the manifest or the files it lists, and set every size and hash to what is then right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    for name, entry in manifest["files"].items():
        path = folder / name
        if isinstance(entry, dict) and path.is_file():
            entry |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest["merkle_root"] = checkpoint.root_of(manifest["tensors"], manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "model/../../precious", "model//x", ".", "", "a\\b"])
def test_names_that_lead_out_of_the_folder_are_refused(folder, name):
    (folder.parent / "precious").write_text("precious")
    forge(folder, lambda manifest: manifest["files"].update({name: {"bytes": 8, "sha256": "0" * 64}}))
    assert f"{name!r} is not the name of a file in this folder" in refusal(folder)


def test_a_folder_that_is_a_link_out_of_the_checkpoint_is_refused(folder):
    (folder / "model").rename(folder.parent / "elsewhere")
    (folder / "model").symlink_to(folder.parent / "elsewhere")
    assert "is not the name of a file in this folder" in refusal(folder)


NORM = "layers.0.norm.weight"


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        (f"{NORM}[1:4]", torch.zeros(3), f"does not hold every element of {NORM} once"),  # a gap, and beyond the end
        (f"{NORM}[0:3]", torch.zeros(3), f"does not hold every element of {NORM} once"),  # twice, with the other rank
        (f"{NORM}[1:2]", torch.zeros(1), f"does not hold every element of {NORM} once"),
        (f"{NORM}[1:3]", torch.zeros(1), "no NAME[START:STOP] in fp32"),
        (f"{NORM}[1:3]", torch.zeros(2, 1), "no NAME[START:STOP] in fp32"),
        (f"{NORM}[1:3]", torch.zeros(2, dtype=torch.bfloat16), "no NAME[START:STOP] in fp32"),
        (f"{NORM}[3:1]", torch.zeros(2), "no NAME[START:STOP] in fp32"),
        (f"{NORM}[1:{'9' * 5000}]", torch.zeros(2), "no NAME[START:STOP] in fp32"),
        (NORM, torch.zeros(2), "no NAME[START:STOP] in fp32"),
        ("head.weight[0:2]", torch.zeros(2), "the manifest knows no such tensor"),
    ],
)
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_ranges_that_do_not_make_up_the_tensors_are_refused(folder, part, key, tensor, message):
    path = folder / f"{part}/rank-00001.safetensors"
    ending = "" if part == "model" else ".exp_avg"
    held = load_file(path)
    held[key.replace("weight", "weight" + ending)] = tensor
    if key != f"{NORM}[1:3]":
        del held[f"{NORM}{ending}[1:3]"]
    save_file(held, path)
    forge(folder, lambda manifest: None)
    assert message.replace(NORM, NORM + ending) in refusal(folder)


def test_a_file_that_is_no_safetensors_file_is_refused(folder):
    (folder / FILES[2]).write_bytes(b"\x80\x04cos\nsystem\n")  # as a pickle begins
    forge(folder, lambda manifest: None)
    assert f"{folder / FILES[2]}: is not a safetensors file" in refusal(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5,
)  # fmt: skip


@given(st.data(), json_values)
@settings(max_examples=80)
def test_any_json_in_the_place_of_any_entry_is_refused_in_one_line(intact, data, value):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(intact, Path(place) / intact.name))
        path = folder / data.draw(st.sampled_from(["manifest.json", "state.json"]))
        document = {"all": json.loads(path.read_text())}
        inner, key = document, "all"
        while isinstance(inner[key], dict) and inner[key] and data.draw(st.booleans()):
            inner, key = inner[key], data.draw(st.sampled_from(sorted(inner[key])))
        right, inner[key] = inner[key], value
        path.write_text(json.dumps(document["all"]))
        if path.name == "state.json":
            forge(folder, lambda manifest: None)
            with suppress(HanseError):  # nothing else may come out; what it says then may be right by chance
                open_all(folder)
        elif value != right:
            assert str(folder) in refusal(folder)


@pytest.mark.parametrize("key", checkpoint.NEEDED)
def test_a_state_without_what_a_run_goes_on_from_is_refused(folder, key):
    for wrong in ({key: None}, {key: [1]}):
        (folder / "state.json").write_text(json.dumps({**STATE, **wrong}))
        forge(folder, lambda manifest: None)
        assert f"{folder / 'state.json'}: is incomplete" in refusal(folder)


# --- complete or absent ---------------------------------------------------------------------------------------------


def test_only_a_folder_with_the_final_name_and_a_manifest_is_complete(intact, tmp_path):
    assert complete_steps(tmp_path / "none") == []
    for name in ("step-00000006", "step-00000012.partial", "step-12", "step-0000001x", "step-000000012", "best"):
        shutil.copytree(intact, tmp_path / name)
    (tmp_path / "step-00000018/model").mkdir(parents=True)  # all but the manifest, which is written last
    (tmp_path / "step-00000024").touch()
    assert complete_steps(tmp_path) == [6]


@given(
    st.sets(st.integers(1, 60), max_size=12),
    st.integers(1, 5),
    st.integers(0, 9),
    st.sets(st.integers(61, 70), max_size=3),
)
@settings(max_examples=80)
def test_retention_keeps_the_last_ones_and_every_so_manieth(steps, keep_last, every, unfinished):
    with tempfile.TemporaryDirectory() as place:
        checkpoints = Path(place)
        for step in steps:
            folder_of(checkpoints, step).mkdir()
            (folder_of(checkpoints, step) / "manifest.json").touch()
        for step in unfinished:
            folder_of(checkpoints, step).mkdir()
        policy = CheckpointConfig(keep_last=keep_last, keep_every_steps=every)
        deleted, _ = prune(checkpoints, policy)
        kept = complete_steps(checkpoints)
        assert deleted == sorted(steps - set(kept))
        assert kept[-keep_last:] == sorted(steps)[-keep_last:]
        assert set(kept) >= {step for step in steps if every and step % every == 0}
        assert all(step in sorted(steps)[-keep_last:] or (every and step % every == 0) for step in kept)
        assert len(list(checkpoints.iterdir())) == len(kept) + len(unfinished)
        assert prune(checkpoints, policy) == ([], {})


def test_what_cannot_be_deleted_is_told_once_tried_again_and_ends_nothing(one_rank, tmp_path):
    share = Share(values_of(SHAPES), whole(SHAPES), 0, SHAPES)
    writer = Writer(tmp_path, one_rank, CheckpointConfig(every_steps=6, keep_last=1))

    def saved(step):
        writer.begin(share, {**STATE, "step": step})
        return {Path(path).name: why for path, why in writer.wait().not_deleted.items()}

    assert saved(6) == {}
    obstacle = tmp_path / "step-00000006.deleted.partial"
    with small_disk(obstacle):  # which neither goes nor lets another take its name
        told = saved(12)
        assert told.keys() == {"step-00000006.deleted.partial", "step-00000006"}
        assert all("busy" in why for why in told.values())
        assert saved(18) == {}  # known
        assert complete_steps(tmp_path) == [6, 18]
        assert sweep(tmp_path).keys() == {str(obstacle)}  # of a start that comes now
    assert saved(24) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000024"]


def test_wherever_the_disk_gets_full_the_checkpoint_is_absent_and_the_one_before_is_whole(one_rank, tmp_path):
    shapes = {"embed.weight": (2000,), "norm.weight": (7,)}  # 8 kB, and twice that of moments
    share = Share(values_of(shapes), whole(shapes), 0, shapes)
    disk = tmp_path / "disk"
    with small_disk(disk) as set_size:
        save(share, disk, {**STATE, "step": 6}, one_rank)
        used = (shutil.disk_usage(disk).used + 1023) // 1024
        stages = set()
        for size in range(used, 3 * used, 4):
            set_size(size)
            told = ""
            try:
                save(share, disk, STATE, one_rank)
            except HanseError as error:
                told = str(error)
            if not told:
                break
            assert re.fullmatch("[^\n]*No space left on device[^\n]*", told)
            stages.add(Path(told.partition(": ")[0]).name)
            assert [path.name for path in disk.iterdir()] == ["step-00000006"]
            Checkpoint(folder_of(disk, 6)).verify()
        assert complete_steps(disk) == [6, 12]
        Checkpoint(folder_of(disk, 12)).verify()
        assert stages >= {"rank-00000.safetensors", "state.json", "manifest.json"}


# --- beside the training --------------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_there_when_it_began_whatever_the_training_does_meanwhile(one_rank, tmp_path):
    share = Share(values_of(SHAPES), whole(SHAPES), 0, SHAPES)
    right = {fragment.name: fragment.master.clone() for fragment in share.owned}
    writer = Writer(tmp_path, one_rank, CheckpointConfig(every_steps=6))
    for step in (6, 12):  # the second one re-uses the buffers of the first
        writer.begin(share, {**STATE, "step": step})
        assert writer.busy
        for fragment in share.owned:
            fragment.master.add_(1)
        written = writer.wait()
        assert not writer.busy
        assert writer.done_here()
        assert writer.advance() is None
        found = Checkpoint(written.folder)
        found.verify()
        for name, tensor in found.weights().items():
            assert torch.equal(tensor.view(-1), right[name])
        right = {fragment.name: fragment.master.clone() for fragment in share.owned}


def test_the_best_checkpoints_are_kept_by_their_mean_validation_loss(tmp_path):
    scores = {6: (3.0, 3.0), 12: (1.0, 2.0), 18: (2.0, 1.5), 24: None, 30: (2.5, 2.5), 36: None}
    for step, score in scores.items():
        folder = write(tmp_path, SHAPES, whole(SHAPES), step)
        state = json.loads((folder / "state.json").read_text())
        state |= {"bits_per_byte": {"fr": score[0], "de": score[1]}} if score else {}
        (folder / "state.json").write_text(json.dumps(state))
    assert best_steps(tmp_path) == [12, 18, 30, 6]
    assert prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=2)) == ([6, 24, 30], {})
    assert complete_steps(tmp_path) == [12, 18, 36]


def test_a_checkpoint_of_a_later_format_is_refused_but_not_called_damaged(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": "hanse.checkpoint/9"}))
    with pytest.raises(
        HanseError, match=r"of format hanse.checkpoint/9, this hanse reads hanse.checkpoint/1"
    ) as caught:
        Checkpoint(folder)
    assert not isinstance(caught.value, Damaged)


# --- other optimizers, and the average ------------------------------------------------------------------------------

MUON = {"kind": "muon", "moments": {"exp_avg": list(SHAPES), "exp_avg_sq": [NORM]}}


def with_moments(checkpoints: Path, declared, averaged: bool) -> Path:
    """A checkpoint of two ranks that keeps what is declared."""
    values, final = values_of(SHAPES), folder_of(checkpoints, 12)
    partial, files = final.with_name(final.name + ".partial"), {}
    for rank in range(2):
        parts = {}
        for one in fragments(values, HALVES, rank):
            moments = {key: one.moments[key] for key in MUON["moments"] if one.name in MUON["moments"][key]}
            part = Fragment(one.name, one.start, one.stop, 0, 0, one.master, moments, -one.master if averaged else None)
            for name, ending, tensor in part.tensors():
                parts.setdefault(name, {})[f"{one.name}{ending}[{one.start}:{one.stop}]"] = tensor
        files |= write_share(parts, partial, rank)
    finish(partial, final, files, SHAPES, {**STATE, "engine": {"optimizer": declared}})
    return final


def test_a_checkpoint_holds_what_its_optimizer_is_said_to_keep_and_the_average(tmp_path):
    found = Checkpoint(with_moments(tmp_path, MUON, averaged=True))
    assert found.kind == "muon"
    assert set(found.slices("optimizer")) == {*(f"{name}.exp_avg" for name in SHAPES), f"{NORM}.exp_avg_sq"}
    for name, tensor in found.weights("ema").items():
        assert torch.equal(tensor, -found.weights()[name])
    with pytest.raises(HanseError, match=r"optimizer\.kind=muon, this configuration says adamw"):
        found.restore(Share(values_of(SHAPES), whole(SHAPES), 0))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({**MUON, "moments": {"exp_avg": list(SHAPES)}}, "the manifest knows no such tensor"),
        ({**MUON, "moments": {"exp_avg": list(SHAPES), "exp_avg_sq": list(SHAPES)}}, "does not hold every element"),
        ({**MUON, "moments": {"exp_avg": ["elsewhere"]}}, "does not tell what its optimizer keeps"),
        ({**MUON, "moments": {"nothing": []}}, "does not tell what its optimizer keeps"),
        ({"kind": "muon"}, "does not tell what its optimizer keeps"),
        ([1], "does not tell what its optimizer keeps"),
    ],
)
def test_moments_that_are_not_those_declared_are_refused(tmp_path, declared, message):
    with pytest.raises(HanseError, match=message):
        Checkpoint(with_moments(tmp_path, declared, averaged=False)).slices("optimizer")


def test_asked_for_an_average_that_is_not_there_it_says_how_to_keep_one(folder):
    with pytest.raises(HanseError, match=r"holds no average of the weights; .*ema.decay"):
        Checkpoint(folder).weights("ema")
