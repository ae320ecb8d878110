"""The graph holds everything once, ties it as the manifests say, and shows what depends on what was revoked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import HanseError
from common.files import merkle_root, sha256_file
from consortium import index
from consortium.ancestry import UNKNOWN, gather
from consortium.keys import fingerprint, load_private, new_key, public_pem
from consortium.lineage import page, placed, tree
from tests.browser import Browser, find_chromium
from tests.models import write_model
from train.checkpoint import Checkpoint

CORPUS, SHARDS = "c" * 64, "d" * 64


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def lock(run: Path, parents=()) -> str:
    value = {"format": "hanse.lock/1", "code": {"commit": None, "sha256": "e" * 64}, "data_merkle_root": SHARDS,
             "determinism": "D1", **({"parents": parents} if parents else {})}  # fmt: skip
    return sha256_file(write(run / "run.lock.json", {**value, "name": run.name}))


def model(folder: Path, seed: int, parents=(), method: str = "") -> str:
    """A model with these parents; its identity."""
    origin = {"parents": list(parents)} if parents else {}
    weights = {"w": torch.full((4, 4), float(seed))}
    write_model(folder, weights, origin={**origin, **({"method": {"name": method}} if method else {})},
                data_merkle_root=SHARDS)  # fmt: skip
    return sha256_file(folder / "manifest.json")


def parent(sha256: str, role: str) -> dict:
    return {"manifest_sha256": sha256, "role": role}


@pytest.fixture
def world(tmp_path) -> SimpleNamespace:
    """A corpus, two sites that begin with the checkpoint of a third run, their average, and its release."""
    write(tmp_path / "data/corpus/manifest.json", {"format": "hanse.corpus/1", "merkle_root": CORPUS, "name": "voyage"})
    write(tmp_path / "data/shards/manifest.json", {
        "format": "hanse.shards/1", "merkle_root": SHARDS, "corpus_merkle_root": CORPUS, "shards": [{"tokens": 1000}],
    })  # fmt: skip
    write(tmp_path / "data/other/manifest.json", {"format": "something else"})
    found = SimpleNamespace(folder=tmp_path, runs={}, models={})
    found.runs["base"] = lock(tmp_path / "runs/base")
    found.models["base"] = model(tmp_path / "runs/base/checkpoints/step-00000012", 0)
    begun = [parent(found.models["base"], "init")]
    for number, site in enumerate(("north", "south"), 1):
        found.runs[site] = lock(tmp_path / f"runs/{site}", begun)
        found.models[site] = model(tmp_path / f"runs/{site}/checkpoints/step-00000012", number, begun)
    found.models["average"] = model(
        tmp_path / "averaged", 9,
        [parent(found.models["north"], "average"), parent(found.models["south"], "average"), *begun[:0]], "average",
    )  # fmt: skip
    write(tmp_path / "released/hanse.json", {
        "format": "hanse.export/1", "run": "voyage", "dtype": "bf16", "step": 12,
        "checkpoint_merkle_root": Checkpoint(tmp_path / "averaged").manifest["merkle_root"],
        "files": {"model.safetensors": {"sha256": "f" * 64}, "README.md": {"sha256": "0" * 64}},
    })  # fmt: skip
    return found


def test_from_the_corpus_to_the_release(world):
    graph = gather([world.folder], None)
    assert [thing.kind for thing in graph.things.values()].count("checkpoint") == 3
    assert [thing.label for thing in graph.roots()] == ["corpus voyage"]
    models, runs = world.models, world.runs
    expected = {
        SHARDS: {CORPUS: "corpus"},
        runs["base"]: {SHARDS: "data"},
        models["base"]: {runs["base"]: "step"},
        runs["north"]: {SHARDS: "data", models["base"]: "init"},
        models["north"]: {runs["north"]: "step"},
        models["average"]: {models["north"]: "average", models["south"]: "average"},
        merkle_root({"model.safetensors": "f" * 64}): {models["average"]: "export"},
    }
    for sha256, parents in expected.items():
        assert graph.things[sha256].parents == parents
    order = list(graph.things)
    assert all(order.index(one) < order.index(thing.sha256) for thing in graph.things.values() for one in thing.parents)


def test_the_tree_draws_everything_once(world):
    lines = list(tree(gather([world.folder], None)))
    whole = [line for line in lines if not line.endswith(("(above)", "(below)"))]
    hashes = [re.search(r"[0-9a-f]{12}", line)[0] for line in whole]
    assert len(hashes) == len(set(hashes)) == 10
    assert lines[0].startswith("corpus voyage")
    assert sum("average: average of 2" in line for line in lines) == 2
    assert sum(line.endswith("(below)") for line in lines) >= 1


def test_what_is_named_but_not_there_is_shown_as_not_found(world):
    graph = gather([world.folder / "averaged", world.folder / "released"], None)
    unknown = [thing for thing in graph.things.values() if thing.kind == UNKNOWN]
    assert {thing.sha256 for thing in unknown} == {world.models["north"], world.models["south"]}


def test_only_what_is_around_one_thing(world):
    graph = gather([world.folder], None).around(world.models["north"][:10])
    assert world.models["south"] not in graph.things
    assert {CORPUS, world.models["base"], world.models["average"]} <= set(graph.things)
    with pytest.raises(HanseError, match="of=abcdef: no hashes of what was found begin so"):
        gather([world.folder], None).around("abcdef")


@pytest.fixture
def registry(world, tmp_path) -> index.Registry:
    """A registry that took base, both sites and the average, and revoked north's."""
    new_key(tmp_path / "lead.key")
    key = load_private(tmp_path / "lead.key")
    own = fingerprint(key.public_key())
    pem = public_pem(key.public_key()).decode()
    policy = {"reviews": 0, "licenses": [], "opt_out_since": "", "worse_bits_per_byte": 0.05, "logit_tolerance": 1e-4}
    made = index.create(tmp_path / "registry", {"name": "hansa", "holder": "Lead", "pem": pem, "policy": policy}, key)
    day = made.register.time[:10]
    made.append("enrol", {"holder": "Lead", "pem": pem, "roles": ["maintainer", "contributor"], "valid_from": day,
                          "valid_until": ""}, key)  # fmt: skip
    places = {"base": "runs/base/checkpoints/step-00000012", "north": "runs/north/checkpoints/step-00000012",
              "south": "runs/south/checkpoints/step-00000012", "average": "averaged"}  # fmt: skip
    for name, place in places.items():
        held = Checkpoint(world.folder / place)
        identity = world.models[name]
        made.append("accept", {
            "name": name, "step": 12, "tokens": 1, "manifest_sha256": identity, "flops": 1, "reviews": {},
            "merkle_root": held.manifest["merkle_root"], "root": "a" * 64, "license": "Apache-2.0",
            "parents": held.parents, "bits_per_byte": {}, "contributor": own,
            "cumulative_flops": made.register.cumulative_flops(1, held.parents),
            "folder": f"models/{name}/step-00000012-{identity[:12]}",
        }, key)  # fmt: skip
    made.append("revoke", {"what": "checkpoint", "sha256": world.models["north"], "reason": "a <b>leak</b>",
                           "since": day}, key)  # fmt: skip
    return made


def test_what_depends_on_what_was_revoked(world, registry):
    graph = gather([world.folder / "data", world.folder / "runs", world.folder / "averaged", world.folder / "released"],
                   registry)  # fmt: skip
    doubt = {thing.label: thing.doubt for thing in graph.things.values()}
    north = world.models["north"][:12]
    assert doubt["north: checkpoint of step 12"] == "revoked: a <b>leak</b>"
    assert doubt["average: average of 2"] == f"comes from {north}: revoked: a <b>leak</b>"
    assert doubt["released voyage, bf16"] == f"comes from {north}: revoked: a <b>leak</b>"
    assert doubt["south: checkpoint of step 12"] is None
    assert doubt["run north"] is None
    assert any("!! revoked: a <b>leak</b>" in line for line in tree(graph))
    alone = gather([], registry)  # the index is enough
    assert alone.things[world.models["average"]].doubt


def test_the_verb_writes_a_page_of_one_file(hanse, world, registry, capfd):
    output = world.folder / "lineage.html"
    (world.folder / "lead.key").unlink()
    assert hanse("lineage", f"folders=[{world.folder}]", f"registry={registry.folder}", f"output={output}") == 0
    said = capfd.readouterr().out
    assert "3 in doubt" in said
    text = output.read_text()
    assert "<b>leak</b>" not in text
    assert "&lt;b&gt;leak" in text
    assert not re.search(r"(src|href)=|<script|url\(", text)
    assert hanse("lineage") == 2
    assert "name at least one place to look in" in capfd.readouterr().err


def test_boxes_do_not_overlap_and_stand_right_of_their_parents(world):
    boxes = {box.thing.sha256: box for box in placed(gather([world.folder], None))}
    assert len({(box.x, box.y) for box in boxes.values()}) == len(boxes)
    assert all(boxes[one].x < box.x for box in boxes.values() for one in box.thing.parents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "hanse.export/1", "files": 3}', "incomplete: not what a hanse.export/1 must say"),
        ('{"format": "hanse.lock/1", "code": []}', "incomplete: not what a hanse.lock/1 must say"),
        ("{", "not readable as JSON"),
        ("{}", "nothing found in"),
    ],
)
def test_papers_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "hanse.json").write_text(text)
    with pytest.raises(HanseError, match=message):
        gather([tmp_path], None)


def test_a_circle_is_refused(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        write(tmp_path / one / "manifest.json", {"format": "hanse.shards/1", "merkle_root": one * 64, "shards": [],
                                                 "corpus_merkle_root": other * 64})  # fmt: skip
    with pytest.raises(HanseError, match="comes from itself"):
        gather([tmp_path], None)


@pytest.mark.slow
def test_a_contribution_brings_its_run_along(waiting):
    graph = gather([waiting], None)
    assert [thing.kind for thing in graph.things.values()] == [UNKNOWN, "run", "checkpoint"]
    run, checkpoint = list(graph.things.values())[1:]
    assert checkpoint.parents == {run.sha256: "step"}
    assert run.sha256 == sha256_file(waiting.parent / "run/run.lock.json")


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_the_page_in_a_browser(world, registry, tmp_path):
    path = tmp_path / "lineage.html"
    path.write_text(page(gather([world.folder], registry)), encoding="utf-8")
    with Browser() as browser:
        browser.open(path, 1400, 800)
        assert browser.run("document.querySelectorAll('svg g').length") == 10
        assert browser.run("document.querySelectorAll('svg g.revoked').length") == 1
        assert browser.run("document.querySelectorAll('svg g.dependent').length") == 2
        too_wide = ("[...document.querySelectorAll('svg text')].filter(one => one.getBBox().width + 12 > "
                    "one.parentNode.querySelector('rect').getBBox().width).length")  # fmt: skip
        assert browser.run(too_wide) == 0
        assert browser.console == []
        assert len(browser.requests) == 1
        browser.picture(tmp_path / "lineage.png")
        wide = browser.run("document.querySelector('svg').width.baseVal.value")
        hint = "getComputedStyle(document.querySelector('.wider')).display"
        for window, shown in ((wide + 65, "none"), (wide + 47, "block"), (700, "block")):
            browser.open(path, int(window), 800)
            assert browser.run(hint) == shown
            hidden = browser.run("document.querySelector('.graph').scrollWidth "
                                 "- document.querySelector('.graph').clientWidth")  # fmt: skip
            assert (hidden > 0) == (shown == "block")
            assert browser.run("document.documentElement.scrollWidth") == int(window)  # the page itself stays
