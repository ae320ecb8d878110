"""Every back end of attention keeps documents apart, and what cannot be had is refused before anything is computed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations import flex_attention as integration

from common.errors import ConfigError
from train import attention, attention_config
from train import model as model_module
from train.attention import SMALL_TILES, attention_mask, block_mask, borders, choose, kernel_options, lengths, sequences
from train.attention_config import FLASH, attention_problems, for_reading
from train.config import BatchConfig, DataConfig, ModelConfig, TrainConfig
from train.model import PackedLanguageModel, build_model, compiles, model_config, model_inputs
from train.stream import pack

VOCABULARY, LENGTH, CPU, GPU = 97, 24, torch.device("cpu"), torch.device("cuda")
SETTINGS = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
CONFIG = TrainConfig(tokens=10 * LENGTH, data=DataConfig(sequence_length=LENGTH), batch=BatchConfig(1, 1))


def without_gpus(patch: pytest.MonkeyPatch) -> None:
    """In place of kernels for GPUs: torch's reference of flex, and for FlashAttention a loop over sequences.

    torch refuses gradients of flex on a CPU at its door, and its reference behind it has them.
    """
    patch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    patch.setattr(flex, "_validate_device", lambda *_: None)
    patch.setattr(integration.torch, "compile", lambda function: function)
    patch.setattr(flash, "_lazy_imports", lambda *_, **__: (None, varlen, None, None, None))
    patch.setattr("transformers.modeling_utils.PreTrainedModel._flash_attn_can_dispatch", lambda *_, **__: True)


@pytest.fixture(scope="module")
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        without_gpus(patch)
        yield
        flash._loaded_implementation = None
        integration.WrappedFlexAttention._is_flex_compiled = False


def varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    softmax_scale: float | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """``flash_attn_varlen_func`` by its description: (tokens, heads, head size), each sequence alone."""
    assert causal
    assert cu_seqlens_q.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    lengths = cu_seqlens_q.diff()
    assert int(cu_seqlens_q[-1]) == len(q)
    assert max_seqlen_q == max_seqlen_k == int(lengths.max())
    parts = zip(*(one.transpose(0, 1).split(lengths.tolist(), dim=1) for one in (q, k, v)), strict=True)
    return torch.cat(
        [scaled_dot_product_attention(*part, is_causal=True, scale=softmax_scale, enable_gqa=True) for part in parts], 1
    ).transpose(0, 1)


def language_model(kind: str) -> PackedLanguageModel:
    config = model_config(ModelConfig("llama", SETTINGS), VOCABULARY, LENGTH, pad_token_id=0)
    return PackedLanguageModel(build_model(config, 0, kind))


def batch(generator: np.random.Generator, cuts: list[list[int]]):
    """A micro-batch of rows that are cut into documents at these places."""
    ids = generator.integers(0, VOCABULARY, (len(cuts), LENGTH + 1))
    places = np.arange(LENGTH + 1)
    return pack([(row, np.searchsorted(at, places, side="right")) for row, at in zip(ids, cuts, strict=True)],
                [0] * len(cuts))  # fmt: skip


PACKED, WHOLE = [[3, 4, 17], [12], [1, 23, 24]], [[], []]


@pytest.mark.parametrize("kind", ["eager", "varlen", "flex", *FLASH])
@pytest.mark.parametrize("cuts", [PACKED, WHOLE], ids=["packed", "whole"])
def test_every_back_end_computes_what_sdpa_does(kernels, kind, cuts):
    inputs = model_inputs(batch(np.random.default_rng(0), cuts), CPU)
    found = []
    for model in (language_model("sdpa"), language_model(kind)):
        total, losses = model(**inputs)
        total.backward()
        found.append((losses.detach(), {name: one.grad for name, one in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["sdpa", "eager", "varlen", "flex", *FLASH])
def test_another_documents_tokens_change_nothing(kernels, kind):
    model, given_ = language_model(kind).eval(), model_inputs(batch(np.random.default_rng(0), PACKED), CPU)
    documents = given_["documents"]
    with torch.no_grad():
        before = model.logits(given_["input_ids"], given_["positions"], documents)
        for number in range(4):
            changed = torch.where(documents == number, (given_["input_ids"] + 1) % VOCABULARY, given_["input_ids"])
            after = model.logits(changed, given_["positions"], documents)
            assert torch.equal(before[documents != number], after[documents != number])
            assert not torch.equal(before[documents == number], after[documents == number])


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_borders_of_all_kinds_let_each_position_see_the_same(steps):
    documents = torch.tensor(steps).clamp(max=1).cumsum(1)
    rows, length = documents.shape
    wanted = torch.zeros(rows, length, length, dtype=torch.bool)
    for row in range(rows):
        for query in range(length):
            for key in range(query + 1):
                wanted[row, query, key] = documents[row, query] == documents[row, key]
    assert torch.equal(attention_mask(documents, "sdpa", torch.float32)[:, 0] == 0, wanted)
    mask = block_mask(documents)
    at = torch.meshgrid(*(torch.arange(size) for size in (rows, length, length)), indexing="ij")
    assert torch.equal(mask.mask_mod(at[0], torch.tensor(0), at[1], at[2]), wanted)
    assert lengths(documents) == [np.diff([0, *ends, length]).tolist() for ends in
                                  (row.diff().nonzero().flatten() + 1 for row in documents)]  # fmt: skip
    told = sequences(documents)
    ends = told["cu_seq_lens_q"].tolist()
    by_flash = torch.zeros(rows * length, rows * length, dtype=torch.bool)
    for start, end in pairwise(ends):
        by_flash[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    assert torch.equal(by_flash, torch.block_diag(*wanted.float()).bool())
    assert told["max_length_q"] == told["max_length_k"] == max(np.diff(ends))


def test_sequences_that_are_one_document_each_need_no_mask_in_torch_and_borders_in_a_kernel():
    ids = torch.zeros(2, 5, dtype=torch.int64)
    assert borders(None, ids, "sdpa", torch.float32) == {"attention_mask": None}
    told = borders(None, ids, "flash_attention_2", torch.bfloat16)
    assert told["cu_seq_lens_k"].tolist() == [0, 5, 10]
    assert told["max_length_q"] == 5
    assert lengths(borders(None, ids, "varlen", torch.float32)["documents"]) == [[5], [5]]


def test_a_wrong_back_end_is_refused_with_all_that_is_wrong_about_it():
    def lines(kind, precision="bf16", determinism="D0", compiled=False, **settings):
        return attention_problems(replace(
            CONFIG, determinism=determinism, model=replace(CONFIG.model, attention=kind, settings=settings),
            engine=replace(CONFIG.engine, precision=precision, compile=compiled),
        ))  # fmt: skip

    assert [lines(kind, "fp32", "D2", True) for kind in ("sdpa", "eager")] == [[], []]
    assert lines("auto", "fp32", compiled=True) == lines("flex", "fp32", head_dim=20) == lines("varlen") == []
    assert lines("fast") == [
        "model.attention=fast: one of auto, sdpa, eager, varlen, flex, flash_attention_2, flash_attention_3"
    ]
    assert lines("auto", determinism="D1") == []
    assert lines("flex", determinism="D1") == [
        "model.attention=flex: with determinism=D1 it must be sdpa or eager: others promise no bits"
    ]
    found = lines("flash_attention_2", "fp32", "D2", True, hidden_size=80, num_attention_heads=4)
    assert all(line.startswith("model.attention=flash_attention_2: ") for line in found)
    for line, part in zip(found, ("D2", "compile", "flash-attn is not installed", "bf16", "heads of 20"), strict=True):
        assert part in line


def test_auto_takes_what_is_there(monkeypatch):
    config = replace(CONFIG, model=replace(CONFIG.model, attention="auto"))
    monkeypatch.setattr(attention, "can_compile", lambda _: True)
    llama = model_config(ModelConfig("llama", SETTINGS), VOCABULARY, LENGTH)

    def chosen(installed=(), precision="bf16", capability=(9, 0), model=llama, device=GPU, config=config):
        monkeypatch.setattr(attention_config, "_installed", lambda name: name in installed)
        monkeypatch.setattr(attention.torch.cuda, "get_device_capability", lambda _: capability)
        return choose(config, model, precision, device)

    def of(**engine):
        return replace(config, engine=replace(config.engine, **engine))

    both = tuple(FLASH.values())
    exact = replace(config, determinism="D1")
    assert chosen(both, "fp32") == chosen(both, config=exact) == chosen(device=CPU, config=exact) == "sdpa"
    assert chosen(both, device=CPU) == chosen(both, "fp32", device=CPU) == "varlen"
    assert chosen() == chosen(both) == chosen(both, config=of(compile=True)) == "flex"
    assert chosen(both, config=of(compile=False)) == chosen(both, config=of(zero_stage=3)) == "flash_attention_3"
    assert chosen(both, capability=(8, 0), config=of(compile=False)) == "flex"
    monkeypatch.setattr(attention, "can_compile", lambda _: False)
    assert chosen() == chosen(both, config=of(compile=True)) == "sdpa"
    assert chosen(both) == chosen(("flash-attn",), config=of(zero_stage=3)) == "flash_attention_2"
    assert chosen(("flash-attn-3",), capability=(8, 0)) == "sdpa"
    assert chosen(both, "fp16", capability=(7, 0)) == "sdpa"  # V100
    odd = model_config(ModelConfig("llama", SETTINGS | {"head_dim": 20}), VOCABULARY, LENGTH)
    assert chosen(both, model=odd) == "sdpa"
    near = model_config(ModelConfig("mistral", SETTINGS | {"sliding_window": 8}), VOCABULARY, LENGTH)
    assert chosen(both, model=near) == "sdpa"
    gemma = model_config(ModelConfig("gemma3_text", SETTINGS), VOCABULARY, LENGTH)
    assert chosen(model=gemma, device=CPU) == "sdpa"
    for kind, device, precision, parts in (
        ("flex", CPU, "fp32", ["for GPUs"]), ("flex", GPU, "bf16", ["a C compiler"]), ("sdpa", GPU, "bf16", []),
        ("flash_attention_2", CPU, "fp32", ["half precision", "for GPUs"]),
    ):  # fmt: skip
        asked = replace(config, model=replace(config.model, attention=kind))
        if parts:
            with pytest.raises(ConfigError) as told:
                chosen(both, precision, device=device, config=asked)
            assert len(told.value.problems) == len(parts)
            assert all(part in line for part, line in zip(parts, told.value.problems, strict=True))
        else:
            assert chosen(both, precision, device=device, config=asked) == kind


def test_layers_are_compiled_where_that_is_known_to_pay_unless_somebody_says_no(monkeypatch):
    monkeypatch.setattr(model_module, "can_compile", lambda device: device.type == "cuda")

    llama = build_model(model_config(ModelConfig("llama", SETTINGS), VOCABULARY, LENGTH), 0)
    gpt2 = build_model(
        model_config(ModelConfig("gpt2", {"n_layer": 1, "n_head": 2, "n_embd": 8}), VOCABULARY, LENGTH), 0
    )

    def compiled(model=llama, device=GPU, determinism="D0", **engine):
        return compiles(
            replace(CONFIG, determinism=determinism, engine=replace(CONFIG.engine, **engine)), model, device
        )

    assert compiled()
    assert compiled(zero_stage=2)
    assert compiled(device=CPU, compile=True)
    for otherwise in ({"device": CPU}, {"zero_stage": 3}, {"determinism": "D1"}, {"compile": False},
                      {"sequence_parallel": 2}, {"model": gpt2}):  # fmt: skip
        assert not compiled(**otherwise)
    monkeypatch.setattr(llama.config, "_attn_implementation_internal", "flash_attention_2")
    assert not compiled()


def test_a_model_is_asked_with_what_runs_everywhere():
    kinds = ("auto", "varlen", "flex", *FLASH, "sdpa", "eager")
    assert [for_reading(kind) for kind in kinds] == ["sdpa"] * 6 + ["eager"]


@pytest.mark.parametrize(("heads", "capability", "small"), [(4, (9, 0), True), (2, (9, 0), False), (4, (8, 0), False)])
def test_small_tiles_are_for_heads_of_64_on_hopper(monkeypatch, heads, capability, small):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = LlamaConfig(hidden_size=256, num_attention_heads=heads, num_key_value_heads=2)
    told = kernel_options("flex_attention", model, torch.device("cuda"))
    assert told == ({"kernel_options": SMALL_TILES} if small else {})
    assert kernel_options("flex_attention", model, torch.device("cpu")) == {}
    assert kernel_options("sdpa", model, torch.device("cuda")) == {}
