"""What Megatron and datatrove wrote, by writers of our own after the published layouts, becomes shards and trains."""

import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths

END = 0


def megatron(prefix, documents, dtype="<u2", pieces=1):
    """NVIDIA's layout (megatron/core/datasets/indexed_dataset.py), each document in ``pieces`` sequences."""
    code = {"<u2": 8, "<i4": 4}[dtype]
    sequences = [part for ids in documents for part in np.array_split(np.array(ids, dtype), pieces)]
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(part.tobytes() for part in sequences))
    with prefix.with_name(prefix.name + ".idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00")
        file.write(struct.pack("<Q", 1))
        file.write(struct.pack("<B", code))
        file.write(struct.pack("<Q", len(sequences)))
        file.write(struct.pack("<Q", len(documents) + 1))
        sizes = [len(part) for part in sequences]
        pointers = [sum(sizes[:number]) * np.dtype(dtype).itemsize for number in range(len(sizes))]
        file.write(struct.pack(f"<{len(sizes)}i", *sizes))
        file.write(struct.pack(f"<{len(pointers)}q", *pointers))
        file.write(struct.pack(f"<{len(documents) + 1}q", *range(0, pieces * len(documents) + 1, pieces)))
    return prefix.with_name(prefix.name + ".bin")


def datatrove(path, documents, dtype="<u2", index=True, metadata=True):
    path.write_bytes(b"".join(np.array(ids, dtype).tobytes() for ids in documents))
    if index:
        ends = np.cumsum([len(ids) for ids in documents])
        path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends.tolist()))
    if metadata:
        count = sum(map(len, documents))
        path.with_name(path.name + ".metadata").write_text(f"tok.json|{np.dtype(dtype).itemsize}\n{count}\n{count} T")
    return path


@pytest.fixture(scope="module")
def texts(tiny_data):
    """French documents as hanse tokenize wrote them: lists of ids, each with its end."""
    manifest = ShardsManifest.read(tiny_data / "shards")
    (entry,) = [entry for entry in manifest.of("train") if entry.language == "fr"]
    shard = manifest.open(entry)
    return [shard.document(number).tolist() for number in range(shard.documents)]


@pytest.fixture
def adopt(hanse, tiny_data, tmp_path):
    def run(path, *settings, code=0):
        one = f"adopt={{fr: {{path: {path}, license: CC0-1.0, source: theirs}}}}"
        output = tmp_path / "shards"
        assert hanse("tokenize", "name=x", one, f"tokenizer={tiny_data / 'tokenizer'}", f"output={output}",
                     *settings) == code  # fmt: skip
        return ShardsManifest.read(output) if not code else None

    return run


def documents_of(manifest):
    return {
        entry.split: [manifest.open(entry, hashes=True).document(number).tolist() for number in range(entry.documents)]
        for entry in manifest.shards
    }


@pytest.mark.parametrize(
    "write",
    [megatron, lambda path, ids: megatron(path, ids, "<i4", pieces=3),
     lambda path, ids: megatron(path, [one[:-1] for one in ids]),  # without --append-eod
     lambda path, ids: megatron(path, [*ids[:3], [END], [], *ids[3:]]),
     lambda path, ids: datatrove(path.with_suffix(".ds"), ids),
     lambda path, ids: datatrove(path.with_suffix(".ds"), ids, "<u4"),
     lambda path, ids: datatrove(path.with_suffix(".ds"), ids, index=False, metadata=False)],
    ids=["megatron", "int32 in pieces", "no ends", "empty ones", "datatrove", "u32", "bare"],
)  # fmt: skip
def test_the_tokens_of_others_are_the_tokens_of_the_shards(adopt, texts, tiny_data, tmp_path, write):
    path = write(tmp_path / "their.text_document", texts)
    manifest = adopt(path, "validation_fraction=0")
    assert documents_of(manifest) == {"train": texts}
    (entry,) = manifest.shards
    rows = pq.read_table(manifest.folder / "train/fr.docs.parquet").to_pylist()
    lengths = token_byte_lengths(tiny_data / "tokenizer")
    assert entry.bytes == sum(row["bytes"] for row in rows) == sum(lengths[ids].sum() for ids in texts)
    assert {(row["source"], row["license"], row["language"]) for row in rows} == {("theirs", "CC0-1.0", "fr")}
    assert len({row["id"] for row in rows}) == len(texts)
    if np.array_equal(np.fromfile(path, "<u2"), np.concatenate(texts)):
        assert (manifest.folder / "train/fr.bin").read_bytes() == path.read_bytes()


def test_a_share_is_held_out_by_hash_and_a_rerun_does_nothing(adopt, texts, tmp_path, capsys):
    path = megatron(tmp_path / "theirs", texts)
    manifest = adopt(path, "validation_fraction=0.3", "batch_megabytes=1")
    found = documents_of(manifest)
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    assert 0 < len(found["validation"]) < len(texts) / 2
    capsys.readouterr()
    adopt(path, "validation_fraction=0.3")
    assert "nothing to do" in capsys.readouterr().out
    assert documents_of(adopt(path, "validation_fraction=0")) == {"train": texts}


def test_what_cannot_be_adopted_is_refused_in_one_sentence(adopt, texts, tmp_path, capfd):
    def refused(path, message):
        adopt(path, code=2)
        assert message in capfd.readouterr().err

    refused(tmp_path / "no.bin", "no.bin: missing; adopt.LANGUAGE.path is that of a .bin/.idx pair, or of a .ds")
    refused(megatron(tmp_path / "big", [*texts, [5, 1024, END]]), f"document {len(texts)} holds ids beyond the 1,024")
    path = megatron(tmp_path / "cut", texts)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "the file was truncated")
    path = datatrove(tmp_path / "x.ds", texts)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "does not describe the")
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "no whole number of 2-byte ids")
    (tmp_path / "x.ds.metadata").write_text("?")
    refused(path, "says no size of an id")
    refused(megatron(tmp_path / "none", [[], [END]]), "holds no document with a token")
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_a_megatron_file_trains_here_packed_by_best_fit(adopt, texts, tiny_data, hanse, tmp_path):
    """Three steps; every sequence is a bin, nothing of the padding counts, and who saw a document is told."""
    path = megatron(tmp_path / "theirs_text_document", [ids[:-1] for ids in texts], "<i4", pieces=2)
    manifest = adopt(path, "validation_fraction=0.2", "packing_lengths=[64]")
    run = tmp_path / "run"
    assert hanse("train", "name=x", f"run={run}", f"data.shards={manifest.folder}", "model=llama-3m", "ranks=1",
                 f"data.tokenizer={tiny_data / 'tokenizer'}", "data.sequence_length=64", "data.packing=best_fit",
                 "batch.global_batch_size=4", "batch.micro_batch_size=2", "tokens=768", "schedule.warmup_steps=1",
                 "model.settings.hidden_size=32", "model.settings.intermediate_size=64", "engine.precision=fp32",
                 "model.settings.num_hidden_layers=1", "evaluate.every_steps=3") == 0  # fmt: skip
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 3
    assert np.allclose(losses, np.log(1024), atol=0.5)  # a model of 42,000 weights that has seen 768 tokens
    row = pq.read_table(manifest.folder / "train/fr.docs.parquet").to_pylist()[0]
    assert hanse("whosaw", f"run={run}", f"what={row['id']}", f"output={tmp_path / 'saw.json'}") == 0
    found = json.loads((tmp_path / "saw.json").read_text())["documents"]
    assert [one["id"] for one in found] == [row["id"]]
    assert hanse("verify", f"run={run}") == 0
