"""Which steps saw a document, against an oracle that draws every sample and looks."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from consortium.whosaw import sightings
from data_pipelines.shards import SIDECAR, ShardsManifest, beside
from train.config import BatchConfig, DataConfig, TrainConfig
from train.mixture import Mixture
from train.order import open_stream
from train.stream import Source, Stream

LENGTH, BATCH, STEPS = 64, 8, 60  # more than an epoch of each language


def config(**data):
    return TrainConfig(tokens=STEPS * BATCH * LENGTH, seed=3, data=DataConfig(sequence_length=LENGTH, **data),
                       batch=BatchConfig(BATCH, 1))  # fmt: skip


def drawn(stream, below):
    """{(shard prefix, token): sample numbers that held it}, by drawing everything."""
    seen = {}
    for number in range(below):
        source, window = stream.sample(number)
        shard, start = source.place(window)
        for token in range(start, start + LENGTH + 1):
            seen.setdefault((shard.prefix, token), set()).add(number)
    return seen


@pytest.mark.slow
def test_every_document_was_seen_in_exactly_the_steps_that_drew_its_tokens(tiny_data):
    manifest = ShardsManifest.read(tiny_data / "shards")
    stream = open_stream(manifest, config(mixture={"fr": 3, "de": 1, "es": 1}))
    seen = drawn(stream, STEPS * BATCH)
    for entry in manifest.of("train"):
        prefix = manifest.folder / entry.name
        for row in pq.read_table(beside(prefix, SIDECAR)).to_pylist():
            (found,) = sightings(manifest, stream, [row["id"]], steps=STEPS)
            samples = set().union(*(seen.get((prefix, token), set())
                                    for token in range(row["token_start"], row["token_end"])))  # fmt: skip
            assert found.steps == sorted({sample // BATCH + 1 for sample in samples}), row["id"]
            assert entry.language != "it" or not found.steps  # it has no share


def test_what_was_drawn_but_not_learnt_is_no_sighting_and_is_said(tiny_data):
    """Samples 40 to 63 were gone past, and step 3 made no update."""
    manifest = ShardsManifest.read(tiny_data / "shards")
    stream = open_stream(manifest, config())
    stream.skip([(40, 64)])
    seen, lost = drawn(stream, STEPS * BATCH), {*range(16, 24), *range(40, 64)}
    end = STEPS * BATCH
    found = 0
    for entry in manifest.of("train"):
        prefix = manifest.folder / entry.name
        for row in pq.read_table(beside(prefix, SIDECAR)).to_pylist()[::5]:
            (one,) = sightings(manifest, stream, [row["id"]], steps=STEPS - 3, idle={3})
            samples = set().union(*(seen.get((prefix, token), set())
                                    for token in range(row["token_start"], row["token_end"])))  # fmt: skip
            samples = {sample for sample in samples if sample < end}
            steps = {(sample - (24 if sample >= 64 else 0)) // BATCH + 1 for sample in samples - lost}
            assert (one.steps, one.not_learnt) == (sorted(steps), sorted(samples & lost))
            found += len(one.not_learnt)
    assert found


class Endless:
    """The index of a shard that would hold a trillion tokens."""

    def __init__(self, prefix, tokens):
        self.prefix, self.tokens, self.document_starts = prefix, range(tokens), np.array([0, tokens])


def test_a_trillion_tokens_are_inverted_without_an_index(tmp_path):
    sources = [Source(name, [Endless(tmp_path / name, 250_000_000_000)], 4096, 1) for name in "abcd"]
    stream = Stream(sources, [1, 2, 3, 4])
    windows = sources[2].windows_of(tmp_path / "c", 123_456_789_000, 123_456_799_000)
    samples = stream.samples_of(2, windows, 10**9)
    assert len(windows) in (3, 4)
    for sample in samples:
        source, window = stream.sample(int(sample))
        assert source == 2
        assert window in windows
    assert len(samples) >= len(windows) * (10**9 * 3 // 10 // sources[2].windows)


def test_mixture_inverts_arrays_as_it_does_numbers():
    mixture = Mixture([1, 12, 271, 271])
    draws = np.arange(3000)
    assert mixture.samples(1, draws).tolist() == [mixture.sample(1, int(k)) for k in draws]


@pytest.mark.slow
def test_the_verb_names_steps_checkpoints_and_the_last_clean_one(hanse, tiny_run, tmp_path, capfd):
    asked = tmp_path / "asked.txt"
    asked.write_text("# a request\nhttps://nowhere.example/\ntext_de:\n")
    assert hanse("whosaw", f"run={tiny_run}", f"what={asked}") == 0
    assert "no training document is" in capfd.readouterr().out
    folder = OmegaConf.load(tiny_run / "config.yaml").data.shards
    ids = pq.read_table(f"{folder}/train/fr.docs.parquet")["id"].to_pylist()
    assert hanse("whosaw", f"run={tiny_run}", f"what={ids[0]}", f"output={tmp_path / 'seen.json'}") == 0
    told = json.loads((tmp_path / "seen.json").read_text())
    assert [document["id"] for document in told["documents"]] == [ids[0]]
    assert told["checkpoints"] == [6, 12]
    assert "1 document, 12 steps done" in capfd.readouterr().out
    assert hanse("whosaw", f"run={tmp_path}", "what=x") == 2
