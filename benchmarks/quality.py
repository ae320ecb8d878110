"""Quality signals: speed beside datatrove's filters, agreement with them, and what the thresholds do to real text.

    python -m benchmarks.quality FOLDER [--megabytes 4] [--peer-python VENV/bin/python]

FOLDER holds LANGUAGE.jsonl or LANGUAGE.parquet files with a column ``text`` (a corpus made here has them in
``documents/``), at any depth. datatrove runs in another virtual environment (``pip install datatrove[processing]``):
its Gopher quality, Gopher repetition and FineWeb filters with thresholds that nothing fails, so that all is computed as
it is here. MB of UTF-8 per second of CPU time, runs alternate, the best of three counts. Signals are compared on the
texts where ours is not 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COMPARED = ("words", "duplicate_lines", "top_2_gram", "top_4_gram", "duplicate_5_grams", "duplicate_10_grams")
ISO3 = {"fr": "fra", "de": "deu", "es": "spa", "it": "ita", "en": "eng", "pt": "por", "nl": "nld", "ca": "cat"}


def read_texts(folder):
    """(language, texts) for every language that there are files of."""
    texts = {}
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            texts.setdefault(path.stem, []).extend(json.loads(line)["text"] for line in file)
    for path in sorted(folder.rglob("*.parquet")):
        import pyarrow.parquet as pq

        texts.setdefault(path.stem, []).extend(pq.read_table(path, columns=["text"]).column("text").to_pylist())
    return sorted((language, found) for language, found in texts.items() if language in ISO3)


def as_peer(path):
    """Reads {language, texts}, prints {seconds, values}; run by the interpreter that has datatrove."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.filters import gopher_repetition_filter as gopher
    from datatrove.utils.text import split_into_words

    given = json.loads(Path(path).read_text(encoding="utf-8"))
    language, never = ISO3[given["language"]], 1e9
    filters = [
        GopherQualityFilter(-1, never, -1, never, never, never, never, -1, 0, language=language),
        GopherRepetitionFilter(never, never, never, never, tuple((n, never) for n in (2, 3, 4)),
                               tuple((n, never) for n in range(5, 11)), language=language),
        FineWebQualityFilter(None, -1, False, None, never, 30, never, never, language=language),
    ]  # fmt: skip
    documents = [Document(text=text, id="") for text in given["texts"]]
    for document in documents[:5]:
        [one.filter(document) for one in filters]
    start = time.process_time()
    for document in documents:
        [one.filter(document) for one in filters]
    seconds = time.process_time() - start
    values = []
    for text in given["texts"]:
        words, lines = split_into_words(text, language), [line for line in text.split("\n") if line.strip()]
        pairs, fours = gopher.get_n_grams(words, 2), gopher.get_n_grams(words, 4)
        values.append([
            len(words), gopher.find_duplicates(lines)[0] / max(1, len(lines)),
            gopher.find_top_duplicate(pairs) / len(text) if pairs else 0,
            gopher.find_top_duplicate(fours) / len(text) if fours else 0,
            gopher.find_all_duplicate(words, 5) / len(text), gopher.find_all_duplicate(words, 10) / len(text),
        ])  # fmt: skip
    print(json.dumps({"seconds": seconds, "values": values}))


def run_peer(python, language, texts):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump({"language": language, "texts": texts}, file)
        file.flush()
        command = [python, __file__, ".", "--as-peer", file.name]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return None, ended.stderr.strip().rpartition("\n")[2]
    answer = json.loads(ended.stdout.splitlines()[-1])
    return answer["values"], answer["seconds"]


def sample(texts, megabytes):
    """Texts from all over, of about so many MB."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    return texts[:: max(1, round(size / megabytes))]


def compare(language, texts, python):
    import numpy as np

    from data_pipelines.annotate.quality import Quality

    quality, megabytes = Quality.of(language), sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs, values = [], [], None
    for _ in range(3):
        start = time.process_time()
        signals = quality.signals(texts)
        ours.append(time.process_time() - start)
        values, seconds = run_peer(python, language, texts)
        theirs.append(seconds)
    line = f"{language}  {megabytes:5.1f} MB, {len(texts)} texts   hanse {megabytes / min(ours):6.2f} MB/s"
    if values is None:
        print(f"{line}   datatrove: peer not installed ({theirs[0]})")
    else:
        print(f"{line}   datatrove {megabytes / min(theirs):6.3f} MB/s   {min(theirs) / min(ours):.0f} times")
        for name, column in zip(COMPARED, np.array(values).T, strict=True):
            mine = np.array(signals.column(f"quality_{name}").to_pylist())
            # For datatrove an n-gram that occurs once is the most frequent one, too: compare where something repeats.
            repeats = mine > 0
            mine, column = mine[repeats], column[repeats]  # noqa: PLW2901
            if len(mine) < 3:
                continue
            alike = np.corrcoef(mine, column)[0, 1]
            line = f"      {name:20s} in {len(mine):5d} texts   correlation {alike:.3f}"
            print(f"{line}   mean {mine.mean():8.4f} and {column.mean():8.4f}")
    return quality.failures(signals)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=4, help="of text a language")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        return as_peer(given.as_peer)
    for language, texts in read_texts(given.folder):
        failures = compare(language, sample(texts, given.megabytes), given.peer_python)
        reasons = Counter(reason.removeprefix("quality_") for reason, _ in failures if reason)
        share = sum(reasons.values()) / max(1, len(failures))
        print(f"      thresholds fail {share:.1%}: " + ", ".join(f"{name} {n}" for name, n in reasons.most_common(6)))
    return None


if __name__ == "__main__":
    main()
