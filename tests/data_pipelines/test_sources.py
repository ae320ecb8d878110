"""Every reader finds the same records in the same order, and sets aside what it cannot read."""

import gzip
import json
import lzma
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import HanseError
from data_pipelines.config import HubConfig, SourceConfig
from data_pipelines.readers import _column
from data_pipelines.sources import Record, inputs, read

RECORDS = [
    {"text": f"Texte numéro {number} — « été ».", "name": f"n{number}", "when": 1900 + number} for number in range(600)
]
LINES = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS]


def records(source: SourceConfig) -> list[Record]:
    return list(read(source, Path("downloads")))


def texts(source: SourceConfig) -> list[object]:
    return [record.fields.get(source.text_field) for record in records(source)]


def in_two(pack):
    """Two archives back to back, as parallel compressors write them."""
    return lambda data: pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])


PACKERS = {
    "jsonl": bytes,
    "jsonl.xz": lzma.compress,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.ZstdCompressor().compress,
    "2.jsonl.gz": in_two(gzip.compress),
    "2.jsonl.zst": in_two(zstandard.ZstdCompressor().compress),
}


@pytest.mark.parametrize("ending", PACKERS)
def test_jsonl_plain_and_compressed(tmp_path, local, ending):
    path = tmp_path / f"data.{ending}"
    path.write_bytes(PACKERS[ending](b"".join(LINES)))
    found = records(local(path))
    assert [record.fields for record in found] == RECORDS
    assert [record.key for record in found[:2]] == [f"data.{ending}:0", f"data.{ending}:1"]
    assert all(0 <= record.position <= 1 for record in found)
    assert [record.key for record in read(local(path, id_field="name", limit=3), tmp_path)] == ["n0", "n1", "n2"]


def test_poisoned_lines_are_set_aside_and_the_others_are_read(write_jsonl, local):
    path = write_jsonl("data.jsonl", [
        b"\xef\xbb\xbf" + LINES[0], b'{"text": "caf\xe9"}', b"{", b"[1]", b'"x"', b"[" * 100_000,
        b'{"text": ' + b"9" * 5000 + b"}", b"   ", b"", b"null", *LINES[1:3],
    ])  # fmt: skip
    found = records(local(path))
    assert [record.problem for record in found] == [
        "", "not UTF-8", "not JSON", "JSON list, not an object", "JSON str, not an object", "not JSON",
        "not JSON", "JSON NoneType, not an object", "", "",
    ]  # fmt: skip
    assert [record.fields["text"] for record in found if not record.problem] == [r["text"] for r in RECORDS[:3]]


def test_text_by_file_and_by_line(tmp_path, local):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt.zst").write_bytes(zstandard.compress(b"zwei\n\ndrei\n"))
    (tmp_path / "a.txt").write_bytes(b"eins\nnoch eins")
    (tmp_path / "c.md").write_bytes(b"latin: \xe9\nnext")
    (tmp_path / "ignored.pdf").write_bytes(b"%PDF")
    by_file = records(local(tmp_path, "de", "text"))
    assert [(record.key, record.fields["text"]) for record in by_file] == [
        ("a.txt", "eins\nnoch eins"), ("b/two.txt.zst", "zwei\n\ndrei\n"), ("c.md", b"latin: \xe9\nnext"),
    ]  # fmt: skip
    by_line = records(local(tmp_path, "de", "text", document_is="line"))
    assert [(record.key, record.fields["text"]) for record in by_line] == [
        ("a.txt:0", "eins\n"), ("a.txt:1", "noch eins"), ("b/two.txt.zst:0", "zwei\n"), ("b/two.txt.zst:2", "drei\n"),
        ("c.md:0", b"latin: \xe9\n"), ("c.md:1", "next"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_parquet_with_any_type_of_string(tmp_path, local, kind):
    column = pa.array([record["text"] for record in RECORDS], pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    table = pa.table({"text": column, "name": [r["name"] for r in RECORDS], "other": [r["when"] for r in RECORDS]})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=100)
    found = records(local(tmp_path / "data.parquet", reader="parquet", id_field="name"))
    assert [record.fields["text"] for record in found] == [record["text"] for record in RECORDS]
    assert [record.key for record in found] == [record["name"] for record in RECORDS]
    assert set(found[0].fields) == {"text", "name"}  # no column is read that nobody asked for


def test_parquet_with_one_bad_string_gives_the_others(tmp_path, local):
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xe9b")]
    )
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "number.parquet")
    assert texts(local(tmp_path, reader="parquet")) == ["a", b"\xe9", "b", "x", None, 1, 2]


@given(st.lists(st.none() | st.binary(max_size=6) | st.text().map(str.encode), max_size=9), st.booleans())
@example(
    ["\ud800".encode("utf-8", "surrogatepass"), b"a\0", b"\xf4\x90\x80\x80", b"\xc0\x80", "\ufeff\U0010ffff".encode()],
    False,
)
def test_a_column_of_strings_is_that_of_its_values_one_by_one(values, twice):
    def decoded(value):
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return value

    array = pa.array(values, pa.binary())
    array = array.dictionary_encode() if twice else array
    assert _column(array) == list(map(decoded, values))


def database(path, rows):
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE t (edition, place, body)")
        base.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    base.close()
    return path


def test_sqlite_query_with_parameters_and_a_text_that_is_no_utf8(tmp_path, local):
    rows = [("l", 2, "deux"), ("l", 1, "un"), ("e", 1, "eins"), ("l", 3, None), ("l", 4, 5)]
    path = database(tmp_path / "base.db", rows)
    with sqlite3.connect(path) as base:
        base.execute("INSERT INTO t VALUES ('l', 5, CAST(x'63e9' AS TEXT))")
    base.close()
    query = "SELECT place, body FROM t WHERE edition = :edition ORDER BY place"
    source = local(path, reader="sqlite", query=query, parameters={"edition": "l"}, text_field="body", id_field="place")
    assert [(record.key, record.fields["body"]) for record in records(source)] == [
        ("1", "un"), ("2", "deux"), ("3", None), ("4", 5), ("5", b"c\xe9"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT absent FROM t", "no such column: absent"),
        ("SELECT place FROM t", r"gives no 'text' \(text_field\), only place"),
        ("DELETE FROM t", "attempt to write a readonly database"),
        ("PRAGMA user_version = 3", "attempt to write a readonly database|not a SELECT statement"),
        ("SELECT body AS text FROM t WHERE edition = :missing", "missing|binding"),
    ],
)
def test_sqlite_queries_that_cannot_be_answered(tmp_path, local, query, message):
    path = database(tmp_path / "base.db", [("l", 1, "un")])
    with pytest.raises(HanseError, match=message):
        records(local(path, reader="sqlite", query=query))
    assert sqlite3.connect(path).execute("SELECT count(*) FROM t").fetchone() == (1,)


def wet(pages):
    """A WET file: a record about the file, then one a page; members of gzip back to back, as crawlers write them."""
    parts = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n"]
    for url, text in pages:
        headers = ["WARC/1.0", "WARC-Type: conversion", f"WARC-Target-URI: {url}", "WARC-Date: 2026-11-01T10:00:00Z",
                   "Content-Type: text/plain", f"Content-Length: {len(text)}", "", ""]  # fmt: skip
        head = "\r\n".join(headers)
        parts.append(head.encode() + text + b"\r\n\r\n")
    return b"".join(gzip.compress(part) for part in parts)


def test_the_pages_of_a_wet_file_with_address_and_date(tmp_path, local):
    pages = [("https://example.org/a", "Été\r\n\r\nWARC/1.0 inside".encode()), ("https://example.org/b", b""),
             ("https://example.org/c", b"caf\xe9"), ("https://example.org/d", b"y" * 200)]  # fmt: skip
    (tmp_path / "a.warc.wet.gz").write_bytes(wet(pages))
    source = local(tmp_path, reader="warc", url_field="url", date_field="date")
    assert source.problems("s") == []
    found = list(read(source, tmp_path, longest=100))
    assert [record.fields.get("url") for record in found[:3]] == [url for url, _ in pages[:3]]
    assert [record.fields.get("text") for record in found] == ["Été\r\n\r\nWARC/1.0 inside", "", b"caf\xe9", None]
    assert (found[0].fields["date"], found[0].key) == ("2026-11-01T10:00:00Z", "a.warc.wet.gz:0")
    assert found[3].reason == "too_long"


@pytest.mark.parametrize("damage", ["cut", "shifted", "length"])
def test_a_broken_wet_file_gives_the_pages_before_the_break(tmp_path, local, damage):
    data = gzip.decompress(wet([("https://example.org/a", b"one"), ("https://example.org/b", b"two" * 9)]))
    place = data.index(b"Content-Length: 27")
    broken = {"cut": data[:-20], "shifted": data.replace(b"Content-Length: 27", b"Content-Length: 20"),
              "length": data[:place] + b"Content-Length: x" + data[place + 18 :]}  # fmt: skip
    (tmp_path / "a.wet").write_bytes(broken[damage])
    *before, last = records(local(tmp_path, reader="warc"))
    assert before[0].fields["text"] == "one"
    assert last.reason == "broken_file"


def test_a_local_folder_through_datasets(tmp_path, write_jsonl):
    write_jsonl("hub/train.jsonl", RECORDS[:5])
    write_jsonl("hub/test.jsonl", RECORDS[5:7])
    source = SourceConfig(reader="hub", language="fr", license="CC0-1.0", hub=HubConfig(dataset=str(tmp_path / "hub")))
    assert [record.fields for record in records(source)] == RECORDS[:5]
    assert [record.key for record in records(source)] == ["0", "1", "2", "3", "4"]
    source.hub.split, source.id_field, source.limit = "test", "name", 1
    assert [(record.key, record.fields) for record in records(source)] == [("n5", RECORDS[5])]
    assert [entry[0] for entry in inputs(source, tmp_path)] == [
        str(tmp_path / "hub/test.jsonl"),
        str(tmp_path / "hub/train.jsonl"),
    ]


@pytest.mark.parametrize(("dataset", "split"), [("hub", "validation"), ("absent", "train")])
def test_a_dataset_that_cannot_be_loaded_is_one_clear_error(tmp_path, write_jsonl, monkeypatch, dataset, split):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write_jsonl("hub/train.jsonl", RECORDS[:2])
    hub = HubConfig(dataset=str(tmp_path / dataset), split=split)
    with pytest.raises(HanseError, match=f"dataset {tmp_path / dataset}: cannot be loaded") as error:
        records(SourceConfig(reader="hub", language="fr", license="CC0-1.0", hub=hub))
    assert "\n" not in str(error.value)


def test_folders_globs_and_single_files_in_a_stable_order(tmp_path, write_jsonl, local):
    for name in ("b/2.jsonl", "b/10.jsonl", "a.jsonl", "c.ndjson"):
        write_jsonl(f"in/{name}", [{"text": name}])
    assert texts(local(tmp_path / "in")) == ["a.jsonl", "b/10.jsonl", "b/2.jsonl", "c.ndjson"]
    assert texts(local(tmp_path / "in/**/*.jsonl")) == ["a.jsonl", "b/10.jsonl", "b/2.jsonl"]
    assert [record.key for record in records(local(tmp_path / "in"))][1] == "b/10.jsonl:0"


def test_nothing_to_read_is_said(tmp_path, local):
    (tmp_path / "data.txt").write_text("text")
    for path, message in [
        ("absent", "no such file"),
        ("*.jsonl", "no file matches"),
        (".", "no jsonl files in this folder"),
    ]:
        with pytest.raises(HanseError, match=message):
            records(local(tmp_path / path))


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "jsonl.xz", "txt.gz", "txt.zst", "parquet", "db"])
def test_a_truncated_file_gives_what_can_be_read_and_a_record_that_tells_of_it(tmp_path, local, ending):
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    reader, settings = {"jsonl": ("jsonl", {}), "txt": ("text", {"document_is": "line"}), "parquet": ("parquet", {}),
                        "db": ("sqlite", {"query": "SELECT body AS text FROM t"})}[ending.split(".")[0]]  # fmt: skip
    if reader == "parquet":
        pq.write_table(pa.table({"text": [record["text"] for record in RECORDS]}), whole)
    elif reader == "sqlite":
        database(whole, [("l", number, record["text"] * 20) for number, record in enumerate(RECORDS)])
    else:
        whole.write_bytes(PACKERS[f"jsonl.{ending.split('.')[1]}"](b"".join(LINES)))
    expected = texts(local(whole, reader=reader, **settings))
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    *before, last = records(local(path, reader=reader, **settings))
    assert [record.fields["text"] for record in before] == expected[: len(before)]
    assert not any(record.problem for record in before)
    assert (last.reason, last.key, last.fields) == ("broken_file", f"cut.{ending}:broken", {})
    assert last.problem.startswith(f"nothing behind record {len(before)} can be read" if before else "nothing of it")
    assert "\n" not in last.problem


def test_a_file_that_may_not_be_opened_is_one_clear_error(tmp_path, write_jsonl, local):
    path = write_jsonl("in.jsonl", [{"text": "x"}])
    with pytest.raises(HanseError, match=r"absent\.jsonl: cannot be read .*No such file") as error:
        list(read(local(path), tmp_path, [tmp_path / "absent.jsonl"]))
    assert "\n" not in str(error.value)


def test_what_is_too_long_is_passed_over_in_bounded_memory(tmp_path, local):
    """A line of 40 MB, of which no more than the limit is ever held."""
    import tracemalloc

    with (tmp_path / "long.jsonl").open("wb") as file:
        file.write(LINES[0] + b'{"text": "')
        for _ in range(40):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + b" " * 3000 + b"\n" + LINES[1])
    tracemalloc.start()
    found = list(read(local(tmp_path / "long.jsonl"), tmp_path, longest=2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(record.key, record.reason if record.problem else "") for record in found] == [
        ("long.jsonl:0", ""), ("long.jsonl:1", "too_long"), ("long.jsonl:2", "too_long"), ("long.jsonl:3", ""),
    ]  # fmt: skip
    assert found[1].problem == "40000013 bytes, more than 2000"
    assert peak < 8e6
    (tmp_path / "long.txt").write_bytes(b"y" * 3000)
    (record,) = read(local(tmp_path / "long.txt", reader="text"), tmp_path, longest=2999)
    assert (record.reason, record.problem) == ("too_long", "3000 bytes, more than 2999")
    (record,) = read(local(tmp_path / "long.txt", reader="text"), tmp_path, longest=3000)
    assert record.problem == ""


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_of_just_the_greatest_length_is_read(tmp_path, local, end):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "abc"}' + end)
    assert [record.problem for record in read(local(tmp_path / "a.jsonl"), tmp_path, longest=15)] == [""]
    assert [record.reason for record in read(local(tmp_path / "a.jsonl"), tmp_path, longest=14)] == ["too_long"]


def test_a_missing_column_is_refused_and_named(tmp_path, local):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "data.parquet")
    with pytest.raises(HanseError, match=r"no column 'text' \(text_field\); it has body, n"):
        records(local(tmp_path, reader="parquet"))


def test_only_the_records_that_are_wanted(tmp_path, local):
    rows = [{"text": "a", "kind": "x", "score": 1.0}, {"text": "b", "kind": "y", "score": 3},
            {"text": "c", "kind": "z"}, {"text": "d", "kind": "x", "score": 5}]  # fmt: skip
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines) + b"{\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for reader in ("jsonl", "parquet"):
        bad = [None] if reader == "jsonl" else []  # what cannot be read may be one of them: it is told
        path = tmp_path / f"a.{reader}"
        assert texts(local(path, reader=reader, where={"kind": "x"})) == ["a", "d", *bad]
        assert texts(local(path, reader=reader, where={"kind": ["x", "z"]})) == ["a", "c", "d", *bad]
        assert texts(local(path, reader=reader, at_least={"score": 2.5})) == ["b", "d", *bad]
        assert texts(local(path, reader=reader, where={"kind": "x"}, limit=1)) == ["a"]
    assert texts(local(tmp_path / "a.jsonl", where={"absent": "x"})) == [None]
    with pytest.raises(HanseError, match=r"no column 'absent' \(where, at_least\); it has text"):
        texts(local(tmp_path / "a.parquet", reader="parquet", where={"absent": "x"}))


def test_a_sample_is_drawn_by_the_key_and_a_larger_one_holds_a_smaller(write_jsonl, local):
    path = write_jsonl("data.jsonl", RECORDS)
    drawn = {share: {record.key for record in records(local(path, id_field="name", sample=share))}
             for share in (0.1, 0.5, 1.0)}  # fmt: skip
    assert len(drawn[1.0]) == 600
    assert 30 < len(drawn[0.1]) < 95
    assert drawn[0.1] < drawn[0.5] < drawn[1.0]
    write_jsonl("data.jsonl", RECORDS[::-1])
    assert {record.key for record in records(local(path, id_field="name", sample=0.1))} == drawn[0.1]


def test_lines_with_columns_one_by_one_and_joined(tmp_path, local):
    path = tmp_path / "a.tsv"
    path.write_bytes('Été "un"\t1\tA\nzwei\t1\tA\nnur eine\ndrei\t1\tB\n\nvier\t2\tB\n'.encode())
    source = local(path, reader="tsv", columns=["text", "day", "speaker"])
    assert source.problems("s") == []
    assert texts(source) == ['Été "un"', "zwei", None, "drei", "vier"]
    assert [record.problem for record in records(source)][2] == "1 columns, not 3"
    source.join_fields = ["day", "speaker"]
    assert texts(source) == ['Été "un"\nzwei', None, "drei", "vier"]
    assert records(source)[0].fields["speaker"] == "A"
    joined = list(read(source, tmp_path, longest=40))
    assert [record.fields.get("text") for record in joined] == ['Été "un"', "zwei", None, "drei", "vier"]  # too long
