"""What the papers of the runs tell: the model, how it was trained, what it cost to compute."""

from __future__ import annotations

import math
from typing import Any

from consortium.dossier import cost
from consortium.dossier.evidence import Evidence
from consortium.dossier.forms import band_of
from consortium.dossier.lineage import Lineage, Segment
from consortium.dossier.rounding import significant
from train.config import TrainConfig
from train.run_folder import read_metrics

SYSTEMIC_FLOPS = 1e25  # Art. 51(2): presumed to be a systemic risk
USED = ("transformers", "tokenizers", "torch", "safetensors")  # distributions that whoever runs the model meets
DESIGN = {  # keys of a transformers configuration: what people call them
    "num_hidden_layers": "layers", "hidden_size": "hidden size", "intermediate_size": "feed-forward size",
    "num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads", "head_dim": "head size",
    "hidden_act": "activation", "vocab_size": "vocabulary", "max_position_embeddings": "context length",
    "tie_word_embeddings": "tied embeddings",
}  # fmt: skip


def tell(evidence: Evidence, lineage: Lineage) -> None:
    """Everything that does not need the data."""
    _identity(evidence, lineage)
    _model(evidence, lineage.head)
    _training(evidence, lineage)
    _software(evidence, lineage)
    _tokens(evidence, lineage)
    _compute(evidence, lineage)
    _evaluation(evidence, lineage.head)


def _identity(evidence: Evidence, lineage: Lineage) -> None:
    head, root = lineage.head, lineage.head.checkpoint.manifest["merkle_root"]
    where = head.manifest.at("merkle_root")
    evidence.know("model.name", lineage.name, *([head.configuration.at("name")] if head.configuration else []))
    evidence.know("model.version", lineage.version, where)
    evidence.know("model.identifiers", [f"{lineage.name} {lineage.version}"], where)
    evidence.know("model.merkle_root", root, where)
    evidence.know("model.manifest_sha256", head.manifest.sha256, head.manifest.at("whole file"))
    evidence.know("model.authenticity", [
        f"RFC 6962 Merkle root (SHA-256) over all weight files: {root}",
        f"SHA-256 of the checkpoint's manifest.json: {head.manifest.sha256}",
    ], where)  # fmt: skip
    evidence.know("lineage.runs", [
        {"run": one.name, "step": one.step, "tokens": one.tokens, "flops": one.flops, "identity": one.identity}
        for one in lineage.trained
    ], *(one.manifest.at("merkle_root") for one in lineage.segments))  # fmt: skip
    evidence.know("lineage.parents", [dict(one) for one in head.parents], head.manifest.at("parents"))
    evidence.know("lineage.lost", list(lineage.lost))
    keys = ("model.dependencies", "model.dependency_summaries")
    before = [f"{one.name} (step {one.step})" for one in lineage.segments[1:]]
    if lineage.lost:
        lost = ", ".join(lineage.lost)
        evidence.miss(
            keys, f"made from checkpoints not found ({lost}); name where they are: registry=..., parents=[...]"
        )
    elif before:
        told = f"made from {', '.join(before)}; whether one of them was placed on the market as a model of its own"
        evidence.miss(keys, f"{told}, only a person can tell")
    else:
        for key in keys:
            evidence.rule_out(
                key, "trained from random weights in one run", (head.lock or head.manifest).at("parents (none)")
            )


def _model(evidence: Evidence, head: Segment) -> None:
    model, shapes = dict(head.checkpoint.state["model"]), head.checkpoint.shapes
    at = head.state.at("model")
    parameters, where = sum(math.prod(shape) for shape in shapes.values()), head.manifest.at("tensors")
    kind = str((model.get("architectures") or [model["model_type"]])[0])
    context, vocabulary = int(model.get("max_position_embeddings") or 0), int(model["vocab_size"])
    evidence.know("model.config", model, at)
    evidence.know("model.architecture", kind, at)
    evidence.know("model.architecture_text", f"Decoder-only transformer for causal language modelling ({kind}): "
                  f"{model.get('num_hidden_layers')} layers, hidden size {model.get('hidden_size')}, "
                  f"{model.get('num_attention_heads')} attention heads", at)  # fmt: skip
    evidence.know("model.parameters", parameters, where)
    evidence.know("model.size_rounded", f"{significant(parameters)} parameters", where)
    evidence.know("model.size_band", band_of("parameters", parameters), where)
    evidence.know("model.vocabulary_size", vocabulary, at)
    if context:
        text = f"Text as tokens of its tokenizer ({vocabulary:,} entries)"
        evidence.know("model.context_length", context, at)
        evidence.know("model.maximum_size", f"{context:,} tokens, input and output together", at)
        evidence.know("model.input_text", f"{text}; at most {context:,} tokens, output included", at)
        evidence.know("model.output_text", f"{text}, one by one; at most {context:,} tokens, input included", at)
    evidence.miss(("model.maximum_size", "model.input_text", "model.output_text"), "the model names no longest context")
    design = [f"{name}: {_plain(model[key])}" for key, name in DESIGN.items() if model.get(key) is not None]
    evidence.know("model.design", design, at)
    evidence.know("model.design_text", f"{kind}, decoder only; {'; '.join(design)}", at)
    evidence.know("tokenizer.sha256", head.checkpoint.state["tokenizer_sha256"], head.state.at("tokenizer_sha256"))
    evidence.know("data.modalities", ["Text"], at)
    for one in ("image", "audio", "video", "other"):
        evidence.rule_out(f"data.{one}_size", "the model reads and writes text only; it was trained on text only", at)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _training(evidence: Evidence, lineage: Lineage) -> None:
    """How all runs were trained; single settings are those of the model's own run, the latest of a merged model's."""
    runs = [one for one in lineage.trained if one.config and one.configuration]
    if not runs:
        return evidence.miss(("training.method", "training.objective"), "no run folder of this model is here")
    places = [one.configuration.at(key) for one in runs if one.configuration
              for key in ("optimizer", "schedule", "batch", "data")]  # fmt: skip
    lines = ["Self-supervised pre-training: next-token prediction on packed sequences; attention stays inside each "
             "document"]  # fmt: skip
    for one in runs:
        before = f"{one.name}: " if len(runs) > 1 else ""
        lines += [before + line for line in _recipe(one)]
    if not lineage.head.trained:
        merged = ", ".join(
            f"{parent.get('role')} {str(parent['manifest_sha256'])[:12]}" for parent in lineage.head.parents
        )
        lines.append(f"Weights merged ({lineage.head.checkpoint.manifest.get('method', 'average')}) from {merged}")
        places.append(lineage.head.manifest.at("parents"))
    evidence.know("training.method", lines, *places)
    head = runs[0]
    assert head.config
    assert head.configuration
    config, at = head.config, head.configuration.at
    evidence.know("training.objective", "Cross-entropy of the next token (negative log-likelihood), averaged over the "
                  "tokens of each step; a document's first token is nobody's next token", at("model"))  # fmt: skip
    evidence.know("training.optimizer", config.optimizer.facts(), at("optimizer"))
    evidence.know("training.schedule", dict(vars(config.schedule)), at("schedule"))
    evidence.know("training.mixture", dict(config.data.mixture), at("data.mixture"))
    evidence.know("training.sequence_length", config.data.sequence_length, at("data.sequence_length"))
    evidence.know("training.global_batch_size", config.batch.global_batch_size, at("batch.global_batch_size"))
    evidence.know("training.seed", config.seed, at("seed"))
    evidence.know("training.determinism", config.determinism, at("determinism"))
    evidence.know("training.steps", head.step, head.state.at("step"))
    evidence.know("training.precision", head.checkpoint.state["precision"], head.state.at("precision"))


def _recipe(segment: Segment) -> list[str]:
    config = segment.config
    assert config
    optimizer, schedule, line = config.optimizer, config.schedule, config.timeline
    taken = [(stage, tokens) for stage, tokens in line.taken(segment.step) if tokens]
    sizes = "; then ".join(
        f"{f'{stage.name} ({tokens:,} tokens): ' if stage.name else ''}Sequences of {stage.length:,} tokens, "
        f"{stage.size:,} sequences ({stage.tokens_per_step:,} tokens) an optimizer step" for stage, tokens in taken
    )  # fmt: skip
    decayed = "all others" if schedule.decay_fraction == 1 else f"the last {schedule.decay_fraction:.0%}"
    return [
        f"{sizes}; {segment.step:,} steps",
        f"{optimizer.title}: peak learning rate {optimizer.learning_rate:g}, "
        f"betas {' and '.join(map(str, optimizer.betas))}, weight decay {optimizer.weight_decay:g}, "
        f"gradients clipped at norm {optimizer.gradient_clipping:g}",
        f"Schedule: {schedule.warmup_steps} steps of warmup, decay ({schedule.decay}) over {decayed} of "
        f"{config.steps:,} steps",
        f"Data mixture: {_mixture(config)}",
    ]


def _mixture(config: TrainConfig) -> str:
    total = sum(config.data.mixture.values())
    shares = ", ".join(f"{name} {weight / total:.1%}" for name, weight in config.data.mixture.items())
    rules = {"proportional": "each language in proportion to its tokens",
             "temperature": f"each language in proportion to its tokens to the power of 1/{config.data.temperature:g}",
             "unimax": f"UniMax, at most {config.data.max_epochs:g} epochs of any language"}  # fmt: skip
    return shares or rules[config.data.mixture_rule]


def _software(evidence: Evidence, lineage: Lineage) -> None:
    head = next((one for one in lineage.segments if one.lock), lineage.head)
    if not head.lock:
        evidence.miss(("software.use", "software.versions", "software.code"), "no run has a run.lock.json")
        return
    lock = head.lock.content
    versions = {name: str(told).partition(" ")[0] for name, told in lock["distributions"].items()}
    used = [f"{name} {versions[name]}" for name in USED if name in versions]
    evidence.know("software.versions", versions, head.lock.at("distributions"))
    evidence.know("software.use", [f"Python {lock['python']}", *used], head.lock.at("distributions"))
    evidence.know("software.code", lock["code"], head.lock.at("code"))


def _tokens(evidence: Evidence, lineage: Lineage) -> None:
    citations = [one for segment in lineage.trained for one in segment.cite_tokens()]
    keys = ("training.consumed_tokens", "training.tokens_text", "compute.flops")
    if lineage.lost:
        own = f"the model's own run alone: {lineage.head.tokens:,} tokens, {significant(lineage.head.flops)} FLOP"
        evidence.miss(keys, f"the model was also made from what was not found: {', '.join(lineage.lost)}; {own}")
        return
    total = sum(one.tokens for one in lineage.trained)
    evidence.know("training.consumed_tokens", total, *citations)
    evidence.know("training.own_consumed_tokens", lineage.head.tokens, *lineage.head.cite_tokens())
    evidence.know("training.tokens_text", [
        f"{total:,} tokens consumed, over all epochs and all runs of the lineage",
        *(f"{one.name}: {one.step:,} steps, {one.tokens:,} tokens" for one in lineage.trained),
    ], *citations)  # fmt: skip


def _compute(evidence: Evidence, lineage: Lineage) -> None:
    cost.tell(evidence, lineage)
    flops = evidence.plain("compute.flops")
    if flops is None:
        evidence.miss("systemic.none", "the training computation is not known")
    elif flops < SYSTEMIC_FLOPS:
        reason = f"cumulative training computation {significant(flops)} FLOP: below 10^25, from which on Art. 51(2) "
        evidence.rule_out("systemic.none", reason + "presumes a systemic risk", *evidence["compute.flops"].citations)
    else:
        evidence.miss("systemic.none", f"{significant(flops)} FLOP: Art. 51(2) presumes a systemic risk")


def _evaluation(evidence: Evidence, head: Segment) -> None:
    if not head.metrics:
        evidence.miss("evaluation.bits_per_byte", "the run has no metrics.jsonl")
        return
    told = [(number, one["evaluation"]) for number, one in enumerate(read_metrics(head.metrics.path), 1)
            if "evaluation" in one and one["step"] == head.step]  # fmt: skip
    if told:
        number, scores = told[-1]
        found: dict[str, Any] = {name: score["bits_per_byte"] for name, score in scores.items()}
        evidence.know("evaluation.bits_per_byte", found, head.metrics.at(f"line {number}"))
    else:
        evidence.miss("evaluation.bits_per_byte", f"the run was not evaluated at step {head.step}")
