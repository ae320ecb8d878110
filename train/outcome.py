"""What a run says when it starts and when it stops, and its ``summary.json``."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
import torch

from common.errors import EXIT_DONE, EXIT_GO_ON
from common.terminal import count, duration, many, next_step, say
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data_table import say_losses, say_tasks
from train.energy.page import energy_line
from train.energy.totals import energy_totals
from train.evaluate import LanguageScore
from train.local_start import REPLAY
from train.metrics import StepClock
from train.ranks import Place
from train.run_folder import RunFolder, complete_steps, evaluations_in, folder_of
from train.stopwatch import memory_bytes
from train.vocabulary import Adapted
from train.weights import Weights

if TYPE_CHECKING:
    from train.setup import Data, Run


def opening(
    config: TrainConfig, place: Place, *, parameters: int, precision: str, attention: str, compiled: bool,
    peaks: Mapping[str, float], resumed: Checkpoint | None, initial: Weights | None,
) -> str:  # fmt: skip
    """The lines before the first step."""
    measured = ", ".join(f"{name} {count(peak, 'FLOP/s')}" for name, peak in peaks.items())
    line = config.timeline
    each = " and ".join(f"{size:,}" for size in dict.fromkeys(stage.tokens_per_step for stage in line))
    tokens = f"{many(line.steps, 'step')} of {each} tokens = {count(line.tokens(line.steps))}"
    shared = f", {config.engine.sequence_parallel} to a sequence" if config.engine.sequence_parallel > 1 else ""
    shared += f", {config.engine.tensor_parallel} to a matrix" if config.engine.tensor_parallel > 1 else ""
    zero = f"{many(place.ranks, 'rank')}{shared}, ZeRO-{config.engine.zero_stage}"
    lines = [
        f"{config.name}: {count(parameters)} parameters, {zero}, {tokens} tokens",
        f"precision {precision} ({'asked for' if config.engine.precision != 'auto' else 'chosen'}; "
        f"matrix products a rank: {measured})",
        f"attention {attention} ({'asked for' if config.model.attention != 'auto' else 'chosen'})"
        + (", layers compiled" if compiled else ""),
    ]
    lines += [stage.told for stage in line if stage.name]
    if resumed:
        lines.append(f"going on from {resumed.folder} (step {resumed.state['step']})")
    if initial:
        unknown = (
            ""
            if initial.tokenizer_sha256 or isinstance(initial, Adapted)
            else " (it does not say with which tokenizer: not compared)"
        )
        if isinstance(initial, Adapted):
            lines.append(f"another tokenizer than those weights had: {initial.told()}")
        lines.append(f"beginning with the weights of {initial.folder}{unknown}, a fresh optimizer, and its own data")
    return "\n".join(lines)


def nothing_to_do(config: TrainConfig, folder: RunFolder, step: int, *, speaks: bool) -> int | None:
    """The exit code of a start that finds the run as far as it is to go, told by the rank that speaks; None: it is not.

    Where ``until_step`` ended the start before, it is done as well: no launcher is to start it once more.
    """
    if step >= config.steps:
        if speaks:
            say(f"{folder.path}: all {step} steps are done; nothing to train (to train for longer, name another "
                "run=...)")  # fmt: skip
            _next(config)
        return EXIT_DONE
    if config.until_step is not None and step >= config.until_step:
        if speaks:
            say(f"{folder.path}: {step} of {config.steps} steps are done, and until_step={config.until_step} asks for "
                "no more; nothing trained (a later until_step, or null, goes on)")  # fmt: skip
        return EXIT_DONE
    return None


def finish(run: Run, step: int, clock: StepClock, wall_seconds: float) -> None:
    """Write ``summary.json`` and say how the run stands. Its evaluation is the last that ``metrics.jsonl`` holds, which
    an earlier start may have made."""
    evaluation = list(evaluations_in(run.folder.metrics).values())[-1:]
    newest = evaluation[0] if evaluation else {}
    losses = newest.get("evaluation", {})
    unigram = run.evaluation.unigram(run.data.training, run.data.manifest.vocabulary_size)
    values = summary(run, step, losses=losses, unigram=unigram, clock=clock, wall_seconds=wall_seconds)
    values |= {"tasks": newest.get("evaluation_tasks", {}), "evaluated_after_step": newest.get("step")}
    values["energy"] = energy_totals(run.folder.path).to_json()
    run.folder.update_summary(values)
    closing(run.config, values)


def summary(
    run: Run, step: int, *, losses: Mapping[str, Mapping[str, float]], unigram: Mapping[str, LanguageScore],
    clock: StepClock, wall_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """What came out, for people and scripts. Speed, MFU and FLOPs a token are this start's means.

    Args:
        losses: {language: its rates} as ``metrics.jsonl`` has them.
    """
    config, data, line = run.config, run.data, run.config.timeline
    tokens, flops = run.work(step)
    per_step, per_token = float(line.at(step - 1).tokens_per_step), run.flops_per_token(line.at(step - 1))
    if tokens:  # none: it went back to the step that it began with
        per_step, per_token = tokens / (step - run.first_step), flops // tokens
    speed = per_step / clock.mean_seconds if clock.steps else 0.0
    languages = sorted({*data.training, *data.validation})
    corpus = data.manifest.folder.parent / "corpus"
    paths = {
        "corpus": str(corpus) if corpus.is_dir() else None,
        "tokenizer": config.data.tokenizer,
        "shards": config.data.shards,
        "checkpoint": str(folder_of(run.folder.checkpoints, complete_steps(run.folder.checkpoints)[-1])),
    }
    return {
        "name": config.name,
        "finished": step == config.steps,
        "languages": {name: _language(name, data, losses, unigram) for name in languages},
        "tokens_per_second": speed,
        "mfu_data_sheet": None,
        **run.utilisation(speed * per_token),
        "flops_per_token": per_token,
        "parameters": run.parameters,
        "steps": step,
        **line.name(step),
        "consumed_tokens": line.tokens(step),
        "wall_seconds": wall_seconds,
        "data_wait_share": clock.wait_seconds / clock.total_seconds if clock.total_seconds else 0.0,
        "checkpoint_share": clock.shares.get("checkpoint", 0.0),
        "time_shares": clock.shares,
        "overhead_seconds": clock.overhead_seconds,
        "memory_bytes": memory_bytes(),
        "ranks": run.place.ranks,
        "zero_stage": config.engine.zero_stage,
        "precision": run.precision,
        "machine": machine(),
        "paths": paths,
    }


def _language(
    name: str, data: Data, losses: Mapping[str, Mapping[str, float]], unigram: Mapping[str, LanguageScore]
) -> dict[str, Any]:
    shards = [shard for shard in data.manifest.shards if shard.language == name]
    return {
        "bits_per_byte": losses[name]["bits_per_byte"] if name in losses else None,
        "unigram_bits_per_byte": unigram[name].bits_per_byte if name in unigram else None,
        "documents": sum(shard.documents for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "validation_documents": sum(shard.documents for shard in shards if shard.split == "validation"),
    }


def machine() -> dict[str, Any]:
    """The machine of this process."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def closing(config: TrainConfig, values: Mapping[str, Any]) -> None:
    """The lines after the last step."""
    step = values["evaluated_after_step"]
    say_losses({name: (found["bits_per_byte"], found["unigram_bits_per_byte"])
                for name, found in values["languages"].items()}, None if step == values["steps"] else step)  # fmt: skip
    say_tasks(values["tasks"])
    steps = f"{values['steps']} of {many(config.steps, 'step')}, {count(values['consumed_tokens'])} tokens"
    of_sheet = f" ({values['mfu_data_sheet']:.0%} of the data sheet's peak)" if values.get("mfu_data_sheet") else ""
    say(f"{steps} in {duration(values['wall_seconds'])}; {count(values['tokens_per_second'], 'tok')}/s, "
        f"MFU {values['mfu']:.0%}{of_sheet}, last checkpoint {values['paths']['checkpoint']}")  # fmt: skip
    say(energy_line(values["energy"]))
    if REPLAY in os.environ:
        return
    if values["finished"]:
        _next(config)
    else:
        asked = config.until_step is not None and values["steps"] >= config.until_step
        goes_on = "a later until_step, or null, goes on" if asked else "the same command goes on"
        say(f"stopped when asked, everything is saved: {goes_on} (exit code {EXIT_GO_ON})")


def _next(config: TrainConfig) -> None:
    next_step(*(f"hanse {verb} run={config.run}" for verb in ("export", "generate", "report")))
