"""An annotated file holds every document that came in, and the same bytes whatever came before."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from common.errors import HanseError
from data_pipelines.annotate.opt_out import OptOut
from data_pipelines.annotate.opt_out_snapshot import Origin, freeze
from data_pipelines.annotate.quality import Quality
from data_pipelines.annotate.stage import ANNOTATED, Part, annotate, counts_of
from data_pipelines.config import AnnotateConfig
from data_pipelines.documents import content_of


@pytest.fixture
def annotated(tmp_path, write_jsonl, local):
    """``annotated(records, url_field="url")``: the rows of an annotated file made of them, and what was told."""

    def make(records, config=None, opt_out=None, batch_bytes=10**6, language="fr", **settings):
        source = local(write_jsonl("in.jsonl", records), language, **settings)
        part = Part("web", source, (tmp_path / "in.jsonl",), tmp_path, config or AnnotateConfig(), batch_bytes, opt_out)
        told = []
        annotate(part, tmp_path / "out.parquet", lambda share, size: told.append((share, size)))
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert counts_of(tmp_path / "out.parquet") == (len(rows), sum(len(row["text"].encode()) for row in rows))
        assert told[-1] == (1.0, counts_of(tmp_path / "out.parquet")[1])
        return rows

    return make


def test_all_that_comes_in_is_there_with_everything_that_is_known(annotated, prose):
    texts = prose("fr")[:5]
    rows = annotated([{"text": texts[0]}, b"{", {"text": ""}, *({"text": text} for text in texts[1:])])
    assert [row["text"] for row in rows] == [texts[0], "", "", *texts[1:]]
    assert [row["reason"] for row in rows] == ["", "malformed", "", "", "", "", ""]
    assert rows[0].keys() == set(ANNOTATED.names)
    good = rows[0]
    assert good["content"] == content_of(texts[0])
    assert (good["language_detected"], good["language"]) == ("fr", "fr")
    assert 0 <= good["language_runner_up_score"] <= good["language_score"]
    signals = Quality.of("fr").signals(texts[:1]).to_pylist()[0]
    assert {name: good[name] for name in signals} == signals
    assert len(good["signature"]) == 240
    assert rows[1]["signature"] is None
    assert (good["opt_out"], good["evaluation_matches"]) == (None, None)  # nobody asked


def test_another_detector_changes_the_columns_of_language_alone(annotated, prose):
    pytest.importorskip("eldc", reason="eldc is not installed: pip install 'hanse[eldc]'")
    records = [{"text": text} for text in prose("fr")[:5]]
    ours, theirs = annotated(records), annotated(records, AnnotateConfig(language_detector="eldc"))
    assert {row["language_detected"] for row in theirs} == {"fr"}
    assert all(0 < row["language_runner_up_score"] < row["language_score"] < 1 for row in theirs)
    names = [name for name in ANNOTATED.names if not name.startswith(("language_score", "language_runner_up"))]
    assert [[row[name] for name in names] for row in theirs] == [[row[name] for name in names] for row in ours]


def test_the_same_rows_however_they_are_batched(annotated, prose):
    records = [{"text": text} for text in prose("de")]
    assert annotated(records, language="de") == annotated(records, language="de", batch_bytes=1)


def test_personal_data_are_replaced_before_anything_else_sees_them(annotated):
    text = "Écrivez à jean.dupont@example.org pour avoir la suite de cette histoire."
    row, same = annotated([{"text": text}, {"text": text.replace("jean.dupont", "anne.durand")}])
    assert row["text"] == same["text"] == text.replace("jean.dupont@example.org", "<EMAIL>")
    assert (row["personal_data_email"], row["personal_data_iban"]) == (1, 0)
    assert row["content"] == same["content"] == content_of(row["text"])  # no hash of what was there
    assert row["id"].rpartition(":")[2] == same["id"].rpartition(":")[2]
    (row,) = annotated([{"text": text}], AnnotateConfig(personal_data=False))
    assert (row["text"], row["personal_data_email"]) == (text, None)


def test_a_frozen_snapshot_answers_by_address(annotated, tmp_path):
    robots = "User-agent: GPTBot\nDisallow: /private/\n"
    snapshot = freeze([Origin("https://example.org", "2026-11-24T00:00:00+00:00", 200, robots)], tmp_path / "snapshot")
    addresses = ["https://example.org/private/1", "https://example.org/2", "https://example.net/", None]
    rows = annotated([{"text": "x", "url": url} for url in addresses], opt_out=OptOut(snapshot), url_field="url")
    assert [row["opt_out"] for row in rows] == ["deny", "allow", "unknown", "unknown"]
    assert rows[0]["opt_out_reason"] == "robots.txt: GPTBot"


def test_a_language_without_stop_words_has_no_quality_signals_and_ones_own_yaml_counts(annotated, tmp_path):
    (row,) = annotated([{"text": "Kto rano wstaje, temu Pan Bóg daje."}], language="pl")
    assert row["quality_words"] is None
    (tmp_path / "pl.yaml").write_text(json.dumps({"language": "pl", "stop_words": "kto temu"}))
    (row,) = annotated([{"text": "Kto rano wstaje, temu Pan Bóg daje."}],
                       AnnotateConfig(quality_folder=str(tmp_path)), language="pl")  # fmt: skip
    assert (row["quality_words"], row["quality_stop_words"]) == (7, 2)


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(HanseError, match=r"x\.parquet: damaged .*delete it and run the same command again"):
        counts_of(tmp_path / "x.parquet")


MEASURED = """
import re, sys
from pathlib import Path
from data_pipelines.annotate.stage import Part, annotate
from data_pipelines.config import AnnotateConfig, SourceConfig
source = SourceConfig("jsonl", "fr", "CC0-1.0", path=sys.argv[1])
part = Part("web", source, (Path(sys.argv[1]),), Path("."), AnnotateConfig(max_document_megabytes=1), 10**6)
annotate(part, Path(sys.argv[1] + ".parquet"), lambda share, size: None)
status = Path("/proc/self/status").read_text()  # getrusage would count what pytest held when it started this process
print(int(re.search("VmHWM:\\s+([0-9]+) kB", status)[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path, prose):
    """Twelve times the text, and a line of 100 MB in it: at most 40 MB more at the highest point."""
    line = json.dumps({"text": "\n".join(prose("fr"))}).encode() + b"\n"  # 20 kB
    peaks = []
    for name, repeats, poison in (("small.jsonl", 100, 0), ("large.jsonl", 1200, 100)):
        with (tmp_path / name).open("wb") as file:
            file.write(line * repeats + b'{"text": "')
            for _ in range(poison):
                file.write(b"x" * 10**6)
            file.write(b'"}\n')
        command = [sys.executable, "-c", MEASURED, tmp_path / name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        peaks.append(int(done.stdout))
        assert counts_of(tmp_path / f"{name}.parquet")[0] == repeats + 1
    assert peaks[1] < peaks[0] + 40
