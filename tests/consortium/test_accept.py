"""Nothing gets into a registry but what was checked, sealed by a contributor, and sealed again by enough reviewers."""

import json
import shutil

import pytest

from consortium.accept import examined
from consortium.config import AcceptConfig
from consortium.index import Registry


def accept(hanse, registry, contribution, *more):
    return hanse("accept", f"registry={registry}", f"contribution={contribution}", *more)


def outcomes(registry, contribution, **settings):
    """{check: (outcome, what was found)}"""
    config = AcceptConfig(registry=str(registry), contribution=str(contribution), **settings)
    with examined(Registry(registry), config) as (_, rows):
        return {name: (outcome, found) for name, outcome, found in rows}


def test_two_reviewers_make_the_index_grow(hanse, registry, contribution, people, tiny_data, capfd):
    root = f"root={people.public('lead')}"
    assert accept(hanse, registry, contribution, root) == 0  # anybody may check; nothing is written
    assert len(Registry(registry).heads) == 4
    assert accept(hanse, registry, contribution, f"key={people.file('bob')}", f"data={tiny_data / 'shards'}") == 0
    said = capfd.readouterr().out
    assert "begun with the key that you named" in said
    assert "bits per byte, measured here" in said
    assert "12 of 12 steps drawn again" in said
    assert "1 of 2 reviews (Bob): not in the registry yet" in said
    assert not Registry(registry).register.models
    assert accept(hanse, registry, contribution, f"key={people.file('bob')}") == 0  # twice the same counts once
    assert not Registry(registry).register.models
    assert accept(hanse, registry, contribution, f"key={people.file('carol')}") == 0
    (model,) = Registry(registry).register.models.values()
    assert model.reviews.keys() == {people.prints["bob"], people.prints["carol"]}
    assert (registry / model.folder / "checkpoint/manifest.json").stat().st_mode & 0o777 == 0o644
    assert hanse("registry", f"registry={registry}", "files=true", root) == 0
    assert "every file of 1 model is what was accepted" in capfd.readouterr().out
    assert accept(hanse, registry, contribution, f"key={people.file('carol')}") == 2
    assert "accepted before" in capfd.readouterr().out
    assert not list((registry / "quarantine").iterdir())


@pytest.mark.slow
def test_a_file_changed_after_acceptance_is_found(hanse, registry, contribution, people, capfd):
    for name in ("bob", "carol"):
        assert accept(hanse, registry, contribution, f"key={people.file(name)}") == 0
    (model,) = Registry(registry).register.models.values()
    with (registry / model.folder / "checkpoint/model/rank-00000.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    assert hanse("registry", f"registry={registry}", "files=true") == 2
    assert "rank-00000.safetensors was changed" in capfd.readouterr().err
    shutil.rmtree(registry / model.folder)
    assert hanse("registry", f"registry={registry}", "files=true") == 2
    assert "not here" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "reason"), [("alice", "takes a reviewer or maintainer"), ("eve", "is not enrolled")])
def test_who_may_not_review_is_told_so(hanse, registry, contribution, people, capfd, name, reason):
    assert accept(hanse, registry, contribution, f"key={people.file(name)}") == 2
    assert reason in capfd.readouterr().err


def test_a_maintainer_alone_is_no_reviewer_and_a_contributor_never_reviews_itself(
    hanse, registry, contribution, people, capfd
):
    assert accept(hanse, registry, contribution, f"key={people.file('lead')}") == 0
    assert "Lead reviews nothing here: is enrolled as maintainer" in capfd.readouterr().out
    verb = ["registry", f"registry={registry}", f"key={people.file('lead')}"]
    assert hanse(*verb, f"enrol={people.public('eve')}", "holder=Alice", "roles=[reviewer]") == 0  # her second key
    assert accept(hanse, registry, contribution, f"key={people.file('eve')}") == 0
    assert "Alice reviews nothing here: contributed it" in capfd.readouterr().out
    assert not Registry(registry).register.models


@pytest.mark.slow
def test_a_review_of_another_contribution_registry_or_verdict_does_not_count(
    hanse, registry, contribution, people, begun, tmp_path, capfd
):
    from consortium.contribution import review_path
    from consortium.seal import hash_files, make

    assert accept(hanse, registry, contribution, f"key={people.file('bob')}") == 0
    opened = Registry(registry)
    (folder,) = (registry / "reviews").iterdir()
    files = hash_files(contribution, but=contribution / "contribution.sig")
    good = {"verdict": "accept", "manifest_sha256": folder.name, "registry": opened.heads[0], "head": "", "checks": []}
    path = review_path(opened, folder.name, people.prints["carol"])
    wrong = [{**good, "verdict": "reject"}, {**good, "manifest_sha256": "0" * 64}, {**good, "registry": "0" * 64}]
    seals = [make(contribution, people.keys["carol"], "review", facts, files=files) for facts in wrong]
    seals += [make(contribution, people.keys["carol"], "review", good),  # over other files: the seal among them
              make(contribution, people.keys["carol"], "evaluation", good, files=files),
              make(contribution, people.keys["eve"], "review", good, files=files), b"{}"]  # fmt: skip
    for seal in seals:
        path.write_bytes(seal)
        assert accept(hanse, registry, contribution, f"key={people.file('lead')}") == 0
        assert "not counted" in capfd.readouterr().out
        assert not Registry(registry).register.models
    path.write_bytes(make(contribution, people.keys["carol"], "review", good, files=files))
    assert accept(hanse, registry, contribution, f"key={people.file('lead')}") == 0
    assert len(Registry(registry).register.models) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quarantine", "reviews", "models"])
def test_a_link_planted_in_the_registry_is_not_followed(hanse, registry, contribution, people, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (registry / name).symlink_to(tmp_path / "outside")
    codes = {accept(hanse, registry, contribution, f"key={people.file(who)}") for who in ("bob", "carol")}
    assert 2 in codes
    assert not list((tmp_path / "outside").iterdir())
    assert not Registry(registry).register.models


def test_the_table_is_written_and_says_what_could_not_be_checked(hanse, registry, contribution, tmp_path):
    assert accept(hanse, registry, contribution, f"output={tmp_path / 'table.json'}") == 0
    told = json.loads((tmp_path / "table.json").read_text())
    rows = {row["check"]: row["outcome"] for row in told["checks"]}
    assert rows["golden logits"] == rows["licence"] == rows["opt-out"] == rows["compute"] == "checked"
    assert {name for name, outcome in rows.items() if outcome == "not checked"} == {
        "registry", "energy", "a third", "bits per byte", "batches", "replay"}  # fmt: skip


def test_what_is_refused_is_named_where_its_owner_has_it(hanse, registry, contribution, tmp_path, capfd):
    changed = shutil.copytree(contribution, tmp_path / "changed")
    (changed / "evaluation.json").write_text("{}")
    assert accept(hanse, registry, changed) == 2
    said = capfd.readouterr().out
    assert f"{changed}: not what was sealed: evaluation.json was changed" in said
    assert "quarantine" not in said


POLICIES = {
    "policy.licenses=[MIT]": ("licence", "this registry takes MIT"),
    "policy.opt_out_since=2026-07-01": ("opt-out", "asks for 2026-07-01 or later"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_policy_does_not_let_in_is_refused(hanse, registry, contribution, people, policy, capfd):
    assert hanse("registry", f"registry={registry}", f"key={people.file('lead')}", "change_policy=true", policy) == 0
    check, reason = POLICIES[policy]
    found = outcomes(registry, contribution)
    assert found[check][0] == "refused"
    assert reason in found[check][1]
    assert accept(hanse, registry, contribution, f"key={people.file('bob')}") == 2
    assert not (registry / "reviews").exists()


@pytest.fixture
def parent(hanse, registry, contribution, people):
    """The identity of Alice's model, accepted."""
    for name in ("bob", "carol"):
        assert accept(hanse, registry, contribution, f"key={people.file(name)}") == 0
    (identity,) = Registry(registry).register.models
    return identity


def child_of(hanse, registry, people, run, *more):
    output = run.parent / "contribution"
    code = hanse("contribute", f"registry={registry}", "name=child", f"run={run}", f"key={people.file('alice')}",
                 "tokens_per_language=512", f"output={output}", *more)  # fmt: skip
    assert code == 0
    return output


@pytest.mark.slow
def test_a_child_is_held_against_its_parent(hanse, registry, people, parent, run_of, tiny_data):
    parents = [{"manifest_sha256": parent, "role": "init"}]
    same = child_of(hanse, registry, people, run_of(parents=parents, step=3), "license=Apache-2.0")
    data = str(tiny_data / "shards")
    found = outcomes(registry, same, data=data)
    assert all(outcome != "refused" for outcome, _ in found.values()), found
    assert "25.0% of its ancestors' compute" in found["a third"][1]
    assert "init models/tiny/step-00000012" in found["lineage"][1]
    worse = child_of(hanse, registry, people, run_of(parents=parents, scale=9.0), "license=CC0-1.0")
    found = outcomes(registry, worse, data=data)
    assert found["bits per byte"][0] == "refused"
    assert "its best parent has" in found["bits per byte"][1]
    assert outcomes(registry, worse)["bits per byte"][0] == "refused"  # as claimed, too
    assert "CC0-1.0 asks nobody for that" in found["licence"][1]
    assert "100.0% of its ancestors' compute, the line is at a third; more" in found["a third"][1]


@pytest.mark.slow
def test_a_child_of_a_revoked_or_unknown_parent_is_refused(hanse, registry, people, parent, run_of, capfd):
    child = child_of(hanse, registry, people, run_of(parents=[{"manifest_sha256": parent, "role": "init"}], step=3),
                     "license=Apache-2.0")  # fmt: skip
    verb = ["registry", f"registry={registry}", f"key={people.file('lead')}"]
    assert hanse(*verb, f"revoke={parent}", "reason=poisoned data") == 0
    assert "1 model that nobody may build on" in capfd.readouterr().out
    assert "revoked: poisoned data" in outcomes(registry, child)["lineage"][1]
    stray = run_of(parents=[{"manifest_sha256": "0" * 64, "role": "average", "weight": 1.0}])
    assert hanse("contribute", f"registry={registry}", "name=stray", f"run={stray}", f"key={people.file('alice')}",
                 "license=MIT") == 2  # fmt: skip
    assert "is not in this registry" in capfd.readouterr().err
