"""``hanse tokenize`` beside datatrove's tokenizer on the same files, at identical ids, and what there is to reach.

    python -m benchmarks.tokenization FOLDER [--megabytes 12] [--languages fr,de,es,it] [--peer-python VENV/bin/python]
                                  [--tokenizer FOLDER]

FOLDER holds LANGUAGE.jsonl or LANGUAGE.parquet files with a column ``text``, at any depth; of each language
``--megabytes`` are drawn (all there is, where there is less). Everything is CPU time of one process on one thread,
start-up and imports left out for both, the best of ``--rounds`` (of one for the peer). Reading and checking the corpus,
loading the tokenizer, the parity check, sidecar, hashes and writing are in ours; the ids of both are compared, all.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data_pipeline import ISO3, make_shards, run_peer, train_tokenizer
from benchmarks.quality import read_texts
from common.files import sha256_file
from data_pipelines.encoders import with_gigatoken, with_tokenizers
from data_pipelines.manifest import CorpusManifest, FileEntry, Tally


def draw(folder, megabytes, languages):
    """{language: texts}, of each so many megabytes at random."""
    found = {}
    for language, texts in read_texts(folder):
        if language in languages:
            random.Random(0).shuffle(texts)
            sizes = np.cumsum([len(text.encode()) for text in texts])
            found[language] = texts[: int(np.searchsorted(sizes, megabytes * 1e6)) + 1]
    return found


def write_corpus(folder, texts):
    """A corpus folder as ``hanse corpus`` writes it, of these texts as they are."""
    sources, files = {}, {}
    for language, held in texts.items():
        path = folder / "documents" / f"{language}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [f"bench_{language}:{number:012x}" for number in np.random.default_rng(0).integers(0, 2**48, len(held))]
        rows = {"id": names, "text": held, "source": f"bench_{language}", "license": "CC0-1.0", "language": language,
                "url": None, "split": "train"}  # fmt: skip
        columns = [pa.array(value if isinstance(value, list) else [value] * len(held), pa.string())
                   for value in rows.values()]  # fmt: skip
        pq.write_table(pa.table(columns, list(rows)), path, compression="zstd", row_group_size=5000)
        size = sum(len(text.encode()) for text in held)
        sources[f"bench_{language}"] = Tally(language, "CC0-1.0", len(held), len(held), size, size)
        files[f"documents/{language}.parquet"] = FileEntry(len(held), path.stat().st_size, sha256_file(path))
    CorpusManifest("bench", "bench", {}, {}, sources, files, folder).write()


def spent(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def limits(corpus, tokenizer, sample):
    """CPU seconds of: reading the columns alone; gigatoken alone, fresh a language; tokenizers, on ``sample``."""
    paths = sorted((corpus / "documents").glob("*.parquet"))
    read = spent(lambda: [list(pq.ParquetFile(path).iter_batches(5000)) for path in paths])
    arrays = [pq.read_table(path, columns=["text"])["text"].combine_chunks() for path in paths]
    encoder = with_gigatoken(tokenizer / "tokenizer.json")
    fast = spent(lambda: [encoder.encode(array) for array in arrays])
    slow = with_tokenizers(tokenizer / "tokenizer.json")
    return read, fast, spent(lambda: slow.encode(sample))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--languages", default="fr,de,es,it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json; else one of 32,768 is trained")
    arguments = parser.parse_args()
    assert set(arguments.languages.split(",")) <= set(ISO3)
    texts = draw(arguments.folder, arguments.megabytes, arguments.languages.split(","))
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), texts, arguments)


def compare(folder, texts, arguments):
    size = sum(len(text.encode()) for held in texts.values() for text in held) / 1e6
    print(f"{sum(map(len, texts.values())):,} documents, {size:.1f} MB: {', '.join(texts)}", flush=True)
    write_corpus(folder / "corpus", texts)
    tokenizer = arguments.tokenizer or folder / "tokenizer"
    if not arguments.tokenizer:
        train_tokenizer(folder, tokenizer)
    sample = [text for held in texts.values() for text in held[:100]]
    theirs, ours, found = None, [], []
    for number in range(arguments.rounds):
        if arguments.peer_python and number == 0:
            theirs = sum(run_peer(arguments.peer_python, folder, language, tokenizer, keep=folder / language,
                                  documents="corpus/documents")["tokenize"] for language in texts)  # fmt: skip
        (folder / str(number)).mkdir()
        (folder / str(number) / "corpus").symlink_to(folder / "corpus")
        ours.append(make_shards(folder / str(number), tokenizer))
        found.append(limits(folder / "corpus", tokenizer, sample))
    read, fast, slow = (min(one) for one in zip(*found, strict=True))
    slow *= size * 1e6 / sum(len(text.encode()) for text in sample)
    mine = min(ours)
    rows = [("hanse tokenize", mine), ("gigatoken alone, texts in memory", fast), ("reading the Parquet alone", read),
            ("tokenizers alone, texts in memory", slow)]  # fmt: skip
    if theirs:
        rows.insert(1, ("datatrove", theirs))
        for language in texts:
            (path,) = (folder / language).glob("*.ds")
            same = np.array_equal(
                np.fromfile(path, "<u2"), np.fromfile(folder / f"0/shards/train/{language}.bin", "<u2")
            )
            print(f"{language}: ids of all documents {'identical' if same else 'DIFFERENT'}")
    print(f"\n{'CPU time of one core':36s}{'s':>8s}{'MB/s':>9s}{'hanse is':>10s}")
    for name, seconds in rows:
        print(f"{name:36s}{seconds:8.2f}{size / seconds:9.1f}{seconds / mine:9.2f}x")


if __name__ == "__main__":
    main()
