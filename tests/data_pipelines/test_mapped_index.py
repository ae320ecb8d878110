"""Indices that are left in their files say what those in memory say."""

import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from common.errors import HanseError
from data_pipelines import shards as module
from data_pipelines.mapped_index import allow_open_files
from data_pipelines.shards import INDEX, ShardEntry, ShardsManifest, ShardWriter, TokenShard, beside, sha256_file
from train.stream import Source


def written(prefix, lengths):
    with ShardWriter(prefix, np.dtype("<u2")) as writer:
        for number, length in enumerate(lengths):
            writer.add(np.arange(number, number + length))
    return prefix


@given(some.lists(some.integers(1, 9), min_size=1, max_size=30), some.data())
def test_the_same_places_and_the_same_windows(tmp_path_factory, lengths, data):
    prefix = written(tmp_path_factory.mktemp("shard") / "one", lengths)
    held, mapped = TokenShard(prefix), TokenShard(prefix, mapped=True)
    assert list(mapped.document_starts) == held.document_starts.tolist()
    assert np.array_equal(np.asarray(mapped.document_starts), held.document_starts)
    assert mapped.documents == held.documents
    values = data.draw(some.lists(some.integers(-1, 300), min_size=1, max_size=4))
    for side in ("left", "right"):
        found = [np.searchsorted(one.document_starts, values, side=side).tolist() for one in (held, mapped)]
        assert found[0] == found[1]
    one, other = (Source("x", [shard], 4) for shard in (held, mapped))
    for window in range(one.windows):
        for left, right in zip(one.window(window), other.window(window), strict=True):
            assert np.array_equal(left, right)
        assert one.targets(window) == other.targets(window)
    for number in range(held.documents):
        assert np.array_equal(held.document(number), mapped.document(number))


def test_a_folder_with_many_documents_is_mapped_and_checked_by_its_sizes(tmp_path, monkeypatch):
    prefix = written(tmp_path / "train", [3, 4, 5])
    entry = ShardEntry("train", "train", "fr", 3, 12, 12, {INDEX: sha256_file(beside(prefix, INDEX))})
    manifest = ShardsManifest("0", 100, 0, "tokenizers", "0", [entry], tmp_path)
    assert isinstance(manifest.open(entry).document_starts, np.ndarray)
    monkeypatch.setattr(module, "MAPPED_FROM", 2)
    assert not isinstance(manifest.open(entry).document_starts, np.ndarray)
    other = ShardEntry("train", "train", "fr", 2, 12, 12, entry.files)
    with pytest.raises(HanseError, match="counts differ"):
        manifest.open(other)
    with beside(prefix, ".bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(HanseError, match="counts differ"):
        manifest.open(entry)


def test_a_broken_index_is_one_clear_error(tmp_path):
    prefix = written(tmp_path / "train", [3, 4, 5])
    index = beside(prefix, INDEX)
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    with pytest.raises(HanseError, match="not an intact Megatron index"):
        TokenShard(prefix, mapped=True)
    index.write_bytes(whole[:46] + b"\xff" * 24 + whole[70:])
    shard = TokenShard(prefix, mapped=True)
    with pytest.raises(HanseError, match="not an intact Megatron index"):
        list(shard.document_starts)


def test_the_limit_of_open_files_is_raised_as_far_as_the_machine_allows(monkeypatch):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    allow_open_files(100)
    assert made == []
    allow_open_files(2000)
    assert made == [(2256, 4096)]
    with pytest.raises(HanseError, match="4,096 at most; raise the limit"):
        allow_open_files(5000)
