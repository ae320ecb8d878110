"""lm-eval (EleutherAI's evaluation harness) on a checkpoint as it was trained, without an export and without a network.

The model is asked through :class:`HarnessModel`; its requests are shared out over all ranks and put together in their
order, so that lm-eval sees one rank, and every rank gets the same numbers. The tasks of :mod:`train.tasks` are written
as lm-eval's own YAML and JSON lines, ``hanse_TASK_LANGUAGE``: lm-eval's command line runs them on an export too.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from common.errors import HanseError
from common.files import write_text
from train.generate import generate
from train.tasks import Item, log_likelihoods, of_tokens
from train.trained import Trained
from train.verb_config import GenerateConfig

INSTALL = "pip install 'hanse[eval]'"
FEWSHOT_SEED = 1234  # that of lm-eval's command line
TOKENS = 64  # a generation has at most, where a task does not say
PREFIX = "hanse"
Share = Callable[[Sequence[Any], Callable[[Any], Any], str], list[Any]]  # work, what to do with each, what it is called


def is_installed() -> bool:
    """Whether lm-eval is here."""
    return importlib.util.find_spec("lm_eval") is not None


def write_tasks(folder: Path, questions: Mapping[str, Sequence[Item]]) -> list[str]:
    """Write questions as lm-eval tasks; their names."""
    names = []
    for task, items in questions.items():
        for language in sorted({item.language for item in items}):
            own = [item for item in items if item.language == language]
            name = f"{PREFIX}_{task}_{language}"
            data = (folder / f"{name}.jsonl").resolve()
            rows = [{"context": one.context, "choices": list(one.choices), "answer": one.answer,
                     "target": one.choices[one.answer]} for one in own]  # fmt: skip
            write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            cloze = len(own[0].choices) == 1
            settings = {
                "task": name,
                "tag": [f"{PREFIX}_{task}"],
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                "output_type": "loglikelihood" if cloze else "multiple_choice",
                "doc_to_text": "context",
                "doc_to_target": "target" if cloze else "answer",
                **({} if cloze else {"doc_to_choice": "choices"}),
                "target_delimiter": "",  # choices begin with their space
                "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}
                                for metric in (["acc"] if cloze else ["acc", "acc_norm", "acc_bytes"])],
                "metadata": {"version": 1.0},
            }  # fmt: skip
            write_text(folder / f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            names.append(name)
    return names


def run(model: Any, tasks: Sequence[str], folders: Sequence[Path], limit: int | None) -> dict[str, Any]:
    """Run tasks of lm-eval on a :class:`HarnessModel`; ``{task: {metric: number}}`` with lm-eval's version.

    Args:
        model: what :func:`harness_model` gave.
        tasks: names of tasks, groups or tags.
        folders: with task YAMLs, beside lm-eval's own.
        limit: questions of a task, at most.

    Raises:
        HanseError: a task is unknown, or its data cannot be had.
    """
    import datasets
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    manager = TaskManager(include_path=[str(folder) for folder in folders],
                          include_defaults=not all(name.startswith(f"{PREFIX}_") for name in tasks))  # fmt: skip
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise HanseError(f"lm_eval: no task {', '.join(unknown)}; lm-eval's own: 'lm-eval ls tasks', others: "
                         "lm_eval_folder=... with their YAML")  # fmt: skip
    try:
        loaded = manager.load(list(tasks))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with _without_bars():
            found = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=False)
    except (OSError, ValueError, ConnectionError, KeyError) as error:  # data that is not here, most of the time
        why = " ".join(str(error).split())[:300]
        raise HanseError(f"lm_eval: {', '.join(tasks)} could not be run ({why}); a task's data must be in the cache of "
                         "datasets where there is no network") from None  # fmt: skip
    return {"version": lm_eval.__version__, "tasks": {} if found is None else _numbers(found)}


@contextmanager
def _without_bars() -> Iterator[None]:
    """Progress is told by what shares the requests out."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _numbers(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """``{"acc,none": 0.5, "alias": ...}`` -> ``{"acc": 0.5}``, with the number of questions and shots."""
    told = {}
    for name, row in found["results"].items():
        kept = {key.removesuffix(",none"): float(value) for key, value in row.items()
                if isinstance(value, int | float) and "stderr" not in key and key != "sample_len"}  # fmt: skip
        kept |= {"items": found.get("n-samples", {}).get(name, {}).get("effective", 0),
                 "num_fewshot": found.get("n-shot", {}).get(name, 0)}  # fmt: skip
        told[name] = kept
    return told


def harness_model(trained: Trained, model: PreTrainedModel, share: Share) -> Any:
    """The checkpoint as lm-eval asks for it.

    Args:
        trained: the checkpoint, with its tokenizer.
        model: its model, on the device that it is asked on.
        share: :func:`train.score.shared_out`, of this rank.

    Raises:
        HanseError: lm-eval is not installed.
    """
    if not is_installed():
        raise HanseError(f"lm_eval: lm-eval is not installed; {INSTALL}")
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows

    length, end = trained.config.data.sequence_length, trained.shards.end_of_document_id

    class HarnessModel(LM):
        """Log-likelihoods are those of :mod:`train.tasks`; contexts are cut from the left."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            together = [(context, [one[1] for one in group]) for context, group in groupby(pairs, lambda one: one[0])]

            def do(asked: tuple[str, list[str]]) -> list[tuple[float, bool]]:
                return log_likelihoods(trained, model, asked[0], asked[1], model.device)

            return [one for choices in share(together, do, "lm-eval") for one in choices]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            def do(text: str) -> float:
                ids = trained.tokenizer.encode(text, add_special_tokens=False).ids
                windows = get_rolling_token_windows(ids, prefix_token=end, max_seq_len=length - 1, context_len=1)
                rows = ((given + wanted[-1:], len(wanted)) for given, wanted in windows)
                return sum(of_tokens(model, [ids], [last], length, model.device)[0][0] for ids, last in rows)

            return share([request.args[0] for request in requests], do, "lm-eval")

        def generate_until(self, requests: list[Any]) -> list[str]:
            return share([request.args for request in requests], self._generated, "lm-eval")

        def _generated(self, asked: tuple[str, Mapping[str, Any]]) -> str:
            context, settings = asked
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            room = min(int(settings.get("max_gen_toks", TOKENS)), length - 1)
            ids = trained.tokenizer.encode(context, add_special_tokens=False).ids or [end]
            if "num_beams" in settings and settings["num_beams"] != 1:
                raise ValueError("beams are not supported")
            warm = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            how = GenerateConfig(temperature=warm, top_p=float(settings.get("top_p", 1.0)))
            text = str(trained.tokenizer.decode(generate(model, ids[-(length - room) :], room, how, end)))
            ends = [text.index(stop) for stop in until if stop and stop in text]
            return text[: min(ends)] if ends else text

    return HarnessModel()
