"""The order of data is a pure function, within one sample of its weights, each window once an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.shards import ShardsManifest
from train.config import BatchConfig, DataConfig, TrainConfig
from train.mixture import Mixture, integer_weights
from train.order import open_stream
from train.stream import IGNORED, Permutation, Source, Stream, pack


class Shard:
    """In memory, what TokenShard is on disk."""

    def __init__(self, lengths, first=0):
        self.document_starts = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens = np.arange(first, first + self.document_starts[-1])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_mixture_is_within_one_sample_of_its_weights_at_every_prefix(weights, samples):
    mixture = Mixture(weights)
    drawn = np.zeros(len(weights))
    share = np.asarray(weights) / sum(weights)
    for n in range(samples):
        source, k = mixture.draw(n)
        assert k == drawn[source]
        assert mixture.sample(source, k) == n
        drawn[source] += 1
        assert np.abs(drawn - share * (n + 1)).max() < 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-3))
def test_real_weights_become_integers_within_a_ten_thousandth(weights):
    whole = integer_weights(weights)
    share = np.asarray(weights) / sum(weights)
    assert np.abs(np.asarray(whole) / sum(whole) - share).max() <= 1e-4
    assert integer_weights(whole) == whole


@given(st.integers(1, 5000), st.text(max_size=8))
@settings(max_examples=100, deadline=None)
def test_permutation_is_a_bijection_and_inverts(size, key):
    permutation = Permutation(size, key)
    image = permutation(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))
    assert np.array_equal(permutation.inverse(image), np.arange(size))
    assert [permutation.one(index) for index in range(min(size, 40))] == image[:40].tolist()


@given(st.integers(2**32, 2**55), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_permutation_needs_no_table_at_any_size(size, places):
    permutation = Permutation(size, "trillions")
    assert np.array_equal(permutation.inverse(permutation(np.array(places))), places)
    assert [permutation.one(place) for place in places] == permutation(np.array(places)).tolist()


@st.composite
def streams(draw):
    length = draw(st.integers(2, 16))
    seed = draw(st.integers(0, 2**31))
    sources = []
    for number in range(draw(st.integers(1, 4))):
        shards = [
            Shard(draw(st.lists(st.integers(1, 30), min_size=2, max_size=12))) for _ in range(draw(st.integers(1, 3)))
        ]
        sources.append(Source(f"source{number}", shards, length, seed))
    sources = [source for source in sources if source.windows] or [Source("one", [Shard([50])], length, seed)]
    weights = [draw(st.integers(1, 9)) for _ in sources]
    return Stream(sources, weights)


@given(
    streams(),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2])), min_size=2, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_same_samples_at_same_steps_at_any_layout_and_restart_point(stream, start_step, layouts):
    size = 24  # sequences a step: divisible by every layout
    for step in range(start_step, start_step + 3):  # a restart needs only the number of consumed samples
        expected = [stream.sample(n) for n in range(step * size, (step + 1) * size)]
        reference = stream.micro_batch(range(step * size, (step + 1) * size))
        for ranks, micro in layouts:
            rows, found = [None] * size, [None] * size
            for rank in range(ranks):
                parts = stream.step(step * size, global_batch=size, micro_batch=micro, rank=rank, ranks=ranks)
                for turn, part in enumerate(parts):
                    for row in range(micro):
                        place = (turn * ranks + rank) * micro + row
                        rows[place], found[place] = part.input_ids[row], part.sources[row]
            assert np.array_equal(np.stack(rows), reference.input_ids)
            assert list(found) == [source for source, _ in expected]


@given(streams())
@settings(max_examples=50, deadline=None)
def test_each_window_comes_once_an_epoch_and_epochs_differ(stream):
    for source in stream.sources:
        epochs = [[source.drawn(epoch * source.windows + k) for k in range(source.windows)] for epoch in range(2)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(source.windows))
        if source.windows > 12:
            assert epochs[0] != epochs[1]


@given(streams())
@settings(max_examples=50, deadline=None)
def test_every_token_but_first_and_tail_is_a_label_once_an_epoch(stream):
    for source in stream.sources:
        for shard in source.shards:
            lonely = Source("lonely", [shard], source.length)
            batches = [pack([lonely.window(number)], [0]) for number in range(lonely.windows)]
            labels = Counter(int(label) for batch in batches for label in batch.labels.ravel() if label != IGNORED)
            covered = range(1, lonely.windows * source.length + 1)
            firsts = set(shard.document_starts.tolist())  # a document's first token is nobody's next token
            assert labels == Counter(token for token in covered if token not in firsts)


@given(streams(), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_positions_and_labels_stay_inside_documents(stream, first):
    batch = stream.micro_batch(range(first, first + 3))
    for row in range(3):
        position = 0
        for t in range(batch.input_ids.shape[1]):
            position = 0 if t == 0 or batch.documents[row, t] != batch.documents[row, t - 1] else position + 1
            assert batch.positions[row, t] == position
            if t + 1 < batch.input_ids.shape[1]:
                same = batch.documents[row, t] == batch.documents[row, t + 1]
                assert batch.labels[row, t] == (batch.input_ids[row, t + 1] if same else IGNORED)
    assert stream.targets(range(first, first + 3)) == (batch.labels != IGNORED).sum()
    assert batch.packed == any(len(set(row)) > 1 for row in batch.documents)
    layouts = {part.strides for part in (batch.input_ids, batch.labels, batch.positions, batch.documents)}
    assert layouts == {(8 * stream.length, 8)}, "another layout would be compiled anew"


def test_mixture_of_unknown_language_is_refused(tmp_path):
    manifest = ShardsManifest("x", 300, 0, "tokenizers", "x", [], tmp_path)
    with pytest.raises(HanseError, match="no training shards for xx"):
        open_stream(manifest, TrainConfig(tokens=64, data=DataConfig(sequence_length=8, mixture={"xx": 1.0}),
                                          batch=BatchConfig(2, 1)))  # fmt: skip
