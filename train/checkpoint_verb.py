"""``hanse checkpoint``: what a checkpoint holds, whether every bit of it is right, and the same in another layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from common.errors import ConfigError, HanseError
from common.files import PARTIAL
from common.folders import replaced_folder, restore
from common.terminal import count, many, next_step, say, table
from train import universal
from train.checkpoint import DAMAGED, KEY, Checkpoint
from train.checkpoint_config import CheckpointVerbConfig
from train.megatron_files import MegatronFiles, megatron_folder, open_megatron
from train.run_folder import RunFolder
from train.universal import Universal, universal_folder, write_universal
from train.weights import HubWeights, Weights, open_weights

LAYER = re.compile(r"\.\d+\.")
MEGATRON_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")


def run(config: CheckpointVerbConfig) -> None:
    """Look at the folder, whatever kind it is, or convert it."""
    folder = Path(config.folder)
    if config.action == "convert":
        convert(config, folder)
    elif (folder / "checkpoints").is_dir():
        every_of_run(RunFolder(folder), check=config.action == "check")
    elif isinstance(theirs := of_others(folder), Universal):
        show_universal(theirs, check=config.action == "check")
    elif theirs:
        show_megatron(theirs, check=config.action == "check")
    elif (folder / "manifest.json").is_file():
        show(Checkpoint(folder), check=config.action == "check")
    else:
        weights = open_weights(folder)
        assert isinstance(weights, HubWeights)
        show_hub(weights, check=config.action == "check")


def of_others(folder: Path) -> Universal | MegatronFiles | None:
    """The checkpoint of DeepSpeed or Megatron that a folder is; None: it is neither.

    Raises:
        HanseError: it is one, and damaged.
    """
    if universal_folder(folder):
        return Universal(folder)
    found = megatron_folder(folder)
    return open_megatron(found) if found else None


# --- what it holds --------------------------------------------------------------------------------------------------


def every_of_run(folder: RunFolder, *, check: bool) -> None:
    """A line a checkpoint of a run; ``check``: each is looked into.

    Raises:
        HanseError: there is none, or one of them is damaged (all were looked at).
    """
    found = folder.find_checkpoints()
    if not found:
        raise HanseError(f"{folder.checkpoints}: no complete checkpoint here; 'hanse train' writes one")
    rows, damage = [], []
    for step, path in found.items():
        try:
            one = Checkpoint(path)
            if check:
                one.verify()
                measure(one)
            rows.append([path.name, *_line(one), "sound" if check else "complete"])
        except HanseError as error:
            damage.append(str(error))
            rows.append([path.name, f"{step:,}", "", "", "", "", "DAMAGED"])
    table(str(folder.path), ["checkpoint", "step", "tokens", "bits a byte", "written by", "size", ""], rows)
    for ending, what in ((DAMAGED, "set aside, its hashes were not those of its manifest"),
                         (PARTIAL, "half written; the next start of the run sweeps it")):  # fmt: skip
        for path in sorted(folder.checkpoints.glob(f"*{ending}")):
            say(f"{path.name}: {what}")
    if damage:
        raise HanseError("\n  ".join(damage))
    next_step(f"hanse checkpoint folder={list(found.values())[-1]}{' action=check' if check else ''}")


def _line(one: Checkpoint) -> list[str]:
    scores = one.state.get("bits_per_byte") or {}
    mean = f"{sum(scores.values()) / len(scores):.4f}" if scores else ""
    return [f"{one.state['step']:,}", f"{one.state.get('consumed_tokens', 0):,}", mean, _layout(one.state),
            count(_size(one), "B")]  # fmt: skip


def _layout(state: Mapping[str, Any]) -> str:
    if "ranks" not in state:
        return "unknown"
    return f"{many(state['ranks'], 'rank')}, ZeRO {state.get('zero_stage', '?')}"


def _size(one: Checkpoint) -> int:
    return sum(int(entry["bytes"]) for entry in one.files.values())


def show(one: Checkpoint, *, check: bool) -> None:
    """A checkpoint of ours; ``check``: also its hashes and numbers.

    Raises:
        HanseError: it is damaged, or holds a number that no training goes on from.
    """
    optimizer = one.slices("optimizer")
    one.slices("model")
    states: dict[str, list[str]] = {}
    for name, _, key in (name.rpartition(".") for name in optimizer):
        states.setdefault(name, []).append(key)
    keys = sorted({key for found in states.values() for key in found})
    facts = {"format": one.manifest["format"], **_facts(one.state, one.shapes)}
    facts["optimizer"] = f"{', '.join(keys)} after {many(_updates(one.state), 'update')}" if keys else (
        "none: a run begins with these weights (init_from), and cannot go on from them")  # fmt: skip
    facts["parents"] = "; ".join(f"{p['role']} {p['manifest_sha256'][:16]}..." for p in one.parents) or "none"
    facts["Merkle root"] = str(one.manifest["merkle_root"])
    facts["size"] = f"{count(_size(one), 'B')} in {many(len(one.files) + 1, 'file')}"
    _tell(one.folder, facts)
    if check:
        one.verify()
        _table_of_values(measure(one))
        say(f"sound: {len(one.files)} hashes are those of the manifest, every tensor is whole, every number is finite")
        for name in one.strays():
            say(f"not of this checkpoint: its manifest does not name {name}, and nothing here reads it")
    else:
        _table_of_shapes(one.shapes, states)
        next_step(f"hanse checkpoint folder={one.folder} action=check")


def _amount(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{count(sum(map(math.prod, shapes.values())))} parameters in {many(len(shapes), 'tensor')}"


def _updates(state: Mapping[str, Any]) -> int:
    return int(state["step"]) - int(state.get("engine", {}).get("skipped_updates", 0))


def _facts(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """What a state says, for people."""
    model, skipped = state["model"], state.get("skipped_samples") or []
    gone_past = f", {many(len(skipped), 'range')} gone past" if skipped else ""
    facts = {
        "step": f"{state['step']:,}",
        "order of data": f"goes on with sample {state['consumed_samples']:,}{gone_past}",
        "tokens": f"{state['consumed_tokens']:,}" if "consumed_tokens" in state else "unknown",
        "model": f"{model.get('model_type')}, {_amount(shapes)}, fp32; forward in {state['precision']}",
        "written by": _layout(state) + "; any other layout reads it",
        "data": f"Merkle root {str(state['data_merkle_root'])[:16]}..., tokenizer "
        f"{str(state['tokenizer_sha256'])[:16]}...",
    }
    scores = state.get("bits_per_byte") or {}
    if scores:
        each = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        facts["bits a byte"] = f"{sum(scores.values()) / len(scores):.4f} ({each})"
    return facts


def show_universal(one: Universal, *, check: bool) -> None:
    """A universal checkpoint of DeepSpeed."""
    hashed = one.verify() if check else 0
    written = f"DeepSpeed {one.states.get('ds_version')}" if one.ours is None else "hanse checkpoint action=convert"
    updates = many(one.step - one.skipped, "update")
    facts = {"format": "DeepSpeed universal checkpoint", "written by": written,
             "step": f"{one.step:,}, of which {one.skipped:,} changed nothing", "samples": f"{one.samples:,}",
             "model": f"{_amount(one.shapes)}, fp32; forward in {one.precision}",
             "optimizer": f"{', '.join(universal.PARTS[1:])} after {updates}"}  # fmt: skip
    _tell(one.folder, facts)
    if check:
        rows = [Values.of(name, part, one.read(name, part)) for name in one.shapes for part in universal.PARTS]
        _table_of_values(rows)
        hashes = f"{hashed} hashes are those of {universal.MANIFEST}" if hashed else "it comes without hashes"
        say(f"sound: {hashes}, every tensor is whole, every number is finite")
    else:
        _table_of_shapes(one.shapes, {name: list(universal.PARTS[1:]) for name in one.shapes})
        next_step(f"hanse checkpoint folder={one.folder} action=convert output=...")


def show_megatron(one: MegatronFiles, *, check: bool) -> None:
    """A checkpoint of Megatron."""
    from train.megatron import told_by_us, verify  # which brings transformers

    if check:
        verify(one)
    args, places = one.args, many(one.left_out, "place")
    sizes = ", ".join(f"{key} {args[key]}" for key in MEGATRON_SIZES if args.get(key))
    facts = {"format": f"Megatron checkpoint, {one.kind}", "step": f"{one.iteration:,}",
             "samples": f"{args.get('consumed_train_samples') or 0:,}",
             "model": _amount(one.tensors),
             "arguments": sizes or "none that tell a model: set model_folder=... to convert it",
             "left out": f"state of an optimizer, in {places}" if one.left_out else "nothing"}  # fmt: skip
    _tell(one.folder, facts)
    if check:
        _table_of_values([Values.of(name, "weights", one.read(name).reshape(-1)) for name in one.tensors])
        hashes = f"{len(one.files)} hashes are those of {universal.MANIFEST}" if told_by_us(one) else "it has no hashes"
        say(f"sound: {hashes}, every tensor is whole, every number is finite")
    else:
        _table_of_shapes(one.tensors, {})
        next_step(f"hanse checkpoint folder={one.folder} action=convert output=...")


def show_hub(one: HubWeights, *, check: bool) -> None:
    """Weights in a Hugging Face folder."""
    hashes = one.verify() if check else {}
    facts = {"format": "Hugging Face folder, weights alone", "model": f"{one.settings.get('model_type')}, "
             f"{_amount(one.shapes)}", "files": ", ".join(one.files)}  # fmt: skip
    if hashes:
        facts["identity"] = one.identity(hashes)
    _tell(one.folder, facts)
    if check:
        _table_of_values([Values.of(name, "weights", _whole(one, name)) for name in one.shapes])
    else:
        _table_of_shapes(one.shapes, {})
        next_step(f"hanse train init_from={one.folder} ...")


def _whole(weights: Weights, name: str) -> Tensor:
    out = torch.empty(math.prod(weights.shapes[name]))
    weights.read(name, 0, out.numel(), out)
    return out


def _tell(folder: Path, facts: Mapping[str, str]) -> None:
    say(str(folder))
    width = max(map(len, facts))
    for key, value in facts.items():
        say(f"  {key:{width}s}  {value}")


def _table_of_shapes(shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, list[str]]) -> None:
    """Tensors that differ only in their layer are one line; ``states``: what the optimizer keeps of each."""
    lines: dict[tuple[str, tuple[int, ...], str], int] = {}
    for name, shape in shapes.items():
        line = (LAYER.sub(".*.", name), shape, ", ".join(states.get(name, [])))
        lines[line] = lines.get(line, 0) + 1
    rows = [[pattern, str(number), " x ".join(map(str, shape)), f"{number * math.prod(shape):,}", kept]
            for (pattern, shape, kept), number in lines.items()]  # fmt: skip
    rows.append(["all", str(len(shapes)), "", f"{sum(map(math.prod, shapes.values())):,}", ""])
    table("", ["tensor", "tensors", "shape", "elements", "optimizer"], rows, total=True)


# --- whether it is right --------------------------------------------------------------------------------------------


@dataclass
class Values:
    """Numbers of a range of a tensor, or of many: what damage or a training gone wrong shows in.

    Attributes:
        name: of the parameter; ``part``: ``weights``, or a key of the optimizer's state.
        elements, squares, largest: how many, the sum of their squares, the largest absolute value.
    """

    name: str
    part: str
    elements: int
    squares: float
    largest: float

    @classmethod
    def of(cls, name: str, part: str, values: Tensor) -> Values:
        """Measure.

        Raises:
            HanseError: a number is not finite, or a mean of squares is negative.
        """
        values = values.double()
        if not bool(torch.isfinite(values).all()):
            raise HanseError(f"{name}: its {part} hold {int((~torch.isfinite(values)).sum()):,} numbers that are not "
                             "finite; go on from an earlier checkpoint")  # fmt: skip
        if part == "exp_avg_sq" and bool((values < 0).any()):
            raise HanseError(f"{name}: its exp_avg_sq, a mean of squares, is negative; go on from an earlier "
                             "checkpoint")  # fmt: skip
        largest = float(values.abs().max()) if len(values) else 0.0
        return cls(name, part, len(values), float(values.square().sum()), largest)


def measure(one: Checkpoint) -> list[Values]:
    """Read every number of a checkpoint, a range at a time.

    Raises:
        HanseError: it is not whole, or a number is not finite.
    """
    one.slices("model"), one.slices("optimizer")
    found = []
    for file in sorted(name for name in one.files if name.endswith(".safetensors")):
        with safe_open(one.folder / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no dictionary)
                match = KEY.fullmatch(key)
                assert match, "slices() has looked at every key"
                name, part = match["name"], "weights"
                if not file.startswith("model/"):
                    name, _, part = name.rpartition(".")
                found.append(Values.of(name, part, tensors.get_tensor(key)))
    return found


def _table_of_values(found: Iterable[Values]) -> None:
    """Root mean squares, and the largest weight, of every kind of tensor over its layers."""
    lines: dict[str, dict[str, list[Values]]] = {}
    for one in found:
        part = "weights" if one.part == "fp32" else one.part
        lines.setdefault(LAYER.sub(".*.", one.name), {}).setdefault(part, []).append(one)
    parts = sorted({part for kinds in lines.values() for part in kinds}, key=lambda part: (part != "weights", part))
    rows = []
    for name, kinds in lines.items():
        largest = max(one.largest for one in kinds["weights"])
        rows.append([name, f"{largest:.2e}", *(_root_mean_square(kinds.get(part, [])) for part in parts)])
    table("", ["tensor", "largest weight", *(f"{part}, rms" for part in parts)], rows)


def _root_mean_square(values: list[Values]) -> str:
    elements = sum(one.elements for one in values)
    return f"{math.sqrt(sum(one.squares for one in values) / elements):.2e}" if elements else ""


# --- another layout -------------------------------------------------------------------------------------------------


def convert(config: CheckpointVerbConfig, folder: Path) -> None:
    """Write a checkpoint of ours as a universal one of DeepSpeed or one of Megatron, or the other way round."""
    output = Path(str(config.output))
    restore(output)
    theirs = of_others(folder)
    if theirs and config.layout:
        raise ConfigError([f"layout={config.layout}: {folder} is none of ours, and becomes one; leave it out"])
    if theirs:
        _to_ours(config, theirs, output)
    elif config.layout == "megatron":
        _to_megatron(folder, output)
    else:
        _to_universal(folder, output)
    next_step(f"hanse checkpoint folder={output} action=check")


def _to_ours(config: CheckpointVerbConfig, source: Universal | MegatronFiles, output: Path) -> None:
    if isinstance(source, Universal):
        from train.convert import from_universal  # which brings transformers

        step = from_universal(source, output, config)
        say(f"wrote {output} (step {step:,}): every number is the one in {source.folder}")
        return
    from train.megatron import from_megatron

    state = from_megatron(source, output, config)
    if source.left_out:
        say("left out: the state of the optimizer; a run begins with these weights, and cannot go on from them")
    if not state["tokenizer_sha256"]:
        say("nothing tells the tokenizer: train with the one these weights know (shards=... writes down which it is)")
    say(f"wrote {output} (step {state['step']:,}, weights alone): every number is the one in {source.folder}")
    say(f"  hanse train init_from={output} model=from_checkpoint ...")


def _to_megatron(folder: Path, output: Path) -> None:
    from train import megatron

    weights = open_weights(folder)
    weights.verify()
    with replaced_folder(output, megatron.FORMAT, megatron.MANIFEST) as partial:
        step = megatron.to_megatron(weights, partial)
    say("left out: all but the weights")
    say(f"wrote {output} (iteration {step:,}, torch_dist), for any tensor and pipeline parallelism:")
    say(f"  --load {output} --use-checkpoint-args --ckpt-format torch_dist")


def _to_universal(folder: Path, output: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise HanseError(f"{folder}: neither a checkpoint of hanse nor a universal one of DeepSpeed nor one of "
                         "Megatron; weights alone need no conversion: init_from reads them, 'hanse export' writes them "
                         "(layout=megatron takes them, too)")  # fmt: skip
    one = Checkpoint(folder)
    one.verify()
    with replaced_folder(output, universal.FORMAT, universal.MANIFEST) as partial:
        write_universal(one, partial)
    if any(name.startswith("ema/") for name in one.files):
        say("left out: the average of the weights, for which DeepSpeed has no place")
    say(f"wrote {output} (step {one.state['step']:,}), for any number of ranks at ZeRO stage 1, 2 or 3:")
    say('  deepspeed.initialize(..., config={"checkpoint": {"load_universal": true}}, ...); '
        f"engine.load_checkpoint({str(output)!r})")  # fmt: skip
