"""``hanse export``: checkpoint -> a Hugging Face folder, believed only after it was loaded and compared.

The folder holds safetensors and JSON, the tokenizer, a short model card (``README.md``), and ``hanse.json``: which
checkpoint it came from, how the comparison went, and the sha256 of every file.
"""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from common.errors import HanseError
from common.files import merkle_root, sha256_file, write_json, write_text
from common.folders import replaced_folder, restore
from common.terminal import count, next_step, say, table
from train.card import card
from train.model import PackedLanguageModel, model_inputs, parameter_counts
from train.stream import MicroBatch, open_sources, pack
from train.trained import Trained, open_trained
from train.verb_config import ExportConfig

FORMAT = "hanse.export/1"
MANIFEST = "hanse.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 1e-5  # of a logit, between the model that was trained and the exported one, both in fp32
COMPARED_WINDOWS = 4  # of validation text, a language
LARGEST_FILE = "5GB"  # a larger model is written as several files
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Difference:
    """How far logits of the exported model are from those of the trained one, on validation text of a language.

    Attributes:
        alone: largest absolute difference, each document on its own in both models.
        packed: the same, but packed with others as in training: a document must not notice its neighbours.
        largest_logit: of the trained model, by absolute value; fp32 itself has a spacing of 1e-7 of that.
        positions: tokens compared, each with the whole vocabulary.
    """

    alone: float
    packed: float
    largest_logit: float
    positions: int

    @property
    def passes(self) -> bool:
        """``packed`` takes another way through attention, so its rounding grows with the logits."""
        return self.alone <= TOLERANCE and self.packed <= TOLERANCE * max(1.0, self.largest_logit)


def run(config: ExportConfig) -> None:
    """Write the folder, compare, and tell where it is."""
    folder = Path(config.output)
    if (Path(config.run) / "manifest.json").is_file() and folder.resolve().is_relative_to(Path(config.run).resolve()):
        raise HanseError(f"output={folder}: lies in a model's folder, which holds what its manifest lists and nothing "
                         "else; set another output=...")  # fmt: skip
    restore(folder)
    disable_progress_bar()
    trained = open_trained(config.run, config.step, config.shards, config.tokenizer, weights=config.weights)
    with replaced_folder(folder, FORMAT, MANIFEST) as partial:
        differences = export(trained, config.dtype, partial, lambda provenance: card(trained, provenance))
        size = sum(path.stat().st_size for path in partial.iterdir())
    if not trained.folder.flat:
        trained.folder.update_summary({"paths": {"export": str(folder)}})
    rows = [
        [name, f"{found.positions:,}", f"{found.alone:.1e}", f"{found.packed:.1e}", f"{found.largest_logit:.1f}"]
        for name, found in differences.items()
    ]
    table(f"largest difference of a logit, exported ({config.dtype}) to trained model",
          ["language", "tokens", "document alone", "packed as in training", "largest logit"], rows)  # fmt: skip
    say(f"wrote {folder}/ (step {trained.step}, {config.dtype}{_which(trained)}, {count(size, 'B')}): "
        f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")  # fmt: skip
    reports = () if trained.folder.flat else (f"hanse report run={config.run}",)
    next_step(f"hanse generate run={config.run}", *reports)


def _which(trained: Trained) -> str:
    return ", average of the weights" if trained.weights == "ema" else ""


def export(
    trained: Trained, dtype: str, folder: Path, readme: Callable[[dict[str, Any]], str]
) -> dict[str, Difference]:
    """Write model, tokenizer, card and manifest into an empty folder, and compare the model with the trained one.

    Args:
        trained: the checkpoint.
        dtype: of the weights, a key of :data:`DTYPES`.
        folder: to write into.
        readme: makes the card's text of the provenance, which is what ``hanse.json`` says but for its files.

    Raises:
        HanseError: what was written is not the model that was trained.
    """
    model = trained.model()
    write_model(trained, model, DTYPES[dtype], folder)
    differences = compare(trained, model, dtype, folder)
    provenance = _provenance(trained, model, dtype, differences)
    write_text(folder / "README.md", readme(provenance))
    paths = {path.name: path for path in sorted(folder.iterdir())}
    hashes = {name: sha256_file(path) for name, path in paths.items()}
    files = {name: {"bytes": path.stat().st_size, "sha256": hashes[name]} for name, path in paths.items()}
    write_json(folder / MANIFEST, {**provenance, "merkle_root": merkle_root(hashes), "files": files})
    return differences


def write_model(trained: Trained, model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write weights, configurations and tokenizer files. ``model`` keeps its fp32 weights."""
    for name in TOKENIZER_FILES:
        if (trained.tokenizer_folder / name).is_file():
            shutil.copyfile(trained.tokenizer_folder / name, folder / name)
    if not (folder / "tokenizer_config.json").exists():
        # Without it transformers picks a class by the model's type, and that one may cut text in another way.
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": trained.tokenizer.id_to_token(trained.shards.end_of_document_id),
            "clean_up_tokenization_spaces": False,
        })  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    written = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype=dtype)  # type: ignore[call-arg]
    written.save_pretrained(folder, max_shard_size=LARGEST_FILE)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors makes files that only their owner may read


def compare(trained: Trained, model: PreTrainedModel, dtype: str, folder: Path) -> dict[str, Difference]:
    """Load the folder as anybody would, with no network, and hold it against the model that was trained.

    Raises:
        HanseError: the tokenizer gives other ids, or logits differ by more than rounding (asked of fp32 only).
    """
    exported = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=DTYPES[dtype]).eval()
    _compare_tokenizers(trained, folder)
    trainee = PackedLanguageModel(model)
    differences = {
        language: _difference(trainee, exported, batches)
        for language, batches in _validation_batches(trained).items()
        if batches
    }
    for language, found in differences.items():
        if dtype == "fp32" and not found.passes:
            raise HanseError(f"{trained.checkpoint.folder}: exported, it is not the model that was trained: on "
                             f"validation text of '{language}' a logit differs by {max(found.alone, found.packed)}; "
                             "nothing was written. Please report this, with the model's configuration")  # fmt: skip
    return differences


def _compare_tokenizers(trained: Trained, folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for language in trained.validation_languages:
        text = trained.tokenizer.decode(trained.validation_document(language).tolist())
        if loaded(text).input_ids != trained.tokenizer.encode(text, add_special_tokens=False).ids:
            raise HanseError(f"{trained.tokenizer_folder}: transformers reads this tokenizer in another way than the "
                             f"shards were written with (seen on a validation document of '{language}'); its "
                             "tokenizer_config.json is the place to look")  # fmt: skip


def _validation_batches(trained: Trained) -> dict[str, list[MicroBatch]]:
    """A few validation windows of each language, packed as in training."""
    data = trained.config.data
    sources = open_sources(trained.shards, "validation", data.sequence_length, trained.config.seed)
    return {
        name: [pack([source.window(index * source.windows // COMPARED_WINDOWS)], [0])
               for index in range(min(COMPARED_WINDOWS, source.windows))]
        for name, source in sources.items()
    }  # fmt: skip


@torch.no_grad()
def _difference(trainee: PackedLanguageModel, exported: PreTrainedModel, batches: list[MicroBatch]) -> Difference:
    alone = packed = largest = 0.0
    for batch in batches:
        inputs = model_inputs(batch, torch.device("cpu"))
        together = trainee.logits(inputs["input_ids"], inputs["positions"], inputs["documents"])[0].float()
        documents = list(_documents(batch))
        ours = torch.cat([trainee.logits(ids, torch.arange(ids.shape[1])[None], None)[0] for ids in documents]).float()
        theirs = torch.cat([exported(ids).logits[0] for ids in documents]).float()
        alone = _worst(alone, ours - theirs)
        packed = _worst(packed, together - theirs)
        largest = _worst(largest, ours)
    return Difference(alone, packed, largest, sum(batch.input_ids.size for batch in batches))


def _worst(before: float, values: Tensor) -> float:
    """The largest absolute value; NaN if there is one, because NaN passes no test."""
    return float(torch.maximum(torch.tensor(before), values.abs().max()))


def _documents(batch: MicroBatch) -> Iterator[Tensor]:
    """The ids of each document of a packed sequence, (1, length)."""
    edges = np.flatnonzero(np.diff(batch.documents[0])) + 1
    yield from (torch.from_numpy(ids)[None] for ids in np.split(batch.input_ids[0], edges))


def _provenance(
    trained: Trained, model: PreTrainedModel, dtype: str, differences: dict[str, Difference]
) -> dict[str, Any]:
    """Where the model comes from, and how the comparison went."""
    state = trained.checkpoint.state
    return {
        "format": FORMAT,
        "run": trained.config.name,
        "checkpoint": trained.checkpoint.folder.name,
        **({"weights": trained.weights} if trained.weights != "master" else {}),
        "checkpoint_merkle_root": trained.checkpoint.manifest["merkle_root"],
        "step": trained.step,
        "consumed_samples": state["consumed_samples"],
        "consumed_tokens": state["consumed_tokens"],
        "data_merkle_root": state["data_merkle_root"],
        "corpus_merkle_root": trained.shards.corpus_merkle_root,
        "tokenizer_sha256": state["tokenizer_sha256"],
        "parameters": parameter_counts(model)[0],
        "dtype": dtype,
        "max_abs_logit_difference": {language: found.alone for language, found in differences.items()},
        "max_abs_logit_difference_packed": {language: found.packed for language, found in differences.items()},
        "tools": {name: importlib.metadata.version(name) for name in ("hanse", "torch", "transformers")},
    }
