"""Clusters are those of a brute-force Jaccard similarity; the first selected document of each stays."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.annotate.signature import PLACES, mixed, n_grams, places_of, signatures
from data_pipelines.annotate.text_arrays import TextArrays
from data_pipelines.dedup import ALONE, Clusters, Originals, cluster
from data_pipelines.documents import content_of

WORDS = [f"{a}{b}{c}" for a in ("ba", "de", "ki", "lo", "mu") for b in ("r", "s", "nt", "v") for c in ("a", "os", "it")]


def batch(texts):
    contents = pa.array([content_of(text) for text in texts], pa.binary(32))
    return pa.record_batch({"content": contents, "signature": signatures(TextArrays.of(texts))})


def clusters(texts, folder, similarity=0.8, earlier=0, size=1000):
    batches = [batch(texts[start : start + size]) for start in range(0, len(texts), size)]
    return cluster(batches, similarity, folder, earlier)


def shingles(text):
    words = text.casefold().split()
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def jaccard(one, other):
    one, other = shingles(one), shingles(other)
    return len(one & other) / max(len(one | other), 1)


def changed(text, share, rng):
    """The text with a share of its words replaced."""
    words = text.split()
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


@pytest.mark.parametrize("words", [12, 60, 2000])
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_signatures_agree_in_as_many_places_as_texts_are_alike(words, share):
    """Over 40 pairs, the mean error is within four standard errors of places that are drawn independently."""
    rng = random.Random(words)
    found, real = [], []
    for _ in range(40):
        text = " ".join(rng.choices(WORDS, k=words))
        other = changed(text, max(share, 1 / words), rng)
        places = places_of(signatures(TextArrays.of([text, other])))
        found.append((places[0] == places[1]).mean())
        real.append(jaccard(text, other))
    bound = np.sqrt(np.mean([one * (1 - one) for one in real]) / PLACES / len(real))
    assert abs(np.mean(found) - np.mean(real)) < 4 * bound


def test_a_signature_depends_on_the_text_alone():
    texts = ["un deux trois quatre cinq six sept", "kurz", "", "Un, deux; TROIS quatre - cinq! six sept?", *WORDS[:3]]
    together = signatures(TextArrays.of(texts))
    assert together.to_pylist() == [signatures(TextArrays.of([text]))[0].as_py() for text in texts]
    assert together[0] == together[3]  # the same words
    assert together.is_valid().to_pylist() == [True, False, False, True, False, False, False]


def mix(number):
    return int(mixed(np.array([number], np.uint64))[0])


def by_definition(text):
    """A signature round by round and hash by hash, until no place is empty."""
    hashes, least, number = n_grams(TextArrays.of([text]), 5)[0].tolist(), [None] * PLACES, 0
    while None in least:
        filled = [one is not None for one in least]
        for value in hashes:
            drawn = mix(value ^ mix(number + 1))
            place = (drawn >> 32) * PLACES >> 32 if number < PLACES else number - PLACES
            if not filled[place]:
                found = drawn & (2**32 - 1) | number << 32
                least[place] = found if least[place] is None else min(least[place], found)
        number += 1
    return [mix(one) >> 48 for one in least]


def test_signatures_are_those_of_the_definition():
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=words)) for words in (5, 6, 9, 20, 150, 5, 40, 900)]
    expected = [by_definition(text) for text in texts]
    assert places_of(signatures(TextArrays.of(texts))).tolist() == expected
    assert [places_of(signatures(TextArrays.of([text])))[0].tolist() for text in texts] == expected


def test_recall_and_precision_against_brute_force(tmp_path):
    """Documents of which a part was altered; all pairs compared by their shingles."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(40, 400))) for _ in range(40)]
    for share in (0, 0.005, 0.01, 0.02, 0.04, 0.1):
        texts += [changed(text, share, rng) for text in texts[:15]]
    found = clusters(texts, tmp_path, size=37).cluster
    pairs = list(itertools.combinations(range(len(texts)), 2))
    same = {(a, b) for a, b in pairs if found[a] == found[b] != ALONE}
    alike = {pair: jaccard(texts[pair[0]], texts[pair[1]]) for pair in pairs}
    sure = {pair for pair in pairs if alike[pair] >= 0.9}
    assert len(sure) > 30
    assert sure <= same
    assert not [pair for pair in same if alike[pair] < 0.5]


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(0, 3))
def test_equal_texts_are_one_cluster_and_empty_ones_none(tmp_path_factory, numbers, cut):
    folder = tmp_path_factory.mktemp("clusters")
    texts = ["" if number == 0 else f"Texte   {number}" if place % 2 else f"TEXTE {number}"
             for place, number in enumerate(numbers)]  # fmt: skip
    found = clusters(texts, folder, None, size=max(cut, 1))
    for place, number in enumerate(numbers):
        places = [other for other, same in enumerate(numbers) if same == number]
        alone = number == 0 or len(places) == 1
        assert found.cluster[place] == (ALONE if alone else places[0])
        assert found.size[place] == (1 if number == 0 else len(places))


def test_near_duplicates_are_found_across_a_chain_and_not_without_being_asked(tmp_path):
    rng = random.Random(3)
    chain = [" ".join(rng.choices(WORDS, k=1000))]
    while len(chain) < 6:
        chain.append(changed(chain[-1], 0.01, rng))
    assert jaccard(chain[0], chain[5]) < 0.8 < jaccard(chain[0], chain[1])
    found = clusters([*chain, " ".join(rng.choices(WORDS, k=1000))], tmp_path)
    assert found.cluster.tolist() == [0] * 6 + [ALONE]
    assert found.size.tolist() == [6] * 6 + [1]
    assert set(clusters(chain, tmp_path, None).cluster) == {ALONE}


def test_the_first_one_that_nothing_else_removes_stays():
    originals = Originals(Clusters(np.array([0, ALONE, 0, 0]), np.array([3, 1, 3, 3], np.int32)))
    assert originals.sizes(2).tolist() == [3, 1]
    first = originals.judge(["a", "b"], [b"1", b"2"], np.array([False, True]))
    assert first == []  # a is removed for another reason
    assert originals.judge(["c", "d"], [b"1", b"3"], np.array([True, True])) == [(1, "c", False)]


def test_an_earlier_corpus_has_the_originals(tmp_path):
    texts = ["Il était une fois", "Es war einmal", "il  était UNE fois", "C'era una volta", "C'era una volta"]
    found = clusters(texts, tmp_path, earlier=2)
    assert found.cluster.tolist() == [0, 3, 3]
    assert found.size.tolist() == [2, 2, 2]
    found.earlier = {0: ("old:1", content_of(texts[0]))}
    found.write(tmp_path / "clusters.parquet")
    again = Clusters.read(tmp_path / "clusters.parquet")
    assert again.earlier == found.earlier
    judged = Originals(again).judge(list("abc"), [content_of(text) for text in texts[2:]], np.ones(3, bool))
    assert judged == [(0, "old:1", True), (2, "b", True)]
