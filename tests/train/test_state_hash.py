"""The hash of a state does not depend on where the ranks' shares begin. (Real ranks: test_invariant.py.)"""

import hashlib
import json

import torch
from hypothesis import given
from hypothesis import strategies as some

from common.files import merkle_root
from train.state_hash import State, append_state, hashes_of, pieces, state_of, tensors_under


@given(data=some.data(), size=some.integers(0, 60), block=some.integers(1, 20), ranks=some.integers(1, 6))
def test_cut_between_any_ranks_the_blocks_have_the_hashes_of_the_whole(data, size, block, ranks):
    values = torch.arange(size, dtype=torch.float32)
    cuts = [0, *sorted(data.draw(some.lists(some.integers(0, size), min_size=ranks - 1, max_size=ranks - 1))), size]
    order = data.draw(some.permutations(range(ranks)))  # which rank has which share is up to the layout too
    several = data.draw(some.integers(1, ranks))
    shares = [{} for _ in range(ranks)]
    for turn, start, stop in zip(order, cuts[:-1], cuts[1:], strict=True):
        if start < stop:  # a rank may have several
            shares[turn % several].setdefault("w", []).append((start, stop))
    travelling = list(pieces(shares, ["w"], block))
    found = []
    for rank, share in enumerate(shares):
        for start, stop in share.get("w", ()):
            mine = sorted((one.start, one.stop) for one in travelling if (one.target, one.owner) == (rank, start))
            sent = [one for one in travelling if one.source == rank and start <= one.start < stop]
            assert all(start == one.start and one.stop <= stop for one in sent)
            held = [values[start:stop], *(values[begin:end] for begin, end in mine)]
            found.append((start, hashes_of(held, start, block)))
    oracle = b"".join(
        hashlib.sha256(values[at : at + block].numpy().tobytes()).digest() for at in range(0, size, block)
    )
    assert b"".join(hashes for _, hashes in sorted(found)) == oracle


def test_one_bit_of_one_tensor_changes_its_hash_and_the_root_only():
    values = torch.ones(100)
    before = state_of({"a": hashes_of([values], 0), "b": hashes_of([values], 0)})
    assert before.root == merkle_root(before.tensors)
    assert before.tensors["a"] == hashlib.sha256(hashlib.sha256(values.numpy().tobytes()).digest()).hexdigest()
    values.view(torch.int32)[99] ^= 1
    after = state_of({"a": hashes_of([torch.ones(100)], 0), "b": hashes_of([values], 0)})
    assert after.root != before.root
    assert (after.tensors["a"], after.tensors["b"] != before.tensors["b"]) == (before.tensors["a"], True)


def test_only_tensors_that_make_up_the_root_are_believed(tmp_path):
    state, path = state_of({"a": b"1", "b": b"2"}), tmp_path / "states.jsonl"
    assert tensors_under(path, state.root) is None
    append_state(path, 1, State(state.root, {**state.tensors, "a": state.tensors["b"]}))
    path.open("ab").write(b'\x00 no line\n[]\n{"root": "' + state.root.encode() + b'", "tensors": 7}\n')
    assert tensors_under(path, state.root) is None
    append_state(path, 1, state)
    path.open("a").write(json.dumps({"step": 2})[:5])
    assert tensors_under(path, state.root) == state.tensors
