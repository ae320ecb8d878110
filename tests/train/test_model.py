"""Documents in one sequence cannot see each other, and a packed loss is the loss of its documents."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from common.errors import HanseError
from tests.models import write_model
from train.checkpoint import Checkpoint
from train.config import ModelConfig
from train.initial import check
from train.loss import losses_of_logits
from train.model import (
    PackedLanguageModel,
    build_model,
    compile_layers,
    flops_per_token,
    model_config,
    model_inputs,
    parameter_counts,
    set_rope,
    shape_of_model,
    with_rope_theta,
)
from train.stream import IGNORED, MicroBatch, pack
from train.trained import model_of
from train.weights import open_weights

VOCABULARY, LENGTH = 97, 24
SETTINGS = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
ARCHITECTURES = ("llama", "qwen3", "mistral", "apertus", "olmo2", "qwen2", "smollm3")


def language_model(architecture: str, attention: str) -> PackedLanguageModel:
    config = model_config(ModelConfig(architecture, SETTINGS), VOCABULARY, LENGTH, pad_token_id=0)
    return PackedLanguageModel(build_model(config, 0, attention).eval())


MODELS = {(name, kind): language_model(name, kind) for name in ARCHITECTURES for kind in ("sdpa", "eager", "varlen")}


def packed(documents: list[np.ndarray]) -> MicroBatch:
    """One sequence that holds these documents, each with its last token as its own end."""
    ids = np.concatenate([*documents, documents[-1][-1:]])
    numbers = np.repeat(np.arange(len(documents) + 1), [*map(len, documents), 1])
    return pack([(ids, numbers)], [0])


@st.composite
def sequences(draw):
    """LENGTH tokens cut into documents."""
    cuts = sorted(draw(st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=4)))
    ids = np.array(draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=LENGTH, max_size=LENGTH)))
    return np.split(ids, cuts)


@pytest.mark.parametrize("kind", MODELS, ids="-".join)
@given(sequences(), st.data())
@settings(max_examples=15, deadline=None)
def test_changing_one_document_changes_no_logit_of_another(kind, documents, data):
    model = MODELS[kind]
    changed = data.draw(st.integers(0, len(documents) - 1))
    others = [document.copy() for document in documents]
    others[changed] = (others[changed] + data.draw(st.integers(1, VOCABULARY - 1))) % VOCABULARY
    before, after = (model_inputs(packed(texts), torch.device("cpu")) for texts in (documents, others))
    with torch.no_grad():
        first, second = (model.logits(x["input_ids"], x["positions"], x["documents"])[0] for x in (before, after))
    outside = before["documents"][0] != changed
    assert torch.equal(first[outside], second[outside])
    assert not torch.equal(first[~outside], second[~outside])


@pytest.mark.parametrize("kind", MODELS, ids="-".join)
@given(sequences())
@settings(max_examples=15, deadline=None)
def test_packed_loss_is_the_sum_of_the_documents_losses(kind, documents):
    model = MODELS[kind]
    with torch.no_grad():
        together = float(model(**model_inputs(packed(documents), torch.device("cpu")))[1])
        alone = sum(
            float(model(**model_inputs(pack([(document, np.zeros(len(document)))], [0]), torch.device("cpu")))[1])
            for document in documents
            if len(document) > 1
        )
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_compiled_layers_compute_the_same_and_other_documents_compile_nothing_anew():
    plain, compiled = (language_model("llama", "varlen").train() for _ in range(2))
    compile_layers(compiled.model)
    rng, graphs = np.random.default_rng(0), []
    for cuts in ([3, 4, 17], [9], [2, 7, 11, 12, 20]):
        inputs = model_inputs(packed(np.split(rng.integers(0, VOCABULARY, LENGTH), cuts)), torch.device("cpu"))
        totals = []
        for model in (plain, compiled):
            model.zero_grad()
            totals.append(model(**inputs)[0])
            totals[-1].backward()
        torch.testing.assert_close(totals[1], totals[0], rtol=1e-6, atol=0.0)
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2] > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_base_of_the_rotary_embedding_is_that_of_a_model_built_with_it(architecture):
    config = model_config(ModelConfig(architecture, SETTINGS), VOCABULARY, LENGTH, pad_token_id=0)
    other = with_rope_theta(config, 50_000.0)
    assert with_rope_theta(config, None) is config
    assert config.rope_parameters["rope_theta"] != other.rope_parameters["rope_theta"] == 50_000.0
    model, built = build_model(config, 0, "sdpa").eval(), build_model(other, 0, "sdpa").eval()
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        before = model(ids).logits
        set_rope(model, other)
        assert torch.equal(model(ids).logits, built(ids).logits)
        assert not torch.equal(model(ids).logits, before)
        set_rope(model, config)
        assert torch.equal(model(ids).logits, before)


def test_labels_across_a_boundary_do_not_count():
    batch = packed([np.array([5, 6, 7]), np.array([8, 9])])
    assert batch.labels.tolist() == [[6, 7, IGNORED, 9, IGNORED]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]


def test_flops_formula_counts_matrix_parameters_and_attention():
    model = MODELS["llama", "sdpa"].model
    total, in_products = parameter_counts(model)
    assert total - in_products == VOCABULARY * 32  # the input embedding, which is not tied here
    assert flops_per_token(model, LENGTH) == 6 * in_products + 12 * 2 * 32 * LENGTH


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "apertus", "olmo2"])
def test_flops_formula_agrees_with_what_torch_counts(architecture):
    from torch.utils.flop_counter import FlopCounterMode

    shape = {**SETTINGS, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    config = model_config(ModelConfig(architecture, shape), VOCABULARY, LENGTH, pad_token_id=0)
    model = PackedLanguageModel(build_model(config, 0, "eager"))
    batch = packed([np.arange(LENGTH)])
    with FlopCounterMode(display=False) as counter:
        inputs = model_inputs(batch, torch.device("cpu"))
        logits = model.logits(inputs["input_ids"], inputs["positions"], inputs["documents"])
        losses_of_logits(logits, inputs["labels"])[0].backward()  # the fused head adds in place, which is not counted
    # norms' weights are counted as parameters of products: less than a percent
    assert counter.get_total_flops() == pytest.approx(flops_per_token(model.model, LENGTH) * LENGTH, rel=0.02)


def test_same_seed_same_weights():
    config = model_config(ModelConfig("llama", SETTINGS), VOCABULARY, LENGTH)
    first, second, third = (build_model(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
FAMILIES = ("llama3-1b", "llama3-8b", "qwen3-0.6b", "qwen3-8b", "mistral-7b", "eurollm-1.7b", "apertus-8b",
            "salamandra-2b", "lucie-7b")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_built_small_takes_a_step_and_comes_back_from_checkpoint_and_export_bit_for_bit(name, tmp_path):
    preset_of = preset(name)
    small = ModelConfig(preset_of.architecture, {**preset_of.settings, **SMALL}, vocabulary_multiple=32)
    config = model_config(small, VOCABULARY, LENGTH, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    assert config.vocab_size == 128
    model = build_model(config, 0)
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    assert ("lm_head.weight" in before) != config.tie_word_embeddings
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs = model_inputs(packed([np.arange(10), np.arange(20, 30)]), torch.device("cpu"))
    PackedLanguageModel(model)(**inputs)[0].backward()
    optimizer.step()
    after = {key: one.detach() for key, one in model.named_parameters()}
    assert any(not torch.equal(one, before[key]) for key, one in after.items() if one.dim() >= 2)

    folder = write_model(tmp_path / "checkpoint", after, model=config.to_dict())
    resumed = model_of(Checkpoint(folder))
    assert all(torch.equal(one, after[key]) for key, one in resumed.named_parameters())
    resumed.save_pretrained(tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    again = build_model(config, 5)
    weights = open_weights(tmp_path / "export")
    check(weights, config, None)
    weights.load(again)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        right = resumed(ids).logits
        assert torch.equal(loaded.eval()(ids).logits, right)
        assert torch.equal(again.eval()(ids).logits, right)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("lama", {}), "model.architecture=lama: not a model type"),
        (ModelConfig("llama", {"hiden_size": 3}), "LlamaConfig has no hiden_size"),
        (ModelConfig("llama", {"hidden_size": 30, "num_attention_heads": 4}), "model.settings"),
    ],
)
def test_nonsense_architectures_are_refused(config, message):
    with pytest.raises(HanseError, match=message):
        build_model(model_config(config, VOCABULARY, LENGTH), 0)


# --- presets --------------------------------------------------------------------------------------------------------

PRESETS = Path(__file__).parents[2] / "configs/model"
# Parameters as published by those who trained them (technical reports named in the presets).
PUBLISHED = {
    "alia-40b": 40_433_885_184, "llama3-1b": 1_235_814_400, "llama3-3b": 3_212_749_824, "lucie-7b": 6_706_958_336,
    "apertus-8b": 8_053_338_176, "apertus-70b": 70_600_000_000, "eurollm-1.7b": 1_657_000_000,
    "eurollm-9b": 9_154_000_000, "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "mistral-7b": 7_248_023_552,
    "qwen3-8b": 8_190_735_360, "salamandra-2b": 2_253_490_176, "salamandra-7b": 7_768_117_248,
}  # fmt: skip


ROUNDED = {"qwen3-4b": 4.0e9, "qwen3-14b": 14.8e9, "qwen3-32b": 32.8e9}  # as published, to 0.1B


def preset(name):
    return ModelConfig(**yaml.safe_load((PRESETS / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_its_makers_published(name):
    config = preset(name)
    model = shape_of_model(model_config(config, config.vocabulary_size, 4096))
    assert parameter_counts(model)[0] == pytest.approx(PUBLISHED[name], rel=2e-3)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ROUNDED)
def test_a_preset_has_as_many_parameters_as_its_makers_published_in_round_numbers(name):
    config = preset(name)
    parameters = parameter_counts(shape_of_model(model_config(config, config.vocabulary_size, 4096)))[0]
    assert parameters == pytest.approx(ROUNDED[name], abs=5e7)


DEMO_SIZES = {"llama-3m": 16_384, "llama-8m": 16_384}  # vocabularies that the names of the two small ones refer to


@pytest.mark.parametrize("name", [path.stem for path in sorted(PRESETS.glob("*-*.yaml"))])
def test_every_preset_is_about_as_large_as_its_name_says(name):
    config = preset(name)
    size = name.rpartition("-")[2]
    vocabulary = DEMO_SIZES.get(name, config.vocabulary_size)
    parameters = parameter_counts(shape_of_model(model_config(config, vocabulary, 4096)))[0]
    assert parameters == pytest.approx(float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]], rel=0.25)


def test_a_vocabulary_is_rounded_up_and_never_set_by_hand():
    config = ModelConfig("llama", SETTINGS, vocabulary_multiple=64)
    assert model_config(config, VOCABULARY, LENGTH).vocab_size == 128
    with pytest.raises(HanseError, match="follows from the shards"):
        model_config(ModelConfig("llama", {**SETTINGS, "vocab_size": 5}), VOCABULARY, LENGTH)
