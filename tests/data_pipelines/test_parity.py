"""What a file's sample must catch: faults that strike many documents, and those of a single rare character."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.encoders import Encoder, text_bytes
from data_pipelines.parity import OtherIdsError, Parity, hashes

ANY = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=60), min_size=1, max_size=20)


def points(texts):
    """An encoder: code points, shifted by one where they are of the block that is wrong."""
    listed = texts.to_pylist() if isinstance(texts, pa.Array) else texts
    ids = [np.array([ord(char) for char in text], dtype=np.int64) for text in listed]
    return np.concatenate([np.empty(0, dtype=np.int64), *ids]), np.array([len(one) for one in ids])


def wrong_at(blocks):
    def encode(texts):
        ids, lengths = points(texts)
        return ids + np.isin(ids >> 6, list(blocks)), lengths

    return Encoder("wrong", "0", encode)


RIGHT = Encoder("tokenizers", "0", points)


def check(encoder, texts, documents=1, batches=1):
    parity = Parity(RIGHT, documents, len(texts))
    for part in np.array_split(np.arange(len(texts)), batches):
        held = pa.array([texts[place] for place in part], pa.string())
        ids, lengths = encoder.encode(held)
        parity.check(
            pa.array([f"x:{place:012x}" for place in part], pa.string()), held, ids, np.cumsum(lengths), encoder
        )
    return parity


@given(ANY, st.integers(1, 5), st.data())
def test_a_block_of_characters_is_looked_at_wherever_it_is(texts, batches, data):
    check(wrong_at([]), texts, batches=batches)
    beyond = sorted({ord(char) >> 6 for text in texts for char in text if ord(char) > 127})
    if beyond:
        with pytest.raises(OtherIdsError, match="other ids than tokenizers"):
            check(wrong_at([data.draw(st.sampled_from(beyond))]), texts, batches=batches)


def test_documents_are_chosen_by_hash_about_as_many_as_asked_for_and_the_same_in_any_batches():
    texts = [f"text {number}" for number in range(5000)]
    chosen = {batches: check(wrong_at([]), texts, 64, batches).chosen for batches in (1, 7)}
    assert chosen[1] == chosen[7]
    assert 32 < chosen[1] < 128
    assert check(wrong_at([]), texts[:3], 64).chosen == 3


def test_a_fault_in_a_twentieth_of_the_documents_is_found():
    texts = ["1" if number % 20 == 0 else "A" for number in range(5000)]
    with pytest.raises(OtherIdsError):
        check(wrong_at([ord("1") >> 6]), texts, 200)


@given(ANY, st.integers(0, 3), st.sampled_from([pa.string(), pa.large_string()]))
def test_bytes_of_an_array_that_is_part_of_another(texts, skipped, kind):
    held = pa.array([*["xä"] * skipped, *texts], kind)[skipped:]
    offsets, data = text_bytes(held)
    assert [data[a:b].tobytes().decode() for a, b in pairwise(offsets)] == texts
    assert np.array_equal(hashes(held), hashes(pa.array(texts, kind)))
