"""An index that anything was done to is refused, with its reason; and no line can be written that breaks a rule."""

import base64
import copy
import json
import random
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from consortium import bundle
from consortium.config import Policy
from consortium.index import Registry, create
from consortium.keys import public_pem
from tests.consortium.tampering import STRANGE, damaged, drop, flip, put, signed


@pytest.fixture(scope="module")
def filled(hanse, begun, waiting, people, tmp_path_factory) -> Path:
    """A registry with four people, one accepted model and another policy: six lines."""
    registry = Path(shutil.copytree(begun, tmp_path_factory.mktemp("filled") / "registry"))
    for name in ("bob", "carol"):
        assert hanse("accept", f"registry={registry}", f"contribution={waiting}", f"key={people.file(name)}") == 0
    Registry(registry).append("policy", {"policy": asdict(Policy(reviews=1))}, people.keys["lead"])
    assert len(Registry(registry).heads) == 6
    return registry


@pytest.fixture
def index(filled, tmp_path) -> Path:
    """A copy of its index, to change."""
    (tmp_path / "registry").mkdir()
    return Path(shutil.copy(filled / "index.jsonl", tmp_path / "registry"))


def refused(index: Path, reason: str = "", root=None) -> None:
    before = sorted(index.parent.iterdir()), index.read_bytes()
    with pytest.raises(HanseError) as error:
        Registry(index.parent, root)
    assert reason in str(error.value), error.value
    assert type(error.value).__module__.partition(".")[0] in ("common", "consortium")
    assert (sorted(index.parent.iterdir()), index.read_bytes()) == before


def test_any_flipped_bit_is_refused(index):
    Registry(index.parent)
    before = index.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(before)), 200):
        flip(index, bit)
        refused(index)
        index.write_bytes(before)


def rewritten(change):
    def on(index, other):
        lines = index.read_bytes().splitlines()
        lines = change(lines, other) or lines
        index.write_bytes(b"".join(line + b"\n" for line in lines))

    return on


LINES = {
    "nothing": (lambda i, _: i.write_bytes(b""), "cut short"),
    "an empty line": (lambda i, _: i.write_bytes(b"\n"), "not readable as JSON"),
    "cut": (lambda i, _: i.write_bytes(i.read_bytes()[:-1]), "cut short"),
    "half a line": (lambda i, _: i.write_bytes(i.read_bytes()[:-100]), "cut short"),
    "last line once more": (rewritten(lambda lines, _: [*lines, lines[-1]]), "line 7: does not follow"),
    "second line again": (rewritten(lambda lines, _: [*lines, lines[1]]), "line 7: does not follow"),
    "first line again": (rewritten(lambda lines, _: [*lines, lines[0]]), "line 7: does not follow"),
    "first line gone": (rewritten(lambda lines, _: lines[1:]), "line 1: sealed with the key"),
    "second line gone": (rewritten(lambda lines, _: [lines[0], *lines[2:]]), "line 2: does not follow"),
    "swapped": (rewritten(lambda lines, _: [lines[0], lines[2], lines[1], *lines[3:]]), "line 2: does not follow"),
    "reversed": (rewritten(lambda lines, _: lines[::-1]), "line 1: not the first line"),
    "line of another registry": (rewritten(lambda lines, other: [*lines, other[1]]), "line 7: does not follow"),
    "all after another's first": (rewritten(lambda lines, other: [other[0], *lines[1:]]), "line 2: does not follow"),
    "blank between": (rewritten(lambda lines, _: [lines[0], b"", *lines[1:]]), "line 2: not readable"),
    "space": (rewritten(lambda lines, _: [lines[0] + b" ", *lines[1:]]), "line 2: does not follow"),
    "two in one": (rewritten(lambda lines, _: [lines[0] + lines[1], *lines[2:]]), "line 1: not readable"),
    "end of lines of Windows": (lambda i, _: i.write_bytes(i.read_bytes().replace(b"\n", b"\r\n")), "does not follow"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_lines_that_were_taken_added_moved_or_brought_from_elsewhere_are_refused(index, people, tmp_path, case):
    other = create(tmp_path / "other", created(people), people.keys["lead"])
    other.append("policy", {"policy": asdict(Policy())}, people.keys["lead"])
    change, reason = LINES[case]
    change(index, other.index.read_bytes().splitlines())
    refused(index, reason)


@pytest.mark.parametrize("case", STRANGE)
def test_strange_lines_are_refused(index, case):
    before = index.read_bytes()
    for content in (STRANGE[case].replace(b"\n", b"") + b"\n", before + STRANGE[case] + b"\n"):
        index.write_bytes(content)
        refused(index)


def test_an_index_that_is_no_file_is_refused(index, tmp_path):
    index.rename(tmp_path / "real")
    index.symlink_to(tmp_path / "real")
    refused(index, "is a link")


def test_another_first_key_is_another_registry(index, people):
    refused(index, "not by the one you named", people.keys["eve"].public_key())


def created(people, who="lead", **changes):
    return {"name": "hansa", "holder": "Lead", "pem": public_pem(people.keys[who].public_key()).decode(),
            "policy": asdict(Policy()), **changes}  # fmt: skip


def payload(line: bytes) -> dict:
    return json.loads(base64.b64decode(json.loads(line)["dsseEnvelope"]["payload"]))


def signed_again(index: Path, number: int, change, key) -> None:
    """Line ``number`` changed and signed by ``key``, and nothing after it: what its signer could write."""
    lines = index.read_bytes().splitlines()
    value = payload(lines[number - 1])
    change(value)
    lines[number - 1 :] = [bundle.encode(value, key)]
    index.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.mark.parametrize("number", range(2, 7))
@pytest.mark.parametrize("who", ["alice", "bob", "eve"])
def test_a_line_signed_by_another_key_is_refused(index, people, number, who):
    signed_again(index, number, lambda value: None, people.keys[who])
    if (number, who) == (5, "bob"):  # a reviewer may write that line
        Registry(index.parent)
    elif who == "eve" or (number, who) in ((2, "alice"), (2, "bob"), (3, "bob")):
        refused(index, "none of those you trust")
    else:
        refused(index, "this takes a maintainer")


def test_an_edited_line_under_the_old_signature_or_a_true_name_is_refused(index, people):
    lines = index.read_bytes().splitlines()
    for number in range(1, 7):
        value = payload(lines[number - 1])
        value["predicate"]["time"] = "2026-11-25T00:00:00Z"
        forged = json.loads(bundle.encode(value, people.keys["eve"]))
        true = json.loads(lines[number - 1])
        for signature in (true["dsseEnvelope"]["signatures"], forged["dsseEnvelope"]["signatures"]):
            one = {**true, "dsseEnvelope": {**forged["dsseEnvelope"], "signatures": signature}}
            index.write_bytes(b"\n".join([*lines[: number - 1], json.dumps(one).encode()]) + b"\n")
            refused(index, "forged")


LIES = {  # line, change, reason
    "time": (5, put("predicate.time", "2020-01-01T00:00:00Z"), "before that of the line before"),
    "no time": (5, put("predicate.time", "now"), "its time is none"),
    "time is number": (5, put("predicate.time", 5), "its time is none"),
    "kind": (5, put("predicate.kind", "delete"), "of kind 'delete'"),
    "kind is list": (5, put("predicate.kind", []), "of kind"),
    "begun twice": (5, put("predicate.kind", "create"), "of kind 'create'"),
    "other statement": (5, put("predicateType", "hanse:review/v1"), "no line of a registry"),
    "no subject": (5, put("subject", []), "does not follow"),
    "other subject": (5, put("subject.0.name", "x"), "does not follow"),
    "more fields": (5, put("also", 1), "and nothing else"),
    "facts missing": (5, drop("predicate/facts"), "and nothing"),
    "facts are a list": (5, put("predicate.facts", []), "not what a line"),
    "more facts": (5, put("predicate.facts.also", 1), "not what a line"),
    "name upwards": (5, put("predicate.facts.name", "../../x"), "its name, licence or hashes"),
    "folder upwards": (5, put("predicate.facts.folder", "models/../../x"), "is not where"),
    "folder of another": (5, put("predicate.facts.folder", "models/tiny/step-00000012-000000000000"), "is not where"),
    "identity": (5, put("predicate.facts.manifest_sha256", "x"), "its name, licence or hashes"),
    "root": (5, put("predicate.facts.root", ""), "its name, licence or hashes"),
    "licence": (5, put("predicate.facts.license", "\x1b[2J"), "its name, licence or hashes"),
    "step": (5, put("predicate.facts.step", 10**9), "beyond all steps"),
    "step below 0": (5, put("predicate.facts.step", -1), "not what a line"),
    "step is true": (5, put("predicate.facts.step", True), "not what a line"),
    "unknown parent": (5, put("predicate.facts.parents", [{"manifest_sha256": "0" * 64, "role": "init"}]), "is not in"),
    "parent of no role": (5, put("predicate.facts.parents", [{"manifest_sha256": "0" * 64, "role": "x"}]), "a role"),
    "parent is text": (5, put("predicate.facts.parents", ["x"]), "not what a line"),
    "weight": (5, put("predicate.facts.parents", [{"manifest_sha256": "0" * 64, "role": "init", "weight": "1"}]),
               "no number"),
    "flops": (5, put("predicate.facts.flops", 1), "cumulative FLOPs"),
    "all flops": (5, put("predicate.facts.cumulative_flops", 1), "cumulative FLOPs"),
    "score": (5, put("predicate.facts.bits_per_byte", {"de": 10**400}), "not what a line"),
    "no reviews": (5, put("predicate.facts.reviews", {}), "0 reviewers"),
    "review of nobody": (5, put("predicate.facts.reviews", {"0" * 64: "0" * 64}), "is not enrolled"),
    "review without hash": (5, lambda v: v["predicate"]["facts"]["reviews"].update(
        dict.fromkeys(v["predicate"]["facts"]["reviews"], "x")), "its name, licence or hashes"),
    "one review": (5, lambda v: v["predicate"]["facts"]["reviews"].popitem() and None, "1 reviewers"),
    "contributor unknown": (5, put("predicate.facts.contributor", "0" * 64), "is not enrolled"),
    "enrol without key": (2, put("predicate.facts.pem", "x"), "not a public key"),
    "enrol with a private one": (2, put("predicate.facts.pem", "-----BEGIN PRIVATE KEY-----"), "not a public key"),
    "key spelt otherwise": (2, lambda v: v["predicate"]["facts"].update(pem=v["predicate"]["facts"]["pem"] + "\n"),
                            "its one spelling"),
    "holder unreadable": (2, put("predicate.facts.holder", "a\u202eb"), "readable name"),
    "no role": (2, put("predicate.facts.roles", []), "some of maintainer"),
    "unknown role": (2, put("predicate.facts.roles", ["king"]), "some of maintainer"),
    "role twice": (2, put("predicate.facts.roles", ["reviewer", "reviewer"]), "each once"),
    "no day": (2, put("predicate.facts.valid_from", "x"), "days as"),
    "days backwards": (2, put("predicate.facts.valid_until", "2000-01-01"), "days as"),
    "policy is text": (6, put("predicate.facts.policy", "x"), "not what a line"),
    "policy without a part": (6, drop("predicate/facts/policy/reviews"), "a part of it is missing"),
    "policy with more": (6, put("predicate.facts.policy.also", 1), "not a policy"),
    "policy below 0": (6, put("predicate.facts.policy.worse_bits_per_byte", -0.5), "0 or more"),
    "policy of text": (6, put("predicate.facts.policy.reviews", "0"), "not a policy"),
    "policy of no day": (6, put("predicate.facts.policy.opt_out_since", "soon"), "a day"),
    "first line of another key": (1, lambda v: v["predicate"]["facts"].update(name="x y"), "names the registry"),
    "first line's policy": (1, put("predicate.facts.policy", {}), "not a policy"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_line_that_breaks_a_rule_is_refused_even_of_a_maintainer(index, people, case):
    number, change, reason = LIES[case]
    signed_again(index, number, change, people.keys["lead"])
    refused(index, reason)


def test_such_a_line_cannot_be_written_either(filled, people, tmp_path):
    registry = Registry(Path(shutil.copytree(filled, tmp_path / "registry")))
    before = registry.index.read_bytes()
    facts = payload(before.splitlines()[4])["predicate"]["facts"]
    attempts = [("accept", facts), ("accept", {**facts, "manifest_sha256": "0" * 64}), ("create", created(people)),
                ("revoke", {"what": "key", "sha256": "0" * 64, "reason": "x", "since": "2026-01-01"}),
                ("revoke", {"what": "x", "sha256": people.prints["bob"], "reason": "x", "since": "2026-01-01"}),
                ("revoke", {"what": "key", "sha256": people.prints["bob"], "reason": " ", "since": "2026-01-01"}),
                ("revoke", {"what": "key", "sha256": people.prints["bob"], "reason": "x", "since": "never"}),
                ("policy", {"policy": {}}), ("unknown", {})]  # fmt: skip
    for kind, value in attempts:
        with pytest.raises(HanseError):
            registry.append(kind, copy.deepcopy(value), people.keys["lead"], before=lambda: pytest.fail("allowed"))
        assert registry.index.read_bytes() == before
    assert not (registry.folder / "index.jsonl.lock").exists()


@pytest.mark.slow
@settings(max_examples=200, derandomize=True)
@given(st.data())
def test_anything_in_any_place_of_any_line_is_refused_or_read(filled, people, tmp_path_factory, data):
    lines = (filled / "index.jsonl").read_bytes().splitlines()
    number = data.draw(st.integers(1, 6))
    value = data.draw(damaged(payload(lines[number - 1])))
    lines[number - 1 :] = [signed(json.dumps(value).encode(), people.keys["lead"])]
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "index.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with suppress(HanseError):
        Registry(folder)
