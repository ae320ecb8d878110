"""``hanse evaluate``: checkpoint -> loss, bits per byte and accuracy of each language and source, and tasks.

Data-parallel through accelerate, which connects the ranks and gives each its device. Each takes every n-th piece of
work; pieces are added up in their order, so that any number of ranks gives the same numbers, bit for bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from common.errors import EXIT_DONE, HanseError
from common.files import sha256_file, write_json
from common.terminal import Progress, count, next_step, say, table
from data_pipelines.tokenizer import token_byte_lengths
from train import harness
from train.accuracy import interval
from train.evaluations import DONE, FORMAT, name_of, to_evaluate
from train.generate import Prompt, generate
from train.harness import Share
from train.local_start import rank_of_local_start, start_ranks
from train.model import PackedLanguageModel, model_inputs
from train.ranks import Place, ToldElsewhere, find_place, gathered, together, torchrun_variables
from train.run_folder import RunFolder
from train.stream import open_sources, pack
from train.tally import Origins, Score, total
from train.tasks import Item, answer, questions, summaries
from train.trained import Trained, open_trained
from train.verb_config import ALL, EvaluateVerbConfig, GenerateConfig

SETTINGS = ("tokens_per_language", "tasks", "items_per_language", "lm_eval", "samples", "sample_tokens", "seed")


def settings_of(config: EvaluateVerbConfig) -> dict[str, Any]:
    """What decides the numbers of an evaluation, beside the checkpoint; it is written into it."""
    return {key: getattr(config, key) for key in SETTINGS}


def run(config: EvaluateVerbConfig) -> int:
    """Evaluate a checkpoint; with ``ranks`` above 1 on as many processes of this machine."""
    if config.ranks > 1 and find_place(os.environ) is None:
        logs = RunFolder(config.run).evaluation_logs
        return start_ranks("train.score", config, logs / "evaluate.yaml", logs / "evaluate")
    return _evaluate(config)


def _evaluate(config: EvaluateVerbConfig) -> int:
    given = find_place(os.environ)
    if given:
        torchrun_variables(given, os.environ)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    place = Place(state.process_index, state.num_processes)
    try:
        if config.step == ALL:
            evaluate_all(config, place, state.device)
        else:
            assert not isinstance(config.step, str)
            evaluate_one(config, place, state.device, config.step, {})
    except ToldElsewhere as told:
        return told.exit_code
    if place.first and not RunFolder(config.run).flat:
        next_step(f"hanse report run={config.run}")
    if state.use_distributed:
        state.destroy_process_group()
    return EXIT_DONE


def evaluate_all(config: EvaluateVerbConfig, place: Place, device: torch.device) -> None:
    """Evaluate the checkpoints of a run that were not yet, with these settings: the oldest first.

    Each evaluation is written before the next begins, so what is interrupted goes on where it was.

    Raises:
        HanseError: there is none; or, when all others are done: which ones cannot be evaluated, and why.
    """
    folder = RunFolder(config.run)
    asked, wrong, found = dict[str, list[Item]](), list[str](), dict[int, str]()
    with together(place):
        if place.first:
            found = to_evaluate(folder, settings_of(config), config.weights)
            if not found:
                raise HanseError(f"{folder.checkpoints}: no complete checkpoint here; 'hanse train' writes one")
    found = gathered(place, found)[0]
    done = [step for step, why in found.items() if why == DONE]
    if done and place.first:
        say(f"skipped {len(done)} of {len(found)}, {DONE} with these settings: step {', '.join(map(str, done))}")
    todo = {step: why for step, why in found.items() if why != DONE}
    for number, (step, why) in enumerate(todo.items(), 1):
        if place.first:
            say(f"step {step}, {number} of {len(todo)}" + (f" ({why})" if why else ""))
        try:
            evaluate_one(config, place, device, step, asked)
        except HanseError as error:
            gone = gathered(place, step not in folder.find_checkpoints())[0]
            if place.first:
                say(f"skipped step {step}: " + ("the run has deleted it meanwhile" if gone else str(error)))
            wrong += [] if gone else [str(error)]
    with together(place):
        if wrong:
            raise HanseError(f"{len(wrong)} of {len(todo)} checkpoints could not be evaluated: {'; '.join(wrong)}")


def evaluate_one(
    config: EvaluateVerbConfig, place: Place, device: torch.device, step: int | None, asked: dict[str, list[Item]]
) -> None:
    """Evaluate the checkpoint of a step (None: the latest), and write what was found. Collective.

    Args:
        asked: the questions, if they were made before; else they are put there.

    Raises:
        HanseError: on all ranks, where one of them cannot read it.
    """
    with together(place):
        try:
            trained = open_trained(config.run, step, config.shards, config.tokenizer, corpus=config.corpus,
                                   weights=config.weights)  # fmt: skip
            model = trained.model()
        except OSError as error:  # a run that trains may delete it at any moment
            raise HanseError(f"step {step}: {error}") from None
        nn.Module.to(model, device)
        if not asked:
            asked.update(questions(trained, config.tasks, config.items_per_language, config.seed))
    share = partial(shared_out, place)
    scores = losses(config, trained, model, share)
    found = {
        "tasks": tasks(asked, trained, model, share),
        "lm_eval": in_harness(config, asked, trained, model, place),
        "samples": samples(config, trained, model, share),
    }
    with together(place):
        if place.first:
            value = as_json(config, trained, scores, found)
            path = Path(config.output or trained.folder.evaluations / name_of(trained.step, config.weights))
            write_json(path, value)
            _show(value)
            say(f"written: {path}")


def shared_out(place: Place, work: Sequence[Any], do: Callable[[Any], Any], what: str) -> list[Any]:
    """``do`` for every piece of work, each by one rank; the results in the order of the work, on every rank."""
    progress = Progress(what, len(work), "pieces", enabled=place.first)
    mine = []
    for index in range(place.rank, len(work), place.ranks):
        mine.append((index, do(work[index])))
        progress.update(min(index + place.ranks, len(work)))
    pieces = [pair for one in gathered(place, mine) for pair in one]
    return [result for _, result in sorted(pieces, key=lambda pair: pair[0])]


def losses(
    config: EvaluateVerbConfig, trained: Trained, model: PreTrainedModel, share: Share
) -> dict[tuple[str, str], Score]:
    """{(language, source): score} over the validation windows, evenly drawn where not all are asked for."""
    length, packed = trained.config.data.sequence_length, PackedLanguageModel(model)
    sources = {name: one for name, one in open_sources(trained.shards, "validation", length, 0).items() if one.windows}
    work = []
    for name, source in sources.items():
        wanted = -(-config.tokens_per_language // length) if config.tokens_per_language else source.windows
        windows = min(source.windows, wanted)
        chosen = [index * source.windows // windows for index in range(windows)]
        work += [(name, chosen[at : at + config.micro_batch_size]) for at in range(0, windows, config.micro_batch_size)]
    bytes_of = token_byte_lengths(trained.tokenizer_folder)
    origins = {name: Origins.read(source) for name, source in sources.items()}

    @torch.no_grad()
    def do(piece: tuple[str, list[int]]) -> list[tuple[tuple[str, str], Score]]:
        language, windows = piece
        batch = pack([sources[language].window(window) for window in windows], [0] * len(windows))
        nll, first = (part.cpu().numpy() for part in packed(**model_inputs(batch, model.device), scored=True))
        found = origins[language].split(windows, batch, nll, first, bytes_of)
        return [((language, origins[language].names[number]), one) for number, one in found.items()]

    parts: dict[tuple[str, str], list[Score]] = {}
    for found in share(work, do, "validation"):
        for key, one in found:
            parts.setdefault(key, []).append(one)
    return {key: total(scores) for key, scores in sorted(parts.items())}


def tasks(
    asked: Mapping[str, Sequence[Item]], trained: Trained, model: PreTrainedModel, share: Share
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{task: {language: accuracy ...}}; a language with too little text for a task is left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, work in asked.items():

        def do(item: Item) -> bool:
            return answer(trained, model, item, model.device) == item.answer

        right = share(work, do, name)
        languages = (item.language for item in work)
        found[name] = summaries(zip(languages, right, strict=True), len(work[0].choices) if work else 0)
    return found


def in_harness(
    config: EvaluateVerbConfig, asked: Mapping[str, Sequence[Item]], trained: Trained, model: PreTrainedModel,
    place: Place,
) -> dict[str, Any]:  # fmt: skip
    """What lm-eval makes of the checkpoint; {} where nothing was asked for."""
    if not config.lm_eval:
        return {}
    folder = trained.folder.evaluations / "lm-eval"
    with together(place):
        if place.first:
            harness.write_tasks(folder, asked)
    folders = [folder, *([Path(config.lm_eval_folder)] if config.lm_eval_folder else [])]
    lm = harness.harness_model(trained, model, partial(shared_out, place))
    return harness.run(lm, config.lm_eval, folders, None)


def samples(
    config: EvaluateVerbConfig, trained: Trained, model: PreTrainedModel, share: Share
) -> dict[str, list[dict[str, str]]]:
    """{language: what the model writes after the first words of validation documents}; the same for the same seed."""
    how = GenerateConfig(max_new_tokens=config.sample_tokens, seed=config.seed)
    length, end = trained.config.data.sequence_length, trained.shards.end_of_document_id
    work = []
    for language in trained.validation_languages if config.samples else ():
        for number in range(config.samples):
            ids = trained.validation_document(language, config.seed + number)
            words = trained.tokenizer.decode(ids.tolist()).split()[: how.prompt_words]
            work.append(Prompt(" ".join(words), language))

    def do(prompt: Prompt) -> str:
        ids = trained.tokenizer.encode(prompt.text, add_special_tokens=False).ids[: length // 2]
        written = generate(model, ids or [end], min(config.sample_tokens, length - max(len(ids), 1)), how, end)
        return str(trained.tokenizer.decode(written))

    found: dict[str, list[dict[str, str]]] = {}
    for prompt, text in zip(work, share(work, do, "samples"), strict=True):
        found.setdefault(prompt.label, []).append({"prompt": prompt.text, "text": text})
    return found


def as_json(
    config: EvaluateVerbConfig, trained: Trained, scores: Mapping[tuple[str, str], Score], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written: every number with the counts behind it, and what it was measured on."""
    languages = sorted({language for language, _ in scores})
    return {
        "format": FORMAT,
        "step": trained.step,
        "checkpoint_merkle_root": trained.checkpoint.manifest["merkle_root"],
        **({"weights": trained.weights} if trained.weights != "master" else {}),
        "checkpoint_manifest_sha256": sha256_file(trained.checkpoint.folder / "manifest.json"),
        "data_merkle_root": trained.shards.merkle_root,
        "tokenizer_sha256": trained.shards.tokenizer_sha256,
        "settings": settings_of(config),
        "languages": {
            language: total(one for (name, _), one in scores.items() if name == language).to_json()
            for language in languages
        },
        "sources": {
            language: {source: one.to_json() for (name, source), one in scores.items() if name == language}
            for language in languages
        },
        **found,
    }


def _show(value: Mapping[str, Any]) -> None:
    rows = []
    for language, sources in value["sources"].items():
        kinds = [(language, value["languages"][language])]
        kinds += [(f"  {name}", one) for name, one in sources.items()] if len(sources) > 1 else []
        rows += [[name, f"{one['bits_per_byte']:.3f}", f"{one['loss']:.3f}", f"{one['token_accuracy']:.1%}",
                  f"{one['targets']:,}", count(one["bytes"], "B")] for name, one in kinds]  # fmt: skip
    head = ["language", "bits/byte", "loss", "token accuracy", "labels", "bytes"]
    table(f"validation text after step {value['step']}", head, rows)
    for task, languages in value["tasks"].items():
        if not languages:
            say(
                f"note: {task}: no language has the text for it"
                + (" (titles in the corpus beside the shards; corpus=... says where)" if task == "description" else "")
            )
            continue
        rows = [[name, f"{one['accuracy']:.1%}", interval(one), one["items"]]
                for name, one in languages.items()]  # fmt: skip
        chance = next(iter(languages.values()))["chance"]
        table(f"\n{task} (guessing gives {chance:.0%})", ["language", "accuracy", "95 % interval", "items"], rows)
    if value["lm_eval"]:
        names = sorted({key for one in value["lm_eval"]["tasks"].values() for key in one} - {"num_fewshot", "items"})
        rows = [[task, *(f"{one[key]:.4f}" if key in one else "" for key in names), one["items"]]
                for task, one in value["lm_eval"]["tasks"].items()]  # fmt: skip
        table(f"\nlm-eval {value['lm_eval']['version']}", ["task", *names, "items"], rows)


if __name__ == "__main__":
    sys.exit(rank_of_local_start("evaluate", EvaluateVerbConfig, sys.argv[1], _evaluate))
