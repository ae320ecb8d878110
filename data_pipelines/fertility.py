"""What a tokenizer costs each language, beside what those of others cost it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.files import read_json, write_json
from common.terminal import say, table
from data_pipelines import known_tokenizers
from data_pipelines.config import TokenizerConfig
from data_pipelines.manifest import CorpusManifest
from data_pipelines.training_text import texts_of

Row = dict[str, Any]


def counter(tokenizer: Tokenizer) -> Callable[[Sequence[str]], int]:
    """What counts the tokens of texts."""
    return lambda texts: sum(map(len, tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)))


def measured(
    tokens_of: Callable[[Sequence[str]], int], corpus: CorpusManifest, languages: Iterable[str]
) -> dict[str, Row]:
    """{language: counts on its validation split, with tokens a whitespace-separated word and bytes a token}.

    Languages without a validation split are left out.
    """
    found = {}
    for language in languages:
        documents = words = size = tokens = 0
        for texts in texts_of(corpus, language, "validation"):
            documents += len(texts)
            words += sum(len(text.split()) for text in texts)
            size += sum(len(text.encode("utf-8")) for text in texts)
            tokens += tokens_of(texts)
        if tokens:
            found[language] = {
                "tokens_per_word": tokens / max(words, 1), "bytes_per_token": size / tokens,
                "words": words, "bytes": size, "tokens": tokens, "documents": documents,
            }  # fmt: skip
    return found


def gap(rows: Mapping[str, Row], unit: str) -> float:
    """Tokens that the language served worst needs for the same ``unit`` of text, of those the one served best needs.

    1: none pays more than another. ``characters`` are not counted on the validation split: bytes stand in for them.
    """
    costs = [row["tokens"] / row["documents" if unit == "documents" else "bytes"] for row in rows.values()]
    return max(costs) / min(costs)


def compare(config: TokenizerConfig, folder: Path, corpus: CorpusManifest) -> None:
    """Measure the known tokenizers on the same text, show all, and keep it in ``compared.json``."""
    own = read_json(folder / "fertility.json", "fertility table")
    if not own:
        say("known: nothing to compare on, the corpus has no validation documents")
        return
    found = {config.name: own}
    for name, known in config.known.items():
        found[name] = measured(known_tokenizers.load(name, known, Path(config.downloads)), corpus, own)
    write_json(folder / "compared.json", {
        "unit": config.parity_unit,
        "tokenizers": {name: {"gap": gap(rows, config.parity_unit), "languages": rows} for name, rows in found.items()},
    })  # fmt: skip
    mean = {name: sum(row["tokens_per_word"] for row in rows.values()) / len(rows) for name, rows in found.items()}
    rows = [
        [name, *(f"{found[name][language]['tokens_per_word']:.3f}" for language in own), f"{mean[name]:.3f}",
         f"{gap(found[name], config.parity_unit):.3f}"]
        for name in sorted(found, key=lambda name: mean[name])
    ]  # fmt: skip
    unit = "document" if config.parity_unit == "documents" else "byte"
    table(
        f"\ntokens a word on the validation split; gap: tokens a {unit}, worst language / best",
        ["tokenizer", *own, "mean", "gap"],
        rows,
    )
