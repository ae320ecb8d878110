"""The model card of an export: what is known of the model, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.files import read_json
from common.terminal import count
from train.data_table import corpus_of, data_table
from train.run_folder import read_metrics
from train.trained import Trained

TEMPLATES = PackageLoader("train", "templates")


def card(trained: Trained, provenance: Mapping[str, Any]) -> str:
    """``README.md`` in Markdown with the metadata that the Hugging Face Hub reads.

    ``provenance`` is what ``hanse.json`` says (:func:`train.export.write_papers`).
    """
    config = trained.config
    rows = data_table(trained.shards, corpus_of(trained.shards))
    environment = Environment(loader=TEMPLATES, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.get_template("model_card.md.j2").render(
        **provenance,
        name=config.name,
        count=count,
        architecture=trained.model_config.model_type,
        languages=rows,
        shares=_shares(trained, {row.language: row.training_tokens for row in rows}),
        steps=config.steps,
        learning_rate=config.optimizer.learning_rate,
        tokens_per_step=f"{config.tokens_per_step:,}",
        sequence_length=config.data.sequence_length,
        zero=f"DeepSpeed ZeRO-{config.engine.zero_stage}, {trained.checkpoint.state['precision']}, "
        f"{trained.checkpoint.state['ranks']} ranks",
        end_of_document=trained.tokenizer.id_to_token(trained.shards.end_of_document_id),
        scores=_scores(trained),
        largest_difference=f"{max(provenance['max_abs_logit_difference'].values(), default=0.0):.1e}",
    )


def _shares(trained: Trained, tokens: Mapping[str, int]) -> dict[str, str]:
    weights = trained.config.data.mixture or tokens
    total = sum(weights.values())
    return {language: f"{weights.get(language, 0) / total:.1%}" for language in tokens}


def _scores(trained: Trained) -> list[tuple[str, str, str]]:
    """(language, bits per byte, those of the unigram model) if the run was validated at the checkpoint's step."""
    records = read_metrics(trained.folder.metrics) if trained.folder.metrics.is_file() else []
    found = [record["evaluation"] for record in records if "evaluation" in record and record["step"] == trained.step]
    path = trained.folder.path / "summary.json"
    baselines = read_json(path, "summary").get("languages", {}) if path.is_file() else {}
    return [
        (language, f"{score['bits_per_byte']:.3f}", _number(baselines.get(language, {}).get("unigram_bits_per_byte")))
        for language, score in (found[-1] if found else {}).items()
    ]


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"
