"""Averages against the formulas of their papers, written plainly; and what is no average is refused."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.files import sha256_file
from consortium import merging
from consortium.merging import decay_weights
from tests.models import write_model
from train.checkpoint import Checkpoint
from train.run_folder import folder_of

SHAPES = {"embed.weight": (50, 6), "layers.0.norm.weight": (6,), "layers.0.mlp.weight": (6, 11)}


def tensors(seed: int, shapes=SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def models(tmp_path) -> list[Path]:
    """Three sites' weights, and the base they began with as the fourth."""
    return [write_model(tmp_path / f"model-{seed}", tensors(seed), ranks=1 + seed % 3, step=12 + seed)
            for seed in range(4)]  # fmt: skip


@pytest.fixture
def average(hanse, tmp_path, monkeypatch):
    """``average(INPUTS, OVERRIDES ...)``: the resulting weights, put together in pieces of a few elements."""
    monkeypatch.setattr(merging, "PIECE", 64)

    def put_together(inputs: list[Path], *overrides: str, output: str = "averaged") -> dict[str, torch.Tensor]:
        folder = tmp_path / output
        assert hanse("average", f"inputs=[{','.join(map(str, inputs))}]", f"output={folder}", *overrides) == 0
        found = Checkpoint(folder)
        found.verify()
        assert found.weights_only
        return found.weights()

    return put_together


def close(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name].double(), expected[name].double(), rtol=1e-5, atol=1e-6) for name in expected
    )


def test_the_mean_uniform_and_weighted(average, models, tmp_path):
    three = [tensors(seed) for seed in range(3)]
    found = average(models[:3])
    assert close(found, {name: torch.stack([one[name] for one in three]).mean(0) for name in SHAPES})
    found = average(models[:3], "weights=[1,0,3]")
    assert close(found, {name: three[0][name] / 4 + 3 * three[2][name] / 4 for name in SHAPES})
    manifest = json.loads((tmp_path / "averaged/manifest.json").read_text())
    assert manifest["parents"] == [
        {"manifest_sha256": sha256_file(folder / "manifest.json"), "role": "average", "weight": weight}
        for folder, weight in zip(models, [0.25, 0, 0.75], strict=False)
    ]
    assert manifest["method"] == {"name": "average", "decay": None}
    assert json.loads((tmp_path / "averaged/state.json").read_text())["step"] == 14


@pytest.mark.parametrize("decay", ["linear", "1-sqrt", "cosine"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_decay_weights_are_the_steps_of_a_run_whose_rate_decayed(decay, count):
    """Steps of plain gradient descent at rates that fall, against the average of those at a rate that does not."""
    steps = torch.randn(count, 5, dtype=torch.float64)
    at = [torch.zeros(5, dtype=torch.float64), *steps[:-1].cumsum(0)]
    x = torch.arange(1, count, dtype=torch.float64) / count
    rates = {"linear": 1 - x, "1-sqrt": 1 - x.sqrt(), "cosine": (1 + (math.pi * x).cos()) / 2}[decay]
    weights = decay_weights(count, decay)
    assert math.isclose(sum(weights), 1)
    assert min(weights) >= 0
    averaged = sum(weight * model for weight, model in zip(weights, at, strict=True))
    assert torch.allclose(averaged, (rates[:, None] * steps[:-1]).sum(0))


def test_a_linear_decay_gives_equal_weights():
    assert decay_weights(4, "linear") == pytest.approx([0.25] * 4)


def test_decay_over_checkpoints(average, models):
    weights = decay_weights(3, "1-sqrt")
    found = average(models[:3], "decay=1-sqrt")
    assert close(found, {name: sum(weights[i] * tensors(i)[name] for i in range(3)) for name in SHAPES})


def test_the_line_and_the_arc_between_two(average, models):
    one, other = tensors(0), tensors(1)
    found = average(models[:2], "method=linear", "fraction=0.3")
    assert close(found, {name: torch.lerp(one[name], other[name], 0.3) for name in SHAPES})
    found = average(models[:2], "method=slerp", "fraction=0.3")
    for name in SHAPES:
        a, b = one[name].double().flatten(), other[name].double().flatten()
        angle = torch.arccos(torch.nn.functional.cosine_similarity(a, b, dim=0))
        arc = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
        assert torch.allclose(found[name].double().flatten(), arc, atol=1e-6)
    found = average([models[0], models[0]], "method=slerp", "fraction=0.3")
    assert close(found, one)  # no arc between a model and itself


def plain_ties(models, base, weights, density, scale):
    """The algorithm of the paper on whole vectors: trim, elect, merge those that agree."""

    def flat(one):
        return torch.cat([one[name].flatten() for name in SHAPES])

    changes = torch.stack([flat(one) - flat(base) for one in models])
    keep = int(density * changes.shape[1])
    trimmed = torch.zeros_like(changes)
    for row, kept in zip(changes, trimmed, strict=True):
        places = row.abs().topk(keep).indices
        kept[places] = row[places]
    weights = torch.tensor(weights)[:, None]
    elected = (weights * trimmed).sum(0).sign()
    agree = (trimmed.sign() == elected) & (trimmed != 0)
    merged = (weights * trimmed * agree).sum(0) / (weights * agree).sum(0).clamp(min=1e-9)
    return torch.split(flat(base) + scale * merged, [math.prod(shape) for shape in SHAPES.values()])


@pytest.mark.parametrize(
    ("density", "scale", "weights"), [(0.2, 1, [1, 1, 1]), (1, 0.5, [1, 1, 1]), (0.6, 1, [2, 1, 0.5])]
)
def test_ties(average, models, density, scale, weights):
    found = average(models[:3], "method=ties", f"base={models[3]}", f"density={density}", f"scale={scale}",
                    f"weights={weights}")  # fmt: skip
    expected = plain_ties([tensors(seed) for seed in range(3)], tensors(3), weights, density, scale)
    for one, other in zip(found.values(), expected, strict=True):
        assert torch.allclose(one.flatten(), other, atol=1e-6)


def test_outer_steps_are_those_of_sgd_with_nesterov_momentum(average, models, tmp_path):
    """Four rounds through files, the momentum taken up from the round before."""
    parameters = {name: torch.nn.Parameter(one.clone()) for name, one in tensors(3).items()}
    sgd = torch.optim.SGD(parameters.values(), lr=0.5, momentum=0.8, nesterov=True)
    base = models[3]
    for round_ in range(4):
        sites = [tensors(10 * round_ + site) for site in range(2)]
        folders = [write_model(tmp_path / f"site-{round_}-{site}", one) for site, one in enumerate(sites)]
        found = average(folders, "method=diloco", f"base={base}", "weights=[3,1]", "outer_learning_rate=0.5",
                        "outer_momentum=0.8", output=f"round-{round_}")  # fmt: skip
        for name, parameter in parameters.items():
            parameter.grad = parameter.detach() - (0.75 * sites[0][name] + 0.25 * sites[1][name])
        sgd.step()
        assert close(found, {name: one.detach() for name, one in parameters.items()})
        base = tmp_path / f"round-{round_}"
    manifest = json.loads((base / "manifest.json").read_text())
    assert manifest["method"]["outer_steps"] == 4
    assert [one["role"] for one in manifest["parents"]] == ["average", "average", "base"]
    state = json.loads((base / "state.json").read_text())
    assert state["consumed_tokens"] == 6144 * (1 + 4 * 2)  # of the base, and of two sites a round


def test_the_momentum_must_be_the_one_that_the_base_names(average, models, tmp_path, hanse, capfd):
    average(models[:2], "method=diloco", f"base={models[3]}", output="one")
    average(models[1:3], "method=diloco", f"base={models[3]}", output="two")
    again = [f"inputs=[{models[0]}]", "method=diloco", f"base={tmp_path / 'one'}", f"output={tmp_path / 'three'}"]
    assert hanse("average", *again, f"momentum={tmp_path / 'two.momentum'}") == 2
    assert "two.momentum: not the momentum that" in capfd.readouterr().err
    (tmp_path / "one.momentum").rename(tmp_path / "moved")
    assert hanse("average", *again) == 2
    assert hanse("average", *again, f"momentum={tmp_path / 'moved'}") == 0
    file = tmp_path / "moved/momentum/rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    capfd.readouterr()
    assert hanse("average", *again, f"momentum={tmp_path / 'moved'}") == 2
    assert "its sha256 is not the one in manifest.json" in capfd.readouterr().err


def test_a_large_model_is_written_as_several_files(average, models, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "LARGEST_FILE", 300)
    assert close(average(models[:1]), tensors(0))
    assert len(list((tmp_path / "averaged/model").iterdir())) == 2


def test_a_hugging_face_folder_is_an_input_like_any_other(average, models, tmp_path):
    (tmp_path / "hub").mkdir()
    save_file({name: one.bfloat16() for name, one in tensors(1).items()}, tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/config.json").write_text('{"model_type": "llama"}')
    found = average([models[0], tmp_path / "hub"])
    assert close(found, {name: (tensors(0)[name] + tensors(1)[name].bfloat16().float()) / 2 for name in SHAPES})


REFUSED = {
    "another shape": (["{0}", "{narrow}"], [], "narrow: another model than .*embed.weight is .50, 5. there and"),
    "another tokenizer": (["{0}", "{foreign}"], [], "foreign: belongs to another tokenizer"),
    "not finite": (["{0}", "{nan}"], [], "layers.0.norm.weight: the result is not finite"),
    "three for an arc": (["{0}", "{1}", "{2}"], ["method=slerp"], "takes two, here are 3"),
    "weights": (["{0}", "{1}"], ["weights=[1]"], "weights: 1 for 2 inputs"),
    "order": (["{1}", "{0}"], ["decay=linear"], "from old to new; their steps are .13, 12."),
    "no base": (["{0}"], ["method=ties"], "base: the model that all inputs began with"),
    "values": (["{0}"], ["density=2", "weights=[-1]", "decay=steep"], "3 problems|4 problems"),
    "nowhere": (["nowhere"], [], "inputs: nowhere: no folder here"),
    "onto an input": (["{0}", "{1}"], ["output={0}"], "is one of the inputs"),
    "onto a checkpoint": (["{0}", "{1}"], ["output={2}"], "exists and was not written by this verb"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_and_leaves_nothing_behind(hanse, models, tmp_path, capfd, what):
    inputs, overrides, message = REFUSED[what]
    nan = tensors(5)
    nan["layers.0.norm.weight"][2] = math.nan
    places = {str(number): folder for number, folder in enumerate(models)} | {
        "narrow": write_model(tmp_path / "narrow", tensors(5, {**SHAPES, "embed.weight": (50, 5)})),
        "foreign": write_model(tmp_path / "foreign", tensors(5), tokenizer_sha256="x"),
        "nan": write_model(tmp_path / "nan", nan),
    }

    def fill(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: str(places[found[1]]), text)

    before = sorted(tmp_path.rglob("*"))
    code = hanse("average", f"inputs=[{','.join(map(fill, inputs))}]", f"output={tmp_path / 'averaged'}",
                 *map(fill, overrides))  # fmt: skip
    said = capfd.readouterr().err
    assert code == 2
    assert re.search(message, said)
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before


def peak_and_base(work) -> tuple[int, int]:
    """(bytes resident before, most bytes resident during) of this process."""

    def field(name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    before = field("VmRSS")
    work()
    return before, field("VmHWM")


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells a peak of memory")
def test_memory_stays_under_two_tensors(hanse, tmp_path):
    shapes = {"large": (12 << 20,), "other": (6 << 20,)}  # 48 and 24 MB
    folders = [write_model(tmp_path / str(seed), tensors(seed, shapes), ranks=1) for seed in range(2)]
    hanse("average", f"inputs=[{folders[0]}]", f"output={tmp_path / 'first'}")  # everything is imported now

    def work():
        inputs = ",".join(map(str, folders))
        assert hanse("average", f"inputs=[{inputs}]", "method=slerp", f"output={tmp_path / 'out'}") == 0

    before, peak = peak_and_base(work)
    print(f"{(peak - before) / 1e6:.0f} MB above the start")
    assert peak - before < 2 * 4 * math.prod(shapes["large"])


@pytest.mark.slow
def test_every_verb_takes_an_average(hanse, tiny_run, tmp_path, capfd):
    averaged, key = tmp_path / "averaged", tmp_path / "lead.key"
    assert hanse("average", f"inputs=[{tiny_run}]", "last=2", f"output={averaged}") == 0
    one, other = (Checkpoint(folder_of(tiny_run / "checkpoints", step)).weights() for step in (6, 12))
    assert close(Checkpoint(averaged).weights(), {name: (one[name] + other[name]) / 2 for name in one})
    assert hanse("key", f"new={key}") == 0
    assert hanse("seal", f"folder={averaged}", "kind=checkpoint", f"key={key}") == 0
    capfd.readouterr()
    assert hanse("verify", f"run={averaged}") == 0
    assert "1 complete (12)" in capfd.readouterr().out
    assert hanse("export", f"run={averaged}") == 2
    assert "set another output=..." in capfd.readouterr().err
    assert hanse("export", f"run={averaged}", f"output={tmp_path / 'exported'}") == 0
    assert hanse("generate", f"run={averaged}", "prompts=[Die]", "max_new_tokens=2") == 0
    assert hanse("train", f"run={averaged}", "experiment=demo") == 2
    assert "holds a model, not a run" in capfd.readouterr().err
    seal = f"check={averaged}.checkpoint.sig"  # none of them has changed anything in the folder
    assert hanse("seal", f"folder={averaged}", seal, f"trust=[{tmp_path / 'lead.pub'}]") == 0
    assert hanse("lineage", f"folders=[{averaged},{tiny_run},{tmp_path / 'exported'}]") == 0
    assert "export: released tiny, fp32" in capfd.readouterr().out
