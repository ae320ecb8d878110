"""``hanse average``: checkpoints -> one model, tensor by tensor, with its parents in its manifest.

The result is a checkpoint without the state of an optimizer (docs/how/checkpoint-format.md). Memory: a few pieces of
:data:`consortium.merging.PIECE` elements, whatever the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import HanseError
from common.files import read_json, sha256_file
from common.folders import replaced_folder, restore
from common.terminal import count, next_step, say
from consortium import merging, outer
from consortium.config import AverageConfig
from consortium.merging import Formula
from train.agreement import disagreements
from train.checkpoint import FORMAT
from train.checkpoint_writer import write_papers
from train.run_folder import RunFolder, complete_steps, folder_of
from train.weights import Weights, open_weights

SUMMED = ("consumed_samples", "consumed_tokens")


def run(config: AverageConfig) -> None:
    """Read, put together, write, and tell where it is."""
    output = Path(config.output)
    restore(output)
    models = [open_weights(folder) for folder in input_folders(config)]
    base = open_weights(Path(config.base)) if config.base else None
    _check_output(output, [*models, *([base] if base else [])])
    _check_alike(base or models[0], models)
    weights = input_weights(config, models)
    identities = [_identity(model) for model in models]
    parents: list[dict[str, Any]] = [{"manifest_sha256": sha256, "role": "average", "weight": weight}
                                     for sha256, weight in zip(identities, weights, strict=True)]  # fmt: skip
    if base:
        parents.append({"manifest_sha256": _identity(base), "role": "base"})
    state = _state(config.method, models, base)
    if config.method == "diloco":
        assert base is not None
        step = outer.prepare(config, models, base, weights, state)
        formula, method = step.weights, step.method
    else:
        step, (formula, method) = None, _formula(config, models, base, weights)
    shapes = (base or models[0]).shapes
    with replaced_folder(output, FORMAT) as partial:
        files = merging.write_model(partial, "model", shapes, formula)
        files |= _copy_config(partial, models[0] if base is None else base, models)
        root = write_papers(partial, files, shapes, state, origin={"parents": parents, "method": method})
    size = sum(entry["bytes"] for entry in files.values())
    say(f"wrote {output}/ ({config.method} of {len(models)}, {count(size, 'B')}, Merkle root {root[:12]})")
    if step:
        say(f"momentum for the next outer step: {step.momentum_folder}/")
    next_step(f"hanse seal folder={output} kind=checkpoint key=...", f"hanse train init_from={output} run=...")


def input_folders(config: AverageConfig) -> list[Path]:
    """The folders of the inputs; a run folder stands for its newest checkpoints, old to new.

    Raises:
        HanseError: a run folder among others, or without as many checkpoints.
    """
    folders = [Path(one) for one in config.inputs]
    runs = [folder for folder in folders if (folder / "checkpoints").is_dir()]
    if runs and len(folders) > 1:
        raise HanseError(f"inputs: {runs[0]} is a run folder, which stands alone; or name its checkpoints, "
                         f"{runs[0]}/checkpoints/step-...")  # fmt: skip
    if runs:
        checkpoints = RunFolder(runs[0]).checkpoints
        steps = complete_steps(checkpoints)
        if len(steps) < config.last:
            raise HanseError(f"last={config.last}: {checkpoints} holds {len(steps)} complete checkpoints; keep more "
                             "in training (checkpoint.keep_last=...), or set last=...")  # fmt: skip
        folders = [folder_of(checkpoints, step) for step in steps[-config.last :]]
    return folders


def input_weights(config: AverageConfig, models: Sequence[Weights]) -> list[float]:
    """One weight a model.

    Raises:
        HanseError: there are too many or too few, or the inputs do not go from old to new where they must.
    """
    number = len(models)
    if config.weights is not None and len(config.weights) != number:
        raise HanseError(f"weights: {len(config.weights)} for {number} inputs")
    if config.method in ("linear", "slerp"):
        if number != 2:
            raise HanseError(f"inputs: method={config.method} takes two, here are {number}")
        return [1 - config.fraction, config.fraction]
    if config.decay:
        steps = [model.facts.get("step", 0) for model in models]
        if steps != sorted(set(steps)):
            raise HanseError(f"inputs: with decay=... they must go from old to new; their steps are {steps}")
        return merging.decay_weights(number, config.decay)
    given = list(config.weights or [1.0] * number)
    return given if config.method == "ties" else [weight / sum(given) for weight in given]


def _formula(
    config: AverageConfig, models: Sequence[Weights], base: Weights | None, weights: Sequence[float]
) -> tuple[Formula, dict[str, Any]]:  # fmt: skip
    """The formula, and what the manifest says of it."""
    if config.method == "average":
        return merging.average(models, weights), {"name": "average", "decay": config.decay}
    if config.method == "ties":
        assert base is not None
        formula = merging.ties(models, base, weights, config.density, config.scale)
        return formula, {"name": "ties", "density": config.density, "scale": config.scale}
    way = merging.linear if config.method == "linear" else merging.slerp
    return way(models[0], models[1], config.fraction), {"name": config.method, "fraction": config.fraction}


def _identity(model: Weights) -> str:
    """Check all hashes; what a child calls these weights."""
    return model.identity(model.verify())


def _check_output(output: Path, inputs: Sequence[Weights]) -> None:
    for model in inputs:
        if output.resolve() == model.folder.resolve():
            raise HanseError(
                f"output={output}: is one of the inputs, which the result names as its parents; set another"
            )
    manifest = output / "manifest.json"
    made_here = manifest.is_file() and "method" in read_json(manifest, "manifest")
    if output.exists() and not made_here and not (output.is_dir() and not any(output.iterdir())):
        raise HanseError(f"{output}: exists and was not written by this verb; move it away, or set another output")


def _check_alike(first: Weights, models: Sequence[Weights]) -> None:
    """Refuse inputs that are not the same model with the same tokenizer, naming the first thing that differs."""
    for model in models:
        for name in [*first.shapes, *model.shapes]:
            one, other = first.shapes.get(name), model.shapes.get(name)
            if one != other:
                here, there = (list(shape) if shape else "absent" for shape in (one, other))
                raise HanseError(f"{model.folder}: another model than {first.folder}: {name} is {there} there and "
                                 f"{here} here")  # fmt: skip
        if differs := disagreements(model.settings, first.settings):
            told = ", ".join(f"{key} is {there} there and {here} here" for key, (there, here) in differs.items())
            raise HanseError(f"{model.folder}: another model than {first.folder}: {told}")
        if None not in (first.tokenizer_sha256, model.tokenizer_sha256) and (
            first.tokenizer_sha256 != model.tokenizer_sha256):  # fmt: skip
            raise HanseError(f"{model.folder}: belongs to another tokenizer than {first.folder} (their sha256 differ)")


def _state(method: str, models: Sequence[Weights], base: Weights | None) -> dict[str, Any]:
    """``state.json`` of the result: that of the base or the first input, with the steps and tokens of all.

    Of what sites trained on their own, each from the base, the tokens add up; else the largest stand for all.
    """
    first = base or models[0]
    known = [model.facts for model in models if model.facts]
    state = {key: value for key, value in first.facts.items() if key not in ("bits_per_byte", "format", "files")}
    usual = {"step": 0, "consumed_samples": 0, "consumed_tokens": 0, "precision": "fp32", "wall_seconds": 0.0,
             "data_merkle_root": "", "seed": 0, "ranks": 1, "zero_stage": 1}  # fmt: skip
    state = {**usual, **{key: state[key] for key in usual if key in state}, "engine": {}, "model": first.settings}
    state["tokenizer_sha256"] = next((one.tokenizer_sha256 for one in (first, *models) if one.tokenizer_sha256), "")
    for key in ("step", *SUMMED):
        values = [facts.get(key, 0) for facts in known] or [0]
        outer_step = method == "diloco"
        most = sum(values) if outer_step and key in SUMMED else max(values)
        state[key] = most + (state[key] if outer_step else 0)
    return state


def _copy_config(partial: Path, first: Weights, models: Sequence[Weights]) -> dict[str, dict[str, Any]]:
    """Take along the configuration of the run, where an input lies in one: export, generate and verify read it."""
    for model in (first, *models):
        folder = model.folder.resolve()
        for path in (folder / "config.yaml", folder.parents[1] / "config.yaml"):
            if path.is_file() and (path.parent == folder or folder.parent.name == "checkpoints"):
                copy = partial / "config.yaml"
                shutil.copyfile(path, copy)
                return {copy.name: {"bytes": copy.stat().st_size, "sha256": sha256_file(copy)}}
    return {}
