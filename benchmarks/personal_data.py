"""Personal data: recall, false alarms and speed on a generated set in four languages, beside peers where installed.

    python -m benchmarks.personal_data [--documents 2000] [--peer-python VENV/bin/python] [--text FOLDER]

The set is the tests': valid identifiers of 13 kinds, and look-alikes, most of them with nothing but a wrong check
digit; 5 of either kind in a kB, far more than in any text. Peers run in another virtual environment, so that their
dependencies stay out of this one:

    python -m venv VENV && VENV/bin/pip install datatrove presidio-analyzer

An identifier is found when its value is gone from the text. False alarms are replacements beyond the planted ones.
Runs of ours and of the peers alternate; the best of ``--rounds`` counts, in MB of UTF-8 per second of CPU time. With
``--text`` (LANGUAGE.jsonl or LANGUAGE.parquet files with a column ``text``) the speed on real text is shown, too, and
how much was replaced there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

LANGUAGES = ("fr", "de", "es", "it")
PEERS = ("datatrove", "presidio")


def timed(work, argument):
    """(result, seconds of CPU time)"""
    start = time.process_time()
    return work(argument), time.process_time() - start


# ---------------------------------------------------------------- run by the peers' interpreter
def datatrove():
    from datatrove.pipeline.formatters.pii import PIIFormatter

    # Its replacements, told apart from any text, so that they can be counted.
    formatter = PIIFormatter(email_replacement="\ue000", ip_replacement="\ue000")
    return lambda documents: [formatter.format(text) for _, text in documents]


def presidio():
    import logging

    logging.disable(logging.CRITICAL)  # it logs every value that it rejects
    import presidio_analyzer.predefined_recognizers as known

    names = {
        "fr": [], "de": ["DeTaxIdRecognizer", "DeVatIdRecognizer"], "es": ["EsNifRecognizer", "EsNieRecognizer"],
        "it": ["ItFiscalCodeRecognizer", "ItVatCodeRecognizer"],
    }  # fmt: skip
    general = ["EmailRecognizer", "IbanRecognizer", "IpRecognizer", "CreditCardRecognizer", "PhoneRecognizer"]
    national = [getattr(known, name)() for group in names.values() for name in group if hasattr(known, name)]
    by_language = {
        language: [getattr(known, name)(supported_language=language) for name in general] + national
        for language in (*LANGUAGES, "en", "pt", "nl", "ca")
    }

    def redact(documents):
        texts = []
        for language, text in documents:
            found = [
                hit for one in by_language[language] for hit in one.analyze(text, one.supported_entities, None) or []
            ]
            redacted = text
            for hit in sorted((hit for hit in found if hit.score >= 0.4), key=lambda hit: -hit.start):
                redacted = redacted[: hit.start] + "\ue000" + redacted[hit.end :]
            texts.append(redacted)
        return texts

    return redact


def as_peer(name, path):
    """Reads [[language, text], ...], prints {seconds, texts}."""
    documents = json.loads(Path(path).read_text(encoding="utf-8"))
    redact = {"datatrove": datatrove, "presidio": presidio}[name]()
    redact(documents[:20])
    texts, seconds = timed(redact, documents)
    print(json.dumps({"seconds": seconds, "texts": texts}))


def run_peer(python, name, documents):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(documents, file)
        file.flush()
        ended = subprocess.run(
            [python, __file__, "--as-peer", name, file.name], capture_output=True, text=True, check=False
        )
    if ended.returncode:
        return None, ended.stderr.strip().rpartition("\n")[2]
    answer = json.loads(ended.stdout.rpartition("\n{")[2] if ended.stdout[0] != "{" else ended.stdout)
    return answer["texts"], answer["seconds"]


# ---------------------------------------------------------------- ours, and the score
def ours(documents):
    from data_pipelines.annotate.personal_data import redact

    texts = [None] * len(documents)
    for language in {language for language, _ in documents}:
        rows = [row for row, (given, _) in enumerate(documents) if given == language]
        for row, text in zip(
            rows, redact([documents[row][1] for row in rows], language).texts.to_pylist(), strict=True
        ):
            texts[row] = text
    return texts


def generated(count):
    from tests.data_pipelines.annotate.identifier_generator import Generator

    made = []
    for seed, language in enumerate(LANGUAGES):
        generator = Generator(1000 + seed)
        made += [(language, *generator.document(language)) for _ in range(count // len(LANGUAGES))]
    return made


def score(made, texts, marks):
    found, wanted, replaced = Counter(), Counter(), 0
    for (_, text, planted), redacted in zip(made, texts, strict=True):
        replaced += sum(redacted.count(mark) - text.count(mark) for mark in marks)
        for item in planted:
            wanted[item.kind] += 1
            value = item.value.rpartition(" ")[2] if item.kind == "de_id_card" else item.value.removeprefix("Tel.: ")
            found[item.kind] += value.removeprefix("cell. ") not in redacted
    return found, wanted, replaced - sum(found.values())


def show(name, made, texts, seconds, marks):
    megabytes = sum(len(text.encode()) for _, text, _ in made) / 1e6
    found, wanted, alarms = score(made, texts, marks)
    recall = sum(found.values()) / sum(wanted.values())
    line = f"{name:12s} {megabytes / seconds:7.2f} MB/s   recall {recall:.4f}"
    print(f"{line}   false alarms {alarms / megabytes:6.1f} a MB")
    print("             " + "  ".join(f"{kind} {found[kind]}/{wanted[kind]}" for kind in sorted(wanted)))


def real_text(folder, python):
    from benchmarks.quality import read_texts
    from data_pipelines.annotate.personal_data import redact

    for language, texts in read_texts(folder):
        redacted, seconds = timed(lambda given, language=language: redact(given, language), texts)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        counts = {name: sum(redacted.counts.column(name).to_pylist()) for name in redacted.counts.schema.names}
        line = f"{language}  {megabytes:6.1f} MB   hanse {megabytes / seconds:5.1f} MB/s"
        part = texts[:: max(1, round(megabytes))]  # peers see about 1 MB
        size = sum(len(text.encode()) for text in part) / 1e6
        for name in PEERS:
            answer, seconds = run_peer(python, name, [[language, text] for text in part])
            if answer is not None:
                line += f"   {name} {size / seconds:.2f} MB/s"
        print(line)
        found = ", ".join(f"{name.removeprefix('personal_data_')} {count}" for name, count in counts.items() if count)
        print(f"      replaced: {found or 'nothing'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--text", help="folder of real text")
    parser.add_argument("--as-peer", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        return as_peer(*given.as_peer)
    made = generated(given.documents)
    documents = [(language, text) for language, text, _ in made]
    size = sum(len(text.encode()) for _, text in documents) / 1e6
    planted = sum(len(items) for *_, items in made)
    print(f"{len(documents)} documents, {size:.1f} MB, {planted} identifiers, {3 * len(documents)} look-alikes")
    best = {}
    for _ in range(given.rounds):
        runs = {"hanse": timed(ours, documents)}
        runs |= {name: run_peer(given.peer_python, name, documents) for name in PEERS}
        for name, (texts, seconds) in runs.items():
            if texts is None or name not in best or seconds < best[name][1]:
                best[name] = (texts, seconds)
    from data_pipelines.annotate.identifiers import KINDS

    for name, (texts, seconds) in best.items():
        if texts is None:
            print(f"{name:12s} peer not installed ({seconds})")
        else:
            show(name, made, texts, seconds, [kind.placeholder for kind in KINDS] if name == "hanse" else ["\ue000"])
    return real_text(Path(given.text), given.peer_python) if given.text else None


if __name__ == "__main__":
    main()
