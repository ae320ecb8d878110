"""Liars who make every hash agree with a changed checkpoint, and seal it: what is in it is refused with its reason."""

import json
import pickle
import random

import numpy as np
import pytest

from tests.consortium.liar import agree, cover, edit, read_tensors, seal, write_raw
from tests.consortium.tampering import drop, put

MODEL, MORE = "checkpoint/model/rank-00000.safetensors", "checkpoint/model/rank-00001.safetensors"
OPTIMIZER, STATE, MANIFEST = (
    "checkpoint/optimizer/rank-00001.safetensors", "checkpoint/state.json", "checkpoint/manifest.json")  # fmt: skip
FIRST = "model.embed_tokens.weight"


def lie(hands, change) -> None:
    """Change a copy, make all hashes agree, seal it."""
    change(hands.take())
    cover(hands.folder)
    seal(hands.folder, hands.key)


# --- the bytes of tensor files --------------------------------------------------------------------------------------


def header(change):
    """Change the header of a file of weights; the data stays."""

    def on(folder):
        told, data = read_tensors(folder / MODEL)
        changed = change(told)
        write_raw(folder / MODEL, told if changed is None else changed, data)

    return on


def first(**changes):
    return header(lambda told: next(iter(told.values())).update(changes))


def renamed(new):
    """The first tensor under another key; ``{}`` stands for the old one."""

    def change(told):
        old = next(iter(told))
        return {new.replace("{}", old): told.pop(old), **told}

    return header(change)


def numbers(value, key="", file=MODEL):
    """One number of the first tensor whose key has ``key`` in it becomes another one."""

    def on(folder):
        told, data = read_tensors(folder / file)
        at = next(entry["data_offsets"][0] for name, entry in told.items() if key in name)
        changed = bytearray(data)
        changed[at : at + 4] = np.array(value, "<f4").tobytes()
        write_raw(folder / file, told, bytes(changed))

    return on


def raw(content, *, claim=None, data=b""):
    return lambda folder: write_raw(folder / MODEL, content, data, claim=claim)


FILES = {
    "no bytes": (lambda f: (f / MODEL).write_bytes(b""), "claims a header of"),
    "seven bytes": (lambda f: (f / MODEL).write_bytes(b"\x01" * 7), "claims a header of"),
    "header of 2^63": (raw(b"{}", claim=2**63), "claims a header of 9223372036854775808 bytes"),
    "header of 100 MB": (raw(b"{}", claim=100 << 20), "claims a header of 104857600 bytes"),
    "header longer than the file": (raw(b"{}", claim=3), "claims a header of 3 bytes"),
    "header of 1": (raw(b"{}", claim=1), "claims a header of 1 bytes"),
    "pickle": (lambda f: (f / MODEL).write_bytes(pickle.dumps({"a": [1] * 1000})), "claims a header of"),
    "zip": (lambda f: (f / MODEL).write_bytes(b"PK\x03\x04" + bytes(100)), "claims a header of"),
    "not JSON": (raw(b"{a}"), "not readable as JSON"),
    "deep": (raw(b"[" * 100_000), "nested too deep"),
    "list": (raw(b"[]"), "names no tensors"),
    "nothing": (raw(b"{}"), "names no tensors"),
    "twice": (raw(b'{"a":{},"a":{}}'), "stands twice"),
    "NaN in header": (raw(b'{"a":NaN}'), "not a number"),
    "metadata": (header(lambda told: told.update(__metadata__={"format": "pt"})), "__metadata__"),
    "entry is text": (header(lambda told: told.update({"a[0:1]": "x"})), "no object with dtype"),
    "more than asked": (first(also=1), "no object with dtype"),
    "F64": (first(dtype="F64"), "is of type 'F64'"), "BF16": (first(dtype="BF16"), "is of type 'BF16'"),
    "I8": (first(dtype="I8"), "is of type 'I8'"), "BOOL": (first(dtype="BOOL"), "is of type 'BOOL'"),
    "type is null": (first(dtype=None), "is of type"),
    "two dimensions": (first(shape=[2, 2]), "no shape of one dimension"),
    "no dimension": (first(shape=[]), "no shape of one dimension"),
    "shape is text": (first(shape="a"), "no shape of one dimension"),
    "negative": (first(shape=[-1]), "no shape of one dimension"),
    "fraction": (first(shape=[1.5]), "no shape of one dimension"),
    "huge": (first(shape=[10**18]), "is not as long as its shape"),
    "offsets beyond": (first(data_offsets=[0, 10**15]), "leaves a gap, or is not as long"),
    "offsets backwards": (first(data_offsets=[8, 0]), "leaves a gap, or is not as long"),
    "offsets negative": (first(data_offsets=[-4, 0]), "no place in the file"),
    "offsets are text": (first(data_offsets="ab"), "no place in the file"),
    "one offset": (first(data_offsets=[0]), "no place in the file"),
    "overlap": (header(lambda told: list(told.values())[1].update(data_offsets=[0, 4])), "overlaps another"),
    "bytes behind": (lambda f: (f / MODEL).open("ab").write(b"\0" * 4), "its header describes"),
    "bytes missing": (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-4]), "its header describes"),
    "NaN": (numbers(np.nan), "holds NaN or an infinite"), "Inf": (numbers(np.inf), "holds NaN or an infinite"),
    "-Inf": (numbers(-np.inf), "holds NaN or an infinite"),
    "NaN in a moment": (numbers(np.nan, ".exp_avg[", OPTIMIZER), "holds NaN or an infinite"),
    "square below 0": (numbers(-1e-9, ".exp_avg_sq[", OPTIMIZER), "mean of squares below 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_tensor_file_that_is_none_is_refused(hands, case):
    change, reason = FILES[case]
    lie(hands, change)
    hands.refused("tensors", reason)


def moved(folder):
    """The first tensor of one file stands in the other one, too."""
    told, data = read_tensors(folder / MODEL)
    more, rest = read_tensors(folder / MORE)
    key, entry = next(iter(told.items()))
    length = entry["data_offsets"][1] - entry["data_offsets"][0]
    more[key] = {**entry, "data_offsets": [len(rest), len(rest) + length]}
    write_raw(folder / MORE, more, rest + data[entry["data_offsets"][0] : entry["data_offsets"][1]])


def manifest(change):
    return lambda folder: edit(folder / MANIFEST, change)


KEYS = {
    "no range": (renamed("x"), "which is no NAME[START:STOP]"),
    "range of text": (renamed("x[a:b]"), "which is no NAME[START:STOP]"),
    "range of another length": (renamed("x[0:7]"), "which is no NAME[START:STOP]"),
    "range below 0": (renamed("x[-1:3]"), "which is no NAME[START:STOP]"),
    "endless range": (renamed("x[0:999999999999999999999]"), "which is no NAME[START:STOP]"),
    "unknown tensor": (renamed("x{}"), "the manifest knows no such tensor"),
    "escape in name": (renamed("\x1b[2J{}"), "the manifest knows no such tensor"),
    "path as name": (renamed("../../{}"), "the manifest knows no such tensor"),
    "twice": (moved, "does not hold every element of model.embed_tokens.weight once"),
    "tensor missing": (manifest(drop(f"tensors/{FIRST}")), "the manifest knows no such tensor"),
    "tensor more": (manifest(lambda m: m["tensors"].update({"x": [2, 2]})), "does not hold every element of x once"),
    "larger": (manifest(put("tensors", {"w": [10**9, 10**9]})), "knows no such tensor"),
    "shape below 0": (manifest(lambda m: m["tensors"].update({FIRST: [-1024, -48]})), None),
    "shape of text": (manifest(lambda m: m["tensors"].update({FIRST: ["a"]})), "is incomplete"),
    "shape is number": (manifest(lambda m: m["tensors"].update({FIRST: 5})), None),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_names_and_ranges_that_do_not_fit_are_refused(hands, case):
    change, reason = KEYS[case]
    change(hands.take())
    try:
        cover(hands.folder)
    except TypeError:  # no root can be made of it
        agree(hands.folder)
    seal(hands.folder, hands.key)
    if reason is None:
        assert "refused" in {outcome for outcome, _ in hands.verdict().values()}
    else:
        hands.refused("checkpoint", reason)


def unlisted(value):
    value["files"] = {name: entry for name, entry in value["files"].items() if "optimizer" not in name}


MANIFESTS = {
    "file outside": (lambda m: m["files"].update({"../../secret": {"bytes": 1, "sha256": "0" * 64}}), "does not list"),
    "absolute": (lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}), "does not list"),
    "file not listed": (unlisted, "does not list exactly"),
    "no files": (drop("files"), "does not list exactly"),
    "files are a list": (put("files", []), "does not list exactly"),
    "no tensors": (drop("tensors"), "is incomplete"),
    "root": (put("merkle_root", "0" * 64), "was edited"),
    "format": (put("format", "hanse.checkpoint/9"), "of format hanse.checkpoint/9"),
    "other format": (put("format", "pickle"), "is not of format"),
    "size": (lambda m: m["files"]["state.json"].update(bytes=1), None),
    "size is text": (lambda m: m["files"]["state.json"].update(bytes="1"), None),
    "hash": (lambda m: m["files"]["state.json"].update(sha256="0" * 64), None),
    "hash is null": (lambda m: m["files"]["state.json"].update(sha256=None), None),
    "entry is text": (lambda m: m["files"].update({"state.json": "x"}), None),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_does_not_fit_is_refused(hands, case):
    change, reason = MANIFESTS[case]
    edit(hands.take() / MANIFEST, change)
    agree(hands.folder)
    seal(hands.folder, hands.key)
    if reason is None:
        found = hands.verdict()["checkpoint"]
        assert found[0] == "refused"
    else:
        hands.refused("checkpoint", reason)


# --- the state, and the model in it ---------------------------------------------------------------------------------


def state(path, value):
    return lambda folder: edit(folder / STATE, put(path, value))


STATES = {
    "step": (state("step", 13), "checkpoint", "says step=12"),
    "step is true": (state("step", True), "checkpoint", "step"),
    "step is text": (state("step", "12"), "checkpoint", "incomplete"),
    "tokens": (state("consumed_tokens", 1), "checkpoint", "says tokens="),
    "data": (state("data_merkle_root", "0" * 64), "checkpoint", "says data_merkle_root"),
    "no model": (state("model", None), "checkpoint", "incomplete"),
    "tokenizer": (state("tokenizer_sha256", "0" * 64), "tokenizer", "not the tokenizer of the checkpoint"),
    "auto_map": (state("model.auto_map", {"AutoModel": "x--modeling.X"}), "papers", "auto_map"),
    "remote code": (state("model.trust_remote_code", True), "papers", "trust_remote_code"),
    "deep auto_map": (state("model.rope_parameters", {"a": [{"auto_map": 1}]}), "papers", "auto_map"),
    "quantised": (state("model.quantization_config", {"quant_method": "x"}), "papers", "quantization_config"),
    "kernels": (state("model._attn_implementation", "kernels-community/x"), "papers", "_attn_implementation"),
    "unknown key": (state("model.secret_key", 1), "model", "has the key 'secret_key'"),
    "architecture": (state("model.model_type", "gpt2"), "model", "model_type='gpt2'"),
    "architecture of a path": (state("model.model_type", "../../x"), "model", "model_type="),
    "architecture is null": (state("model.model_type", None), "model", "model_type=None"),
    "architecture is a list": (state("model.model_type", ["llama"]), "model", "model_type="),
    "type": (state("model.dtype", "__builtins__"), "model", "dtype="),
    "type is a list": (state("model.dtype", ["float32"]), "model", "dtype="),
    "no layers": (state("model.num_hidden_layers", 0), "model", "num_hidden_layers=0"),
    "all layers": (state("model.num_hidden_layers", 10**9), "model", "num_hidden_layers=1000000000"),
    "layers are text": (state("model.num_hidden_layers", "2"), "model", "num_hidden_layers='2'"),
    "layers are true": (state("model.num_hidden_layers", True), "model", "num_hidden_layers=True"),
    "one layer": (state("model.num_hidden_layers", 1), "model", "another model"),
    "three layers": (state("model.num_hidden_layers", 3), "model", "another model"),
    "width": (state("model.hidden_size", 47), "model", "no model"),
    "other width": (state("model.hidden_size", 96), "model", "another model"),
    "width of 2^50": (state("model.hidden_size", 2**50), "model", "beyond all sizes"),
    "width is text": (state("model.hidden_size", "48"), "model", "no model"),
    "vocabulary": (state("model.vocab_size", 10**12), "model", "another model"),
    "vocabulary of 10^40": (state("model.vocab_size", 10**40), "model", "beyond all sizes"),
    "heads": (state("model.num_attention_heads", 0), "model", "no model"),
    "key-value heads": (state("model.num_key_value_heads", 1), "model", "another model"),
    "head size": (state("model.head_dim", 10**9), "model", "another model"),
    "untied": (state("model.tie_word_embeddings", False), "model", "lm_head.weight"),
    "bias": (state("model.attention_bias", True), "model", "bias"),
    "activation": (state("model.hidden_act", "__import__('os')"), "model", "no model"),
    "rope of a stranger": (state("model.rope_parameters", {"rope_type": "x"}), "model", "no model"),
    "rope is null": (state("model.rope_parameters", 5), "model", "no model"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_a_state_or_model_that_does_not_fit_is_refused(hands, case):
    change, check, reason = STATES[case]
    lie(hands, change)
    hands.refused(check, reason)


OTHER_MODELS = {  # settings that no shape tells of: the logits do
    "activation": state("model.hidden_act", "gelu"), "rope": state("model.rope_parameters.rope_theta", 9.0),
    "epsilon": state("model.rms_norm_eps", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_settings_that_change_the_model_change_its_golden_logits(hands, case):
    lie(hands, OTHER_MODELS[case])
    hands.refused("golden logits", "other logits than its contributor recorded")


@pytest.mark.slow
@pytest.mark.parametrize("case", range(16))
def test_weights_that_were_changed_after_they_were_measured_are_found_by_the_golden_logits(hands, case):
    chance = random.Random(case)

    def change(folder):
        path = folder / chance.choice([MODEL, MORE])
        told, data = read_tensors(path)
        key = chance.choice([name for name in sorted(told) if "layers." in name and "proj" in name])
        begin, end = told[key]["data_offsets"]
        values = np.frombuffer(data[begin:end], "<f4")
        how = chance.choice([lambda v: -v, lambda v: v * 1.5, lambda v: v[::-1], lambda v: v + 0.01, np.zeros_like])
        write_raw(path, told, data[:begin] + how(values).astype("<f4").tobytes() + data[end:])

    lie(hands, change)
    hands.refused("golden logits", "not the weights that were measured")


def swapped_layers(told):
    keys = list(told)
    one = next(key for key in keys if "layers.0.mlp.up_proj" in key)
    other = one.replace("layers.0", "layers.1")
    return {other if key == one else one if key == other else key: told[key] for key in keys}


def test_tensors_that_changed_places_are_found_by_the_golden_logits(hands):
    lie(hands, header(swapped_layers))
    hands.refused("golden logits", "not the weights that were measured")


TOKENIZERS = {
    "nothing": ({}, "not a byte-level BPE"), "list": ([], "not a"), "text": ("a", "not a"),
    "unigram": ({"model": {"type": "Unigram", "vocab": {}}, "added_tokens": []}, "not a byte-level BPE"),
    "ids of 10^15": ({"model": {"type": "BPE", "vocab": {"a": 10**15}}, "added_tokens": []}, "not a byte-level BPE"),
    "ids below 0": ({"model": {"type": "BPE", "vocab": {"a": -1}}, "added_tokens": []}, "not a byte-level BPE"),
    "larger than the model": ({"model": {"type": "BPE", "vocab": {"a": 9999}}, "added_tokens": []}, "has 10000 ids"),
    "not of bytes": ({"model": {"type": "BPE", "vocab": {"\u4e00": 1}}, "added_tokens": []}, "not a"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(hands, case):
    from hashlib import sha256

    value, reason = TOKENIZERS[case]

    def change(folder):
        path = folder / "tokenizer/tokenizer.json"
        path.write_text(json.dumps(value))
        edit(folder / STATE, put("tokenizer_sha256", sha256(path.read_bytes()).hexdigest()))

    lie(hands, change)
    hands.refused("tokenizer", reason)


YAMLS = {"environment": "name: ${oc.env:HOME}", "reference": "a: &a [1]\nb: [*a, *a]",
         "tag": "a: !!python/name:os.system", "not YAML": "a: [", "bytes": "\x00"}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_a_configuration_beside_merged_weights_that_could_do_something_is_refused(hands, case):
    lie(hands, lambda folder: (folder / "checkpoint/config.yaml").write_text(YAMLS[case]))
    hands.refused("papers", "checkpoint/config.yaml")


PARENTS = {
    "unknown": ([{"manifest_sha256": "0" * 64, "role": "init"}], "run", "of another parents"),
    "role": ([{"manifest_sha256": "0" * 64, "role": "friend"}], None, ""), "no hash": ([{"role": "init"}], None, ""),
    "text": ("abc", None, ""), "numbers": ([1], None, ""), "null": (None, None, ""),
    "weight": ([{"manifest_sha256": "0" * 64, "role": "average", "weight": "1"}], None, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", PARENTS)
def test_parents_that_are_none_are_refused(hands, case):
    parents, check, reason = PARENTS[case]
    edit(hands.take() / MANIFEST, put("parents", parents))
    agree(hands.folder)
    edit(hands.folder / "contribution.json", put("parents", parents))
    seal(hands.folder, hands.key)
    if check and hands.verdict()["checkpoint"][0] == "checked":
        hands.refused(check, reason)
    assert "refused" in {outcome for outcome, _ in hands.verdict().values()}
