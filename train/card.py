"""The model card: ``README.md`` in Markdown, with the metadata that the Hugging Face Hub reads at its head.

``hanse export`` writes one of what is known of the model, and nothing else. ``hanse papers`` fills the same card from
the evidence of the whole lineage, and adds sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from common.files import read_json
from common.terminal import count, many
from train.config import TrainConfig
from train.data_table import corpus_of, data_table
from train.evaluations import card_section
from train.order import stage_draws, windows_of
from train.pools import language_of
from train.run_folder import RunFolder, read_metrics
from train.trained import Trained

TEMPLATES = PackageLoader("train", "templates")
TASK = "text-generation"


@dataclass(frozen=True)
class LanguageRow:
    """The training data of a language; ``share`` is that of the tokens, written with %."""

    language: str
    documents: int
    bytes: int
    tokens: int
    share: str
    license: str | None


@dataclass(frozen=True)
class Score:
    """Bits per byte of validation text, and those of the unigram model."""

    language: str
    bits_per_byte: float
    unigram: float | None = None


@dataclass(frozen=True)
class Card:
    """Everything that the template shows.

    Attributes:
        made_by: version of hanse; ``dtype``: of the weights; ``differences``: {language: largest of a logit} between
            exported and trained model. The last two are None where nothing was exported.
        tokens_per_step, sequence_length: of the first stage; ``later``: of the others, in words; ``longest``: sequence.
        engine: how it was computed, in words; ``end_of_document``: the token; None where the tokenizer is not here.
        continued: what it was trained on from, in words; empty if from random weights.
        identities: {what: hash}.
        license: SPDX identifier or ``other``; None where nobody said.
        front: further metadata of the head, as :class:`huggingface_hub.ModelCardData` names it.
        sections: {title: Markdown}, before the last section.
    """

    name: str
    parameters: int
    architecture: str
    made_by: str
    consumed_tokens: int
    step: int
    steps: int
    languages: list[LanguageRow]
    scores: list[Score]
    engine: str
    optimizer: str
    learning_rate: float
    tokens_per_step: int
    sequence_length: int
    later: str
    longest: int
    identities: dict[str, str]
    end_of_document: str | None = None
    dtype: str | None = None
    differences: dict[str, float] | None = None
    transformers: str | None = None
    continued: str = ""
    license: str | None = None
    front: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)


def render(card: Card) -> str:
    """The card's text."""
    environment = Environment(loader=TEMPLATES, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    environment.filters["cell"] = cell
    largest = f"{max((card.differences or {}).values(), default=0.0):.1e}"
    template = environment.get_template("model_card.md.j2")
    return template.render(card=card, front=_front(card), count=count, largest_difference=largest)


def cell(value: object) -> str:
    """Text for a cell of a Markdown table: on one line, with nothing that ends the cell."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _front(card: Card) -> str:
    """The metadata as YAML, with a result for each language."""
    results = [
        EvalResult(task_type=TASK, dataset_type="validation", dataset_name="validation split of the training corpus",
                   dataset_config=score.language, metric_type="bits_per_byte", metric_value=score.bits_per_byte)
        for score in card.scores
    ]  # fmt: skip
    data = ModelCardData(
        language=[row.language for row in card.languages], library_name="transformers", pipeline_tag=TASK,
        tags=["hanse"], license=card.license, eval_results=results or None,
        model_name=card.name if results else None, **card.front,
    )  # fmt: skip
    return data.to_yaml()


def card(trained: Trained, provenance: Mapping[str, Any]) -> str:
    """The card of an export; ``provenance`` is what ``hanse.json`` says (:func:`train.export.export`)."""
    config = trained.config
    rows = data_table(trained.shards, corpus_of(trained.shards))
    shares = _shares(trained, {row.language: row.training_tokens for row in rows})
    return render(Card(
        name=config.name,
        parameters=provenance["parameters"],
        architecture=trained.model_config.model_type,
        made_by=provenance["tools"]["hanse"],
        consumed_tokens=provenance["consumed_tokens"],
        step=trained.step,
        steps=config.steps,
        languages=[LanguageRow(row.language, row.training_documents, row.training_bytes, row.training_tokens,
                               shares[row.language], row.license) for row in rows],
        scores=scores(trained.folder, trained.step),
        engine=f"DeepSpeed ZeRO-{config.engine.zero_stage}, {trained.checkpoint.state['precision']}, "
        f"{many(trained.checkpoint.state['ranks'], 'rank')}",
        optimizer=config.optimizer.title,
        learning_rate=config.optimizer.learning_rate,
        **sizes(config),
        identities={
            f"checkpoint `{provenance['checkpoint']}`, Merkle root": provenance["checkpoint_merkle_root"],
            "token shards, Merkle root": provenance["data_merkle_root"],
            "corpus, Merkle root": provenance["corpus_merkle_root"],
            "tokenizer.json, sha256": provenance["tokenizer_sha256"],
        },
        end_of_document=trained.tokenizer.id_to_token(trained.shards.end_of_document_id),
        dtype=provenance["dtype"],
        differences=provenance["max_abs_logit_difference"],
        transformers=provenance["tools"]["transformers"],
        sections={"Tasks": tasks} if (tasks := card_section(trained.folder, trained.step)) else {},
    ))  # fmt: skip


def sizes(config: TrainConfig) -> dict[str, Any]:
    """What :class:`Card` tells of a step."""
    first, *others = config.timeline
    later = [f"then ({one.name}) {one.tokens_per_step:,} in sequences of {one.length:,}" for one in others]
    return {"tokens_per_step": first.tokens_per_step, "sequence_length": first.length, "later": ", ".join(later),
            "longest": max(stage.length for stage in config.timeline)}  # fmt: skip


def _shares(trained: Trained, tokens: Mapping[str, int]) -> dict[str, str]:
    drawn = stage_draws(trained.config, windows_of(trained.shards, trained.config.data.packing), trained.config.steps)
    weighed = dict.fromkeys(tokens, 0.0)
    for stage, piece, _ in drawn:
        for name, weight in piece.weights.items():
            weighed[language_of(name)] += stage.tokens * weight / sum(piece.weights.values())
    total = sum(weighed.values())
    return {language: f"{weighed[language] / total:.1%}" for language in tokens}


def scores(folder: RunFolder, step: int) -> list[Score]:
    """What a run was validated at, after ``step`` steps; empty if it was not."""
    records = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    found = [record["evaluation"] for record in records if "evaluation" in record and record["step"] == step]
    path = folder.path / "summary.json"
    baselines = read_json(path, "summary").get("languages", {}) if path.is_file() else {}
    return [Score(language, score["bits_per_byte"], baselines.get(language, {}).get("unigram_bits_per_byte"))
            for language, score in (found[-1] if found else {}).items()]  # fmt: skip
