"""Whatever is done to a contribution, it is refused with its reason; nothing crashes, nothing is written elsewhere.

Three kinds of hands: strangers, who change files under the contributor's seal; liars, who seal their lie with a true
key; and thorough liars, who make every hash agree with it (:mod:`tests.consortium.liar`).
"""

import json
import os
import pickle
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium import contribution as form_of
from tests.consortium.liar import agree, chain, cover, edit, seal
from tests.consortium.tampering import STRANGE, damaged, flip, linked, put, swap

MODEL, OPTIMIZER = "checkpoint/model/rank-00000.safetensors", "checkpoint/optimizer/rank-00001.safetensors"


# --- strangers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_flipped_bit_of_any_file_is_refused_by_name(hands):
    folder = hands.take()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert len(names) == 13
    for name in names:
        path, before = folder / name, (folder / name).read_bytes()
        for bit in random.Random(name).sample(range(8 * len(before)), 5):
            flip(path, bit)
            hands.refused("seal", "" if name == "contribution.sig" else f"{name} was changed")
            path.write_bytes(before)


def hole(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def nested(folder: Path) -> None:
    for _ in range(60):
        folder = folder / "d"
    folder.mkdir(parents=True)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may be 100 bytes long
        one.bind(path.name)
        os.chdir(here)


def moved_out(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "outside/moved")
    (folder / name).symlink_to("../../outside/moved")


FILES = {
    "link to a file outside": (lambda f: linked(f / "run.lock.json", "../outside/secret.json"), "is a link"),
    "link to a system file": (lambda f: linked(f / "evaluation.json", "/etc/passwd"), "is a link"),
    "dead link": (lambda f: (f / "energy.jsonl").symlink_to("nowhere"), "is a link"),
    "link inside": (lambda f: linked(f / "config.json", "run.lock.json"), "is a link"),
    "folder link": (lambda f: (f / "tokenizer2").symlink_to(f), "is a link"),
    "folder is a link": (lambda f: (shutil.move(f / "tokenizer", f.parent / "outside/t"),
                                    (f / "tokenizer").symlink_to("../outside/t")), "is a link"),
    "loop": (lambda f: (f / "loop").symlink_to("loop"), "is a link"),
    "hard link inside": (lambda f: os.link(f / "config.json", f / "energy.jsonl"), "is a hard link"),
    "hard link outside": (lambda f: os.link(f.parent / "outside/secret.json", f / "energy.jsonl"), "is a hard link"),
    "pipe": (lambda f: os.mkfifo(f / "energy.jsonl"), "is no regular file"),
    "socket": (lambda f: listening(f / "energy.jsonl"), "'energy.jsonl'"),
    "pickle": (lambda f: (f / "checkpoint/pytorch_model.bin").write_bytes(pickle.dumps({"a": 1})), "none of the files"),
    "pickle of torch": (lambda f: (f / "checkpoint/model/rank-00000.pt").write_bytes(b"PK\3\4"), "none of the files"),
    "code": (lambda f: (f / "checkpoint/modeling_llama.py").write_text("import os"), "none of the files"),
    "archive": (lambda f: (f / "more.zip").write_bytes(b"PK\3\4"), "none of the files"),
    "tar": (lambda f: (f / "checkpoint/model.tar.gz").write_bytes(b"\x1f\x8b"), "none of the files"),
    "hidden": (lambda f: (f / ".gitattributes").write_text("* filter=x"), "none of the files"),
    "hidden folder": (lambda f: (f / ".git").mkdir() or (f / ".git/config").write_text("x"), "none of the files"),
    "other tensors": (lambda f: (f / "checkpoint/model/RANK-0.safetensors").touch(), "none of the files"),
    "tensors in another place": (lambda f: (f / "rank-00000.safetensors").touch(), "none of the files"),
    "capitals": (lambda f: (f / "Config.json").write_text("{}"), "none of the files"),
    "newline in name": (lambda f: (f / "a\nb").touch(), "could mislead"),
    "backslash in name": (lambda f: (f / "..\\..\\b").touch(), "could mislead"),
    "escape in name": (lambda f: (f / "\x1b[2J").touch(), "could mislead"),
    "bytes in name": (lambda f: open(os.fsencode(f) + b"/\xff", "w").close(), "could mislead"),
    "right-to-left": (lambda f: (f / "a\u202enosj").touch(), "could mislead"),
    "deep": (nested, "lies deeper"),
    "petabyte": (lambda f: hole(f / "checkpoint/model/rank-00009.safetensors", 1 << 43), "is larger than is read"),
    "large paper": (lambda f: hole(f / "contribution.json", 2 << 20), "is larger than is read"),
    "large seal": (lambda f: hole(f / "contribution.sig", 17 << 20), "is larger than is read"),
    "file for folder": (lambda f: (shutil.rmtree(f / "tokenizer"), (f / "tokenizer").touch()), "none of the files"),
    "folder for file": (lambda f: ((f / "config.json").unlink(), (f / "config.json/x").mkdir(parents=True)),
                        None),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "missing"),
    **{f"without {name}": (lambda f, name=name: (f / name).unlink(), f"{name} missing") for name in form_of.NEEDED},
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_contribution_is_not_even_copied(hands, case):
    change, reason = FILES[case]
    folder = hands.take()
    change(folder)
    if reason is None:
        hands.refused("seal", "config.json is missing")
    else:
        hands.refused("files", reason)
    shutil.rmtree(hands.place / "outside")
    (hands.place / "outside").mkdir()
    (hands.place / "outside/secret.json").write_text("{}")


CHANGED = {
    "swapped": (lambda f: swap(f / MODEL, f / MODEL.replace("00000", "00001")), "was changed"),
    "parts swapped": (lambda f: swap(f / MODEL, f / OPTIMIZER), "was changed"),
    "papers swapped": (lambda f: swap(f / "config.json", f / "run.lock.json"), "config.json was changed"),
    "one more": (lambda f: shutil.copy(f / MODEL, f / "checkpoint/model/rank-00007.safetensors"), "was added"),
    "renamed": (lambda f: (f / MODEL).rename(f / MODEL.replace("rank-00000", "part-00000")), "part-00000.safetensors"),
    "one fewer": (lambda f: (f / OPTIMIZER).unlink(), "is missing"),
    "energy added": (lambda f: (f / "energy.jsonl").write_text("{}\n"), "energy.jsonl was added"),
    "truncated": (lambda f: os.truncate(f / MODEL, 100), "was changed"),
    "longer": (lambda f: (f / "ledger.jsonl").open("a").write("\n"), "ledger.jsonl was changed"),
    "emptied": (lambda f: os.truncate(f / "evaluation.json", 0), "evaluation.json was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_what_was_changed_under_the_seal_is_refused_by_name(hands, case):
    change, reason = CHANGED[case]
    change(hands.take())
    hands.refused("seal", reason)


@pytest.mark.slow
@pytest.mark.parametrize("case", STRANGE)
def test_strange_content_of_any_paper_is_refused(hands, case):
    for name in (*(one for one in form_of.NEEDED if one.endswith("json")), "config.json", "run.lock.json"):
        (hands.take() / name).write_bytes(STRANGE[case])
        seal(hands.folder, hands.key)
        assert "refused" in {outcome for outcome, _ in hands.verdict().values()}, name


def test_seals_of_others_are_refused(hands, people):
    for name, reason in (("eve", "none of those you trust"), ("bob", "this takes a contributor"),
                         ("lead", "this takes a contributor")):  # fmt: skip
        hands.take()
        seal(hands.folder, people.keys[name])
        hands.refused("seal", reason)
    folder = hands.take()  # Eve's signature under Alice's name
    value = json.loads((folder / "contribution.sig").read_bytes())
    seal(folder, people.keys["eve"])
    forged = json.loads((folder / "contribution.sig").read_bytes())
    forged["verificationMaterial"] = value["verificationMaterial"]
    (folder / "contribution.sig").write_text(json.dumps(forged))
    hands.refused("seal", "forged")


def test_a_seal_of_another_kind_is_refused(hands):
    from consortium.seal import hash_files, make

    folder = hands.take()
    files = hash_files(folder, but=folder / "contribution.sig")
    for kind in ("files", "run", "review", "evaluation"):
        (folder / "contribution.sig").write_bytes(make(folder, hands.key, kind, files=files))
        hands.refused("seal", f"is a seal of kind {kind}, not contribution")


# --- liars ----------------------------------------------------------------------------------------------------------

ANYTHING = (None, [], {}, -1, True, "", "a\u202eb", 10**40, ["x"])
FINE = {"parents": ([],), "data_licenses": ([],), "opt_out_date": ("",), "tools": ({},)}  # says less, but no lie


def paper_lies():
    fields = [*form_of.Contribution.__dataclass_fields__]
    for name in fields:
        for value in ANYTHING:
            if value not in FINE.get(name, ()) and not (name == "data_licenses" and value == ["x"]):
                yield f"{name}={value!r:.12}", put(name, value)
        yield f"without {name}", lambda paper, name=name: paper.pop(name) and None
    yield "unknown field", put("also", 1)
    yield "list", lambda paper: [paper]


@pytest.mark.parametrize("name", [*form_of.Contribution.__dataclass_fields__, "also"])
def test_no_false_word_in_the_paper_passes(hands, name):
    lies = [(what, change) for what, change in paper_lies() if what.startswith((f"{name}=", f"without {name}"))]
    lies += [("also", put("also", 1)), ("list", lambda paper: [paper])] if name == "also" else []
    assert len(lies) >= 2
    for what, change in lies:
        edit(hands.take() / "contribution.json", change)
        seal(hands.folder, hands.key)
        assert "refused" in {outcome for outcome, _ in hands.verdict().values()}, what


PAPERS = {  # file, change, check that refuses, reason
    "tokens": ("contribution.json", put("tokens", 10**12), "checkpoint", "says tokens="),
    "step": ("contribution.json", put("step", 13), "checkpoint", "says step=13"),
    "identity": ("contribution.json", put("manifest_sha256", "0" * 64), "papers", "names another checkpoint"),
    "root": ("contribution.json", put("merkle_root", "0" * 64), "checkpoint", "says merkle_root"),
    "data": ("contribution.json", put("data_merkle_root", "0" * 64), "checkpoint", "says data_merkle_root"),
    "flops": ("contribution.json", put("flops", 1), "compute", "by model and ledger it is"),
    "ancestors": ("contribution.json", put("cumulative_flops", 1), "compute", "by this registry it is"),
    "parents": ("contribution.json", put("parents", [{"manifest_sha256": "0" * 64, "role": "init"}]), "checkpoint",
                "says parents="),
    "name": ("contribution.json", put("name", "../../x"), "papers", "name, licences"),
    "licence": ("contribution.json", put("license", "CC-BY-ND-4.0\n"), "papers", "not readable"),
    "future": ("contribution.json", put("opt_out_date", "2999-01-01"), "opt-out", "yet to come"),
    "no day": ("contribution.json", put("opt_out_date", "soon"), "opt-out", "is no day"),
    "data for no business": ("contribution.json", put("data_licenses", ["CC-BY-NC-4.0"]), "licence", "no commerc"),
    "format": ("contribution.json", put("format", "hanse.contribution/2"), "papers", "this hanse reads"),
    "other logits": ("evaluation.json", lambda e: e["golden"]["kept"][0][0].__setitem__(0, 1.0), "golden logits",
                     "other logits than its contributor recorded"),
    "logits of a shape": ("evaluation.json", put("golden.kept", [[1.0]]), "golden logits", "are not 2 x 32"),
    "logits are text": ("evaluation.json", put("golden.kept", ["a"]), "golden logits", "are not 2 x 32 x 8 numbers"),
    "logits not finite": ("evaluation.json", put("golden.largest", float("inf")), "papers", "is not a number"),
    "logits hash": ("evaluation.json", put("golden.sha256", "x"), "evaluation", "golden logits, bits"),
    "score below 0": ("evaluation.json", put("bits_per_byte.de", -1.0), "evaluation", "golden logits, bits"),
    "score is text": ("evaluation.json", put("bits_per_byte.de", "1"), "evaluation", "golden logits, bits"),
    "no text": ("evaluation.json", put("validation", None), "evaluation", "golden logits, bits"),
    "lengths": ("evaluation.json", put("validation.sequence_length", 0), "evaluation", "golden logits, bits"),
    "environment": ("config.json", put("name", "${oc.env:HOME}"), "run", "asks for a value of the machine"),
    "unknown key": ("config.json", put("pickle", 1), "run", "no configuration of"),
    "wrong type": ("config.json", put("batch.global_batch_size", "many"), "run", "no configuration of"),
    "batch": ("config.json", put("batch.global_batch_size", 16), "run", "locked with another configuration"),
    "code in settings": ("config.json", put("model.settings.auto_map", {}), "papers", "auto_map"),
    "kernels": ("config.json", put("model.settings.attn_implementation", "x/y"), "papers", "attn_implementation"),
    "settings": ("config.json", put("model.settings.unknown", 1), "run", "has the key 'unknown'"),
    "architecture": ("config.json", put("model.architecture", "gpt2"), "run", "model_type="),
    "lock": ("run.lock.json", put("seed", 7), "run", "not the file that the ledger names"),
    "lock of other data": ("run.lock.json", put("data_merkle_root", "0" * 64), "run", "of another data_merkle_root"),
    "lock of parents": ("run.lock.json", put("parents", [{}]), "run", "of another parents"),
    "lock without code": ("run.lock.json", put("code", None), "run", "lacks code"),
    "lock without format": ("run.lock.json", put("format", 1), "run", "not a lock"),
}  # fmt: skip


@pytest.mark.parametrize("case", PAPERS)
def test_a_sealed_lie_is_refused_where_it_is_told(hands, case):
    name, change, check, reason = PAPERS[case]
    edit(hands.take() / name, change)
    seal(hands.folder, hands.key)
    hands.refused(check, reason)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


LEDGERS = {  # change of the records, reason; the chain is made to hold afterwards
    "replayed line": (lambda r: r.insert(5, r[4]), "line 6 tells of step 4, after step 4"),
    "removed line": (lambda r: r.pop(5), "line 6 tells of step 6, after step 4"),
    "swapped lines": (lambda r: r.insert(3, r.pop(5)), "line 4 tells of step 5, after step 2"),
    "no start": (lambda r: r.pop(0), "does not begin with the start"),
    "start in the future": (lambda r: r.insert(3, {**r[0], "step": 9}), "line 4 tells of step 9, after step 2"),
    "another run's lock": (lambda r: r[0].update(lock="0" * 64), "not the file that the ledger names"),
    "samples": (lambda r: r[4].update(samples=[0, 8]), "took other samples"),
    "samples are text": (lambda r: r[4].update(samples="ab"), "line 5 lacks"),
    "loss is no number": (lambda r: r[4].update(loss="nan"), "line 5 lacks"),
    "loss is infinite": (lambda r: r[4].update(loss="inf"), "line 5 lacks"),
    "loss is decimal": (lambda r: r[4].update(loss=1.5), "line 5 lacks"),
    "no loss": (lambda r: r[4].pop("loss"), "line 5 lacks"),
    "step is text": (lambda r: r[4].update(step="4"), "line 5 does not follow"),
    "batch is no hash": (lambda r: r[4].update(batch="x"), "line 5 lacks"),
    "start is null": (lambda r: r[0].update(step=None), "line 1 does not follow"),
    "other root": (lambda r: r[-1].update(merkle_root="0" * 64), "does not end with this checkpoint"),
    "root is null": (lambda r: r[-1].update(merkle_root=None), "line 14 lacks"),
    "no end": (lambda r: r.pop(), "does not end with this checkpoint"),
    "goes on": (lambda r: r.append({**r[-2], "step": 13, "samples": [96, 104]}), "does not end with this checkpoint"),
    "goes back": (lambda r: r.insert(9, {"kind": "start", "step": 2, "lock": r[0]["lock"]}), "after step 2"),
    "rewind to later": (lambda r: r.insert(3, {"kind": "rewind", "step": 9, "samples": [0, 8]}), "of step 9, after"),
    "rewind to nowhere": (lambda r: r.insert(3, {"kind": "rewind", "step": 1}), "line 4 lacks"),
    "nothing": (lambda r: r.clear(), "does not begin"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEDGERS)
def test_a_ledger_that_was_written_anew_is_refused(hands, case):
    change, reason = LEDGERS[case]
    path = hands.take() / "ledger.jsonl"
    records = lines_of(path)
    change(records)
    path.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in records))
    seal(hands.folder, hands.key)
    hands.refused("run", "")
    chain(path, records)
    seal(hands.folder, hands.key)
    hands.refused("run", reason)


def test_a_batch_that_was_not_in_the_data_is_found_with_the_data(hands, tiny_data):
    path = hands.take() / "ledger.jsonl"
    records = lines_of(path)
    records[4]["batch"] = "0" * 64
    chain(path, records)
    seal(hands.folder, hands.key)
    hands.config.data = str(tiny_data / "shards")
    try:
        hands.refused("batches", "step 4 saw another batch")
        edit(hands.take() / "evaluation.json", put("bits_per_byte.de", 1.0))
        seal(hands.folder, hands.key)
        hands.refused("bits per byte", "on the same text here it is")
    finally:
        hands.config.data = None


ENERGY = {
    "no line": (b"{}", "cut short"), "no object": (b"1\n", "no JSON object"), "pickle": (b"\x80\x04.\n", "JSON"),
    "twice": (b'{"a":1,"a":2}\n', "stands twice"), "nan": (b'{"joules":NaN}\n', "not a number"),
    "empty": (b"", "holds no line"), "no chain": (b'{"kind": "start"}\n', "does not follow"),
    "line cut out": (None, "does not follow"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENERGY)
def test_an_energy_ledger_that_is_none_is_refused(hands, case):
    content, reason = ENERGY[case]
    path = hands.take() / "energy.jsonl"
    if content is None:
        chain(path, [{"kind": kind, "step": 0} for kind in ("start", "checkpoint", "end")])
        seal(hands.folder, hands.key)
        assert hands.verdict()["energy"] == ("checked", "3 lines, as the contributor measured it")
        lines = path.read_bytes().splitlines(keepends=True)
        content = lines[0] + lines[2]
    path.write_bytes(content)
    seal(hands.folder, hands.key)
    hands.refused("energy", reason)


# (What lies in checkpoint/ is for test_tamper_checkpoint.py.)


@pytest.mark.slow
@settings(max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_anything_in_any_place_of_any_paper_is_refused_or_judged(hands, data):
    name = data.draw(st.sampled_from(["contribution.json", "evaluation.json", "run.lock.json", "config.json",
                                      "checkpoint/state.json", "checkpoint/manifest.json"]))  # fmt: skip
    path = hands.take() / name
    value = data.draw(damaged(json.loads(path.read_text())))
    path.write_text(json.dumps(value))
    with suppress(KeyError, TypeError, AttributeError):  # so broken that nothing can be made to agree with it
        cover(hands.folder) if name == "checkpoint/state.json" else agree(hands.folder)
    seal(hands.folder, hands.key)
    hands.verdict()
