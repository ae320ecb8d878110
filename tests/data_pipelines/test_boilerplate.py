"""Lines that stand in many documents: counted against a dictionary, removed, told of; the others stay as they are."""

import random
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import boilerplate
from data_pipelines.boilerplate import Boilerplate, Removed, frequent
from data_pipelines.documents import Document

NOTICE = "Tous droits réservés. Reproduction interdite."


def document(text, url=None):
    return Document("key", text, None, url, "CC0-1.0", None, None)


def counted(tmp_path, parts, least, by="site"):
    """The list of repeated lines of parts, made through files."""
    files = []
    for number, documents in enumerate(parts):
        files.append(tmp_path / f"lines-{number}.parquet")
        boilerplate.count(documents, by, files[-1])
    frequent(files, least, tmp_path / "list.parquet")
    return tmp_path / "list.parquet"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_list_is_that_of_a_dictionary(tmp_path_factory, data):
    lines = st.sampled_from(["a", "b", "été", "c d", "e", ""])
    sites = st.sampled_from([None, "https://a.example/1", "https://www.a.example/2", "http://b.example"])
    documents = data.draw(st.lists(st.tuples(st.lists(lines, max_size=6), sites), max_size=20))
    least = data.draw(st.integers(2, 4))
    made = [document("\n".join(body), url) for body, url in documents]
    cut = data.draw(st.integers(0, len(made)))
    path = counted(tmp_path_factory.mktemp("lines"), [made[:cut], made[cut:]], least)
    site = {None: "", "http://b.example": "b.example"}
    expected = Counter(
        (site.get(url, "a.example"), line) for body, url in documents for line in set(body) if line
    )  # fmt: skip
    table = pq.read_table(path)
    assert sorted(table["documents"].to_pylist()) == sorted(n for n in expected.values() if n >= least)
    remove, removed = Boilerplate(path, "site"), Removed()
    for one, (body, url) in zip(made, documents, strict=True):
        kept = [line for line in body if line and expected[site.get(url, "a.example"), line] < least]
        assert [line for line in remove(one, removed).text.split("\n") if line] == kept


def test_many_counts_are_added_up_slice_by_slice(tmp_path, monkeypatch):
    monkeypatch.setattr(boilerplate, "HELD", 500)
    monkeypatch.setattr(boilerplate, "SLICE", 300)
    rng = random.Random(3)
    parts = [
        [document("\n".join(f"line {rng.randrange(400)}" for _ in range(5))) for _ in range(300)] for _ in range(4)
    ]
    path = counted(tmp_path, parts, 12)
    expected = Counter(line for part in parts for one in part for line in set(one.text.split("\n")))
    table = pq.read_table(path)
    assert sorted(table["documents"].to_pylist()) == sorted(n for n in expected.values() if n >= 12)
    assert (np.diff(table["line"].to_numpy().astype(object)) > 0).all()  # in order, each once


def test_what_is_removed_is_counted_with_examples_and_an_emptied_document_says_so(tmp_path):
    documents = [document(f"Texte {n}.\n\n{NOTICE}\n\nFin {n}.") for n in range(5)] + [document(NOTICE)]
    remove, removed = Boilerplate(counted(tmp_path, [documents], 3), "site"), Removed()
    made = [remove(one, removed) for one in documents]
    assert [one.text for one in made] == [f"Texte {n}.\n\nFin {n}." for n in range(5)] + [""]
    assert (made[5].reason, made[5].detail) == ("empty", "nothing but lines that stand in many documents")
    assert (removed.lines, removed.documents, removed.emptied) == (6, 6, 1)
    assert removed.bytes == 6 * (len(NOTICE.encode()) + 1)
    assert removed.examples == {NOTICE: (6, 6)}


def test_a_source_without_repetition_stays_as_it_is(tmp_path):
    documents = [document(f"Texte {n}.") for n in range(5)]
    remove, removed = Boilerplate(counted(tmp_path, [documents, []], 2), "site"), Removed()
    assert [remove(one, removed) for one in documents] == documents
    assert removed == Removed()


@pytest.mark.parametrize("by", ["site", "source"])
def test_a_corpus_without_the_notices_of_its_sites(tmp_path, write_jsonl, local, make_corpus, rows_of, prose, by):
    texts = prose("fr")
    records = [{"text": f"{texts[n]}\nMenu\n{texts[n + 1]}\n{NOTICE}", "url": f"https://s{n % 2}.example/{n}"}
               for n in range(0, 40, 2)]  # fmt: skip
    for n in range(20):
        records[n]["url"] = f"https://s{n % 2}.example/{n}"
    write_jsonl("in/a.jsonl", records[:10])
    write_jsonl("in/b.jsonl", records[10:])
    sources = {"web": local(tmp_path / "in", url_field="url")}
    from data_pipelines.config import BoilerplateConfig

    settings = {"boilerplate": BoilerplateConfig(min_documents=11, by=by)}
    manifest = make_corpus(sources, annotate=settings, part_megabytes=1)
    kept = rows_of(manifest, "documents")
    assert len(kept) == 20
    gone = by == "source"  # each site has but ten of them
    assert all((NOTICE in row["text"]) != gone and ("Menu" in row["text"]) != gone for row in kept)
    removed = pq.read_table(manifest.file("boilerplate/fr.parquet"))
    assert removed.to_pylist() == ([{"source": "web", "line": line, "documents": 20, "removed": 20}
                                    for line in ("Menu", NOTICE)] if gone else [])  # fmt: skip
    assert manifest.sources["web"].documents_in == 20
    again = make_corpus(sources, annotate=settings, part_megabytes=1)
    assert again.merkle_root == manifest.merkle_root
    plain = make_corpus(sources, part_megabytes=1, output=str(tmp_path / "plain"))
    assert not any("boilerplate" in name for name in plain.files)
    assert plain.sources["web"].bytes_in > manifest.sources["web"].bytes_in or not gone
