"""Best fit as its definition says, every label once, nothing cut that need not be, the same plan every time."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HanseError
from common.files import sha256_file
from data_pipelines import packing
from data_pipelines.packing import PackingManifest, best_fit, bins_of, make_plan
from data_pipelines.shards import ShardsManifest

DOCUMENTS = st.lists(st.integers(0, 40), max_size=60)


def naive(sizes, capacity):
    """Room left in each bin, by the textbook: the largest item first, into the fullest bin that it fits in."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [(room, place) for place, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@st.composite
def items(draw):
    capacity = draw(st.integers(1, 60))
    return capacity, draw(st.lists(st.integers(1, capacity), min_size=1, max_size=120))


@given(items(), st.randoms())
@settings(max_examples=200)
def test_bins_are_those_of_the_textbook_in_whatever_order_documents_come(given_items, random):
    capacity, sizes = given_items
    for _ in range(2):
        places = best_fit(np.array(sizes), capacity)
        loads = np.bincount(places, weights=sizes).astype(int)
        assert sorted((capacity - loads).tolist()) == naive(sizes, capacity)
        assert np.array_equal(places, best_fit(np.array(sizes), capacity))
        random.shuffle(sizes)


@given(DOCUMENTS, st.integers(2, 16), st.sampled_from([1, 5, 2**20]))
@settings(max_examples=200)
def test_every_id_but_a_first_is_a_label_once_and_only_longer_documents_are_cut(lengths, length, group):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels, cut = Counter(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "GROUP", group)
        for begins, sizes, ends in bins_of(starts, length):
            assert ends[-1] == len(begins) == len(sizes)
            for bin_begins, bin_sizes in zip(np.split(begins, ends[:-1]), np.split(sizes, ends[:-1]), strict=True):
                assert 2 <= bin_sizes.sum() <= length + 1
                for begin, size in zip(bin_begins.tolist(), bin_sizes.tolist(), strict=True):
                    document = int(np.searchsorted(starts, begin, side="right")) - 1
                    assert begin + size <= starts[document + 1]
                    labels.update(range(begin + 1, begin + size))
                    if size != lengths[document]:
                        cut.add(document)
    firsts = {int(start) for start, size in zip(starts, lengths, strict=False) if size}
    assert labels == Counter(set(range(int(starts[-1]))) - firsts)
    assert cut == {number for number, size in enumerate(lengths) if size > length + 1}


@pytest.fixture
def shards(tiny_data, tmp_path):
    shutil.copytree(tiny_data / "shards", tmp_path / "shards")
    return ShardsManifest.read(tmp_path / "shards")


def test_a_plan_is_the_same_every_time_and_leaves_the_shards_as_they_were(shards, tmp_path):
    before = sha256_file(tmp_path / "shards/manifest.json")
    plan, there = make_plan(shards, 64)
    assert not there
    assert make_plan(shards, 64) == (plan, True)
    shutil.rmtree(plan.folder)
    assert make_plan(shards, 64)[0].merkle_root == plan.merkle_root
    assert sha256_file(tmp_path / "shards/manifest.json") == before
    for entry, shard in zip(plan.plans, shards.of("train"), strict=True):
        bins = plan.open(entry.name, shards.open(shard))
        found = [bins.fragments(number) for number in range(len(bins))]
        assert (entry.bins, entry.fragments) == (len(found), sum(len(starts) for starts, _ in found))
        ids = sum(int(sizes.sum()) for _, sizes in found)
        assert entry.labels == ids - entry.fragments == shard.tokens - shard.documents
        assert entry.padding == 65 * entry.bins - ids


def test_a_damaged_plan_or_one_of_other_shards_is_refused_and_made_again(shards):
    with pytest.raises(
        HanseError, match=r"no packing plan for sequences of 64 tokens; make it with 'hanse tokenize pa"
    ):
        PackingManifest.read(shards, 64)
    plan, _ = make_plan(shards, 64)
    name = plan.plans[0].name
    path = plan.folder / f"{name}.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(HanseError, match=r"\.arrow: not the file that .*manifest\.json describes"):
        plan.open(name, shards.open(shards.of("train")[0]))
    assert make_plan(shards, 64) == (plan, False)
    assert path.read_bytes() == content
    file = plan.folder / "manifest.json"
    value = json.loads(file.read_text())
    value["plans"][0]["bins"] += 1
    file.write_text(json.dumps(value))
    with pytest.raises(HanseError, match="the manifest was edited"):
        PackingManifest.read(shards, 64)
    file.write_text(json.dumps({**value, "plans": 3}))
    with pytest.raises(HanseError, match=r"not a manifest of hanse\.packing/1"):
        PackingManifest.read(shards, 64)
    assert make_plan(shards, 64) == (plan, False)
    shutil.copytree(plan.folder, plan.folder.with_name("packing-32"))
    with pytest.raises(HanseError, match="a plan for other shards or another length"):
        PackingManifest.read(shards, 32)


@pytest.mark.parametrize(
    ("starts", "sizes", "message"),
    [([[0, 5]], [[3, 63]], "does not fit the shard"), ([[-1]], [[9]], "does not fit the shard"),
     ([[10**9]], [[9]], "does not fit the shard"), ([[0]], [[1]], "does not fit the shard"),
     ([[0, 9]], [[3]], "not a packing plan"), ([["a"]], [[3]], "not a packing plan")],
)  # fmt: skip
def test_a_plan_that_lies_is_refused(shards, tmp_path, starts, sizes, message):
    table = pa.record_batch([pa.array(starts), pa.array(sizes, pa.list_(pa.int32()))], ["starts", "lengths"])
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_batch(table)
    with pytest.raises(HanseError, match=message):
        packing.Bins(tmp_path / "x.arrow", shards.open(shards.of("train")[0]), 64).fragments(0)
    (tmp_path / "y.arrow").write_bytes(b"ARROW1\0\0 no")
    with pytest.raises(HanseError, match="not a packing plan"):
        packing.Bins(tmp_path / "y.arrow", shards.open(shards.of("train")[0]), 64)
