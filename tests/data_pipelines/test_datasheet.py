"""The page about a corpus says what its files hold, and makes the folder loadable by language."""

import re

import pytest
import yaml


@pytest.fixture
def made(make_corpus, write_jsonl, local, prose):
    """A French corpus with addresses, a licence a document, an e-mail address, and things that go."""
    records = [{"text": text, "link": f"https://www.example.org/{number}", "rights": "CC0-1.0" if number % 2 else None}
               for number, text in enumerate(prose("fr")[:20])]  # fmt: skip
    records += [{"text": f"{prose('fr')[30]} <b>|</b> {'a' * 5}@example.org"}, {"text": "Trop | court."}, b"{"]
    source = local(write_jsonl("fr.jsonl", records), url_field="link", license_field="rights", check_language=False)
    source.license, source.obtained = "CC-BY-4.0", "a transfer"
    return make_corpus({"web": source})


def page(manifest):
    return (manifest.folder / "README.md").read_text(encoding="utf-8")


def table(text, title):
    """{first cell: other cells} of the table under a title."""
    lines = text.partition(f"{title}\n")[2].strip().splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return {row[0]: row[1:] for row in rows[2:]}


def test_counts_are_those_of_the_files(made, rows_of):
    text, tally, kept = page(made), made.sources["web"], rows_of(made, "documents")
    sizes = [len(row["text"].encode()) for row in kept]
    assert table(text, "## Languages")["fr"][0::2][:2] == [str(tally.documents_in), str(tally.documents_kept)]
    assert table(text, "## Sources")["web"][-3] == "a transfer"
    licenses = {name: sum(size for row, size in zip(kept, sizes, strict=True) if row["license"] == name)
                for name in ("CC0-1.0", "CC-BY-4.0")}  # fmt: skip
    assert {name: row[0] for name, row in table(text, "## Licences").items()} == {
        name: f"{size / 1000:.3g} kB" for name, size in licenses.items()
    }
    assert list(table(text, "## Addresses")) == ["example.org", "none"]
    assert list(table(text, "## Opt-out")) == ["not asked"]
    assert table(text, "## Personal data replaced") == {"email": ["1"]}
    words = sorted(row["quality_words"] for row in kept)
    assert table(text, "## Distributions")["words"][0].split(" / ")[1] == f"{words[len(words) // 2]}"
    assert table(text, "## What was removed") == {"malformed": ["1"], "too_short": ["1"]}


def test_examples_show_what_was_removed_and_nothing_breaks_the_table(made):
    rows = table(page(made), "Examples, fr:\n")
    assert rows["too_short"][0] == "13 characters"
    assert rows["too_short"][2] == "Trop \\| court."
    assert rows["malformed"][0] == "not JSON"
    assert "<b>" not in page(made)


def test_the_folder_loads_by_language(made, tmp_path):
    import datasets

    head = yaml.safe_load(page(made).split("---")[1])
    assert head["language"] == ["fr"]
    loaded = datasets.load_dataset(str(made.folder), "fr", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == made.sources["web"].documents_kept
