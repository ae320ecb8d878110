"""The text of web pages: how much of what a reader came for is kept, how much of the rest, and how fast.

    python -m benchmarks.html_text [--peer-python VENV/bin/python] [--packages FOLDER] [--pages 60]

Pages built by hand (``tests/data_pipelines/web_pages.py``): ten layouts in four languages around real prose. With
``--packages`` (Debian packages, unpacked below FOLDER) real pages too: manuals, of which an XPath written by a person
says where the text is. Scored by runs of three words: recall is the share of wanted runs that are found, precision the
share of found runs that are wanted; the means over pages. MB/s are of HTML, of one process's CPU time.

Extractors run in the interpreter that has them:

    python -m venv VENV && VENV/bin/pip install trafilatura lxml_html_clean resiliparse
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

EXTRACTORS = ("hanse", "trafilatura", "trafilatura fast", "resiliparse", "resiliparse, all of the page")
# Site: (files, where the text is, classes and ids within that are not text)
SITES = {
    "libreoffice": ("libreoffice-help-{fr,de,es,it}/usr/share/libreoffice/help/*/text/**/*.html",
                    '//*[@id="DisplayArea"]', ("howtoget", "relatedtopics")),
    "handbook": ("debian-handbook/usr/share/doc/debian-handbook/html/{fr-FR,de-DE,es-ES,it-IT}/*.html", "//body",
                 ("docnav", "toc", "previous", "next", "title")),
    "lilypond": ("lilypond-doc-html-{fr,de,es,it}/usr/share/doc/lilypond/html/Documentation/*/*.{fr,de,es,it}.html",
                 '//*[@id="main"]', ("nav_table", "footer")),
    "install guide": ("installation-guide-amd64/usr/share/doc/installation-guide-amd64/{fr,de,es,it}/*.html", "//body",
                      ("navheader", "navfooter", "toc")),
}  # fmt: skip


def extractor(name):
    if name == "hanse":
        from data_pipelines.html import page_of

        return lambda html: page_of(html.encode(), "text/html; charset=utf-8").text
    if name.startswith("trafilatura"):
        import trafilatura

        fast = name.endswith("fast")
        return lambda html: trafilatura.extract(html, include_comments=False, fast=fast) or ""
    from resiliparse.extract.html2text import extract_plain_text

    main = name == "resiliparse"
    return lambda html: extract_plain_text(html, main_content=main)


def as_peer(name, path):
    extract = extractor(name)
    pages = json.loads(Path(path).read_text(encoding="utf-8"))
    for page in pages[:10]:
        extract(page)
    start = time.process_time()
    texts = [extract(page) for page in pages]
    print(json.dumps({"seconds": time.process_time() - start, "texts": texts}))


def run(python, name, pages):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(pages, file)
        file.flush()
        command = [python, "-m", "benchmarks.html_text", "--as-peer", name, file.name]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return None, ended.stderr.strip().rpartition("\n")[2]
    answer = json.loads(ended.stdout)
    return answer["texts"], answer["seconds"]


def runs(text):
    words = text.split()
    return Counter(zip(words, words[1:], words[2:], strict=False))


def score(wanted, found):
    wanted, found = runs(wanted), runs(found)
    common = sum((wanted & found).values())
    return common / max(sum(wanted.values()), 1), common / max(sum(found.values()), 1)


def by_hand():
    from tests.data_pipelines.web_pages import web_pages

    folder = Path(__file__).parents[1] / "tests" / "data"
    pages = list(web_pages(lambda language: (folder / f"{language}.txt").read_text(encoding="utf-8").splitlines()))
    return {"by hand": [(page.html, "\n".join(page.wanted)) for page in pages]}, [page.layout for page in pages]


def braces(pattern):
    if "{" not in pattern:
        return [pattern]
    before, _, rest = pattern.partition("{")
    options, _, after = rest.partition("}")
    return [one for option in options.split(",") for one in braces(before + option + after)]


def real(folder, most):
    import lxml.html

    sets = {}
    for site, (pattern, where, without) in SITES.items():
        files = sorted({path for one in braces(pattern) for path in folder.glob(one)})
        files = [file for file in files if not file.name.startswith(("index", "toc"))]
        pages = []
        for file in files[:: max(1, len(files) // most)]:
            html = file.read_bytes().decode("utf-8", "replace")
            tree = lxml.html.fromstring(html.encode(), parser=lxml.html.HTMLParser(encoding="utf-8"))
            for node in tree.xpath("//script | //style | //head"):
                node.drop_tree()
            found = tree.xpath(where)
            for name in without:
                for node in tree.xpath(f'//*[contains(concat(" ", @class, " "), " {name} ") or @id="{name}"]'):
                    if node.getparent() is not None:
                        node.drop_tree()
            wanted = " ".join(text for node in found for text in node.itertext())
            if len(wanted.split()) > 60:
                pages.append((html, wanted))
        if pages:
            sets[site] = pages
    return sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--packages", type=Path, help="folder of unpacked Debian packages")
    parser.add_argument("--pages", type=int, default=60, help="pages of each real site")
    parser.add_argument("--layouts", action="store_true", help="show each layout of the pages by hand")
    parser.add_argument("--as-peer", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        return as_peer(*given.as_peer)
    sets, layouts = by_hand()
    if given.packages:
        sets |= real(given.packages, given.pages)
    for name, pages in sets.items():
        size = sum(len(html.encode()) for html, _ in pages) / 1e6
        print(f"{name}: {len(pages)} pages, {size:.2f} MB of HTML")
        for one in EXTRACTORS:
            texts, seconds = run(given.peer_python, one, [html for html, _ in pages])
            if texts is None:
                print(f"  {one:28s} not installed ({seconds})")
                continue
            scores = [score(wanted, text) for (_, wanted), text in zip(pages, texts, strict=True)]
            recall, precision = (sum(column) / len(scores) for column in zip(*scores, strict=True))
            both = 2 * recall * precision / max(recall + precision, 1e-9)
            print(
                f"  {one:28s} recall {recall:.3f}  precision {precision:.3f}  F1 {both:.3f}  {size / seconds:6.2f} MB/s"
            )
            if given.layouts and name == "by hand":
                for layout in dict.fromkeys(layouts):
                    rows = [row for row, kind in zip(scores, layouts, strict=True) if kind == layout]
                    r, p = (sum(column) / len(rows) for column in zip(*rows, strict=True))
                    print(f"      {layout:28s} recall {r:.3f}  precision {p:.3f}")
    return None


if __name__ == "__main__":
    main()
