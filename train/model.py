"""Any ``transformers`` causal language model, fed packed sequences whose documents cannot see each other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from common.errors import HanseError
from train.attention import borders, kernel_options, transformers_name
from train.attention_config import FLASH
from train.compiling import many_variants
from train.config import ModelConfig, TrainConfig
from train.loss import PLAIN_HEADS, FusedHead, losses_of_logits, scores_of_logits
from train.ops import can_compile
from train.stages import Timeline
from train.stream import MicroBatch


def model_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, **tokens: int) -> PretrainedConfig:
    """The ``transformers`` configuration of a model; ``tokens`` are special ids (``eos_token_id`` ...).

    Raises:
        HanseError: an architecture or a setting that ``transformers`` does not know.
    """
    try:
        empty = AutoConfig.for_model(config.architecture)
    except ValueError:
        raise HanseError(f"model.architecture={config.architecture}: not a model type of transformers") from None
    unknown = sorted(key for key in config.settings if not hasattr(empty, key))
    if unknown:
        raise HanseError(f"model.settings: {type(empty).__name__} has no {', '.join(unknown)}")
    if "vocab_size" in config.settings:
        raise HanseError("model.settings.vocab_size: follows from the shards; model.vocabulary_size is that of a plan")
    vocabulary_size = -(-vocabulary_size // config.vocabulary_multiple) * config.vocabulary_multiple
    settings = {"max_position_embeddings": sequence_length, **config.settings, **tokens}
    try:
        return AutoConfig.for_model(config.architecture, vocab_size=vocabulary_size, **settings)
    except Exception as error:  # transformers validates with exceptions of many types
        raise HanseError(f"model.settings: {' '.join(str(error).split())}") from None


def build_model(config: PretrainedConfig, seed: int, attention: str = "sdpa") -> PreTrainedModel:
    """A freshly initialised model in fp32; the same weights on every rank."""
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=transformers_name(attention), dtype=torch.float32
        )
    except ImportError as error:  # of a kernel: what is installed is not what transformers wants
        raise HanseError(f"model.attention={attention}: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise HanseError(f"model.settings: {' '.join(str(error).split())}") from None


def with_rope_theta(config: PretrainedConfig, theta: float | None) -> PretrainedConfig:
    """A configuration with this base of its rotary embedding (Su et al., arXiv 2104.09864); None: as it is.

    Raises:
        HanseError: the architecture has none.
    """
    if theta is None:
        return config
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        raise HanseError(f"rope_theta={theta:g}: {config.model_type} has no rotary embedding with one base")
    changed = copy.deepcopy(config)
    changed.rope_parameters = {**rope, "rope_theta": theta}
    return changed


def set_rope(model: nn.Module, config: PretrainedConfig) -> None:
    """Let a model's rotary embeddings be those of ``config``: another base for longer sequences (arXiv 2309.16039)."""
    for module in model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor) and hasattr(module, "config"):
            fresh = cast(Any, type(module))(config)
            held = cast(Any, module)
            held.inv_freq.copy_(fresh.inv_freq)
            held.original_inv_freq.copy_(fresh.original_inv_freq)


def recompute_activations(model: PreTrainedModel, every_layers: int) -> None:
    """Keep only the input of every n-th layer, and compute it again on the way back (Chen et al., arXiv 1604.06174).

    Raises:
        HanseError: the architecture cannot.
    """
    try:
        model.activation_checkpointing_enable(every_n_layers=every_layers)
    except ValueError as error:
        raise HanseError(f"engine.recompute_every_layers={every_layers}: {' '.join(str(error).split())}") from None


def compiles(config: TrainConfig, model: PreTrainedModel, device: torch.device) -> bool:
    """Whether the layers of a start are compiled: as asked, else where it is known to pay and does no harm.

    On an H100 it made training half as fast again, with ``flex`` for packed documents. ZeRO 3 gathers weights in
    between, FlashAttention would be cut out, and above D0 bits are promised. Where ranks share sequences or matrices
    it was not tried on GPUs, nor on AMD's at all.
    """
    engine = config.engine
    if engine.compile is not None:
        return engine.compile
    fits = engine.zero_stage < 3 and config.determinism == "D0" and engine.sharing == 1
    plain = _layers(model) is not None and model.config._attn_implementation not in FLASH
    return fits and plain and torch.version.hip is None and can_compile(device)


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer by itself: all have one shape, so one is compiled and the others find it done.

    Raises:
        HanseError: the architecture has no list of layers.
    """
    layers = _layers(model)
    if layers is None:
        raise HanseError(f"engine.compile=true: {type(model).__name__} has no layers that could be compiled alone")
    many_variants()
    for layer in layers:
        layer.compile(dynamic=False)


def _layers(model: PreTrainedModel) -> Any:
    """A list of layers that can be compiled alone; None where the architecture has none."""
    return getattr(model.base_model, "layers", None)


def shape_of_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model without memory: every parameter has its shape and lies on the meta device. 70B take a second."""
    with init_empty_weights(include_buffers=True):
        model = build_model(config, 0)
    model.tie_weights()
    return model


class PackedLanguageModel(nn.Module):
    """The module that is trained: packed sequences in, negative log-likelihoods out."""

    def __init__(self, model: PreTrainedModel, z_weight: float = 0.0):
        super().__init__()
        self.model, self.z_weight = model, z_weight
        self.attention = model.config._attn_implementation
        self.kernel_options = cache(partial(kernel_options, self.attention, model.config))  # by device
        self.slices = 1  # that sequences come in (train/sequence_parallel.py)
        self.fused = model.config.model_type in PLAIN_HEADS
        if self.fused:
            head = FusedHead(1, 1, bias=False, device="meta")
            head.weight, head.z_weight = cast(Any, model.get_output_embeddings()).weight, z_weight
            model.set_output_embeddings(head)

    def forward(
        self, input_ids: Tensor, positions: Tensor, labels: Tensor, documents: Tensor | None, *, scored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """All arguments (B, L) int64; ``documents`` is None where each sequence is one document.

        Of a slice of sequences, those but ``documents`` are (B, L / slices), and so is what is returned.

        Returns:
            Sums of -ln p(label), positions labelled IGNORED left out, in fp32: () over all, which carries the gradient,
            and (B,) a sequence. With ``scored``, without gradient and (B, L): -ln p of each label, and whether it is
            the likeliest token.
        """
        inputs = self._inputs(input_ids, positions, documents)
        if self.fused:
            hidden = self.model.base_model(**inputs).last_hidden_state
            found = cast(Any, self.model.get_output_embeddings())(hidden, labels, scored=scored)
        else:
            logits = self.model(**inputs).logits
            found = scores_of_logits(logits, labels) if scored else losses_of_logits(logits, labels, self.z_weight)
        if scored:
            each, likeliest = found
            return each.view_as(labels), likeliest.view_as(labels)
        total, losses = found
        return total, losses.view_as(labels).sum(1)

    def logits(self, input_ids: Tensor, positions: Tensor, documents: Tensor | None) -> Tensor:
        """Scores of the next token, (B, L, V), in the model's precision."""
        logits: Tensor = self.model(**self._inputs(input_ids, positions, documents)).logits
        return logits

    def _inputs(self, input_ids: Tensor, positions: Tensor, documents: Tensor | None) -> dict[str, Any]:
        whole = input_ids if self.slices == 1 else input_ids.repeat(1, self.slices)  # for its shape
        told = borders(documents, whole, self.attention, next(self.model.parameters()).dtype)
        told |= self.kernel_options(input_ids.device)
        return {"input_ids": input_ids, "position_ids": positions, "use_cache": False, **told}


def model_inputs(batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """A micro-batch as the arguments of :class:`PackedLanguageModel`."""

    def tensor(array: Any) -> Tensor:
        found = torch.from_numpy(array)
        if device.type == "cuda":
            found = found.pin_memory()  # or the host waits until the GPU comes to the copy
        return found.to(device, non_blocking=True)

    return {
        "input_ids": tensor(batch.input_ids),
        "positions": tensor(batch.positions),
        "labels": tensor(batch.labels),
        "documents": tensor(batch.documents) if batch.packed else None,
    }


def flops_of_steps(config: PretrainedConfig, line: Timeline, spans: Mapping[int, Sequence[int]]) -> int:
    """Model FLOPs of steps of a run; ``spans``: {step, counted from 1: its first sample and the first after it}."""
    model = shape_of_model(config)
    per_token = {stage.length: flops_per_token(model, stage.length) for stage in line}
    lengths = {step: line.at(step - 1).length for step in spans}
    return sum((last - first) * lengths[step] * per_token[lengths[step]] for step, (first, last) in spans.items())


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """(all parameters, those that take part in matrix products): without the input embedding unless it is tied."""
    total, untyped = model.num_parameters(), cast(Any, model)  # which of its methods mypy finds depends on the version
    embedding, head = untyped.get_input_embeddings().weight, untyped.get_output_embeddings().weight
    return total, total if embedding is head else total - embedding.numel()


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> int:
    """Model FLOPs of one training token: ``6 N + 12 layers heads head_size L`` (PaLM, arXiv 2204.02311, appendix B).

    N: parameters of matrix products. Forward and backward, no recomputation; attention counted over the full square,
    as the field does, although the causal half and the document mask need less.
    """
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_size * sequence_length
    return 6 * parameter_counts(model)[1] + attention
