"""Does the pipeline grow in a straight line, and does its memory stay flat? Each stage at growing sizes.

    python -m benchmarks.growth FOLDER --tokenizer FOLDER [--megabytes 10,100,1000] [--stages all|tokenize]
                                [--languages fr,de,es,it]
                                [--output FILE.json] [--plot FILE.png]

FOLDER holds LANGUAGE.jsonl or LANGUAGE.parquet files with a column ``text``, at any depth. Languages get equal shares.
Where there is less text than asked for, further documents are put together of its sentences, each drawn from all of
them: as long as the real documents are, and hardly ever near-duplicates; printed are the share of such text and how
many documents were kept.

``all`` is annotate, duplicates, select, tokenize, packing (for 4,096 tokens); ``tokenize`` only the last two, on a
corpus written for it. Of every size annotate, select (duplicates in it) and tokenize (packing after it) each run in a
process of their own; memory is the peak of the resident set in a stage, above what the process held when it had
imported its modules. All files are below ``--work``, about twice the size of the text, and are removed.
"""

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

LANGUAGES = ("fr", "de", "es", "it")
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")
FEWEST = 4  # sentences of a document that is put together: with one or two it would be another's duplicate
PACKED = 4096


def drawn(texts, megabytes, seed=0):
    """Yields (text, whether it was put together): the texts in any order; when they are used up, sentences of all of
    them, drawn one by one until the document is as long as one of the texts.
    """
    rng, size = random.Random(seed), 0
    texts = rng.sample(texts, len(texts))
    sentences = [one for text in texts for one in SENTENCE_END.split(text) if 20 <= len(one) <= 1000]
    for number in itertools.count():
        text = texts[number % len(texts)]
        if number >= len(texts):
            parts, length = [], 0
            while length < len(text) or len(parts) < FEWEST:
                parts.append(rng.choice(sentences))
                length += len(parts[-1]) + 1
            text = " ".join(parts)
        yield text, number >= len(texts)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return


def write_texts(folder, source, megabytes, languages=LANGUAGES):
    """LANGUAGE.parquet of ``megabytes`` in all; (bytes, documents, share of bytes that was put together)."""
    import pyarrow as pa  # here: a process that measures loads it as `hanse` does, after data_pipelines
    import pyarrow.parquet as pq

    from benchmarks.quality import read_texts

    size = again = documents = 0
    held, schema = dict(read_texts(source)), pa.schema([("id", pa.string()), ("text", pa.string())])
    for language in languages:
        with pq.ParquetWriter(folder / f"{language}.parquet", schema, compression="zstd") as writer:
            texts = drawn(held[language], megabytes / len(languages))
            while rows := list(itertools.islice(texts, 5000)):
                names = [f"{language}-{documents + number}" for number in range(len(rows))]
                writer.write_table(pa.table([names, [text for text, _ in rows]], schema=schema))
                size += sum(len(text.encode()) for text, _ in rows)
                again += sum(len(text.encode()) for text, made in rows if made)
                documents += len(rows)
    return size, documents, again / size


def memory(key):
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


class Meter:
    """{stage: [CPU seconds, peak MB above what there was at the start]}; a stage within another is not part of it."""

    def __init__(self):
        self.found, self.names, self.start = {}, [], memory("VmRSS")
        self._mark()

    def _mark(self):
        """What was spent since the last mark is the innermost stage's."""
        if self.names:
            seconds, most = self.found.get(self.names[-1], (0.0, 0.0))
            most = max(most, memory("VmHWM") - self.start)
            self.found[self.names[-1]] = (seconds + time.process_time() - self.clock, most)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.clock = time.process_time()

    @contextmanager
    def stage(self, name):
        self._mark()
        self.names.append(name)
        yield
        self._mark()
        self.names.pop()

    def wrapped(self, name, function):
        def call(*arguments, **settings):
            with self.stage(name):
                return function(*arguments, **settings)

        return call


STEPS = {"annotate": ["all"], "select": ["all"], "tokenize": ["all", "tokenize"]}


def measure(folder, step, tokenizer):
    """What one step costs; run in a process of its own."""
    from data_pipelines import corpus, tokenize
    from data_pipelines.config import CorpusConfig, SourceConfig, TokenizeConfig
    from data_pipelines.packing import make_plan
    from data_pipelines.shards import ShardsManifest

    files = {path.stem: path for path in sorted((folder / "in").glob("*.parquet"))}
    sources = {language: SourceConfig("parquet", language, "CC0-1.0", path=str(path), check_language=False)
               for language, path in files.items()}  # fmt: skip
    config = CorpusConfig(
        "bench", sources=sources, output=f"{folder}/corpus", annotated=f"{folder}/annotated", processes=1
    )
    config.select.quality = False  # keep what is there: the size is what is asked about
    meter = Meter()
    if step == "annotate":
        config.worker = "0/1"
        with meter.stage("annotate"):
            corpus.run(config)
    elif step == "select":
        clusters = meter.wrapped("duplicates", corpus._clusters)
        with mock.patch.object(corpus, "_clusters", clusters), meter.stage("select"):
            corpus.run(config)
    else:
        config = TokenizeConfig("bench", f"{folder}/corpus", str(tokenizer), output=f"{folder}/shards")
        with meter.stage("tokenize"):
            tokenize.run(config)
        with meter.stage("packing"):
            make_plan(ShardsManifest.read(folder / "shards"), PACKED)
    return meter.found


def measured(folder, stages, tokenizer):
    """{stage: (CPU seconds, peak MB)} of a size, step after step."""
    if stages == "tokenize":
        import pyarrow.parquet as pq

        from benchmarks.tokenization import write_corpus

        files = sorted((folder / "in").glob("*.parquet"))
        write_corpus(folder / "corpus", {path.stem: pq.read_table(path)["text"].to_pylist() for path in files})
    found = {}
    for step in [step for step, wanted in STEPS.items() if stages in wanted]:
        command = [sys.executable, "-m", "benchmarks.growth", str(folder), "--measure", step,
                   "--tokenizer", str(tokenizer)]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            sys.exit(told.stderr)
        found |= json.loads(told.stdout.splitlines()[-1])
    return found


def kept_in(corpus):
    from data_pipelines.manifest import CorpusManifest

    return sum(one.documents_kept for one in CorpusManifest.read(corpus).sources.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", default="10,100,1000")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--stages", default="all", choices=["all", "tokenize"])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer.json")
    parser.add_argument("--work", type=Path, help="where to write (default: the temporary folder)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, help="draw what --output holds by then")
    parser.add_argument("--measure", choices=list(STEPS))
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder, arguments.measure, arguments.tokenizer)))
        return
    found = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.is_file() else {}
    for megabytes in [float(part) for part in arguments.megabytes.split(",") if part]:
        with tempfile.TemporaryDirectory(dir=arguments.work) as place:
            one = Path(place)
            (one / "in").mkdir()
            size, documents, made = write_texts(one / "in", arguments.folder, megabytes, arguments.languages.split(","))
            stages = measured(one, arguments.stages, arguments.tokenizer)
            kept = kept_in(one / "corpus")
            disk = sum(path.stat().st_size for path in one.rglob("*") if path.is_file())
        print(f"\n{size / 1e6:.0f} MB ({made:.0%} put together of sentences); {documents:,} documents, {kept:,} kept; "
              f"{disk / 1e6:,.0f} MB on disk")  # fmt: skip
        print(f"{'stage':12s}{'CPU s':>9s}{'MB/s':>9s}{'peak MB':>9s}")
        for name, (seconds, most) in stages.items():
            print(f"{name:12s}{seconds:9.2f}{size / 1e6 / max(seconds, 1e-9):9.1f}{most:9.0f}", flush=True)
        found[f"{size / 1e6:.0f}"] = {**found.get(f"{size / 1e6:.0f}", {}), **stages}
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1))
    if arguments.plot:
        draw(found, arguments.plot)


def draw(found, path):
    """Seconds and peak memory of each stage over the size, both axes logarithmic."""
    import matplotlib.pyplot as plt

    sizes = sorted(map(int, found))
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in ("annotate", "duplicates", "select", "tokenize", "packing"):
        there = [size for size in sizes if name in found[str(size)]]
        left.loglog(there, [max(found[str(size)][name][0], 1e-2) for size in there], "o-", label=name)
        right.loglog(there, [max(found[str(size)][name][1], 1) for size in there], "o-", label=name)
    left.loglog(sizes, [size / sizes[0] * 0.05 for size in sizes], "k:", label="a straight line")
    for axis, label in ((left, "CPU seconds"), (right, "peak memory, MB")):
        axis.set(xlabel="MB of text", ylabel=label)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    plt.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
