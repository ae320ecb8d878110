"""A seal holds for exactly the folder that was sealed, by the key that is trusted; everything else is refused."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from consortium import bundle
from consortium.config import SEAL_KINDS
from consortium.keys import fingerprint, load_private, load_public, new_key, public_pem
from consortium.seal import check, make, parse
from tests.consortium.tampering import JSON, STRANGE, damaged, flip, linked, put, swap
from train.checkpoint import root_of
from train.checkpoint_writer import finish, write_tensors

KEY = ec.generate_private_key(ec.SECP256R1())
FOREIGN = ec.generate_private_key(ec.SECP256R1())
TRUSTED = {fingerprint(KEY.public_key()): KEY.public_key()}
STATE = {"step": 1, "consumed_samples": 8, "data_merkle_root": "00", "tokenizer_sha256": "00", "model": {},
         "precision": "fp32", "wall_seconds": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint as ``hanse train`` writes it, with one file a part, and its seal beside it."""
    final = tmp_path_factory.mktemp("original") / "step-00000001"
    partial = final.with_name("step-00000001.partial")
    files = {}
    for part, key in (("model", "w[0:64]"), ("optimizer", "w.exp_avg[0:64]")):
        (partial / part).mkdir(parents=True)
        name = f"{part}/rank-00000.safetensors"
        files[name] = write_tensors(partial / name, {key: torch.arange(64.0)})
    finish(partial, final, files, {"w": (8, 8)}, STATE)
    final.with_name("checkpoint.sig").write_bytes(make(final, KEY, "checkpoint", {"note": "Überfahrt"}))
    return final


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy to change."""
    return shutil.copytree(original, tmp_path / original.name)


@pytest.fixture
def sealed(checkpoint, original):
    """(folder, seal file) that hold."""
    seal = Path(shutil.copy(original.with_name("checkpoint.sig"), checkpoint.parent))
    check(checkpoint, seal, TRUSTED)
    return checkpoint, seal


def resealed(seal: Path, change, key=KEY) -> None:
    """Change the statement in a seal and sign it anew: what a trusted key's owner could do."""
    payload = json.loads(base64.b64decode(json.loads(seal.read_bytes())["dsseEnvelope"]["payload"]))
    change(payload)
    seal.write_bytes(bundle.encode(payload, key))


def signed(payload: bytes, over: bytes | None = None) -> bytes:
    """A bundle around any payload, signed by the trusted key (or over something else)."""
    value = json.loads(bundle.encode({}, KEY))
    raw = KEY.sign(bundle.signed_bytes(payload) if over is None else over, ec.ECDSA(SHA256()))
    value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    value["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    return json.dumps(value).encode()


# --- what holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SEAL_KINDS)
def test_every_kind_holds_and_names_root_and_format(checkpoint, tmp_path, kind):
    if kind == "corpus":
        with pytest.raises(HanseError, match=r"is hanse\.checkpoint/1, and kind=corpus seals"):
            make(checkpoint, KEY, kind)
        return
    seal = tmp_path / "a.sig"
    seal.write_bytes(make(checkpoint, KEY, kind, {"verdict": 1}))
    moved = shutil.copytree(checkpoint, tmp_path / "another name")
    held = check(moved, seal, TRUSTED, kind=kind)
    assert sorted(held.files) == sorted(str(p.relative_to(moved)) for p in moved.rglob("*") if p.is_file())
    if kind != "files":
        assert (held.format, held.facts) == ("hanse.checkpoint/1", {"verdict": 1})
        assert held.root == json.loads((moved / "manifest.json").read_text())["merkle_root"]
    with pytest.raises(HanseError, match=f"of kind {kind}, not review2"):
        check(moved, seal, TRUSTED, kind="review2")


def test_the_verb_seals_checks_and_names_what_differs(checkpoint, tmp_path, hanse, capsys):
    key, public, seal = tmp_path / "a.key", tmp_path / "a.pub", Path(f"{checkpoint}.evaluation.sig")
    new_key(key)
    (tmp_path / "facts.json").write_text('{"loss": 2.5}')
    sealing = ["seal", f"folder={checkpoint}", f"key={key}", "kind=evaluation", f"facts={tmp_path / 'facts.json'}"]
    checking = ["seal", f"folder={checkpoint}", f"check={seal}", f"trust=[{public}]"]
    assert hanse(*sealing) == 0
    assert f"check={seal} trust=[{public}]" in capsys.readouterr().out
    assert hanse(*checking) == 0
    assert fingerprint(load_public(public)) in capsys.readouterr().out
    assert hanse(*sealing) == 2  # never overwritten
    assert "exists" in capsys.readouterr().err
    (checkpoint / "notes.txt").write_text("later")
    assert hanse(*checking) == 2
    assert "notes.txt was added" in capsys.readouterr().err


def test_openssl_verifies_the_signature(sealed, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("no openssl program here")
    envelope = json.loads(sealed[1].read_bytes())["dsseEnvelope"]
    content = json.loads(bundle.encode({"a": 1}, KEY))["dsseEnvelope"]
    for one in (envelope, content):
        (tmp_path / "signed").write_bytes(bundle.signed_bytes(base64.b64decode(one["payload"])))
        (tmp_path / "sig").write_bytes(base64.b64decode(one["signatures"][0]["sig"]))
        (tmp_path / "pub").write_bytes(public_pem(KEY.public_key()))
        done = subprocess.run(["openssl", "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "signed"],
                              cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert "Verified OK" in done.stdout, done.stderr


@pytest.mark.slow
def test_corpus_shards_run_and_checkpoint_of_a_real_run_are_sealed_by_their_own_roots(tiny_data, tiny_run, tmp_path):
    folders = {"corpus": [tiny_data / "corpus", tiny_data / "shards"], "run": [tiny_run],
               "checkpoint": sorted((tiny_run / "checkpoints").glob("step-*"))}  # fmt: skip
    assert folders["checkpoint"]
    for kind, there in folders.items():
        for index, folder in enumerate(there):
            seal = tmp_path / f"{kind}{index}.sig"
            seal.write_bytes(make(folder, KEY, kind))
            held = check(folder, seal, TRUSTED, kind=kind)
            manifest = folder / "manifest.json"
            assert kind == "run" or held.root == json.loads(manifest.read_text())["merkle_root"]


# --- model-signing --------------------------------------------------------------------------------------------------


def model_signing(*arguments) -> subprocess.CompletedProcess:
    pytest.importorskip("model_signing", reason="model-signing is not installed (extra interop)")
    pytest.importorskip("OpenSSL", reason="model-signing wants pyopenssl (extra interop)")
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_model_signing_checks_ours_and_we_check_its(checkpoint, tmp_path):
    key, public, ours, theirs = (tmp_path / name for name in ("a.key", "a.pub", "ours.sig", "theirs.sig"))
    new_key(key)
    trusted = {fingerprint(load_public(public)): load_public(public)}
    ours.write_bytes(make(checkpoint, load_private(key), "files"))
    done = model_signing("sign", "key", checkpoint, "--private_key", key, "--signature", theirs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(checkpoint, theirs, trusted).files == check(checkpoint, ours, trusted).files
    verify = ["verify", "key", checkpoint, "--public_key", public, "--signature", ours]
    done = model_signing(*verify)
    assert done.returncode == 0, done.stdout + done.stderr
    inside = shutil.copy(theirs, checkpoint / "model.sig")  # where model-signing likes to put it
    assert check(checkpoint, Path(inside), trusted).kind == "files"
    Path(inside).unlink()
    flip(checkpoint / "model/rank-00000.safetensors", 999)
    assert model_signing(*verify).returncode != 0
    for seal in (ours, theirs):
        with pytest.raises(HanseError, match=r"model/rank-00000\.safetensors was changed"):
            check(checkpoint, seal, trusted)


# --- tampering ------------------------------------------------------------------------------------------------------


def refused(folder: Path, seal: Path, reason: str = "") -> None:
    with pytest.raises(HanseError, match=reason or ".") as error:
        check(folder, seal, TRUSTED)
    assert type(error.value).__module__.partition(".")[0] in ("common", "consortium", "train")


@pytest.mark.slow
def test_any_flipped_bit_of_any_file_is_refused_by_name(sealed):
    folder, seal = sealed
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        before = path.read_bytes()
        for bit in random.Random(path.name).sample(range(8 * len(before)), 40):
            flip(path, bit)
            refused(folder, seal, f"{path.relative_to(folder)} was changed")
            path.write_bytes(before)
    check(folder, seal, TRUSTED)


@pytest.mark.slow
def test_any_flipped_bit_of_the_seal_is_refused(sealed):
    _, seal = sealed
    before = seal.read_bytes()
    bits = range(8 * len(before))
    for bit in random.Random(1).sample(bits, 400):
        flip(seal, bit)
        with pytest.raises(HanseError):
            parse(seal.read_bytes(), TRUSTED, "seal")
        seal.write_bytes(before)
    edges = json.loads(before)["dsseEnvelope"]
    for field in (edges["payload"], edges["signatures"][0]["sig"], edges["payloadType"]):  # where base64 has slack
        end = before.index(field.encode()) + len(field)
        for bit in range(8 * (end - 4), 8 * (end + 2)):
            flip(seal, bit)
            with pytest.raises(HanseError):
                parse(seal.read_bytes(), TRUSTED, "seal")
            seal.write_bytes(before)


def test_every_shorter_or_longer_seal_is_refused(sealed):
    content = sealed[1].read_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(HanseError):
            parse(content[:length], TRUSTED, "seal")
    for more in (b"{}", b"\0", b"x", content):
        with pytest.raises(HanseError):
            parse(content + more, TRUSTED, "seal")


FOLDERS = {
    "swapped": (lambda f: swap(f / "model/rank-00000.safetensors", f / "optimizer/rank-00000.safetensors"),
                "model/rank-00000.safetensors was changed, optimizer/rank-00000.safetensors was changed"),
    "renamed": (lambda f: (f / "state.json").rename(f / "State.json"), "State.json was added, state.json is missing"),
    "moved": (lambda f: (f / "state.json").rename(f / "model/state.json"), "model/state.json was added"),
    "removed": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "all removed": (lambda f: [p.unlink() for p in f.rglob("*") if p.is_file()], "holds no files"),
    "added": (lambda f: (f / "modeling.py").write_text("1"), "modeling.py was added"),
    "added hidden": (lambda f: (f / ".gitattributes").write_text("1"), ".gitattributes was added"),
    "added empty": (lambda f: (f / "model/empty").touch(), "model/empty was added"),
    "many added": (lambda f: [(f / str(n)).touch() for n in range(9)], "and 4 more"),
    "truncated": (lambda f: os.truncate(f / "state.json", 3), "state.json was changed"),
    "emptied": (lambda f: os.truncate(f / "state.json", 0), "state.json was changed"),
    "longer": (lambda f: (f / "state.json").open("a").write(" "), "state.json was changed"),
    "link inside": (lambda f: linked(f / "state.json", "manifest.json"), "state.json: is a link"),
    "link out": (lambda f: linked(f / "state.json", "/etc/hostname"), "state.json: is a link"),
    "dead link": (lambda f: (f / "x").symlink_to("nowhere"), "x: is a link"),
    "folder link": (lambda f: (f / "x").symlink_to(f), "x: is a link"),
    "same by link": (lambda f: ((f / "state.json").rename(f.parent / "s"), (f / "state.json").symlink_to("../s")),
                     "state.json: is a link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe: is no regular file"),
    "newline in name": (lambda f: (f / "a\nb").touch(), "could mislead"),
    "backslash in name": (lambda f: (f / "..\\b").touch(), "could mislead"),
    "bytes in name": (lambda f: open(os.fsencode(f) + b"/\xff", "w").close(), "could mislead"),
    "right-to-left": (lambda f: (f / "a\u202egnp.exe").touch(), "could mislead"),
    "file for folder": (lambda f: (shutil.rmtree(f / "model"), (f / "model").touch()), "model was added"),
    "folder for file": (lambda f: ((f / "state.json").unlink(), (f / "state.json").mkdir()), "state.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_another_folder_is_refused_with_its_reason(sealed, case):
    change, reason = FOLDERS[case]
    change(sealed[0])
    refused(*sealed, reason)


def resource(**changes):
    return lambda s: s["predicate"]["resources"][0].update(changes)


LIES = {
    "no subject": put("subject", []), "two subjects": put("subject", [{}, {}]),
    "subject is text": put("subject", "a"),
    "subject digest": put("subject.0.digest", {"sha256": "0" * 64}),
    "other digest": put("subject.0.digest", {"md5": ""}),
    "statement type": put("_type", "https://in-toto.io/Statement/v0.1"), "type is list": put("_type", []),
    "kind": put("predicateType", "hanse:other/v1"), "kind is list": put("predicateType", []),
    "another kind's fields": put("predicateType", "https://model_signing/signature/v1.0"),
    "unknown field": put("also", 1), "unknown field of the predicate": put("predicate.also", 1),
    "no resources": put("predicate.resources", []), "resources are text": put("predicate.resources", "abc"),
    "resources are numbers": put("predicate.resources", [1, 2]), "predicate is null": put("predicate", None),
    "blake": resource(algorithm="blake3"), "short digest": resource(digest="00"),
    "digest is number": resource(digest=1),
    "capital digest": resource(digest="A" * 64), "name is null": resource(name=None), "empty name": resource(name=""),
    "up": resource(name="../../etc/passwd"), "root": resource(name="/etc/passwd"), "dot": resource(name="./state.json"),
    "double slash": resource(name="model//a"), "windows": resource(name="..\\a"), "nul": resource(name="a\0b"),
    "end of line": resource(name="a\nb"), "twice": lambda s: s["predicate"]["resources"].append(
        dict(s["predicate"]["resources"][0])),
    "order": lambda s: s["predicate"]["resources"].reverse(), "fewer": lambda s: s["predicate"]["resources"].pop(),
    "shards": put("predicate.serialization.method", "shards"), "hash": put("predicate.serialization.hash_type", "md5"),
    "serialization is list": put("predicate.serialization", []),
    "root of another": put("predicate.merkle_root", "0" * 64),
    "root is number": put("predicate.merkle_root", 1), "format": put("predicate.format", "hanse.corpus/1"),
    "format is list": put("predicate.format", []), "facts are text": put("predicate.facts", "a"),
}  # fmt: skip


REASONS = {
    "is not the name of a file": ("name is null", "empty name", "up", "root", "dot", "double slash", "windows", "nul",
                                  "end of line", "twice"),
    "gives no SHA-256": ("blake", "short digest", "digest is number", "capital digest"),
    "contradicts itself": ("subject digest", "order", "fewer"),
    "names no files": ("no resources", "resources are text"),
    "one subject": ("no subject", "two subjects", "subject is text"),
    "type that is not known": ("statement type", "type is list", "kind", "kind is list"),
    "in another way than whole": ("shards", "hash", "serialization is list"),
    "names another format or Merkle root": ("root of another",), "says checkpoint of": ("format", "format is list"),
    "are not what they must be": ("root is number", "facts are text"),
    "and nothing else": ("other digest", "another kind's fields", "unknown field", "unknown field of the predicate",
                         "resources are numbers", "predicate is null"),
}  # fmt: skip
REASON = {case: reason for reason, cases in REASONS.items() for case in cases}


@pytest.mark.parametrize("case", LIES)
def test_a_false_statement_is_refused_even_of_a_trusted_key(sealed, case):
    resealed(sealed[1], LIES[case])
    refused(*sealed, REASON[case])


@pytest.mark.parametrize("case", LIES)
def test_an_edited_statement_with_the_old_signature_is_refused(sealed, case):
    _, seal = sealed
    old = json.loads(seal.read_bytes())
    resealed(seal, LIES[case])
    new = json.loads(seal.read_bytes())
    old["dsseEnvelope"]["payload"] = new["dsseEnvelope"]["payload"]
    seal.write_text(json.dumps(old))
    refused(*sealed, "the statement was edited, or the signature is forged")


def test_a_foreign_key_is_refused_also_under_a_trusted_hint(sealed):
    folder, seal = sealed
    resealed(seal, lambda s: None, FOREIGN)
    refused(folder, seal, "none of those you trust")
    value = json.loads(seal.read_bytes())
    value["verificationMaterial"]["publicKey"]["hint"] = next(iter(TRUSTED))
    seal.write_text(json.dumps(value))
    refused(folder, seal, "forged")


def test_a_signature_over_another_kind_of_payload_is_refused(sealed):
    folder, seal = sealed
    payload = base64.b64decode(json.loads(seal.read_bytes())["dsseEnvelope"]["payload"])
    for over in (payload, b"DSSEv1 4 text %d %s" % (len(payload), payload)):
        seal.write_bytes(signed(payload, over))
        refused(folder, seal, "forged")
    seal.write_bytes(signed(payload))
    check(folder, seal, TRUSTED)


@pytest.mark.parametrize("case", STRANGE)
def test_strange_files_are_refused(case):
    with pytest.raises(HanseError):
        parse(STRANGE[case], TRUSTED, "seal")
    content = signed(STRANGE[case])
    with pytest.raises(HanseError):  # as a statement that a trusted key signed
        parse(content, TRUSTED, "seal")


def test_a_key_that_stands_twice_is_refused_at_every_place(sealed):
    text = sealed[1].read_text()
    for key in ("mediaType", "publicKey", "hint", "payload", "payloadType", "sig", "keyid", "signatures"):
        twice = text.replace(f'"{key}":', f'"{key}":"x","{key}":', 1)
        with pytest.raises(HanseError, match="stands twice"):
            parse(twice.encode(), TRUSTED, "seal")


def test_links_pipes_folders_and_too_large_files_are_no_seals(sealed, tmp_path):
    folder, seal = sealed
    (tmp_path / "link.sig").symlink_to(seal)
    os.mkfifo(tmp_path / "pipe.sig")
    (tmp_path / "large.sig").touch()
    os.truncate(tmp_path / "large.sig", 1 << 40)  # a hole: it takes no room
    reasons = {"link.sig": "is a link", "pipe.sig": "not a regular file", "large.sig": "more than",
               folder.name: "no readable seal", "absent.sig": "no readable seal"}  # fmt: skip
    for name, reason in reasons.items():
        refused(folder, tmp_path / name, reason)


def test_a_folder_that_is_not_what_its_manifest_says_is_not_sealed(checkpoint):
    flip(checkpoint / "optimizer/rank-00000.safetensors", 4000)
    with pytest.raises(HanseError, match=r"optimizer/rank-00000\.safetensors was changed"):
        make(checkpoint, KEY, "checkpoint")


def test_what_a_checkpoints_manifest_does_not_name_is_not_sealed_as_a_checkpoint(checkpoint):
    (checkpoint / "model" / "weights.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(HanseError, match=r"does not name, model/weights\.pkl"):
        make(checkpoint, KEY, "checkpoint")
    make(checkpoint, KEY, "files")


def test_a_checkpoint_with_an_edited_manifest_is_not_sealed(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["tensors"]["w"] = [4, 16]
    assert root_of(manifest["tensors"], manifest["files"]) != manifest["merkle_root"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HanseError, match="was edited"):
        make(checkpoint, KEY, "checkpoint")


# --- fuzzing: whatever a stranger writes, it is refused with a HanseError, or says what was signed --------------------

EXAMPLES = settings(max_examples=1000)  # each; some 3,000 in all

GOOD = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "a", "digest": {"sha256": sha256(bytes(32)).hexdigest()}}],
    "predicateType": "hanse:review/v1", "predicate": {"serialization": {"method": "files", "hash_type": "sha256"},
    "resources": [{"name": "a", "algorithm": "sha256", "digest": "0" * 64}], "format": "f", "merkle_root": "0" * 64,
    "facts": {}},
}  # fmt: skip


@pytest.mark.slow
@EXAMPLES
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_refused(content):
    with pytest.raises(HanseError):
        parse(content, TRUSTED, "seal")


@pytest.mark.slow
@EXAMPLES
@given(damaged(json.loads(bundle.encode(GOOD, KEY))))
def test_a_bundle_with_anything_in_any_place_is_refused_or_says_what_was_signed(value):
    try:
        held = parse(json.dumps(value).encode(), TRUSTED, "seal")
    except HanseError:
        return
    assert (held.files, held.root) == ({"a": "0" * 64}, "0" * 64)


@pytest.mark.slow
@EXAMPLES
@given(damaged(GOOD) | JSON)
def test_a_signed_statement_with_anything_in_any_place_is_refused_or_whole(value):
    try:
        held = parse(signed(json.dumps(value).encode()), TRUSTED, "seal")
    except HanseError:
        return
    assert held.files == {entry["name"]: entry["digest"] for entry in value["predicate"]["resources"]}
    assert set(held.files.values()) == {"0" * 64}  # anything else would not make up the subject's digest
    assert isinstance(held.facts, dict)
    assert held.root == value["predicate"].get("merkle_root", "")
