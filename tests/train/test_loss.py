"""The fused head: the losses and gradients of the plain way, whatever the block size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from train import loss as loss_module
from train.config import ModelConfig
from train.loss import PLAIN_HEADS, LinearCrossEntropy, losses_of_logits, scores_of_labels
from train.model import PackedLanguageModel, build_model, model_config, model_inputs
from train.stream import IGNORED, pack

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": None,
}  # fmt: skip


@given(
    rows=st.integers(1, 70), vocabulary=st.integers(2, 90), width=st.integers(1, 9), at_once=st.integers(1, 80),
    ignored=st.floats(0, 1), scale=st.floats(0.01, 100), seed=st.integers(0, 2**31),
    z_weight=st.sampled_from([0.0, 1e-4, 0.1]),
)  # fmt: skip
@settings(deadline=None)
def test_losses_and_gradients_are_those_of_cross_entropy(
    rows, vocabulary, width, at_once, ignored, scale, seed, z_weight
):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=random, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=random, dtype=torch.float64).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=random)
    labels[torch.rand(rows, generator=random) < ignored] = IGNORED
    logits = hidden @ weight.t()
    expected = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    squares = (logits.exp().sum(1).log() ** 2)[labels != IGNORED]
    ((expected.sum() + z_weight * squares.sum()) * scale).backward()

    ours, ours_weight = (leaf.detach().float().requires_grad_() for leaf in (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "ROWS_ON_CPU", at_once)
        total, losses = LinearCrossEntropy.apply(ours, ours_weight, labels, z_weight)
    (total * scale).backward()

    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), expected.detach().sum(), rtol=1e-5, atol=1e-4)
    for found, right in ((ours.grad, hidden.grad), (ours_weight.grad, weight.grad)):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5 * max(scale, 1) * rows)


@given(
    rows=st.integers(1, 20), vocabulary=st.integers(2, 90), ignored=st.floats(0, 1), seed=st.integers(0, 2**31),
    z_weight=st.sampled_from([0.0, 0.1]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
@settings(deadline=None)
def test_what_is_compiled_for_gpus_computes_what_is_not(rows, vocabulary, ignored, seed, z_weight, dtype):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=random).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=random)
    labels[torch.rand(rows, generator=random) < ignored] = IGNORED
    found = loss_module._in_one_pass(logits.clone(), labels, z_weight)
    wanted = loss_module._step_by_step(logits.clone(), labels, z_weight)
    assert found[1].dtype == wanted[1].dtype == dtype
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@given(
    rows=st.integers(1, 70), vocabulary=st.integers(2, 90), at_once=st.integers(1, 80), ignored=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_scores_are_the_losses_to_the_last_bit_and_the_likeliest_token(rows, vocabulary, at_once, ignored, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-3, 4, (rows, 3), generator=random).to(dtype)  # products are exact, and often alike
    weight = torch.randint(-3, 4, (vocabulary, 3), generator=random).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=random)
    labels[torch.rand(rows, generator=random) < ignored] = IGNORED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "ROWS_ON_CPU", at_once)
        with torch.no_grad():
            _, losses = LinearCrossEntropy.apply(hidden, weight, labels)
        found, first = scores_of_labels(hidden, weight, labels)
    assert torch.equal(found, losses)
    wanted = [(row == row.amax()).nonzero()[0].item() == label and label != IGNORED
              for row, label in zip((hidden @ weight.t()).float(), labels.tolist(), strict=True)]  # fmt: skip
    assert first.tolist() == wanted


def test_a_model_that_knows_nothing_is_not_always_right():
    labels = torch.arange(8)
    losses, first = scores_of_labels(torch.zeros(8, 4), torch.zeros(8, 4), labels)
    assert losses.tolist() == pytest.approx([np.log(8)] * 8)
    assert first.tolist() == [True] + 7 * [False]


def test_bf16_sums_blocks_in_fp32(monkeypatch):
    """A thousand blocks of 16 rows: bf16 sums would have stopped growing long before."""
    hidden = torch.ones(16_000, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    monkeypatch.setattr(loss_module, "ROWS_ON_CPU", 16)
    total, _ = LinearCrossEntropy.apply(hidden, weight, torch.zeros(16_000, dtype=torch.int64))
    total.backward()
    assert weight.grad.flatten().tolist() == pytest.approx([-8000, 8000], rel=0.01)


@pytest.mark.parametrize("architecture", sorted(PLAIN_HEADS))
def test_every_architecture_with_a_fused_head_has_no_more_than_a_product(architecture):
    config = model_config(ModelConfig(architecture, SMALL), 97, 24)
    model = PackedLanguageModel(build_model(config, 0), z_weight=0.01)
    assert model.fused
    ids = np.random.default_rng(0).integers(97, size=25)
    inputs = model_inputs(pack([(ids, np.repeat([0, 1], [10, 15]))], [0]), torch.device("cpu"))
    total, nll = model(**inputs)
    logits = model.logits(inputs["input_ids"], inputs["positions"], inputs["documents"])
    expected, _ = losses_of_logits(logits, inputs["labels"], 0.01)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(nll.sum(), expected, rtol=1e-6, atol=1e-5)
    fused, plain = (torch.autograd.grad(value, list(model.parameters())) for value in (total, expected))
    for found, right in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_other_architectures_go_the_plain_way():
    config = model_config(ModelConfig("gemma2", {**SMALL, "head_dim": 8}), 97, 24)
    model = PackedLanguageModel(build_model(config, 0, "eager"))
    assert not model.fused  # its logits are capped
    ids = np.arange(25)
    inputs = model_inputs(pack([(ids, np.zeros(25))], [0]), torch.device("cpu"))
    total, _ = model(**inputs)
    total.backward()
    assert torch.isfinite(total)
    nll, first = model(**inputs, scored=True)
    logits = model.logits(inputs["input_ids"], inputs["positions"], inputs["documents"])
    assert nll.sum().item() == pytest.approx(total.item(), rel=1e-6)
    assert torch.equal(first, logits.argmax(2) == inputs["labels"])
