"""Tasks made of the corpus's own validation text, one for all languages: no benchmark has to be downloaded.

``next_sentence``: which of four sentences goes on a text? The other three come from other documents of the same
language. What is asked depends on the seed and the text alone.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import log_softmax

from train.trained import Trained

CHOICES = 4
SENTENCE = re.compile(r".+?[.!?…]+(?:\s?[»”\"])?(?=\s|$)", re.DOTALL)
LEAST_CHARACTERS, MOST_CHARACTERS = 20, 300  # of a sentence that is asked for


@dataclass(frozen=True)
class Item:
    """A question: which of ``choices`` goes on ``context``; ``answer`` is the place of the right one."""

    language: str
    context: str
    choices: tuple[str, ...]
    answer: int


def next_sentence(trained: Trained, language: str, items: int, seed: int) -> list[Item]:
    """At most ``items`` questions of a language, at most one a document; [] where there is too little text."""
    entry = next(entry for entry in trained.shards.of("validation") if entry.language == language)
    texts = [trained.tokenizer.decode(trained.validation_document(language, number).tolist())
             for number in range(entry.documents)]  # fmt: skip
    cut = [sentences(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda number: hashlib.sha256(f"{seed}{texts[number]}".encode()).digest())
    usable = {number: [one for one in cut[number][1:] if LEAST_CHARACTERS <= len(one) <= MOST_CHARACTERS]
              for number in order}  # fmt: skip
    found: list[Item] = []
    for number in order:
        others = [other for other in order if other != number and usable[other]]
        if len(found) == items or not usable[number] or len(others) < CHOICES - 1:
            continue
        dice = random.Random(f"{seed} {texts[number]}")
        right = dice.choice(usable[number])
        context = " ".join(cut[number][: cut[number].index(right)])
        wrong = [dice.choice(usable[other]) for other in dice.sample(others, CHOICES - 1)]
        answer = dice.randrange(CHOICES)
        choices = [f" {one}" for one in (*wrong[:answer], right, *wrong[answer:])]
        found.append(Item(language, context, tuple(choices), answer))
    return found


def sentences(text: str) -> list[str]:
    """A text cut after full stops and their like."""
    return [one.strip() for one in SENTENCE.findall(text)]


@torch.no_grad()
def answer(trained: Trained, model: nn.Module, item: Item, device: torch.device) -> int:
    """The choice that the model finds likeliest a byte, after as much of the context as it can take."""
    length = trained.config.data.sequence_length
    context = trained.tokenizer.encode(item.context, add_special_tokens=False).ids
    whole = [trained.tokenizer.encode(item.context + one, add_special_tokens=False).ids for one in item.choices]
    counted = [max(1, min(len(ids) - len(context), length - 1)) for ids in whole]
    kept = [ids[-length:] for ids in whole]
    width = max(map(len, kept))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in kept], device=device)  # what follows is not seen
    scores = log_softmax(model(padded, use_cache=False).logits.float(), dim=-1)
    totals = []
    for row, (ids, last, text) in enumerate(zip(kept, counted, item.choices, strict=True)):
        places = torch.arange(len(ids) - last, len(ids), device=device)
        total = scores[row, places - 1, padded[row, places]].double().sum().item()
        totals.append(total / len(text.encode("utf-8")))
    return max(range(len(totals)), key=totals.__getitem__)


def summary(right: Sequence[bool]) -> dict[str, float]:
    """Accuracy, its standard error (binomial), and what guessing gives."""
    share = sum(right) / len(right)
    return {"accuracy": share, "standard_error": math.sqrt(share * (1 - share) / len(right)), "items": len(right),
            "chance": 1 / CHOICES}  # fmt: skip
