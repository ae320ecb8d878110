"""Merges that the worst-served language chooses; with one language they are those of ordinary BPE."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from common.files import read_json
from data_pipelines import tokenizer
from data_pipelines.config import TokenizerConfig
from data_pipelines.manifest import CorpusManifest
from data_pipelines.parity_bpe import Language, learn
from data_pipelines.tokenizer import byte_pieces
from data_pipelines.training_text import drawn_texts

LETTERS = "abcd"
words = st.dictionaries(st.text(LETTERS, min_size=1, max_size=12), st.integers(1, 50), min_size=1, max_size=30)


def learnt(*languages, size=40, least=1, units=None):
    """(tokens, merges) for languages given as {word: count}."""
    every = sorted(set().union(*languages))
    number = {word: place for place, word in enumerate(every)}
    held = [Language({number[word]: count for word, count in one.items()}, unit)
            for one, unit in zip(languages, units or [1.0] * len(languages), strict=True)]  # fmt: skip
    found = learn(
        [[LETTERS.index(letter) for letter in word] for word in every], held, list(LETTERS), size, least=least
    )
    return *found, held


def cut(word, merges):
    """The word's tokens, merge by merge: the definition of BPE."""
    pieces = list(word)
    for left, right in merges:
        at, after = 0, []
        while at < len(pieces):
            joined = pieces[at : at + 2] == [left, right]
            after.append(left + right if joined else pieces[at])
            at += 2 if joined else 1
        pieces = after
    return pieces


@given(words, st.integers(1, 5))
def test_with_one_language_it_is_the_bpe_of_the_tokenizers_library(counts, least):
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=40, min_frequency=least, initial_alphabet=list(LETTERS), show_progress=False
    )
    theirs.train_from_iterator([word for word, count in counts.items() for _ in range(count)], trainer)
    vocabulary = theirs.get_vocab()
    assert learnt(counts, least=least)[0] == sorted(vocabulary, key=vocabulary.__getitem__)


@given(st.lists(words, min_size=1, max_size=3))
def test_the_tokens_it_counts_are_those_that_the_merges_give(languages):
    _, merges, held = learnt(*languages)
    for counts, language in zip(languages, held, strict=True):
        assert language.tokens == sum(count * len(cut(word, merges)) for word, count in counts.items())


@pytest.mark.slow
@given(st.lists(words, min_size=2, max_size=3), st.data())
def test_each_merge_is_the_best_one_of_the_language_served_worst(languages, data):
    units = [data.draw(st.integers(1, 5)) for _ in languages]
    _, merges, _ = learnt(*languages, units=units)
    for done, merge in enumerate(merges):
        costs, pairs = [], []
        for counts, unit in zip(languages, units, strict=True):
            pieces = [(cut(word, merges[:done]), count) for word, count in counts.items()]
            costs.append(sum(count * len(word) for word, count in pieces) / unit)
            found = Counter()
            for word, count in pieces:
                for pair in pairwise(word):
                    found[pair] += count
            pairs.append(found)
        able = [index for index in range(len(languages)) if pairs[index]]
        worst = max(able, key=lambda index: costs[index])
        assert pairs[worst][merge] == max(pairs[worst].values())


def test_a_language_of_longer_words_gets_more_merges_until_both_pay_the_same():
    long, short = {"abcdabcdabcd": 10, "dcbadcbadcba": 10}, {"ab": 10, "cd": 10, "ac": 10, "bd": 10}
    *_, ordinary = learnt(long | short, size=9)
    *_, parity = learnt(long, short, size=9)
    assert max(one.tokens for one in parity) <= ordinary[0].tokens
    first = learnt(long, short, size=6)[1]
    assert all(left + right in "abcdabcdabcd dcbadcbadcba" for left, right in first)


def test_it_stops_where_no_pair_is_left():
    tokens, merges, _ = learnt({"ab": 3}, size=40)
    assert (tokens, merges) == ([*LETTERS, "ab"], [("a", "b")])
    assert learnt({"ab": 3}, size=40, least=4)[1] == []


def test_the_tokenizer_of_parity_narrows_the_gap_on_the_text_it_learnt_from(tiny_data, tmp_path):
    corpus = CorpusManifest.read(tiny_data / "corpus")
    gaps = {}
    for merges in ("frequent", "parity"):
        config = TokenizerConfig(
            name="x", corpus=str(tiny_data / "corpus"), output=str(tmp_path / merges), vocabulary_size=1200,
            pattern=r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]", merges=merges,
        )  # fmt: skip
        tokenizer.run(config)
        found = Tokenizer.from_file(str(tmp_path / merges / "tokenizer.json"))
        sizes = read_json(tmp_path / merges / "manifest.json", "manifest")["training"]["bytes_per_language"]
        costs = [
            sum(map(len, found.encode_batch(list(drawn_texts(corpus, language, size)), add_special_tokens=False)))
            / size
            for language, size in sizes.items()
        ]
        gaps[merges] = max(costs) / min(costs)
        text = "L'été, ¿qué? «Grüße» 12345"
        assert found.decode(found.encode(text, add_special_tokens=False).ids) == text
        assert [found.token_to_id(one) for one in ("<|endoftext|>", "<|pad|>")] == [0, 1]
        pieces = byte_pieces(read_json(tmp_path / merges / "tokenizer.json", "tokenizer"), tmp_path)
        assert all(bytes([byte]) in pieces for byte in range(256))
    assert gaps["frequent"] > 1.02
    assert gaps["parity"] < 1.002
