"""The index of a registry: who may write which line, and what the lines add up to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import HanseError
from consortium import index
from consortium.config import Policy, RegistryConfig
from consortium.index import Registry
from consortium.keys import load_public
from consortium.register import Model, Register

ALICE, BOB, CAROL = "a" * 64, "b" * 64, "c" * 64


def lead(hanse, registry, people, *more):
    return hanse("registry", f"registry={registry}", f"key={people.file('lead')}", *more)


def test_a_registry_is_begun_once_and_shown(hanse, registry, people, capfd):
    assert hanse("registry", f"registry={registry}", f"root={people.public('lead')}") == 0
    said = capfd.readouterr().out
    assert "begun with the key" in said
    assert "as you asked" in said
    assert all(f"{name}" in said for name in ("Lead", "Alice", "Bob", "Carol"))
    assert sorted(path.stem for path in (registry / "keys").iterdir()) == sorted(
        people.prints[name] for name in ("lead", "alice", "bob", "carol"))  # fmt: skip
    assert lead(hanse, registry, people, "create=again", "holder=Lead") == 2
    assert "there is a registry already" in capfd.readouterr().err
    assert hanse("registry", f"registry={registry}", f"root={people.public('eve')}") == 2
    assert "not by the one you named" in capfd.readouterr().err
    assert hanse("registry", f"registry={registry / 'nothing'}") == 2
    assert "no registry here" in capfd.readouterr().err


def test_all_problems_of_a_command_are_told_at_once(hanse, registry, capfd):
    assert hanse("registry", f"registry={registry}", "create=a b", "enrol=x", "policy.reviews=-1", "since=today") == 2
    said = capfd.readouterr().err
    for problem in (
        "policy.reviews=-1",
        "one at a time",
        "private key",
        "since=today",
        "holder",
        "roles=",
        "create=a b",
    ):
        assert problem in said


@pytest.mark.parametrize("name", ["alice", "bob", "eve"])
def test_only_maintainers_enrol_revoke_and_change_the_policy(hanse, registry, people, name, capfd):
    before = (registry / "index.jsonl").read_bytes()
    verb = ["registry", f"registry={registry}", f"key={people.file(name)}"]
    reason = "is not enrolled" if name == "eve" else "this takes a maintainer"
    for asked in (["change_policy=true", "policy.reviews=0"], [f"revoke={people.prints['lead']}", "reason=x"],
                  [f"enrol={people.public('eve')}", "holder=Eve", "roles=[maintainer]"]):  # fmt: skip
        assert hanse(*verb, *asked) == 2
        assert reason in capfd.readouterr().err
    assert (registry / "index.jsonl").read_bytes() == before


def test_keys_have_days_and_can_be_enrolled_anew_but_not_after_they_were_revoked(hanse, registry, people, capfd):
    opened = Registry(registry)
    bob = people.prints["bob"]
    opened.register.standing(bob, ("reviewer",), "2026-11-25", "here")
    enrol = [f"enrol={people.public('bob')}", "holder=Bob", "roles=[reviewer,contributor]", "valid_from=2026-01-01"]
    assert lead(hanse, registry, people, *enrol, "valid_until=2026-03-31") == 0
    register = Registry(registry).register
    register.standing(bob, ("contributor",), "2026-03-31", "here")
    with pytest.raises(HanseError, match="is valid from 2026-01-01 to 2026-03-31, not on 2026-04-01"):
        register.standing(bob, ("contributor",), "2026-04-01", "here")
    assert lead(hanse, registry, people, f"revoke={bob}", "reason=key was lost") == 0
    with pytest.raises(HanseError, match="was revoked: key was lost"):
        Registry(registry).register.standing(bob, ("contributor",), "2026-02-01", "here")
    assert lead(hanse, registry, people, *enrol) == 2
    assert "was revoked, which is for good" in capfd.readouterr().err


def test_a_day_that_no_calendar_has_is_none():
    """A key 'until 2026-09-31' would be valid for one day more than anybody meant, one 'from 2026-13-01' never."""
    config = RegistryConfig(
        registry="r", key="k", enrol="b.pub", holder="B", roles=["reviewer"], valid_from="2026-13-01",
        valid_until="2026-09-31", policy=Policy(opt_out_since="2026-02-30"),
    )  # fmt: skip
    assert [one.partition("=")[0] for one in config.problems()] == ["policy.opt_out_since", "valid_from", "valid_until"]


def test_somebody_always_maintains_it(hanse, registry, people, capfd):
    print_ = people.prints["lead"]
    assert lead(hanse, registry, people, f"revoke={print_}", "reason=x") == 2
    assert lead(hanse, registry, people, f"enrol={people.public('lead')}", "holder=Lead", "roles=[reviewer]") == 2
    assert capfd.readouterr().err.count("nobody would be left who maintains") == 2
    assert lead(hanse, registry, people, f"enrol={people.public('eve')}", "holder=Eve", "roles=[maintainer]") == 0
    assert lead(hanse, registry, people, f"revoke={print_}", "reason=left") == 0
    assert lead(hanse, registry, people, "change_policy=true") == 2
    assert "was revoked: left" in capfd.readouterr().err


def test_a_head_that_was_seen_tells_that_lines_were_taken_away(hanse, registry, people, capfd):
    head = Registry(registry).head
    assert lead(hanse, registry, people, "change_policy=true") == 0
    assert hanse("registry", f"registry={registry}", f"seen={head}") == 0
    lines = (registry / "index.jsonl").read_bytes().splitlines(keepends=True)
    later = Registry(registry).head
    (registry / "index.jsonl").write_bytes(b"".join(lines[:-1]))
    assert hanse("registry", f"registry={registry}") == 0  # nothing in the file itself can tell
    assert hanse("registry", f"registry={registry}", f"seen={later}") == 2
    assert "lines were taken away" in capfd.readouterr().err


def test_writers_at_once_all_get_their_line_and_one_that_died_is_named(registry, people, monkeypatch, begun):
    program = (
        "import sys; from pathlib import Path; from dataclasses import asdict\n"
        "from consortium.config import Policy; from consortium.index import Registry; "
        "from consortium.keys import load_private\n"
        "registry, key = Registry(Path(sys.argv[1])), load_private(Path(sys.argv[2]))\n"
        "for n in range(5): registry.append('policy', {'policy': asdict(Policy(reviews=n))}, key)"
    )
    command = [sys.executable, "-c", program, str(registry), str(people.file("lead"))]
    writers = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert len(Registry(registry).heads) == 4 + 15
    (registry / "index.jsonl.lock").write_text("process 12345 on elsewhere")
    monkeypatch.setattr(index, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(HanseError, match="process 12345 on elsewhere"):
        Registry(registry).append("policy", {}, people.keys["lead"])


def test_what_stops_between_moving_files_and_writing_the_line_changes_nothing(registry, people):
    before = (registry / "index.jsonl").read_bytes()

    def power_cut():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Registry(registry).append("policy", {"policy": _policy(3)}, people.keys["lead"], before=power_cut)
    assert (registry / "index.jsonl").read_bytes() == before
    assert not (registry / "index.jsonl.lock").exists()
    Registry(registry).append("policy", {"policy": _policy(3)}, people.keys["lead"])


def _policy(reviews):
    return {
        "reviews": reviews,
        "licenses": [],
        "opt_out_since": "",
        "worse_bits_per_byte": 0.05,
        "logit_tolerance": 1e-4,
    }


def test_a_registry_can_be_read_where_nothing_can_be_written(registry):
    for path in [*registry.rglob("*"), registry]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert len(Registry(registry).heads) == 4
    for path in [registry, *registry.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


# --- what comes from what -------------------------------------------------------------------------------------------


def model(identity, *parents, flops=10, contributor=ALICE, reviews=(BOB, CAROL)):
    return Model(name="m", step=1, tokens=1, manifest_sha256=identity, merkle_root="0" * 64, root="0" * 64,
                 license="MIT", parents=[{"manifest_sha256": one, "role": "average"} for one in parents], flops=flops,
                 cumulative_flops=0, bits_per_byte={}, contributor=contributor,
                 reviews=dict.fromkeys(reviews, "0" * 64), folder="")  # fmt: skip


def family(**days):
    """A diamond: g; its children l and r; their average c; and s, which stands alone."""
    register = Register()
    for one in (model("g"), model("l", "g"), model("r", "g"), model("c", "l", "r", flops=0), model("s")):
        register.models[one.manifest_sha256] = one
        register.days[one.manifest_sha256] = days.get(one.manifest_sha256, "2026-05-01")
    register.policy.reviews = 2
    return register


def test_an_ancestor_counts_once_however_many_ways_lead_to_it():
    register = family()
    assert register.ancestors(register.models["c"].parents) == {"l", "r", "g"}
    assert register.cumulative_flops(5, [{"manifest_sha256": "c", "role": "init"}]) == 5 + 0 + 10 + 10 + 10
    assert register.descendants("g") == ["l", "r", "c"]
    assert register.descendants("s") == []


def test_what_comes_from_a_revoked_checkpoint_is_in_doubt():
    from consortium.register import Revoked

    register = family()
    register.revoked_models["l"] = Revoked("checkpoint", "l", "licence", "2026-06-01")
    assert {one: register.doubt(one) for one in "glrcs"} == {
        "g": None, "l": "revoked: licence", "r": None, "c": "comes from l: revoked: licence", "s": None}  # fmt: skip


def test_what_a_lost_key_did_is_in_doubt_from_the_day_that_was_named():
    from consortium.register import Revoked

    register = family(g="2026-01-01", s="2026-01-01")
    register.revoked_keys[ALICE] = Revoked("key", ALICE, "stolen", "2026-03-01")
    assert [one for one in "glrcs" if register.doubt(one)] == ["l", "r", "c"]
    register.revoked_keys = {CAROL: Revoked("key", CAROL, "stolen", "2026-03-01")}
    assert register.doubt("l") == "too few of its reviews are left: a reviewer's key was revoked"
    register.policy.reviews = 1
    assert register.doubt("l") is None


def test_a_copy_elsewhere_is_the_same_registry(registry, people, tmp_path):
    copied = shutil.copytree(registry, tmp_path / "mirror")
    root = load_public(people.public("lead"))
    assert Registry(Path(copied), root).head == Registry(registry, root).head
    assert os.listdir(copied)
