"""When the same weights are the same model: which settings must agree, and a model's settings taken from weights.

Shapes do not show how positions are rotated (a Llama 3.1 with the frequencies of Llama 3 trains, wrongly, without a
word), what keeps a norm from dividing by 0, or how far a window slides. So of a ``transformers`` configuration every
setting must agree that is not known to leave untouched what given weights compute. Both are completed by their class
first: what an older file calls ``rope_theta`` and ``rope_scaling`` is part of ``rope_parameters`` then, and what a file
does not say has the class' default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from common.errors import ConfigError, HanseError
from common.files import read_json
from train.config import TrainConfig
from train.init_config import FROM_CHECKPOINT
from train.run_folder import RunFolder

# Settings that change nothing of what weights compute: the vocabulary, whose matrices have shapes, how weights are
# drawn and trained, and what transformers has made others of (layer_types, sliding_window, no_rope_layers).
FREE = frozenset({
    "vocab_size", "initializer_range", "use_cache", "pretraining_tp", "max_position_embeddings", "max_window_layers",
    "use_sliding_window", "_sliding_window_pattern", "no_rope_layer_interval", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise",
})  # fmt: skip
FREE_ENDINGS = ("_token_id", "dropout", "pdrop")
UNTOLD = (*PretrainedConfig().to_dict(), "torch_dtype", "auto_map", "quantization_config")  # of every model or of none
GROWING = ("dynamic", "longrope", "yarn")  # rotary embeddings that may depend on max_position_embeddings


def disagreements(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{setting: (there, here)} of those by which the same weights would compute something else; dotted where nested.

    ``there`` and ``here`` are configurations of ``transformers`` models; of an empty one nothing is known.

    Raises:
        HanseError: one of them is no configuration of its model.
    """
    if not there or not here:
        return {}
    kinds = there.get("model_type"), here.get("model_type")
    if kinds[0] != kinds[1]:
        return {"model_type": kinds}
    theirs, ours = (dict(_leaves(completed(one))) for one in (there, here))
    grows = any(values.get(key) in GROWING for values in (theirs, ours) for key in values if key.endswith("rope_type"))
    free = FREE - {"max_position_embeddings"} if grows else FREE
    return {key: (theirs.get(key), ours.get(key)) for key in dict.fromkeys((*theirs, *ours))
            if key not in free and not key.endswith(FREE_ENDINGS) and theirs.get(key) != ours.get(key)}  # fmt: skip


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a model that its class knows, as the class has completed and normalised them.

    Raises:
        HanseError: they are no configuration of its model.
    """
    kind = settings.get("model_type")
    told = {key: value for key, value in settings.items() if key not in UNTOLD}
    try:
        known = AutoConfig.for_model(str(kind)).to_dict()
        found = AutoConfig.for_model(str(kind), **told).to_dict()
    except Exception as error:  # transformers validates with exceptions of many types
        raise HanseError(
            f"not a configuration of a transformers model ({' '.join(str(error).split())[:200]})"
        ) from None
    found = {key: value for key, value in found.items() if key in known and key not in UNTOLD}
    if "head_dim" in found and found["head_dim"] is None:
        found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


def with_model_of_weights(config: TrainConfig) -> TrainConfig:
    """``model=from_checkpoint``: the same configuration with the architecture and settings of ``init_from``'s model.

    What ``model.settings`` says nevertheless is changed on purpose. A run that goes on and no longer has these weights
    keeps the model it has.

    Raises:
        HanseError: the folder tells no model, or what comes out is wrong in some other way.
    """
    if config.model.architecture != FROM_CHECKPOINT:
        return config
    folder, run = Path(str(config.init_from)), RunFolder(config.run)
    if not folder.is_dir() and run.config.is_file():
        before = run.read_config().model
        return replace(config, model=replace(before, attention=config.model.attention))
    try:
        told = _told(folder)
        theirs = completed(told)
    except HanseError as error:
        raise HanseError(f"model=from_checkpoint, init_from={folder}: {error}") from None
    rows = int(theirs.pop("vocab_size"))
    usual = AutoConfig.for_model(str(told["model_type"])).to_dict()  # null says something where the class says another
    settings = {key: value for key, value in theirs.items()
                if (value, usual[key]) != (None, None) and not key.endswith("_token_id")}  # fmt: skip
    model = replace(config.model, architecture=str(told["model_type"]), vocabulary_size=rows,
                    settings=_over(settings, config.model.settings),
                    vocabulary_multiple=config.model.vocabulary_multiple if config.init_tokenizer else rows,
                    )  # fmt: skip
    changes = [*config.init_changes, *(key for key in config.model.settings if key not in config.init_changes)]
    found = replace(config, model=model, init_changes=changes)
    if problems := found.problems():
        raise ConfigError(problems)
    return found


def _told(folder: Path) -> dict[str, Any]:
    """The configuration of the model whose weights lie in a folder, ours or a Hugging Face one."""
    ours = (folder / "manifest.json").is_file()
    file = folder / ("state.json" if ours else "config.json")
    if not file.is_file():
        raise HanseError(f"has no {file.name}, which would tell the model")
    told = read_json(file, "configuration of a model")
    told = told.get("model") if ours and isinstance(told, dict) else told
    if not isinstance(told, dict) or "model_type" not in told:
        raise HanseError(f"{file.name} names no model_type")
    return told


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, one laid over the other."""
    both = {key: _over(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
            else value for key, value in above.items()}  # fmt: skip
    return {**below, **both}
