"""What ``hanse evaluate`` found of a run: ``evaluations/step-NNNNNNNN.json``, each bound to a checkpoint by its hashes.

A checkpoint is sealed, so nothing is ever written into it: an evaluation names the checkpoint's Merkle root and the
SHA-256 of its manifest, and is believed only as long as that is the checkpoint which is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, sha256_file
from train.accuracy import interval
from train.run_folder import RunFolder, folder_of

FORMAT = "hanse.evaluation/1"
MEASURED = ("bits_per_byte", "loss", "token_accuracy", "bytes")
ANSWERED = ("accuracy", "standard_error", "items", "chance")
DONE = "evaluated already"
Numbers = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Saved:
    """One evaluation.

    Attributes:
        languages: {language: {"bits_per_byte": ..., "loss": ..., "token_accuracy": ...}} on all validation text.
        sources: {language: {source: the same}}.
        tasks: {task: {language: {"accuracy": ..., "standard_error": ..., "items": ..., "chance": ...}}}.
        harness: {lm-eval's task: {metric: value}}; ``harness_version`` is lm-eval's.
        samples: {language: [(prompt, text)]}.
    """

    path: Path
    step: int
    languages: Numbers
    sources: dict[str, Numbers]
    tasks: dict[str, Numbers]
    harness: Numbers = field(default_factory=dict)
    harness_version: str = ""
    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def read_evaluations(folder: RunFolder) -> tuple[list[Saved], list[str]]:
    """(the evaluations of a run's checkpoints by step, what is wrong with others)."""
    found, wrong = [], []
    for path in sorted(folder.evaluations.glob("step-*.json")):
        try:
            found.append(read_evaluation(path, folder))
        except HanseError as error:
            wrong.append(str(error))
    return found, wrong


def name_of(step: int, weights: str = "master") -> str:
    """The file of a checkpoint's evaluation; that of its averaged weights (``ema``) has another."""
    return f"{'ema-' if weights == 'ema' else ''}step-{step:08d}.json"


def read_evaluation(path: Path, folder: RunFolder) -> Saved:
    """One of a run's evaluations.

    Raises:
        HanseError: it is none, or of another checkpoint than the one which is there.
    """
    value = read_json(path, "evaluation")
    try:
        if value["format"] != FORMAT:
            raise HanseError(f"{path}: not an evaluation of {FORMAT}")
        step, bound = int(value["step"]), str(value["checkpoint_manifest_sha256"])
        manifest = (folder.path if folder.flat else folder_of(folder.checkpoints, step)) / "manifest.json"
        if manifest.is_file() and sha256_file(manifest) != bound:
            raise HanseError(f"{path}: of another checkpoint than {manifest.parent}; evaluate again")
        harness = value.get("lm_eval") or {}
        rows = [*value["languages"].values(), *(row for one in value["sources"].values() for row in one.values())]
        for row, keys in [
            *((row, MEASURED) for row in rows),
            *((row, ANSWERED) for one in value["tasks"].values() for row in one.values()),
        ]:
            if any(not math.isfinite(row[key]) for key in keys):
                raise HanseError(f"{path}: holds what is not a number")
        if any(not 0 <= row["accuracy"] <= 1 or row["items"] < 1
               for one in value["tasks"].values() for row in one.values()):  # fmt: skip
            raise HanseError(f"{path}: holds an accuracy that is no share of questions")
        return Saved(
            path=path,
            step=step,
            languages=_numbers(value["languages"]),
            sources={str(name): _numbers(one) for name, one in value["sources"].items()},
            tasks={str(name): _numbers(one) for name, one in value["tasks"].items()},
            harness=_numbers(harness.get("tasks", {})),
            harness_version=str(harness.get("version", "")),
            samples={str(name): [(str(one["prompt"]), str(one["text"])) for one in texts]
                     for name, texts in value.get("samples", {}).items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HanseError(f"{path}: not an evaluation of {FORMAT} ({error!r})") from None


def to_evaluate(folder: RunFolder, settings: Mapping[str, Any], weights: str) -> dict[int, str]:
    """{step: :data:`DONE` if its evaluation is there, of these settings, else why an older one does not count or ""}.

    Of the complete checkpoints, ascending.
    """
    found = {}
    for step in folder.find_checkpoints():
        path, why = folder.evaluations / name_of(step, weights), ""
        if path.is_file():
            try:
                read_evaluation(path, folder)
                same = read_json(path, "evaluation").get("settings") == dict(settings)
                why = DONE if same else "evaluated before with other settings"
            except HanseError as error:
                why = str(error)
        found[step] = why
    return found


def _numbers(value: Mapping[str, Mapping[str, Any]]) -> Numbers:
    return {str(name): {str(key): float(number) for key, number in row.items() if math.isfinite(number)}
            for name, row in value.items()}  # fmt: skip


def task_scores(records: Iterable[Mapping[str, Any]], saved: Iterable[Saved]) -> dict[int, dict[str, Numbers]]:
    """{step: {task: {language: accuracy ...}}}, ascending, that a run asked on its way and ``hanse evaluate`` after it.

    Where both asked a task in a language after the same step, that counts which asked more.
    """
    found: dict[int, dict[str, Numbers]] = {}
    told = [(record["step"], record["evaluation_tasks"]) for record in records if "evaluation_tasks" in record]
    for step, tasks in [*told, *((one.step, one.tasks) for one in saved)]:
        for task, languages in tasks.items():
            for language, row in languages.items():
                held = found.setdefault(step, {}).setdefault(task, {})
                if language not in held or row["items"] >= held[language]["items"]:
                    held[language] = row
    return dict(sorted(found.items()))


def with_task_scores(records: Sequence[Mapping[str, Any]], saved: Iterable[Saved]) -> list[Mapping[str, Any]]:
    """A run's records, the accuracies of tasks added to the evaluation after the same step."""
    scores: dict[int, dict[str, dict[str, float]]] = {}
    for step, tasks in task_scores(records, saved).items():
        for task, languages in tasks.items():
            for language, row in languages.items():
                scores.setdefault(step, {}).setdefault(language, {})[task] = row["accuracy"]
    made: list[Mapping[str, Any]] = []
    for record in records:
        more = scores.pop(record["step"], {}) if "evaluation" in record else {}
        names = {**record.get("evaluation", {}), **more}
        merged = {name: {**record["evaluation"].get(name, {}), **more.get(name, {})} for name in names}
        made.append({**record, "evaluation": merged} if more else record)
    left = [{"step": step, "evaluation": languages} for step, languages in scores.items()]
    return sorted([*made, *left], key=lambda record: record["step"])


def card_section(folder: RunFolder, step: int) -> str:
    """What ``hanse evaluate`` found of a checkpoint, as Markdown for a model card; empty where it was not asked."""
    found = [one for one in read_evaluations(folder)[0] if one.step == step]
    if not found or not (found[-1].tasks or found[-1].harness):
        return ""
    one, lines = found[-1], list[str]()
    if any(one.tasks.values()):
        lines += ["| task | language | accuracy | 95 % interval | guessing | questions |",
                  "| --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
        for task, languages in one.tasks.items():
            lines += [f"| {_cell(task)} | {_cell(name)} | {row['accuracy']:.1%} | {interval(row)} | "
                      f"{row['chance']:.0%} | {row['items']:.0f} |" for name, row in languages.items()]  # fmt: skip
        lines.append("\nQuestions are made of the validation split (`hanse evaluate`).\n")
    if one.harness:
        lines += [f"lm-eval {_cell(one.harness_version)}:\n", "| task | metric | value |", "| --- | --- | ---: |"]
        lines += [f"| {_cell(task)} | {_cell(metric)} | {number:.4f} |" for task, row in one.harness.items()
                  for metric, number in row.items() if metric not in ("items", "num_fewshot")]  # fmt: skip
    return "\n".join(lines)


def _cell(value: object) -> str:
    from train.card import cell

    return cell(value)
