"""Fresh weights have the sizes that were asked for; under muP a step changes a wide model as much as a narrow one."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from common.errors import HanseError
from train.init_config import InitConfig
from train.model import build_model
from train.parametrisation import rate_factors, scale_fresh, split_by_rate

BASE, VOCABULARY = 32, 64
WIDTHS = (32, 64, 128, 256)


def model(width: int, init: InitConfig, kind: str = "llama", seed: int = 1, **settings) -> PreTrainedModel:
    """Two layers with heads of size 16, unless told otherwise."""
    usual = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "pad_token_id": 0,
             "num_attention_heads": width // 16, "num_key_value_heads": width // 32, "head_dim": 16,
             "tie_word_embeddings": True, "initializer_range": 0.1}  # fmt: skip
    built = build_model(AutoConfig.for_model(kind, vocab_size=VOCABULARY, **usual | settings), seed)
    scale_fresh(built, init)
    return built


def spread(built: PreTrainedModel) -> dict[str, float]:
    return {name: float(one.detach().std()) for name, one in built.named_parameters() if one.dim() >= 2}


def test_the_defaults_touch_nothing_and_make_no_groups():
    plain, same = model(64, InitConfig()), build_model(model(64, InitConfig()).config, 1)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), same.parameters(), strict=True))
    assert rate_factors(InitConfig(), plain) == {}
    groups = [{"params": list(plain.parameters()), "weight_decay": 0.1}]
    (kept,) = split_by_rate(groups, {})
    assert kept is groups[0]
    assert kept.keys() == {"params", "weight_decay"}


def test_standard_deviations_are_those_asked_for():
    drawn = spread(model(256, InitConfig(std="small")))
    assert all(value == pytest.approx(math.sqrt(2 / 5 / 256), rel=0.05) for value in drawn.values())
    drawn = spread(model(256, InitConfig(std="fan_in", residual="depth")))
    for name, value in drawn.items():
        fan_in = 512 if "down_proj" in name else 256
        expected = 1 / math.sqrt(fan_in) / (2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
        assert value == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "apertus"])
@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_every_parameter_once_with_the_rate_of_the_paper(kind, tied):
    init = InitConfig(mup_base_width=BASE)
    built = model(128, init, kind, tie_word_embeddings=tied)
    matrices = [one for one in built.parameters() if one.dim() >= 2]
    vectors = [one for one in built.parameters() if one.dim() < 2]
    groups = split_by_rate([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                           rate_factors(init, built))  # fmt: skip
    assert sorted(id(one) for group in groups for one in group["params"]) == sorted(map(id, built.parameters()))
    names = {id(one): name for name, one in built.named_parameters()}
    rates = {names[id(one)]: group["lr_factor"] for group in groups for one in group["params"]}
    quarter = {name for name, rate in rates.items() if rate == 0.25}
    assert set(rates.values()) == {1.0, 0.25}
    assert "model.embed_tokens.weight" not in quarter
    assert quarter >= {name for name in rates if "proj" in name}
    assert ("model.norm.weight" in quarter) == tied
    assert ("lm_head.weight" in quarter) == (not tied)
    assert all(group["lr_factor"] * group["weight_decay"] in (0.0, pytest.approx(0.1)) for group in groups)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_larger_heads_attend_by_q_k_over_d(kind):
    small, large = (model(64, InitConfig(mup_base_width=64, mup_base_head_size=size), kind) for size in (16, 4))
    name = "q_norm.weight" if kind == "qwen3" else "q_proj.weight"
    for (key, one), other in zip(small.named_parameters(), large.parameters(), strict=True):
        assert torch.allclose(other, one * (0.5 if key.endswith(name) else 1.0))
    assert set(rate_factors(InitConfig(mup_base_width=64, mup_base_head_size=4), large).values()) == {0.5}


def changes(width: int, init: InitConfig, tied: bool, steps: int = 4) -> tuple[float, float, float]:
    """How much some steps of Adam change the stream after a layer, what the layer adds, and the logits (rms)."""
    built = model(width, init, tie_word_embeddings=tied)
    factors = rate_factors(init, built)
    optimizer = torch.optim.Adam(split_by_rate([{"params": list(built.parameters()), "weight_decay": 0.0}], factors))
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group.get("lr_factor", 1.0)
    torch.manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (4, 24))

    def seen() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            out = built(ids, output_hidden_states=True)
        return out.hidden_states[1], out.hidden_states[1] - out.hidden_states[0], out.logits

    before = seen()
    for _ in range(steps):
        out = built(ids, labels=ids)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return tuple(float((now - then).square().mean().sqrt()) for now, then in zip(seen(), before, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_coordinate_check(tied):
    """arXiv 2203.03466, D.1: what a step changes neither grows with the width nor vanishes; without muP it grows."""
    mup = [changes(width, InitConfig(mup_base_width=BASE), tied) for width in WIDTHS]
    plain = [changes(width, InitConfig(), tied) for width in WIDTHS]
    for number, what in enumerate(("stream", "layer", "logits")):
        widest, narrowest = mup[-1][number], mup[0][number]
        print(what, [f"{one[number]:.3f}" for one in mup], [f"{one[number]:.3f}" for one in plain])
        assert 0.5 < widest / narrowest < 2, what
        assert plain[-1][number] / plain[0][number] > 2.5, what


def test_what_is_not_known_is_refused():
    foreign = build_model(AutoConfig.for_model("gpt2", vocab_size=9, n_embd=8, n_layer=1, n_head=2, eos_token_id=0), 0)
    with pytest.raises(HanseError, match="of gpt2 it is not known which of its weights does what"):
        scale_fresh(foreign, InitConfig(residual="depth"))
    assert InitConfig("wide", "deep", -1, -1).problems() != []
    assert "starts from config" in InitConfig(std="small", mup_base_width=8).problems()[0]
    assert "set model.init.mup_base_width too" in InitConfig(mup_base_head_size=8).problems()[0]
