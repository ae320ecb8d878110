"""``hanse tokenizer``: curated corpus -> byte-level BPE, and how many tokens it needs in each language.

Each language gives the same number of bytes of training text unless told otherwise, so that none pays for another's
size with longer texts; ``merges=parity`` goes further and lets the language served worst choose each merge.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from common.configuration import same_again
from common.errors import ConfigError, HanseError
from common.files import inside, read_json, sha256_file, write_json
from common.folders import replaced_folder, restore
from common.terminal import Progress, count, next_step, say, table
from data_pipelines import fertility, fertility_plot, parity_bpe
from data_pipelines.config import TokenizerConfig
from data_pipelines.manifest import CorpusManifest, fingerprint
from data_pipelines.training_text import drawn_texts, train_bytes

END_OF_DOCUMENT, PADDING = "<|endoftext|>", "<|pad|>"  # ids 0 and 1
FORMAT = "hanse.tokenizer/1"
BESIDE = ("name", "corpus", "output", "downloads", "known")  # settings that change nothing of the tokenizer
MOST_IDS = 2**24  # beyond any vocabulary; a file that asks for more is broken


def run(config: TokenizerConfig) -> None:
    """Train the tokenizer, unless the same one is there already."""
    _pattern(config)
    folder, corpus = Path(config.output), CorpusManifest.read(Path(config.corpus))
    restore(folder)
    settings = {key: value for key, value in asdict(config).items() if key not in BESIDE}
    identity = fingerprint({"settings": settings, "corpus": corpus.merkle_root, "tools": _tools()})
    if _is_finished(folder, identity):
        say(f"{folder}/ holds this tokenizer already: nothing to do (delete it to train it again)")
    else:
        with replaced_folder(folder, FORMAT) as partial:
            _build(config, corpus, partial, identity)
        say(f"wrote {folder}/ (tokenizer.json: sha256 {tokenizer_sha256(folder)[:16]})")
    _show(folder)
    if config.known:
        fertility.compare(config, folder, corpus)
    plot = fertility_plot.write(folder, config.name)
    if plot:
        say(f"wrote {plot}: the same as a plot")
    next_step(f"hanse tokenize {same_again(config.name)}")


def tokenizer_sha256(path: Path | str) -> str:
    """SHA-256 of a ``tokenizer.json``, given the file or its folder; hexadecimal.

    Raises:
        HanseError: there is none.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise HanseError(f"{file}: no tokenizer here; train one with 'hanse tokenizer'")
    return sha256_file(file)


def described_sha256(folder: Path, otherwise: str) -> str:
    """What the folder's manifest says of its ``tokenizer.json``; ``otherwise`` where the folder is not one of ours."""
    if not (folder / "manifest.json").is_file():
        return otherwise
    manifest = read_json(folder / "manifest.json", "tokenizer manifest")
    try:
        return manifest["files"]["tokenizer.json"] if manifest["format"] == FORMAT else otherwise
    except (KeyError, TypeError):
        return otherwise


def token_byte_lengths(path: Path | str) -> np.ndarray:
    """Bytes of text that each token stands for: int64 of shape (vocabulary_size,); 0 for special and unused ids.

    Summed over a document's ids it gives the UTF-8 bytes of the document, the denominator of bits per byte. Tokens
    that were added but are not special (``<think>``, runs of spaces) are found in texts, and count as they are written.

    Raises:
        HanseError: the file is missing or is not a byte-level BPE.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    value = read_json(file, "tokenizer ('hanse tokenizer' trains one)")
    sizes = {number: len(piece) for piece, number in byte_pieces(value, file).items()}
    for token in value["added_tokens"]:
        sizes[token["id"]] = 0 if token["special"] else len(token["content"].encode("utf-8"))
    lengths = np.zeros(1 + max(sizes), dtype=np.int64)
    lengths[list(sizes)] = list(sizes.values())
    return lengths


def byte_pieces(value: Any, file: Path) -> dict[bytes, int]:
    """``{bytes: id}`` of the tokens of a byte-level BPE in ``tokenizer.json`` form, but for those added to it.

    Raises:
        HanseError: it is not one.
    """
    # GPT-2's stand-ins: printable bytes for themselves, the others in order from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_in = {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
    try:
        added = {token["content"]: (token["id"], token["special"]) for token in value["added_tokens"]}
        vocabulary = {piece: number for piece, number in value["model"]["vocab"].items() if piece not in added}
        numbers = [*vocabulary.values(), *(number for number, _ in added.values())]
        if value["model"]["type"] == "BPE" and all(
            type(number) is int and 0 <= number < MOST_IDS for number in numbers
        ):
            return {bytes(stand_in[char] for char in piece): number for piece, number in vocabulary.items()}
    except (KeyError, TypeError, AttributeError):
        pass
    raise HanseError(f"{file}: not a byte-level BPE; bits per byte need one, train it with 'hanse tokenizer'")


def train(texts: Mapping[str, Iterable[str]], config: TokenizerConfig) -> Tokenizer:
    """Train a byte-level BPE on texts of each language; the same texts in the same order give the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_pattern(config), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [END_OF_DOCUMENT, PADDING, *(f"<|reserved_{number}|>" for number in range(config.reserved_tokens))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes: any text can be written
    if config.merges == "parity":
        tokens, merges = parity_merges(tokenizer, texts, config, alphabet, config.vocabulary_size - len(special))
        vocabulary = {token: number for number, token in enumerate([*special, *tokens])}
        tokenizer.model = models.BPE(vocabulary, merges)
        tokenizer.add_special_tokens(special)
        return tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_frequency,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain.from_iterable(texts.values()), trainer)
    return tokenizer


def parity_merges(
    tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]], config: TokenizerConfig, alphabet: list[str], size: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """(tokens, merges) of :mod:`data_pipelines.parity_bpe`, words being cut as the tokenizer cuts them."""
    numbers: dict[str, int] = {}
    languages = []
    measure = {"bytes": lambda text: len(text.encode()), "characters": len, "documents": lambda text: 1}
    for own in texts.values():
        counts, unit = Counter[int](), 0
        for text in own:
            unit += measure[config.parity_unit](text)
            pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
            counts.update(numbers.setdefault(piece, len(numbers)) for piece, _ in pieces)
        languages.append(parity_bpe.Language(counts, unit))
    places = {letter: place for place, letter in enumerate(alphabet)}
    words = [[places[letter] for letter in word] for word in numbers]
    progress = Progress("merging", size, "tokens", done=len(alphabet))
    found = parity_bpe.learn(words, languages, alphabet, size, least=config.min_frequency, told=progress.update)
    if progress.done < size:
        progress.update(size, "no pair left that is frequent enough")
    return found


def _pattern(config: TokenizerConfig) -> Regex:
    try:
        return Regex(config.pattern)
    except Exception as error:  # the library raises nothing finer
        raise ConfigError([f"pattern: not a regular expression ({error}); configs/tokenizer.yaml holds one"]) from None


def _build(config: TokenizerConfig, corpus: CorpusManifest, folder: Path, identity: str) -> None:
    sizes = {language: train_bytes(corpus, language) for language in corpus.kept_languages}
    empty = [language for language, size in sizes.items() if not size]
    if empty:
        raise HanseError(
            f"{corpus.folder}: no training text in {', '.join(empty)}; lower validation_fraction of the corpus"
        )
    budgets = sampled_bytes(sizes, config)
    tokenizer = train(_sampled(corpus, budgets), config)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_transformers_config(folder)
    tokenizer.encode_special_tokens = True  # their text is text, as in the shards
    write_json(folder / "fertility.json", fertility.measured(fertility.counter(tokenizer), corpus, list(sizes)))
    manifest = {
        "format": FORMAT,
        "fingerprint": identity,
        "vocabulary_size": tokenizer.get_vocab_size(),
        "end_of_document_id": tokenizer.token_to_id(END_OF_DOCUMENT),
        "training": {
            "corpus_merkle_root": corpus.merkle_root,
            "bytes_per_language": budgets,
            "languages": list(sizes),
            "tools": _tools(),
            "config": asdict(config),
        },
        "files": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / "manifest.json", manifest)


def sampled_bytes(sizes: Mapping[str, int], config: TokenizerConfig) -> dict[str, int]:
    """Bytes to read of each language: in proportion to ``size ** sampling_exponent``, as many as the limits allow."""
    shares = {language: size**config.sampling_exponent for language, size in sizes.items()}
    most = config.max_megabytes_per_language * 10**6
    scale = min(min(size, most) / shares[language] for language, size in sizes.items())
    return {language: min(sizes[language], round(scale * share)) for language, share in shares.items()}


def _sampled(corpus: CorpusManifest, budgets: Mapping[str, int]) -> dict[str, Iterator[str]]:
    """The texts to learn from, read when they are asked for."""
    progress = Progress("reading", sum(budgets.values()), "B")

    def texts(language: str, budget: int) -> Iterator[str]:
        for text in drawn_texts(corpus, language, budget):
            yield text
            progress.advance(len(text.encode("utf-8")), language)
        if language == list(budgets)[-1]:
            if progress.done < progress.total:  # a character that did not fit whole
                progress.update(progress.total)
            say("learning merges from " + ", ".join(f"{count(size, 'B')} {name}" for name, size in budgets.items()))

    return {language: texts(language, budget) for language, budget in budgets.items()}


def _write_transformers_config(folder: Path) -> None:
    """What ``transformers.AutoTokenizer`` needs beside ``tokenizer.json``."""
    value = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_DOCUMENT,
        "pad_token": PADDING,
        "clean_up_tokenization_spaces": False,  # it would change the spaces before punctuation that French needs
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", value)


def _is_finished(folder: Path, identity: str) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    try:
        manifest = read_json(folder / "manifest.json", "tokenizer manifest")
        intact = all(sha256_file(inside(folder, name)) == digest for name, digest in manifest["files"].items())
        return intact and manifest["format"] == FORMAT and manifest["fingerprint"] == identity
    except (HanseError, OSError, KeyError, TypeError, AttributeError):
        say(f"training again: {folder}/ is not intact")
        return False


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hanse", "tokenizers")}


def _show(folder: Path) -> None:
    found = read_json(folder / "fertility.json", "fertility table")
    size = read_json(folder / "manifest.json", "tokenizer manifest")["vocabulary_size"]
    rows = [
        [
            language,
            f"{row['tokens_per_word']:.3f}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['words']:,}",
            count(row["bytes"], "B"),
        ]
        for language, row in found.items()
    ]
    if rows:
        head = ["language", "tokens/word", "bytes/token", "words", "bytes"]
        table(f"{size:,} tokens, measured on the validation split", head, rows)
    else:
        say(f"{size:,} tokens; nothing to measure them on: the corpus has no validation documents")
