"""The ready sources: downloaded from a server on this machine that holds files of the shapes their cards describe, then
processed with the server gone. The real ones were not downloaded: no test has internet.
"""

import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from data_pipelines.manifest import CorpusManifest
from tests.data_pipelines.far_away import far_away

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "configs" / "source"
LANGUAGES = {"fr": ("fra_Latn", "French"), "de": ("deu_Latn", "German")}
HUB = ("fineweb2", "hplt2", "common_corpus", "wikipedia", "eurlex")


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def lines(rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def passages(prose, language, source):
    """Some of the 48 passages; others in each source, so that none repeats another's."""
    start, end = {"fineweb2": (0, 12), "hplt2": (12, 18), "hplt3": (18, 24), "common_corpus": (24, 36),
                  "wikipedia": (36, 48)}[source]  # fmt: skip
    return list(enumerate(prose(language)))[start:end]


def fineweb2(texts, code):
    return [{"text": text, "id": f"<urn:uuid:{code}-{n}>", "dump": "CC-MAIN-2024-18", "url": f"https://example.org/{n}",
             "date": "2024-04-20T10:00:00Z", "file_path": "s3://x", "language": code[:3], "language_score": 0.99,
             "language_script": "Latn", "minhash_cluster_size": 1, "top_langs": "{}"} for n, text in texts]  # fmt: skip


def hplt(texts, code, version):
    more = {"robotstxt": "allowed", "collection": "cc40"} if version == 2 else {"crawl_id": "cc40", "cluster_size": 1}
    rows = [{"f": "./x.warc.gz", "o": 1, "s": 2, "rs": 3, "u": f"https://example.com/{n}", "c": "text/html",
             "ts": "2021-05-11T10:00:00Z", "lang": [code], "prob": [0.99], "text": text, "seg_langs": [code],
             "id": f"{n:032x}", "filter": "keep", "pii": [], "doc_scores": [9.0], **more}
            for n, text in texts]  # fmt: skip
    rows[1] |= {"robotstxt": "disallowed"} if version == 2 else {"filter": "adult_ut1"}
    return rows


def common_corpus(prose):
    rows = []
    for language, (_, name) in LANGUAGES.items():
        rows += [{"identifier": f"{language}/{n}", "collection": "Gallica", "open_type": "Open Culture",
                  "license": "Public Domain" if n % 2 else None, "date": "1889", "title": f"Tome {n}", "creator": "BnF",
                  "language": name, "language_type": "Written", "word_count": 70, "token_count": 99, "text": text}
                 for n, text in passages(prose, language, "common_corpus")]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, prose):
    """(manifest, rows of documents): every ready source in French and German, downloaded and then processed offline."""
    folder = tmp_path_factory.mktemp("ready")
    pins = {name: yaml.safe_load((SOURCES / f"{name}.yaml").read_text())["hub"] for name in HUB}
    with far_away() as server:
        files = {name: {"README.md": b"not wanted"} for name in HUB}
        files["common_corpus"]["common_corpus_1/subset_100_1.parquet"] = parquet(common_corpus(prose))
        for language, (code, _) in LANGUAGES.items():
            texts = {name: passages(prose, language, name) for name in ("fineweb2", "hplt2", "hplt3", "wikipedia")}
            shards = fineweb2(texts["fineweb2"], code)
            files["fineweb2"][f"data/{code}/train/000_00000.parquet"] = parquet(shards[:6])
            files["fineweb2"][f"data/{code}/train/000_00001.parquet"] = parquet(shards[6:])
            files["fineweb2"][f"data/{code}/test/000_00000.parquet"] = b"not wanted"
            files["hplt2"][f"{code}/train-00000-of-00001.parquet"] = parquet(hplt(texts["hplt2"], code, 2))
            files["wikipedia"][f"20231101.{language}/train-00000-of-00001.parquet"] = parquet(
                [{"id": str(n), "url": f"https://{language}.wikipedia.org/wiki/{n}", "title": f"Article {n}",
                  "text": text} for n, text in texts["wikipedia"]])  # fmt: skip
            acts = [{"celex": f"3199{n}L", "date": "1999-05-11", "title": f"Act {n}",
                     "text": " ".join([text, text[::-1]])} for n, text in texts["fineweb2"]]  # fmt: skip
            files["eurlex"][f"data/{language}/directive.jsonl.xz"] = lzma.compress(lines(acts))
            data = zstandard.compress(lines(hplt(texts["hplt3"], code, 3)))
            for score in (9, 10):
                server.files[f"/three/sorted/{code}/{score}_1.jsonl.zst"] = data
            base = f"{server.address}/three/sorted/{code}/"
            server.files[f"/three/sorted/{code}.map"] = f"{base}10_1.jsonl.zst\n{base}9_1.jsonl.zst\n".encode()
            digest = hashlib.md5(data).hexdigest()
            server.files[f"/three/sorted/{code}.md5"] = f"{digest}  10_1.jsonl.zst\n{digest}  9_1.jsonl.zst\n".encode()
            speech = [(sentence, "ep-10-01-18", 3, n // 4, f"Speaker {n // 4}", language, "PPE")
                      for n, (_, text) in enumerate(texts["wikipedia"])
                      for sentence in (f"{text}a", text[::-1])]  # fmt: skip
            rows = ["\t".join(map(str, row)) for row in speech] + ["a line\tof two columns"]
            server.files[f"/v10/europarl-v10.{language}.tsv.gz"] = gzip.compress("\n".join(rows).encode())
        for name, pin in pins.items():
            server.dataset(pin["dataset"], pin["revision"], files[name])
        command = [sys.executable, "-m", "hanse", "corpus", f"source=[{','.join([*HUB, 'hplt3', 'europarl'])}]",
                   "languages=[fr,de]", "name=ready", "processes=1", "select.min_characters=1",
                   f"sources.hplt3.web.listing='{server.address}/three/sorted/{{code}}.map'",
                   f"sources.hplt3.web.checksums='{server.address}/three/sorted/{{code}}.md5'",
                   f"sources.europarl.web.urls=['{server.address}/v10/europarl-v10.{{code}}.tsv.gz']"]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.address,
                       "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf")}  # fmt: skip
        run(folder, [*command, "download_only=true"], environment)
        asked = len(server.requests)
    run(folder, command, environment)
    assert asked == len(server.requests)
    manifest = CorpusManifest.read(folder / "data/ready/corpus")
    kept = [row for language in LANGUAGES
            for row in pq.read_table(manifest.documents(language)).to_pylist()]  # fmt: skip
    return manifest, kept


def run(folder, command, environment):
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


def of(corpus, source):
    return [row for row in corpus[1] if row["source"] == source]


def test_each_becomes_a_source_a_language_with_what_is_known_of_it(corpus):
    manifest, _ = corpus
    assert list(manifest.sources) == [
        f"{name}_{language}" for name in (*HUB, "hplt3", "europarl") for language in LANGUAGES
    ]
    told = manifest.config["sources"]["fineweb2_de"]
    assert (told["language"], told["hub"]["files"]) == ("de", "data/deu_Latn/train/*.parquet")
    assert "deu_Latn" in told["obtained"]
    assert told["license_statement"].startswith("ODC-By 1.0 for the database")


def test_fineweb2(corpus, prose):
    rows = of(corpus, "fineweb2_fr")
    assert [row["text"] for row in rows] == [text for _, text in passages(prose, "fr", "fineweb2")]
    assert (rows[7]["id"].split(":")[:-1], rows[7]["url"]) == (
        ["fineweb2_fr", "<urn", "uuid", "fra_Latn-7>"],
        "https://example.org/7",
    )
    assert (rows[0]["license"], rows[0]["date"]) == ("ODC-By-1.0", "2024-04-20T10:00:00Z")


@pytest.mark.parametrize("version", [2, 3])
def test_hplt_without_what_robots_txt_or_its_filter_forbids(corpus, version):
    rows = of(corpus, f"hplt{version}_de")
    assert len(rows) == 5  # of 3.0: those of the best file only
    assert corpus[0].sources[f"hplt{version}_de"].documents_in == 5  # the other is none of the source's
    assert (rows[0]["url"], rows[0]["date"][:10], rows[0]["license"]) == (
        f"https://example.com/{6 * version}",
        "2021-05-11",
        "CC0-1.0",
    )


def test_common_corpus_by_language_and_with_the_licence_of_each_document(corpus, prose):
    rows = of(corpus, "common_corpus_de")
    assert [row["text"] for row in rows] == [text for _, text in passages(prose, "de", "common_corpus")]
    assert [row["license"] for row in rows[:2]] == ["NOASSERTION", "Public Domain"]
    assert (rows[1]["title"], rows[1]["date"]) == ("Tome 25", "1889")


def test_wikipedia_and_eur_lex(corpus):
    article, act = of(corpus, "wikipedia_fr")[0], of(corpus, "eurlex_fr")[0]
    assert (article["title"], article["url"]) == ("Article 36", "https://fr.wikipedia.org/wiki/36")
    assert (article["date"], article["license"]) == ("2023-11-01", "CC-BY-SA-3.0")
    assert (act["id"].split(":")[1], act["title"], act["date"]) == ("31990L", "Act 0", "1999-05-11")


def test_europarl_speeches_of_many_sentences(corpus):
    rows = of(corpus, "europarl_fr")
    assert [row["text"].count("\n") + 1 for row in rows] == [8, 8, 8]
    assert corpus[0].sources["europarl_fr"].removed == {"malformed": 1}
    assert rows[0]["license"] == "NOASSERTION"
