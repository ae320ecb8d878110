"""The tasks of :mod:`train.tasks` while a run trains: questions are made once, and go through the engine that trains.

A choice after its context is a row of ids whose last labels count. Rows are packed into sequences of one length, each a
document of its own, so that what goes through the model has the shape of all that is trained on: nothing is compiled
anew, ranks may share sequences, and at ZeRO 3 all ranks run as often as each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.terminal import many
from data_pipelines.packing import best_fit
from data_pipelines.shards import ShardsManifest
from train.config import TrainConfig
from train.engine import Engine
from train.evaluate import all_reduce_sum, scored_in_turn
from train.packed import PADDING
from train.ranks import Place, together
from train.stream import IGNORED, MicroBatch, pack
from train.tasks import Item, chosen, cut_to, ids_of, questions, sizes_of, summaries
from train.validation_text import ValidationText

SEED = 0  # of the questions, as 'hanse evaluate' has it: all runs are asked the same of the same text


@dataclass(frozen=True)
class Question:
    """An item as the model is asked.

    Attributes:
        rows: of each choice, (ids of the context and the choice, int32; how many at the end are asked for).
        sizes: UTF-8 bytes of each choice.
    """

    task: str
    language: str
    rows: list[tuple[np.ndarray, int]]
    sizes: list[int]
    answer: int


@dataclass(frozen=True)
class Asked:
    """A row in a sequence: the labels that count are ``first`` to ``stop`` of sequence ``window``."""

    row: int
    window: int
    first: int
    stop: int


class TaskEvaluation:
    """Questions in micro-batches: the same for the same questions, at every step and any number of ranks.

    Args:
        questions: of all tasks and languages.
        length: tokens of a sequence; rows are no longer.
        micro_batch: sequences that go through the model at once.
    """

    def __init__(self, questions: Sequence[Question], length: int, micro_batch: int):
        self.questions, self.length, self.micro_batch = questions, length, micro_batch
        self.rows = [row for question in questions for row in question.rows]
        places = best_fit(np.array([len(ids) for ids, _ in self.rows], dtype=np.int64), length + 1)
        self.windows: list[list[int]] = [[] for _ in range(int(places.max(initial=-1)) + 1)]  # rows in each sequence
        for row, place in enumerate(places.tolist()):
            self.windows[place].append(row)

    @property
    def batches(self) -> int:
        """Micro-batches of all questions."""
        return -(-len(self.windows) // self.micro_batch)

    def batch(self, index: int) -> tuple[MicroBatch, list[Asked]]:
        """A micro-batch, and where its rows are in it; a last one that is not full holds its first sequence again."""
        mine = self.windows[index * self.micro_batch : (index + 1) * self.micro_batch]
        filled = mine + mine[:1] * (self.micro_batch - len(mine))
        batch = pack([self._window(rows) for rows in filled], [0] * len(filled))
        asked, counts = [], np.zeros(batch.labels.shape, dtype=bool)
        for window, rows in enumerate(mine):
            end = 0
            for row in rows:
                ids, counted = self.rows[row]
                end += len(ids)
                asked.append(Asked(row, window, end - 1 - counted, end - 1))
                counts[window, end - 1 - counted : end - 1] = True
        return replace(batch, labels=np.where(counts, batch.labels, IGNORED)), asked

    def _window(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, documents), int64 arrays of ``length + 1``: a document a row, then padding."""
        ids = np.zeros(self.length + 1, dtype=np.int64)
        documents = np.full(self.length + 1, PADDING, dtype=np.int64)
        end = 0
        for number, row in enumerate(rows):
            start, end = end, end + len(self.rows[row][0])
            ids[start:end], documents[start:end] = self.rows[row][0], number
        return ids, documents

    def run(self, engine: Engine, place: Place, pause: Callable[[], None]) -> dict[str, dict[str, dict[str, float]]]:
        """{task: {language: accuracy ...}} (:func:`train.tasks.summary`), the same on any ranks. Collective.

        ``pause``: see :func:`train.evaluate.scored_in_turn`.
        """
        found = torch.zeros(len(self.rows), 2, dtype=torch.float64)  # of a row: negative log-likelihood, likeliest
        where: dict[int, list[Asked]] = {}

        def batch(index: int) -> MicroBatch:
            made, where[index] = self.batch(index)
            return made

        for index, nll, first in scored_in_turn(engine, place, self.batches, batch, pause):
            each, likeliest = nll.double().cpu(), first.cpu()
            for one in where[index]:
                labels = slice(one.first, one.stop)
                found[one.row, 0] = each[one.window, labels].sum()
                found[one.row, 1] = likeliest[one.window, labels].all()
        return self.answers(all_reduce_sum(found, engine).numpy())

    def answers(self, found: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
        """The same, from (rows, 2): negative log-likelihood of a row's choice, 1 if the model would have written it."""
        right: dict[str, list[tuple[str, bool]]] = {}
        choices, at = {}, 0
        for one in self.questions:
            mine = [(-float(nll), bool(likeliest)) for nll, likeliest in found[at : at + len(one.rows)]]
            at += len(one.rows)
            right.setdefault(one.task, []).append((one.language, chosen(mine, one.sizes) == one.answer))
            choices[one.task] = len(one.rows)
        return {task: summaries(answers, choices[task]) for task, answers in right.items()}


def encode(text: ValidationText, asked: Mapping[str, Sequence[Item]], length: int) -> list[Question]:
    """Items of tasks as rows of ``length`` ids at most."""
    found = []
    for task, items in asked.items():
        for item in items:
            cut = (cut_to(ids, last, length) for ids, last in ids_of(text, item.context, item.choices))
            rows = [(np.array(ids, dtype=np.int32), last) for ids, last in cut]
            found.append(Question(task, item.language, rows, sizes_of(item), item.answer))
    return found


def open_tasks(
    config: TrainConfig, shards: ShardsManifest, place: Place, languages: Sequence[str]
) -> tuple[TaskEvaluation | None, str]:
    """The tasks of a run, and what is to be told of them; None and nothing where there are none to ask. Collective.

    Rank 0 makes the questions, and the others are given them.

    Args:
        languages: whose tasks can be compared with their validation loss.
    """
    names, length = config.evaluate.tasks, config.data.sequence_length
    if not names:
        return None, ""
    started, made = time.perf_counter(), [list[Question]()]
    with together(place):
        if place.first:
            text = ValidationText(shards, Path(config.data.tokenizer))
            made = [encode(text, questions(text, names, config.evaluate.items_per_language, SEED), length)]
    dist.broadcast_object_list(made, 0)
    tasks = TaskEvaluation(made[0], length, config.batch.micro_batch_size)
    return tasks if tasks.rows else None, told(tasks, names, languages, time.perf_counter() - started)


def told(tasks: TaskEvaluation, names: Sequence[str], languages: Sequence[str], seconds: float) -> str:
    """How much is asked, and what cannot be."""
    lines = []
    for name in names:
        counts = {language: sum(one.task == name and one.language == language for one in tasks.questions)
                  for language in languages}  # fmt: skip
        missing = [language for language, count in counts.items() if not count]
        why = " (titles in the corpus beside the shards)" if name == "description" else ""
        if missing:
            lines.append(f"note: {name}: not asked in {', '.join(missing)}: too little validation text for it{why}")
        if any(counts.values()):
            asked = {language: count for language, count in counts.items() if count}
            alike = f"{next(iter(asked.values()))} in each of {many(len(asked), 'language')}"
            each = ", ".join(f"{language} {count}" for language, count in asked.items())
            lines.append(
                f"{name}: {many(sum(asked.values()), 'question')} ({alike if len({*asked.values()}) == 1 else each})"
            )
    size = f"{len(tasks.windows):,} sequences an evaluation" if tasks.rows else "nothing to ask"
    return "\n".join([*lines, f"tasks: {size}, made in {seconds:.1f} s"])
