"""Other makers' tokenizers count as their own libraries do, whatever file they come in."""

import base64
import gzip
import json

import pytest
from tokenizers import Tokenizer

from common.errors import EXIT_DONE, EXIT_USER_ERROR, HanseError
from common.files import read_json
from data_pipelines.config import KnownConfig
from data_pipelines.known_tokenizers import load
from data_pipelines.tokenizer import byte_pieces

TEXTS = ["L'été, ¿qué? «Grüße» 12345 perché", "", "  a\n\n b"]


@pytest.fixture(scope="module")
def own(tiny_data):
    """(file, {bytes: rank}, pattern, tokens of TEXTS) of a byte-level BPE."""
    file = tiny_data / "tokenizer/tokenizer.json"
    value = read_json(file, "tokenizer")
    pattern = value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    tokens = sum(len(one.ids) for one in Tokenizer.from_file(str(file)).encode_batch(TEXTS, add_special_tokens=False))
    return file, byte_pieces(value, file), pattern, tokens


def written(path, kind, ranks, pattern):
    lines = b"".join(base64.b64encode(piece) + f" {rank}\n".encode() for piece, rank in ranks.items())
    if kind == "tiktoken":
        path.write_bytes(lines)
    elif kind == "tiktoken.gz":
        path.write_bytes(gzip.compress(lines))
    else:
        entries = [{"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for piece, rank in ranks.items()]
        beyond = [{"rank": 10**6, "token_bytes": base64.b64encode(b"L'").decode()}]  # tekken cuts its list off
        config = {"pattern": pattern, "default_vocab_size": len(entries) + 1000, "default_num_special_tokens": 1000}
        path.write_text(json.dumps({"config": config, "vocab": entries + beyond}))
    return KnownConfig(path=str(path), pattern=pattern if "tiktoken" in kind else None)


@pytest.mark.parametrize("kind", ["tiktoken", "tiktoken.gz", "tekken.json"])
def test_every_format_gives_the_same_count(own, tmp_path, kind):
    _, ranks, pattern, tokens = own
    dense = {piece: place for place, piece in enumerate(sorted(ranks, key=ranks.__getitem__))}
    known = written(tmp_path / f"x.{kind}", kind, dense, pattern)
    assert load("x", known, tmp_path)(TEXTS) == tokens


def test_a_tokenizer_json_counts_as_the_library_does(own, tmp_path):
    assert load("x", KnownConfig(path=str(own[0])), tmp_path)(TEXTS) == own[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tiktoken", b"YQ== 0\n", "pattern must be set"),
        ("x.tiktoken", b"nonsense", "is no tokenizer.json, tekken.json or .tiktoken"),
        ("x.json", b'{"model": 3}', "is no tokenizer.json, tekken.json or .tiktoken"),
        ("x.json", b"{", "x.json"),
        ("x.json", b"[]", "is no tokenizer.json"),
    ],
)
def test_another_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HanseError, match=message):
        load("x", KnownConfig(path=str(tmp_path / name)), tmp_path)
    with pytest.raises(HanseError, match="not there"):
        load("x", KnownConfig(path=str(tmp_path / "nowhere")), tmp_path)


def test_the_comparison_is_shown_and_kept(tiny_data, tmp_path, hanse, capsys):
    settings = ["name=tiny", f"corpus={tiny_data / 'corpus'}", f"output={tmp_path / 'out'}", "vocabulary_size=600"]
    known = ["known=[file]", f"known.file.path={tiny_data / 'tokenizer/tokenizer.json'}"]
    assert hanse("tokenizer", *settings, *known) == EXIT_DONE
    found = json.loads((tmp_path / "out/compared.json").read_text())["tokenizers"]
    theirs = read_json(tiny_data / "tokenizer/fertility.json", "fertility table")
    assert {name: row["tokens"] for name, row in found["file"]["languages"].items()} == {
        name: row["tokens"] for name, row in theirs.items()
    }
    said = capsys.readouterr().out
    assert said.index("\nfile ") < said.index("\ntiny ")  # the better one first
    assert hanse("tokenizer", *settings) == EXIT_DONE  # comparing changes nothing of the tokenizer
    assert "nothing to do" in capsys.readouterr().out


def test_a_known_tokenizer_is_a_file_or_a_package(hanse, capfd):
    assert hanse("tokenizer", "name=x", "known=[file]", "known.file.path=null") == EXIT_USER_ERROR
    assert "known.file: give either path" in capfd.readouterr().err
