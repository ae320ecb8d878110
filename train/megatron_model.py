"""A model as Megatron calls it and as ``transformers`` does: its arguments, its names, and rows in another order.

Megatron keeps the projections of queries, keys and values in one matrix, group by group: the queries that share a key,
that key, its value (``get_query_key_value_tensors`` in megatron/core/transformer/attention.py); and the gate of its MLP
above the up projection. Numbers are only moved, so they are the same there and back.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from common.errors import ConfigError, HanseError

QKV, FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
OF_LAYER = {  # {Megatron's: those of transformers that are in it}
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
    QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
    "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    FC1: ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
FAMILIES = ("llama", "mistral", "qwen3")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fixed there

# What Megatron's arguments must say, where they say it, for the model to be one of these.
WANTED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "add_bias_linear": (False,),
    "disable_bias_linear": (True,),
    "rotary_percent": (1.0,),
    "rope_type": (None, "rope"),
    **dict.fromkeys((
        "add_qkv_bias", "num_experts", "rotary_interleaved", "apply_layernorm_1p", "multi_latent_attention",
        "mtp_num_layers", "window_size", "attention_output_gate", "qk_l2_norm", "squared_relu", "quick_geglu",
        "apply_residual_connection_post_layernorm", "heterogeneous_layers_config_path", "no_rope_freq",
        "hybrid_override_pattern", "hybrid_layer_pattern", "linear_attention_freq", "experimental_attention_variant",
        "rotary_seq_len_interpolation_factor", "mrope_section", "layernorm_zero_centered_gamma",
    ), (None, False, 0)),
    "softmax_type": ("vanilla",),
}  # fmt: skip


def names(model: PretrainedConfig) -> dict[str, tuple[str, ...]]:
    """{Megatron's name of a tensor: those of ``transformers`` that are in it}, in the order of the layers."""
    left = () if model.model_type == "qwen3" else ("self_attention.q_layernorm.weight",
                                                   "self_attention.k_layernorm.weight")  # fmt: skip
    found: dict[str, tuple[str, ...]] = {EMBEDDING: ("model.embed_tokens.weight",)}
    for layer in range(model.num_hidden_layers):
        found |= {f"decoder.layers.{layer}.{theirs}": tuple(f"model.layers.{layer}.{one}" for one in ours)
                  for theirs, ours in OF_LAYER.items() if theirs not in left}  # fmt: skip
    found["decoder.final_layernorm.weight"] = ("model.norm.weight",)
    return found if model.tie_word_embeddings else {**found, HEAD: ("lm_head.weight",)}


def join_qkv(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """Megatron's matrix out of three, of shapes (heads * size, n) and twice (groups * size, n)."""
    inner = [one.reshape(groups, -1, one.shape[1]) for one in (query, key, value)]
    return torch.cat(inner, dim=1).reshape(-1, query.shape[1])


def split_qkv(joined: Tensor, groups: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three of which :func:`join_qkv` made one; ``size``: of a head."""
    inner = joined.reshape(groups, -1, joined.shape[1])
    parts = inner.split([inner.shape[1] - 2 * size, size, size], dim=1)
    query, key, value = (one.reshape(-1, joined.shape[1]) for one in parts)
    return query, key, value


def joined(name: str, parts: Sequence[Tensor], model: PretrainedConfig) -> Tensor:
    """Megatron's tensor out of those of ``transformers``."""
    if name.endswith(QKV):
        return join_qkv(parts[0], parts[1], parts[2], model.num_key_value_heads)
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def split(name: str, tensor: Tensor, model: PretrainedConfig) -> Sequence[Tensor]:
    """The tensors of ``transformers`` that are in one of Megatron's; rows beyond the vocabulary are left away."""
    if name.endswith(QKV):
        return split_qkv(tensor, model.num_key_value_heads, head_size(model))
    if name.endswith(FC1):
        return tensor.chunk(2)
    return [tensor[: model.vocab_size]] if name in (EMBEDDING, HEAD) else [tensor]


def head_size(model: PretrainedConfig) -> int:
    """Elements of an attention head."""
    return int(getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads)


def check_written(model: PretrainedConfig) -> None:
    """Refuse a model that Megatron has no arguments for, or that nobody here has tried.

    Raises:
        HanseError: naming what it is.
    """
    rope = dict(getattr(model, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    wrong = ""
    if model.model_type not in FAMILIES:
        wrong = f"a {model.model_type}"
    elif getattr(model, "attention_bias", False) or getattr(model, "mlp_bias", False):
        wrong = "one with biases"
    elif model.hidden_act != "silu":
        wrong = f"one with hidden_act={model.hidden_act}"
    elif getattr(model, "sliding_window", None):
        wrong = "one with a sliding window"
    elif kind not in ("default", "llama3") or (kind == "llama3" and any(rope.get(k) != v for k, v in LLAMA3.items())):
        wrong = f"one with rope_parameters {rope}"
    if wrong:
        raise HanseError(f"to and from Megatron go models of transformers' {', '.join(FAMILIES)} without biases and "
                         f"windows; this is {wrong}")  # fmt: skip


def arguments(model: PretrainedConfig, precision: str, facts: Mapping[str, Any]) -> Namespace:
    """Megatron's arguments for a model, as ``--use-checkpoint-args`` reads them; nothing but weights was saved."""
    rope = dict(model.rope_parameters)
    return Namespace(
        num_layers=model.num_hidden_layers, hidden_size=model.hidden_size, ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads, kv_channels=head_size(model),
        group_query_attention=model.num_key_value_heads != model.num_attention_heads,
        num_query_groups=model.num_key_value_heads, qk_layernorm=model.model_type == "qwen3",
        max_position_embeddings=model.max_position_embeddings, seq_length=model.max_position_embeddings,
        normalization="RMSNorm", norm_epsilon=model.rms_norm_eps, swiglu=True, squared_relu=False,
        add_bias_linear=False, add_qkv_bias=False, attention_dropout=0.0, hidden_dropout=0.0,
        position_embedding_type="rope", rotary_base=rope["rope_theta"], rotary_percent=1.0, rotary_interleaved=False,
        use_rope_scaling=rope.get("rope_type") == "llama3", rope_scaling_factor=rope.get("factor", 8.0),
        untie_embeddings_and_output_weights=not model.tie_word_embeddings, apply_layernorm_1p=False,
        bf16=precision == "bf16", fp16=precision == "fp16", ckpt_format="torch_dist", no_save_optim=True,
        no_save_rng=True, tensor_model_parallel_size=1, pipeline_model_parallel_size=1,
        consumed_train_samples=facts.get("consumed_samples", 0), consumed_valid_samples=0,
    )  # fmt: skip


def precision_of(args: Mapping[str, Any]) -> str:
    """What the forward pass computed in."""
    kinds: dict[Any, str] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return next((half for half in ("bf16", "fp16") if args.get(half)), kinds.get(args.get("params_dtype"), "fp32"))


def count_of(args: Mapping[str, Any], key: str) -> int:
    """One of Megatron's arguments that counts something; 0 where it tells nothing."""
    found = args.get(key)
    return found if isinstance(found, int) and found > 0 else 0


def settings_of(args: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """The configuration in ``transformers`` of the model that Megatron's arguments tell; vocabulary and tokens apart.

    Args:
        kind: one of ``FAMILIES``, where that is known; else it is a Llama, or a Qwen3 if it norms queries and keys.

    Raises:
        HanseError: it is none of these families.
        ConfigError: the arguments do not tell all of it.
    """
    for key, right in WANTED.items():
        if key in args and args[key] not in right:
            raise HanseError("of Megatron's models those are read that are a Llama, Mistral or Qwen3 of transformers; "
                             f"this one has {key}={args[key]}")  # fmt: skip
    needed = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "rotary_base")
    unset = [key for key in needed if not args.get(key)]
    numbers = (*needed, "num_query_groups", "kv_channels", "max_position_embeddings", "seq_length", "norm_epsilon",
               "layernorm_epsilon", "rope_scaling_factor")  # fmt: skip
    for key in numbers:
        if not isinstance(args.get(key) or 0, int | float):
            raise HanseError(f"Megatron's argument {key} is {args[key]}, which is no number")
    if unset:
        raise ConfigError(["model_folder: must be set (model_folder=...), to a folder with the config.json of its "
                           f"model: the checkpoint does not tell {', '.join(unset)}"])  # fmt: skip
    heads = int(args["num_attention_heads"])
    grouped = args.get("group_query_attention", bool(args.get("num_query_groups")))
    theta, scaled = float(args["rotary_base"]), bool(args.get("use_rope_scaling") or args.get("rope_scaling"))
    rope = {"rope_type": "llama3" if scaled else "default", "rope_theta": theta}
    if scaled:
        rope |= {"factor": float(args.get("rope_scaling_factor") or 8.0), **LLAMA3}
    return {
        "model_type": kind or ("qwen3" if args.get("qk_layernorm") else "llama"),
        "num_hidden_layers": int(args["num_layers"]), "hidden_size": int(args["hidden_size"]),
        "intermediate_size": int(args["ffn_hidden_size"]), "num_attention_heads": heads,
        "num_key_value_heads": int(args.get("num_query_groups") or heads) if grouped else heads,
        "head_dim": int(args.get("kv_channels") or int(args["hidden_size"]) // heads),
        "max_position_embeddings": int(args.get("max_position_embeddings") or args.get("seq_length") or 2048),
        "rms_norm_eps": float(args.get("norm_epsilon") or args.get("layernorm_epsilon") or 1e-5),
        "rope_parameters": rope, "tie_word_embeddings": not args.get("untie_embeddings_and_output_weights", False),
        **({"sliding_window": None} if kind == "mistral" else {}),
    }  # fmt: skip
