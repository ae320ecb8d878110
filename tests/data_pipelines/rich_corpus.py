"""A corpus in which of everything something happens: most reasons, addresses, personal data, a site that says no."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from data_pipelines.annotate.opt_out_snapshot import Origin, freeze

TEXTS = Path(__file__).parents[1] / "data"
LANGUAGES = ("de", "es", "fr", "it")
HOSTILE = '</script><script>document.title="taken"</script><img src=http://example.org/x onerror=alert(1)>"\'&{{7*7}}'
EMAIL, IBAN = "anna.rossi" + "@example.net", "FR7630006000011234567890189"


def records(language: str) -> list[bytes]:
    """48 passages under six addresses, and what is to be removed, hidden or escaped."""
    prose = (TEXTS / f"{language}.txt").read_text(encoding="utf-8").splitlines()
    other = (TEXTS / f"{LANGUAGES[LANGUAGES.index(language) - 1]}.txt").read_text(encoding="utf-8").splitlines()
    rows = [{"text": text, "title": f"Kapitel {number}", "url": f"https://host{number % 6}.example/{number}"}
            for number, text in enumerate(prose)]  # fmt: skip
    rows += [{"text": prose[1], "url": f"https://mirror.example/{number}"} for number in range(3)]
    rows += [{"text": f"{prose[2]} fin.", "url": "https://mirror.example/near"}]
    rows += [{"text": other[3] + " " + other[4], "url": "https://mirror.example/translated"}]
    rows += [{"text": f"{prose[5]} {prose[6]} {EMAIL}, IBAN {IBAN}.", "url": "https://contact.example/"}]
    rows += [{"text": f"{HOSTILE} {EMAIL}", "url": "https://short.example/"}, {"text": f"Mail: {EMAIL}"}]
    rows += [{"text": prose[7] + " " + prose[8], "url": f"https://no.example/{EMAIL}"}]
    rows += [{"text": f"{prose[9]} {HOSTILE} {prose[10]}", "url": "https://strange.example/"}]
    return [*(json.dumps(row).encode() for row in rows), b"{", b'{"text": 3}']


def make(folder: Path, hanse, languages=LANGUAGES) -> Path:
    """``corpus/``, ``tokenizer/`` and ``shards/`` in ``folder``."""
    (folder / "configs/source").mkdir(parents=True)
    for language in languages:
        path = folder / f"{language}.jsonl"
        path.write_bytes(b"\n".join(records(language)) + b"\n")
        settings = {"reader": "jsonl", "path": str(path), "language": language, "license": "CC0-1.0",
                    "url_field": "url", "title_field": "title",
                    "obtained": f"a transfer {HOSTILE}", "snapshot_date": "2026-03"}  # fmt: skip
        text = f"# @package sources.web_{language}\n{yaml.safe_dump(settings)}"
        (folder / f"configs/source/web_{language}.yaml").write_text(text, encoding="utf-8")
    freeze([Origin("https://no.example", "2026-11-24T00:00:00", 200, robots="User-agent: *\nDisallow: /"),
            Origin("https://host1.example", "2026-11-24T00:00:00", 200, robots="")], folder / "snapshot")  # fmt: skip
    places = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer", "output": folder / "shards"}
    sources = ",".join(f"web_{language}" for language in languages)
    assert hanse("corpus", "--config-dir", folder / "configs", "name=rich", f"source=[{sources}]",
                 f"output={places['corpus']}", f"annotated={folder / 'annotated'}", "validation_fraction=0.15",
                 f"annotate.opt_out_snapshot={folder / 'snapshot'}", "processes=1") == 0  # fmt: skip
    assert hanse("tokenizer", "name=rich", f"corpus={places['corpus']}", f"output={places['tokenizer']}",
                 "vocabulary_size=1024") == 0  # fmt: skip
    assert hanse("tokenize", "name=rich", *(f"{key}={path}" for key, path in places.items())) == 0
    return folder
