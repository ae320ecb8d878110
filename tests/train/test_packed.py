"""A packed source is a source: each bin once an epoch, labels only inside documents, and it knows who is where."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.packing import bins_of
from data_pipelines.shards import ShardsManifest
from tests.train.test_stream import Shard
from train.packed import PADDING, PackedSource
from train.stream import IGNORED, Stream, open_sources, pack, windows_by_language


class Planned:
    """In memory, what Bins is on disk."""

    def __init__(self, shard, length):
        self.length, self.bins = length, []
        for starts, sizes, ends in bins_of(shard.document_starts, length):
            self.bins += zip(np.split(starts, ends[:-1]), np.split(sizes, ends[:-1]), strict=True)

    def __len__(self):
        return len(self.bins)

    def fragments(self, number):
        return self.bins[number]

    def holding(self, start, stop):
        hit = [((starts < stop) & (starts + sizes > start)).any() for starts, sizes in self.bins]
        return np.flatnonzero(hit)


@st.composite
def sources(draw):
    length = draw(st.integers(2, 16))
    counts = draw(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=3))
    shards, first = [], 0
    for number, lengths in enumerate([*counts, [7, 3]]):
        shards.append(Shard(lengths, first))
        shards[-1].prefix = number
        first += sum(lengths)
    return PackedSource("x", shards, [Planned(shard, length) for shard in shards], 1, end_of_document_id=10**6)


@given(sources())
@settings(max_examples=40)
def test_every_id_but_a_documents_first_is_a_label_once_an_epoch(source):
    drawn = [source.drawn(k) for k in range(source.windows)]
    assert sorted(drawn) == list(range(source.windows))
    labels = Counter()
    for number in drawn:
        ids, documents = source.window(number)
        shard, start = source.place(number)
        assert ids[0] == shard.tokens[start]
        batch = pack([(ids, documents)], [0])
        counted = batch.labels[batch.labels != IGNORED]
        assert source.targets(number) == len(counted)
        assert (batch.labels[batch.documents == PADDING] == IGNORED).all()
        held = documents >= 0
        assert (ids[~held] == 10**6).all()
        assert np.array_equal(documents[held], np.searchsorted(shard.document_starts, ids[held] - shard.tokens[0],
                                                               side="right") - 1)  # fmt: skip
        assert (batch.input_ids + 1 == batch.labels)[batch.labels != IGNORED].all()
        labels.update(counted.tolist())
    firsts = {shard.tokens[start] for shard in source.shards for start in shard.document_starts[:-1]}
    assert labels == Counter(token for shard in source.shards for token in shard.tokens.tolist() if token not in firsts)


@given(sources(), st.data())
@settings(max_examples=25)
def test_a_documents_windows_and_samples_are_found_again(source, data):
    shard = data.draw(st.sampled_from(source.shards))
    number = data.draw(st.integers(0, len(shard.document_starts) - 2))
    start, stop = shard.document_starts[number : number + 2].tolist()
    mine = set(shard.tokens[start:stop].tolist())
    expected = [window for window in range(source.windows) if mine & set(source.window(window)[0].tolist())]
    assert source.windows_of(shard.prefix, start, stop).tolist() == expected
    stream = Stream([source], [1])
    samples = stream.samples_of(0, source.windows_of(shard.prefix, start, stop), 3 * source.windows)
    assert samples.tolist() == [n for n in range(3 * source.windows) if stream.sample(n)[1] in expected]


def test_a_plan_on_disk_is_read_as_it_is_in_memory(tiny_data, hanse, tmp_path):
    places = [f"{key}={tiny_data / key}" for key in ("corpus", "tokenizer")]
    output = tmp_path / "shards"
    assert hanse("tokenize", "name=x", *places, f"output={output}", "packing_lengths=[64]") == 0
    manifest = ShardsManifest.read(output)
    packed = open_sources(manifest, "train", 64, 0, packing="best_fit")
    assert {name: source.windows for name, source in packed.items()} == windows_by_language(manifest, 64, "best_fit")
    for source in packed.values():
        (shard,) = source.shards
        expected = PackedSource(source.name, [shard], [Planned(shard, 64)], 0, manifest.end_of_document_id)
        for number in range(source.windows):
            for mine, theirs in zip(source.window(number), expected.window(number), strict=True):
                assert np.array_equal(mine, theirs)
        for number in range(shard.documents):
            span = shard.document_starts[number : number + 2].tolist()
            found = source.windows_of(shard.prefix, *span)
            assert np.array_equal(found, expected.windows_of(shard.prefix, *span))
            assert len(found) == max(-(-(span[1] - span[0] - 1) // 64), 1)
    with pytest.raises(HanseError, match="no packing plan for sequences of 32 tokens"):
        open_sources(manifest, "train", 32, 0, packing="best_fit")
