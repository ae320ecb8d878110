"""Bits per byte are what a calculation by hand gives, at any number of ranks; so is the unigram model's."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from data_pipelines.shards import ShardsManifest
from tests.train.multirank import train_cases
from train.evaluate import Evaluation, LanguageScore
from train.model import build_model, model_config
from train.run_folder import read_metrics
from train.stream import Source, pack
from train.tally import Origins, Score, total

LENGTH = 64


class Shard:
    """In memory, what TokenShard is on disk."""

    def __init__(self, *documents):
        self.document_starts = np.concatenate([[0], np.cumsum([len(ids) for ids in documents])])
        self.tokens = np.concatenate(documents).astype(np.int64)


def by_hand(data, config) -> dict[str, dict[str, Score]]:
    """{language: {"": of all, source: of its labels}} of the untrained model: every document by itself."""
    manifest = ShardsManifest.read(data / "shards")
    tokenizer = Tokenizer.from_file(str(data / "tokenizer/tokenizer.json"))
    end = manifest.end_of_document_id
    model = build_model(model_config(config.model, manifest.vocabulary_size, LENGTH), config.seed).eval()
    out = {}
    for entry in manifest.of("validation"):
        shard, labels = manifest.open(entry), []
        for first in range(0, len(shard.tokens) - LENGTH, LENGTH):
            last = first + LENGTH + 1
            edges = [first, *(at for at in shard.document_starts if first < at < last), last]
            for start, stop in pairwise(edges):
                ids = torch.tensor(shard.tokens[start:stop].astype(np.int64))
                if len(ids) > 1:
                    with torch.no_grad():
                        logits = model(ids[None, :-1]).logits[0].double()
                    source = ("even", "odd")[(np.searchsorted(shard.document_starts, start, side="right") - 1) % 2]
                    # a token of a byte-level BPE is written with one character a byte
                    nll = cross_entropy(logits, ids[1:], reduction="none")
                    for cost, guess, number in zip(nll, logits.argmax(1), ids[1:].tolist(), strict=True):
                        size = len(tokenizer.id_to_token(number)) if number != end else 0
                        labels.append((source, Score(float(cost), 1, int(guess == number), size)))
        out[entry.language] = {"": total(one for _, one in labels)} | {
            name: total(one for source, one in labels if source == name) for name in ("even", "odd")
        }
    return out


def with_two_sources(data, folder) -> None:
    """A copy of ``data`` whose documents are by turns of the source ``even`` and of ``odd``."""
    shutil.copytree(data, folder)
    for path in (folder / "shards").rglob("*.docs.parquet"):
        read = pq.read_table(path)
        names = pa.array(
            [("even", "odd")[number % 2] for number in range(len(read))], type=read.schema.field("source").type
        )
        pq.write_table(read.set_column(read.schema.get_field_index("source"), "source", names), path)


@pytest.mark.slow
def test_every_layout_finds_the_bits_per_byte_that_a_calculation_by_hand_gives(
    tiny_data, tiny_settings, tiny_config, tmp_path
):
    # One step that moves nothing, then all validation windows; of some languages they fill no whole micro-batch.
    with_two_sources(tiny_data, tmp_path / "data")
    common = [*tiny_settings, f"data.shards={tmp_path / 'data/shards'}",
              f"tokens={8 * LENGTH}", "schedule.warmup_steps=0", "schedule.decay_fraction=0",
              "optimizer.learning_rate=1e-30", "evaluate.tokens_per_language=1_000_000"]  # fmt: skip
    layouts = {1: [(1, 1), (4, 1), (8, 2)], 2: [(1, 3), (2, 2), (2, 0), (4, 3)]}  # ranks: micro-batch, ZeRO stage
    found = {}
    for ranks, cases in layouts.items():
        runs = {f"{ranks}-{micro}-{stage}": (micro, stage) for micro, stage in cases}
        overrides = {
            name: [*common, f"run={tmp_path / name}", f"batch.micro_batch_size={micro}", f"engine.zero_stage={stage}"]
            for name, (micro, stage) in runs.items()
        }
        assert set(train_cases(tmp_path / f"ranks-{ranks}", ranks, overrides).values()) == {0}
        found |= {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in runs}
    expected = by_hand(tiny_data, tiny_config)
    told = {name: next((one["evaluation"], one["evaluation_by_source"]) for one in records if "evaluation" in one)
            for name, records in found.items()}  # fmt: skip
    for name, (languages, split) in told.items():
        assert languages.keys() == split.keys() == expected.keys()
        for language, wanted in expected.items():
            for source, score in wanted.items():
                rates = split[language][source] if source else languages[language]
                assert rates == pytest.approx(score.rates(), rel=1e-6), (name, language, source)
    assert told["1-4-1"] == told["2-4-3"]  # bit for bit: what a batch gives does not depend on who runs it


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(2, 16),
    st.integers(1, 400),
    st.integers(1, 9),
)
@settings(max_examples=100)
def test_windows_are_spread_evenly_counted_once_and_those_that_fill_up_are_not(languages, length, tokens, micro):
    sources = {}
    for number, lengths in enumerate(languages):
        first = 10_000 * number
        edges = np.cumsum([first, *lengths])
        sources[f"l{number}"] = Source(f"l{number}", [Shard(*map(np.arange, edges, edges[1:]))], length)
    evaluation = Evaluation(sources, tokens, micro, np.ones(30_000, dtype=np.int64))
    assert evaluation.languages == [name for name, source in sources.items() if source.windows]
    for number, name in enumerate(evaluation.languages):
        source = sources[name]
        count = min(source.windows, math.ceil(tokens / length))
        mine = [index for index, (language, _) in enumerate(evaluation.batches) if language == number]
        assert all(evaluation.batches[index][1].input_ids.shape == (micro, length) for index in mine)
        firsts = [int(row[0]) for index in mine
                  for row in evaluation.batches[index][1].input_ids[: evaluation.counted[index]]]  # fmt: skip
        windows = [(first - int(source.shards[0].tokens[0])) // length for first in firsts]
        assert len(windows) == len(set(windows)) == count
        gaps = np.diff([*windows, source.windows + windows[0]])
        assert gaps.max() - gaps.min() <= 1
        labels = np.concatenate([evaluation.labels(index) for index in mine])
        assert len(labels) == sum(source.targets(window) for window in windows)


def test_unigram_model_is_counted_on_training_tokens_plus_one_and_scored_on_validation_labels():
    training = {"fr": Source("fr", [Shard([0, 0, 1, 2, 0]), Shard([2, 2, 1])], 2)}
    validation = {"de": Source("de", [Shard([1, 3, 1])], 2), "fr": Source("fr", [Shard([3, 0, 1], [2, 0, 9])], 2)}
    token_bytes = np.array([1, 2, 3, 0, 0, 0, 0, 0, 0, 0])
    evaluation = Evaluation(validation, 1000, 3, token_bytes)
    found = evaluation.unigram(training, 10)
    # fr: counts + 1 are 4, 3, 4, 1, 1, ... of 18. Windows 3 0|1 and 1|2 0, where 2 begins a document: labels 0, 1, 0.
    assert found["fr"].nll == pytest.approx(-math.log(4 / 18 * 3 / 18 * 4 / 18))
    assert (found["fr"].targets, found["fr"].bytes) == (3, 1 + 2 + 1)
    assert found["fr"].bits_per_byte == pytest.approx(found["fr"].nll / math.log(2) / 4)
    # de has no training text: any of the ten tokens is as likely.
    assert (found["de"].nll, found["de"].targets) == (pytest.approx(2 * math.log(10)), 2)
    assert found["de"].loss == pytest.approx(math.log(10))
    assert found["de"].bytes == 0 + 2


def test_nothing_validated_is_no_division_by_zero():
    assert set(LanguageScore(0.0, 0, 0, 0).rates().values()) == {0}


@given(st.lists(st.integers(1, 20), min_size=2, max_size=9), st.integers(2, 8), st.integers(0, 2**31))
def test_labels_are_split_by_the_source_of_their_document(lengths, length, seed):
    random = np.random.default_rng(seed)
    source = Source("fr", [Shard(*(np.full(size, number) for number, size in enumerate(lengths)))], length)
    of = random.integers(3, size=len(lengths))
    windows = random.permutation(source.windows)[:3].tolist()
    if windows:
        batch = pack([source.window(one) for one in [*windows, windows[0]]], [0] * (len(windows) + 1))
        nll, first = random.random(batch.labels.shape), random.random(batch.labels.shape) < 0.5
        found = Origins(source, ["a", "b", "c"], [of]).split(windows, batch, nll, first, np.arange(9))
        labels = [(of[number], Score(nll[place], 1, int(first[place]), int(number)))  # a token is its document's number
                  for place, number in np.ndenumerate(batch.labels[: len(windows)]) if number >= 0]  # fmt: skip
        assert found == {name: total(one for at, one in labels if at == name) for name in {at for at, _ in labels}}
