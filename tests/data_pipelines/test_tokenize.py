"""Every document is its tokens and one end, its place is on record, and nothing of its text is lost."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from common.errors import HanseError
from common.files import sha256_file
from data_pipelines import encoders, tokenize, tokenizer
from data_pipelines.config import TokenizeConfig, TokenizerConfig
from data_pipelines.manifest import CorpusManifest
from data_pipelines.shards import ShardsManifest
from data_pipelines.tokenizer import token_byte_lengths

LANGUAGES = ("fr", "de", "es", "it")


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of corpus and tokenizer that a test may damage."""
    for name in ("corpus", "tokenizer"):
        shutil.copytree(tiny_data / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def write(data):
    def run(**settings):
        places = {"corpus": data / "corpus", "tokenizer": data / "tokenizer", "output": data / "shards"}
        config = TokenizeConfig(name="x", **{**{key: str(path) for key, path in places.items()}, **settings})
        tokenize.run(config)
        return ShardsManifest.read(data / "shards")

    return run


def contents(folder):
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_shards_hold_exactly_the_documents_of_the_corpus(tiny_data, rows_of):
    """Ids as tokenizers encodes each text by itself, one end-of-document id, nothing else; all documents checked."""
    reference = Tokenizer.from_file(str(tiny_data / "tokenizer/tokenizer.json"))
    corpus, manifest = CorpusManifest.read(tiny_data / "corpus"), ShardsManifest.read(tiny_data / "shards")
    lengths = token_byte_lengths(tiny_data / "tokenizer")
    assert {entry.name for entry in manifest.shards} == {f"{s}/{x}" for s in ("train", "validation") for x in LANGUAGES}
    for entry in manifest.shards:
        rows = [row for row in rows_of(corpus, "documents", entry.language) if row["split"] == entry.split]
        shard = manifest.open(entry, hashes=True)
        assert shard.documents == len(rows) == entry.documents
        for number, row in enumerate(rows):
            ids = shard.document(number)
            assert ids.tolist() == [*reference.encode(row["text"], add_special_tokens=False).ids, 0]
            assert reference.decode(ids[:-1].tolist(), skip_special_tokens=False) == row["text"]
        assert entry.tokens == len(shard.tokens)
        assert entry.bytes == lengths[shard.tokens].sum() == sum(len(row["text"].encode()) for row in rows)


def test_the_sidecar_says_where_every_token_came_from(tiny_data, rows_of):
    corpus, manifest = CorpusManifest.read(tiny_data / "corpus"), ShardsManifest.read(tiny_data / "shards")
    lengths = token_byte_lengths(tiny_data / "tokenizer")
    for entry in manifest.shards:
        shard = manifest.open(entry)
        sidecar = pq.read_table(manifest.folder / f"{entry.name}.docs.parquet").to_pylist()
        rows = [row for row in rows_of(corpus, "documents", entry.language) if row["split"] == entry.split]
        facts = ("id", "source", "license", "language", "url")
        assert [[row[key] for key in facts] for row in sidecar] == [[row[key] for key in facts] for row in rows]
        assert [row["document"] for row in sidecar] == list(range(entry.documents))
        assert [row["token_start"] for row in sidecar] == shard.document_starts[:-1].tolist()
        assert [row["token_end"] for row in sidecar] == shard.document_starts[1:].tolist()
        for row in sidecar:
            assert row["bytes"] == lengths[shard.tokens[row["token_start"] : row["token_end"]]].sum()


def test_the_manifest_names_what_the_shards_were_made_of(tiny_data):
    corpus, manifest = CorpusManifest.read(tiny_data / "corpus"), ShardsManifest.read(tiny_data / "shards")
    assert manifest.corpus_merkle_root == corpus.merkle_root
    assert manifest.tokenizer_sha256 == sha256_file(tiny_data / "tokenizer/tokenizer.json")
    assert (manifest.vocabulary_size, manifest.end_of_document_id) == (1024, 0)
    assert manifest.encoder.startswith("gigatoken ")
    assert [entry.split for entry in manifest.shards] == ["train"] * 4 + ["validation"] * 4


def test_encoders_and_batches_do_not_change_a_byte(write, data, tiny_data, monkeypatch):
    monkeypatch.setattr(tokenize, "LEAST_ROWS", 7)
    expected = contents(tiny_data / "shards")  # by gigatoken, in one batch
    for encoder in ("tokenizers", "tiktoken"):
        manifest = write(encoder=encoder, batch_megabytes=0)  # seven documents at a time
        assert manifest.encoder.startswith(f"{encoder} ")
        assert manifest.merkle_root == ShardsManifest.read(tiny_data / "shards").merkle_root
        assert {**contents(data / "shards"), "manifest.json": expected["manifest.json"]} == expected
        shutil.rmtree(data / "shards")


def test_a_rerun_does_nothing(write, data, capsys):
    write()
    before = {path: path.stat().st_mtime_ns for path in (data / "shards").rglob("*")}
    capsys.readouterr()
    write()
    assert {path: path.stat().st_mtime_ns for path in (data / "shards").rglob("*")} == before
    assert "holds these shards already: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train/de.bin", "train/de.idx", "validation/fr.docs.parquet", "manifest.json"])
def test_damaged_shards_are_written_again_to_the_same_bytes(write, data, name, capsys):
    write()
    before = contents(data / "shards")
    path = data / "shards" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    write()
    assert "writing the shards again: " in capsys.readouterr().out
    assert contents(data / "shards") == before


def test_another_tokenizer_or_corpus_writes_them_again(write, data):
    first = write()
    shutil.rmtree(data / "tokenizer")
    config = TokenizerConfig(name="x", corpus=str(data / "corpus"), output=str(data / "tokenizer"), vocabulary_size=300,
                             pattern=r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]")  # fmt: skip
    tokenizer.run(config)
    second = write()
    assert second.tokenizer_sha256 != first.tokenizer_sha256
    assert second.vocabulary_size == 300
    assert sum(entry.tokens for entry in second.shards) > sum(entry.tokens for entry in first.shards)


def test_a_tokenizer_that_was_changed_or_is_not_the_expected_one_is_refused(write, data):
    found = sha256_file(data / "tokenizer/tokenizer.json")
    with pytest.raises(HanseError, match=f"sha256 is {found}, but tokenizer_sha256 asks for {'0' * 64}"):
        write(tokenizer_sha256="0" * 64)
    assert write(tokenizer_sha256=found).tokenizer_sha256 == found
    path = data / "tokenizer/tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(HanseError, match=r"tokenizer\.json: not the file that its manifest\.json describes"):
        write()


def test_a_tokenizer_of_others_needs_no_manifest_and_may_lie_beside_one_of_theirs(write, data):
    (data / "tokenizer/manifest.json").write_text('{"format": "theirs"}')
    assert write().vocabulary_size == 1024
    (data / "tokenizer/manifest.json").unlink()
    assert write().vocabulary_size == 1024


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a readable tokenizer"), ("{}", "not a byte-level BPE"), (None, "no tokenizer here; train one")],
)
def test_what_is_no_tokenizer_is_refused(write, data, content, message):
    shutil.rmtree(data / "tokenizer")
    (data / "tokenizer").mkdir()
    if content:
        (data / "tokenizer/tokenizer.json").write_text(content)
    with pytest.raises(HanseError, match=message) as error:
        write()
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_its_own_library_cannot_read_is_refused(write, data):
    path = data / "tokenizer/tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["merges"] = [["no such", "tokens"]]
    path.write_text(json.dumps(value))
    (data / "tokenizer/manifest.json").unlink()
    with pytest.raises(HanseError, match=r"tokenizer\.json: not a readable tokenizer \(.*\); train one"):
        write()


def test_an_end_of_document_that_is_no_token_is_refused(write):
    with pytest.raises(HanseError, match=r"has no token '</s>'; set end_of_document"):
        write(end_of_document="</s>")
    assert write(end_of_document="<|reserved_0|>").end_of_document_id == 2


def test_a_corpus_that_was_changed_is_refused_and_nothing_is_left(write, data):
    path = data / "corpus/documents/es.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HanseError, match=r"es\.parquet: not the file that .*manifest\.json describes"):
        write()
    assert sorted(path.name for path in data.iterdir() if path.name.startswith("shards")) == []


def test_an_encoder_that_loses_text_beyond_the_sample_is_caught(write, data, monkeypatch):
    """Parity is seen on a sample; that the tokens stand for all bytes is checked on every document."""

    def lossy(path):
        real = encoders.with_tokenizers(path)

        def encode(texts):
            ids, lengths = real.encode(texts)
            if len(texts) == 48 - 2:
                return ids[:-1], np.append(lengths[:-1], lengths[-1] - 1)
            return ids, lengths

        return encoders.Encoder("gigatoken", "0", encode)

    french = pq.read_metadata(data / "corpus/documents/fr.parquet").num_rows
    monkeypatch.setitem(encoders.MAKERS, "gigatoken", lossy)
    assert french == 46
    with pytest.raises(HanseError, match=r"document text_fr:.*: gigatoken loses text; use encoder=tokenizers"):
        write(parity_documents=1)


def test_wrong_ids_found_on_the_way_write_the_file_again_with_the_next_encoder(
    write, data, tiny_data, monkeypatch, capsys
):
    """One character in one document of one language, far behind the sample's first: nothing of it stays."""

    def shifted(path):
        real = encoders.with_tokenizers(path)

        def encode(texts):
            ids, lengths = real.encode(texts)
            ends = np.cumsum(lengths)
            for text, end in zip(texts, ends, strict=True):
                ids[end - 1] ^= "ß" in str(text) and len(texts) < 1000
            return ids, lengths

        return encoders.Encoder("gigatoken", "0", encode)

    monkeypatch.setattr(encoders, "HARD_TEXTS", ["a"])
    monkeypatch.setitem(encoders.MAKERS, "gigatoken", shifted)
    manifest = write(parity_documents=1)
    out = capsys.readouterr().out
    assert "de: passed over gigatoken: other ids than tokenizers for " in out
    assert "fr: passed over" not in out
    assert manifest.encoder.startswith("gigatoken 0, tiktoken ")
    assert manifest.merkle_root == ShardsManifest.read(tiny_data / "shards").merkle_root
    shutil.rmtree(data / "shards")
    with pytest.raises(HanseError, match=r"de\.parquet: encoder gigatoken: other ids .*; use encoder=auto"):
        write(parity_documents=1, encoder="gigatoken")
    assert sorted(path.name for path in data.iterdir() if path.name.startswith("shards")) == []


@pytest.mark.slow
def test_the_demo_is_encoded_as_tokenizers_would(demo_data, rows_of):
    """All 4.06 million tokens of the demo, against the reference, document by document."""
    reference = encoders.with_tokenizers(demo_data / "tokenizer/tokenizer.json")
    corpus, manifest = CorpusManifest.read(demo_data / "corpus"), ShardsManifest.read(demo_data / "shards")
    assert manifest.vocabulary_size == 16_384
    for entry in manifest.shards:
        texts = [row["text"] for row in rows_of(corpus, "documents", entry.language) if row["split"] == entry.split]
        ids, lengths = reference.encode(texts)
        shard = manifest.open(entry, hashes=True)
        assert (np.diff(shard.document_starts) == lengths + 1).all()
        inside = np.ones(len(shard.tokens), dtype=bool)
        inside[shard.document_starts[1:] - 1] = False
        assert (shard.tokens[inside] == ids).all()
        assert (shard.tokens[~inside] == manifest.end_of_document_id).all()
