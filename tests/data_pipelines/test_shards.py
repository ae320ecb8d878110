"""Shards are Megatron's bytes, read back equal, and refused as soon as one of them is not as written."""

import itertools
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines import shards as shards_module
from data_pipelines.shards import ShardsManifest, ShardWriter, TokenShard, index_pieces, token_dtype

DOCUMENTS = st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=20), max_size=12)
HEADER = 34  # bytes before the arrays of an .idx


def write(prefix, documents, dtype="<u2"):
    with ShardWriter(prefix, np.dtype(dtype)) as shard:
        for ids in documents:
            shard.add(np.asarray(ids, dtype=np.int64))
    return prefix


def megatron(prefix):
    """Documents as Megatron-LM reads them: an independent reader of the layout, byte by byte."""
    index, data = (
        (prefix.parent / f"{prefix.name}.idx").read_bytes(),
        (prefix.parent / f"{prefix.name}.bin").read_bytes(),
    )
    assert index[:9] == b"MMIDIDX\x00\x00"
    (version,), (code,) = struct.unpack("<Q", index[9:17]), struct.unpack("<B", index[17:18])
    (sequences,), (entries,) = struct.unpack("<Q", index[18:26]), struct.unpack("<Q", index[26:34])
    assert version == 1
    letter, width = {1: ("B", 1), 2: ("b", 1), 3: ("h", 2), 4: ("i", 4), 5: ("q", 8), 8: ("H", 2)}[code]
    lengths = struct.unpack(f"<{sequences}i", index[34 : 34 + 4 * sequences])
    pointers = struct.unpack(f"<{sequences}q", index[34 + 4 * sequences : 34 + 12 * sequences])
    starts = struct.unpack(f"<{entries}q", index[34 + 12 * sequences : 34 + 12 * sequences + 8 * entries])
    assert len(index) == 34 + 12 * sequences + 8 * entries
    found = [
        list(struct.unpack(f"<{n}{letter}", data[at : at + n * width])) for n, at in zip(lengths, pointers, strict=True)
    ]
    assert sum(lengths) * width == len(data)
    return [[id for sequence in found[a:b] for id in sequence] for a, b in itertools.pairwise(starts)]


@settings(max_examples=40)
@given(documents=DOCUMENTS, dtype=st.sampled_from(["<u2", "<i4", "<i8"]))
def test_documents_read_back_equal_by_us_and_by_megatron(tmp_path_factory, documents, dtype):
    prefix = write(tmp_path_factory.getbasetemp() / "round.trip", documents, dtype)
    shard = TokenShard(prefix)
    assert [shard.document(number).tolist() for number in range(shard.documents)] == documents
    assert shard.tokens.tolist() == [id for ids in documents for id in ids]
    assert shard.tokens.dtype == np.dtype(dtype)
    assert megatron(prefix) == documents


def test_the_index_is_the_one_worked_out_by_hand():
    expected = (
        b"MMIDIDX\0\0" b"\1\0\0\0\0\0\0\0" b"\x08" b"\3\0\0\0\0\0\0\0" b"\4\0\0\0\0\0\0\0"
        b"\2\0\0\0" b"\0\0\0\0" b"\1\0\0\0"
        b"\0\0\0\0\0\0\0\0" b"\4\0\0\0\0\0\0\0" b"\4\0\0\0\0\0\0\0"
        b"\0\0\0\0\0\0\0\0" b"\1\0\0\0\0\0\0\0" b"\2\0\0\0\0\0\0\0" b"\3\0\0\0\0\0\0\0"
    )  # fmt: skip
    assert b"".join(index_pieces([2, 0, 1], np.dtype("<u2"))) == expected


@pytest.mark.parametrize("documents", [0, 1, 4, 5, 8, 11])
def test_an_index_in_pieces_is_the_same_index(documents, monkeypatch):
    lengths = list(range(documents))
    whole = b"".join(index_pieces(lengths, np.dtype("<i4")))
    monkeypatch.setattr(shards_module, "PIECE", 4)
    assert b"".join(index_pieces(lengths, np.dtype("<i4"))) == whole


def test_the_dtype_follows_megatrons_rule():
    assert [token_dtype(size) for size in (300, 65_499, 65_500, 200_000)] == [*["<u2"] * 2, *["<i4"] * 2]


def test_an_id_that_does_not_fit_is_not_written(tmp_path):
    for ids in ([65_536], [-1]):
        with pytest.raises(AssertionError, match="ids beyond the dtype"):
            write(tmp_path / "shard", [ids])
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_shard_with_modes_and_documents_of_several_sequences_is_read(tmp_path):
    """As Megatron's preprocess_data.py --split-sentences writes them, under a name with dots."""
    prefix = tmp_path / "corpus.v1.0_text_sentence"
    lengths, tokens = [2, 3, 1, 4], np.arange(10, dtype="<i4")
    pointers = [0, 8, 20, 24]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ4i4q4q4b", 1, 4, 4, 4, *lengths, *pointers, 0, 2, 2, 4, 0, 1, 0, 1)
    (tmp_path / f"{prefix.name}.idx").write_bytes(index)
    (tmp_path / f"{prefix.name}.bin").write_bytes(tokens.tobytes())
    shard = TokenShard(prefix)
    assert [shard.document(number).tolist() for number in range(3)] == [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9]]


def test_the_tokens_cannot_be_written_to(tmp_path):
    shard = TokenShard(write(tmp_path / "shard", [[1, 2]]))
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 7


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "shard", np.dtype("<u2")) as shard:
            shard.add(np.array([1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path, ending):
    prefix = write(tmp_path / "shard", [[1, 2], [3]])
    (tmp_path / f"shard{ending}").unlink()
    with pytest.raises(HanseError, match=rf"shard\{ending}: missing; write the shards again with 'hanse tokenize'"):
        TokenShard(prefix)


@settings(max_examples=40)
@given(st.data())
def test_a_file_of_another_length_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    prefix = write(folder / "cut", [[1, 2], [3], [4, 5, 6]])
    path = folder / f"cut{data.draw(st.sampled_from(['.bin', '.idx']))}"
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) + 9).filter(lambda n: n != len(whole)))
    path.write_bytes((whole + b"\0" * 9)[:length])
    if path.suffix == ".idx" and length == len(whole) + 3:
        assert TokenShard(prefix).documents == 3  # one byte a sequence: Megatron's optional modes
        return
    with pytest.raises(HanseError, match=r"the file was truncated or replaced|not an intact Megatron index"):
        TokenShard(prefix)


@pytest.mark.parametrize(
    ("field", "offset", "form", "value"),
    [
        ("magic", 0, "9s", b"MMIDIDX\0\1"),
        ("version", 9, "<Q", 2),
        ("dtype, unknown", 17, "<B", 9),
        ("dtype, float", 17, "<B", 7),
        ("dtype, wider", 17, "<B", 4),
        ("sequences, fewer", 18, "<Q", 2),
        ("sequences, huge", 18, "<Q", 2**63),
        ("documents, none", 26, "<Q", 0),
        ("documents, more", 26, "<Q", 5),
        ("documents, huge", 26, "<Q", 2**64 - 1),
        ("a length", HEADER, "<i", 3),
        ("a length, negative", HEADER, "<i", -2),
        ("a pointer", HEADER + 12 + 8, "<q", 6),
        ("a pointer, outside", HEADER + 12 + 16, "<q", 2**40),
        ("a document, first", HEADER + 36, "<q", 1),
        ("a document, order", HEADER + 36 + 8, "<q", 3),
        ("a document, negative", HEADER + 36 + 8, "<q", -1),
        ("a document, last", HEADER + 36 + 24, "<q", 2),
        ("a document, outside", HEADER + 36 + 24, "<q", 2**40),
    ],
)
def test_every_field_of_an_edited_index_is_checked(tmp_path, field, offset, form, value):
    prefix = write(tmp_path / "shard", [[1, 2], [3], [4, 5, 6]])
    data = bytearray((tmp_path / "shard.idx").read_bytes())
    struct.pack_into(form, data, offset, value)
    (tmp_path / "shard.idx").write_bytes(data)
    with pytest.raises(HanseError, match=r"shard\.(idx|bin): ") as error:
        TokenShard(prefix)
    assert "\n" not in str(error.value)


def test_a_negative_length_that_adds_up_is_refused(tmp_path):
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ3i3q4q", 1, 8, 3, 4, 4, -2, 1, 0, 8, 4, 0, 1, 2, 3)
    (tmp_path / "shard.idx").write_bytes(index)
    (tmp_path / "shard.bin").write_bytes(b"\0" * 6)
    with pytest.raises(HanseError, match="not an intact Megatron index"):
        TokenShard(tmp_path / "shard")


@pytest.fixture
def shards(tiny_data, tmp_path):
    shutil.copytree(tiny_data / "shards", tmp_path / "shards")
    return ShardsManifest.read(tmp_path / "shards")


def test_shards_open_by_split_in_the_order_of_the_manifest(shards):
    assert [entry.name for entry in shards.of("train")] == [
        f"train/{language}" for language in ("fr", "de", "es", "it")
    ]
    for entry in shards.shards:
        shard = shards.open(entry, hashes=True)
        assert (shard.documents, len(shard.tokens)) == (entry.documents, entry.tokens)
        assert (shard.tokens[shard.document_starts[1:] - 1] == shards.end_of_document_id).all()


def test_every_flipped_bit_of_an_index_is_noticed_on_opening(shards):
    """Through the hash, where the structure alone would let it pass (u16 read as i16)."""
    entry = shards.shards[0]
    path = shards.folder / f"{entry.name}.idx"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(HanseError):
            shards.open(entry)
    path.write_bytes(whole)
    shards.open(entry)


@pytest.mark.parametrize("ending", [".bin", ".docs.parquet"])
def test_a_flipped_bit_is_noticed_where_hashes_are_asked_for(shards, ending):
    entry = shards.shards[0]
    path = shards.folder / f"{entry.name}{ending}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shards.open(entry)
    with pytest.raises(HanseError, match=r"its sha256 differs\); write the shards again with 'hanse tokenize'"):
        shards.open(entry, hashes=True)
    path.unlink()
    with pytest.raises(HanseError):
        shards.open(entry, hashes=True)


def test_a_shard_in_the_place_of_another_is_noticed(shards):
    for ending in (".bin", ".idx"):
        shutil.copy(shards.folder / f"train/de{ending}", shards.folder / f"train/fr{ending}")
    with pytest.raises(HanseError, match="its sha256 differs"):
        shards.open(shards.shards[0])
