"""Tasks made of the corpus's own validation text, the same for all languages: no benchmark has to be downloaded.

``next_sentence``: which of four sentences goes on a text? The other three come from other documents of the language.
``description``: which of four sentences is out of the document with this title? None shares a word with the title.
``last_word``: the last word of a sentence, after all that comes before it in the text: right if no token is likelier.

What is asked depends on the seed and the text alone. :mod:`train.harness` gives the same questions to lm-eval, and
:mod:`train.task_evaluation` asks them while a run trains.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import log_softmax

from train.trained import Trained
from train.validation_text import ValidationText

CHOICES = 4
SENTENCE = re.compile(r".+?[.!?…]+(?:\s?[»”\"])?(?=\s|$)", re.DOTALL)
LEAST_CHARACTERS, MOST_CHARACTERS = 20, 300  # of a sentence that is asked for
WORD = re.compile(r"[^\W\d_]{4,}")  # words that a title and a sentence could be matched by
ENDS = '.!?…»”" '
LAST_WORD = re.compile(r"\s[^\W\d_]{4,}$")


@dataclass(frozen=True)
class Item:
    """A question: which of ``choices`` goes on ``context``; ``answer`` is the place of the right one.

    One choice alone is a cloze: right where the model would have written it.
    """

    language: str
    context: str
    choices: tuple[str, ...]
    answer: int


def next_sentence(text: ValidationText, language: str, items: int, seed: int) -> list[Item]:
    """At most ``items`` questions of a language, at most one a document; [] where there is too little text."""
    texts = text.validation_texts(language)
    cut = {number: sentences(texts[number]) for number in _order(texts, seed)}
    usable = {number: own for number, one in cut.items() if (own := _askable(one[1:]))}
    found: list[Item] = []
    for number, own in usable.items() if len(usable) >= CHOICES else ():
        if len(found) == items:
            break
        dice = random.Random(f"{seed} {texts[number]}")
        right = dice.choice(own)
        context = " ".join(cut[number][: cut[number].index(right)])
        others = [other for other in usable if other != number]
        wrong = [dice.choice(usable[other]) for other in dice.sample(others, CHOICES - 1)]
        found.append(_item(language, context, right, wrong, dice))
    return found


def description(text: ValidationText, language: str, items: int, seed: int) -> list[Item]:
    """At most ``items`` questions of a language, one a document; [] where the corpus is not here or has no titles."""
    texts = text.validation_texts(language)
    titles = text.validation_titles(language, list(texts))
    named = [number for number in _order(texts, seed) if number in titles]
    cut = {number: [(one, _words(one)) for one in _askable(sentences(texts[number]))] for number in named}
    found: list[Item] = []
    for number in named:
        title, mine = titles[number], _words(titles[number])
        apart = {other: [one for one, words in cut[other] if mine.isdisjoint(words)] for other in named}
        others = [other for other in named if other != number and titles[other] != title and apart[other]]
        if len(found) == items:
            break
        if apart[number] and len(others) >= CHOICES - 1:
            dice = random.Random(f"{seed} {texts[number]}")
            right = dice.choice(apart[number])
            wrong = [dice.choice(apart[other]) for other in dice.sample(others, CHOICES - 1)]
            found.append(_item(language, f"{title}:", right, wrong, dice))
    return found


def last_word(text: ValidationText, language: str, items: int, seed: int) -> list[Item]:
    """At most ``items`` clozes of a language, at most one a document."""
    texts = text.validation_texts(language)
    items_found: list[Item] = []
    for number in _order(texts, seed):
        if len(items_found) == items:
            break
        whole = sentences(texts[number])
        cut = [one.rstrip(ENDS) for one in whole]
        ends = {at: str(found[0]) for at, one in enumerate(cut) if at and (found := LAST_WORD.search(one))}
        if ends:
            at = random.Random(f"{seed} {texts[number]}").choice(sorted(ends))
            context = " ".join([*whole[:at], cut[at].removesuffix(ends[at])])
            items_found.append(Item(language, context, (f" {ends[at].strip()}",), 0))
    return items_found


MAKERS: dict[str, Callable[[ValidationText, str, int, int], list[Item]]] = {
    "next_sentence": next_sentence, "description": description, "last_word": last_word,
}  # fmt: skip


def _order(texts: Mapping[int, str], seed: int) -> list[int]:
    """Numbers of the documents in the order in which they are asked about."""
    return sorted(texts, key=lambda number: hashlib.sha256(f"{seed}{texts[number]}".encode()).digest())


def _askable(cut: Sequence[str]) -> list[str]:
    return [one for one in cut if LEAST_CHARACTERS <= len(one) <= MOST_CHARACTERS]


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))


def _item(language: str, context: str, right: str, wrong: Sequence[str], dice: random.Random) -> Item:
    answer = dice.randrange(CHOICES)
    return Item(language, context, tuple(f" {one}" for one in (*wrong[:answer], right, *wrong[answer:])), answer)


def sentences(text: str) -> list[str]:
    """A text cut after full stops and their like."""
    return [one.strip() for one in SENTENCE.findall(text)]


def ids_of(text: ValidationText, context: str, choices: Sequence[str]) -> list[tuple[list[int], int]]:
    """(ids of the context and a choice, how many at the end are the choice's) of each choice.

    A choice without a context goes on the end of a document.
    """
    before, *whole = (one.ids for one in text.tokenizer.encode_batch(
        [context, *(context + one for one in choices)], add_special_tokens=False))  # fmt: skip
    start = [] if before else [text.shards.end_of_document_id]
    return [(start + ids, len(ids) - len(before)) for ids in whole]


def cut_to(ids: list[int], last: int, length: int) -> tuple[list[int], int]:
    """A row of ids, of which the ``last`` ones are asked for, cut from the left to ``length``; and how many still are:
    at least one, and never the first, which nothing predicts."""
    kept = ids[-length:]
    return kept, max(1, min(last, len(kept) - 1))


@torch.no_grad()
def log_likelihoods(
    trained: Trained, model: nn.Module, context: str, choices: Sequence[str], device: torch.device
) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether the model would have written it) of each choice.

    Each after as much of the context as the model can take; where there is none, after the end of a document.
    """
    whole, counted = zip(*ids_of(trained, context, choices), strict=True)
    return of_tokens(model, whole, counted, trained.config.data.sequence_length, device)


@torch.no_grad()
def of_tokens(
    model: nn.Module, whole: Sequence[list[int]], counted: Sequence[int], length: int, device: torch.device
) -> list[tuple[float, bool]]:
    """(log-probability, whether each was the likeliest) of the last ``counted`` ids of each row of ``whole``.

    Rows are cut from the left to ``length``, what the model was trained on in a row.
    """
    kept, counts = zip(*(cut_to(ids, last, length) for ids, last in zip(whole, counted, strict=True)), strict=True)
    width = max(map(len, kept))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in kept], device=device)  # what follows is not seen
    scores = log_softmax(model(padded, use_cache=False).logits.float(), dim=-1)
    found = []
    for row, (ids, last) in enumerate(zip(kept, counts, strict=True)):
        places = torch.arange(len(ids) - last, len(ids), device=device)
        own = scores[row, places - 1, padded[row, places]].double()
        likeliest = bool((scores[row, places - 1].argmax(-1) == padded[row, places]).all())
        found.append((own.sum().item(), likeliest))
    return found


def answer(trained: Trained, model: nn.Module, item: Item, device: torch.device) -> int:
    """What the model answers: see :func:`chosen`."""
    return chosen(log_likelihoods(trained, model, item.context, item.choices, device), sizes_of(item))


def sizes_of(item: Item) -> list[int]:
    """UTF-8 bytes of each choice."""
    return [len(one.encode("utf-8")) for one in item.choices]


def chosen(found: Sequence[tuple[float, bool]], sizes: Sequence[int]) -> int:
    """The choice that is the likeliest a byte; of a cloze 0 if the model would have written it, else -1.

    Args:
        found: (log-probability, whether the model would have written it) of each choice.
        sizes: their UTF-8 bytes.
    """
    if len(found) == 1:
        return 0 if found[0][1] else -1
    totals = [total / size for (total, _), size in zip(found, sizes, strict=True)]
    return max(range(len(totals)), key=totals.__getitem__)


def summary(right: Sequence[bool], choices: int = CHOICES) -> dict[str, float]:
    """Accuracy, its standard error (binomial), and what guessing gives (0 for a cloze)."""
    share = sum(right) / len(right)
    return {"accuracy": share, "standard_error": math.sqrt(share * (1 - share) / len(right)), "items": len(right),
            "chance": 1 / choices if choices > 1 else 0.0}  # fmt: skip


def summaries(right: Iterable[tuple[str, bool]], choices: int) -> dict[str, dict[str, float]]:
    """{language: summary} of (language, whether the answer was right) of a task's questions."""
    by_language: dict[str, list[bool]] = {}
    for language, one in right:
        by_language.setdefault(language, []).append(one)
    return {language: summary(answers, choices) for language, answers in by_language.items()}


def questions(text: ValidationText, names: Sequence[str], items: int, seed: int) -> Mapping[str, list[Item]]:
    """{task: its items in every language that has enough text}."""
    return {name: [item for language in text.validation_languages
                   for item in MAKERS[name](text, language, items, seed)] for name in names}  # fmt: skip
