"""The optimizers alone: against their papers' formulas and torch's, and whatever the layout cuts."""

import math
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as some

from common.errors import HanseError
from tests.train.test_engine_config import configured
from train import ops
from train.config import ModelConfig
from train.engine_config import AverageConfig, OptimizerConfig
from train.lock import config_sha256
from train.model import build_model, model_config
from train.muon import Matrices, Piece, dealt, orthogonal
from train.optimizers import Stepper, groups_of, host_kernel, mixed, moments_of
from train.run_folder import RunFolder

SETTINGS = OptimizerConfig(learning_rate=1e-2)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def stepper(weights, method, moments, optimizer=SETTINGS, *, steps=100, decay=0.1):
    """The optimizer over one flat tensor."""
    found = Stepper(
        [{"params": [weights], "weight_decay": decay, "method": method, "moments": moments}], optimizer, steps
    )
    found.state[weights] = {"step": torch.zeros(()), **{key: torch.zeros_like(weights) for key in moments}}
    return found


def test_adamw_of_single_roundings_is_torchs_within_rounding():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 999)) for _ in range(2))
    ours = stepper(mine, "adamw", ("exp_avg", "exp_avg_sq"))
    torchs = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(20):
        mine.grad = torch.randn(999)
        theirs.grad = mine.grad.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not ops.compiled(ops.HOST_ADAM), reason="CPUAdam is not compiled here: train once with "
                    "engine.offload_adamw=deepspeed")  # fmt: skip
def test_deepspeeds_cpu_adam_is_torchs_within_rounding_and_knows_no_step_before_its_first():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 999)) for _ in range(2))
    ours = stepper(mine, "cpu_adam", ("exp_avg", "exp_avg_sq"))
    torchs = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    gradients = torch.randn(20, 999)
    for gradient in gradients:
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
        torchs_state = torchs.state[theirs]
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(ours.state[mine][key], torchs_state[key])
    for group in ours.param_groups:
        group["lr"] = 0.0
    before = mine.detach().clone()
    mine.grad = gradients[0].clone()
    ours.step()
    assert torch.equal(mine.detach(), before)

    # On: a process that never made the first ten steps, and has other numbers in its kernel.
    whole, cut = (torch.nn.Parameter(torch.linspace(-1, 1, 999)) for _ in range(2))
    all_, late = (stepper(one, "cpu_adam", ("exp_avg", "exp_avg_sq")) for one in (whole, cut))
    for number, gradient in enumerate(gradients):
        if number == 10:
            cut.data.copy_(whole.data)
            late.state[cut] = {key: value.clone() for key, value in all_.state[whole].items()}
        whole.grad, cut.grad = gradient.clone(), gradient.clone()
        all_.step()
        if number >= 10:
            host_kernel.cache_clear()
            late.step()
    assert torch.equal(whole.detach(), cut.detach())


def test_ademamix_is_the_formula_of_its_paper_in_double_precision():
    torch.manual_seed(0)
    optimizer = OptimizerConfig(kind="ademamix", learning_rate=1e-2, slow_beta=0.999, slow_warmup_steps=15)
    mine = torch.nn.Parameter(torch.linspace(-1, 1, 99))
    ours = stepper(mine, "ademamix", ("exp_avg", "exp_avg_sq", "exp_avg_slow"), optimizer)
    weights, fast, slow, square = mine.detach().double(), *(torch.zeros(99, dtype=torch.float64) for _ in range(3))
    for step in range(1, 31):
        mine.grad = torch.randn(99)
        gradient, share = mine.grad.double(), min(1, step / 15)
        alpha = min(share * 5.0, 5.0)
        beta = min(
            math.exp(math.log(0.9) * math.log(0.999) / ((1 - share) * math.log(0.999) + share * math.log(0.9))), 0.999
        )
        fast = 0.9 * fast + 0.1 * gradient
        slow = beta * slow + (1 - beta) * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = (fast / (1 - 0.9**step) + alpha * slow) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        weights = weights - 1e-2 * (update + 0.1 * weights)
        ours.step()
    torch.testing.assert_close(mine.double(), weights, rtol=1e-4, atol=1e-5)


def test_ademamix_begins_as_adamw_and_ends_with_the_slow_mean_it_was_given():
    optimizer = OptimizerConfig(kind="ademamix", learning_rate=1, slow_beta=0.9999, slow_weight=8.0)
    decays, weights = zip(*(mixed(step, optimizer, 1000) for step in range(1, 1201)), strict=True)
    assert mixed(0, optimizer, 1000)[0] == pytest.approx(0.9)
    assert list(decays) == sorted(decays)
    assert decays[999:] == (0.9999,) * 201
    assert weights[499:1000:500] == (4.0, 8.0)
    half_lives = [math.log(0.5) / math.log(decay) for decay in (decays[249], decays[499], decays[749])]
    assert half_lives[2] - half_lives[1] == pytest.approx(half_lives[1] - half_lives[0], rel=1e-3)  # grows linearly


@given(size=some.integers(2, 400), cuts=some.sets(some.integers(1, 399), max_size=4),
       method=some.sampled_from(["adamw", "ademamix"]))  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_the_same_bits_wherever_a_layout_cuts(size, cuts, method):
    torch.manual_seed(size)
    moments = ("exp_avg", "exp_avg_sq", "exp_avg_slow")[: 2 if method == "adamw" else 3]
    start, gradients = torch.randn(size), torch.randn(3, size)
    whole = torch.nn.Parameter(start.clone())
    edges = [0, *sorted(cut for cut in cuts if cut < size), size]
    parts = [torch.nn.Parameter(start[a:b].clone()) for a, b in pairwise(edges)]
    all_, each = stepper(whole, method, moments), [stepper(part, method, moments) for part in parts]
    for gradient in gradients:
        whole.grad = gradient.clone()
        all_.step()
        for optimizer, part, (a, b) in zip(each, parts, pairwise(edges), strict=True):
            part.grad = gradient[a:b].clone()
            optimizer.step()
    assert torch.equal(torch.cat([part.detach() for part in parts]), whole.detach())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 6)])
def test_newton_schulz_is_torchs_bit_for_bit_and_makes_singular_values_about_one(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    before = matrix.clone()
    theirs = torch.optim._muon._zeropower_via_newtonschulz(matrix.clone(), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert torch.equal(orthogonal(matrix, torch.bfloat16), theirs)
    values = torch.linalg.svdvals(orthogonal(matrix, torch.float32))
    assert torch.all((values > 0.4) & (values < 1.3))
    assert torch.equal(matrix, before)


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_muon_is_torchs_with_its_scale(one_rank):
    torch.manual_seed(2)
    shapes = {"a": (6, 10), "b": (12, 4)}
    sizes = [60, 48]
    theirs = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes.values()]
    flat = torch.nn.Parameter(torch.cat([one.detach().flatten() for one in theirs]))
    ours = stepper(flat, "muon", ("exp_avg",), OptimizerConfig(kind="muon", learning_rate=1e-2))
    matrices = Matrices(shapes, [{"a": Piece(0, 60, 0), "b": Piece(0, 48, 60)}], 0, torch.bfloat16)
    ours.muon = lambda _, update: matrices(update)
    torchs = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one in theirs:
            one.grad = torch.randn(one.shape)
        flat.grad = torch.cat([one.grad.flatten() for one in theirs])
        ours.step()
        torchs.step()
    found = flat.detach().split(sizes)
    for mine, right in zip(found, theirs, strict=True):  # one bit of bf16 in an update of 0.01 x 0.2 sqrt(12)
        torch.testing.assert_close(mine, right.detach().flatten(), rtol=0, atol=3e-4)


@given(
    some.lists(some.tuples(some.integers(1, 50), some.integers(1, 50)), min_size=1, max_size=30), some.integers(1, 8)
)
def test_matrices_are_dealt_out_evenly(shapes, ranks):
    named = {str(number): shape for number, shape in enumerate(shapes)}
    work = [0] * ranks
    for name, maker in dealt(named, ranks).items():
        work[maker] += math.prod(named[name]) * min(named[name])
    assert max(work) <= sum(work) / ranks + max(math.prod(shape) * min(shape) for shape in shapes)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_between_the_embeddings_and_no_parameter_is_left_out(tied):
    model = build_model(model_config(ModelConfig("llama", {**SMALL, "tie_word_embeddings": tied}), 97, 24), 0)
    hidden, rest, vectors = groups_of(model, "muon")
    assert set(rest.parameters) == {"model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])}
    assert all("proj" in name for name in hidden.parameters)
    assert all("norm" in name for name in vectors.parameters)
    assert not vectors.decays
    assert {name for group in (hidden, rest, vectors) for name in group.parameters} == dict(
        model.named_parameters()
    ).keys()
    kept = moments_of(model, "muon")
    assert list(kept) == [name for name, _ in model.named_parameters()]
    assert {len(kept[name]) for name in hidden.parameters} == {1}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "ademamix", "muon"])
def test_embeddings_are_shrunk_only_when_asked_and_whatever_is_kept_of_them_stays_the_same(kind, tied):
    model = build_model(model_config(ModelConfig("llama", {**SMALL, "tie_word_embeddings": tied}), 97, 24), 0)
    shrunk, kept = ({name: (group.decays, group.method, group.moments) for group in groups for name in group.parameters}
                    for groups in (groups_of(model, kind, decay_embeddings=True),
                                   groups_of(model, kind, decay_embeddings=False)))  # fmt: skip
    assert shrunk.keys() == kept.keys() == dict(model.named_parameters()).keys()
    assert [name for name in shrunk if shrunk[name] != kept[name]] == ["model.embed_tokens.weight"]
    assert shrunk["model.embed_tokens.weight"] == (True, *kept["model.embed_tokens.weight"][1:])
    assert not any(decays for name, (decays, *_) in kept.items() if "embed" in name or "norm" in name)
    assert all(decays for name, (decays, *_) in kept.items() if "proj" in name or "lm_head" in name)


def test_a_new_run_shrinks_no_embeddings_and_one_older_than_the_key_is_not_changed_without_a_word(tmp_path):
    new, old = configured(), configured("optimizer.decay_embeddings=true")
    assert not new.optimizer.decay_embeddings
    folder = RunFolder(tmp_path)
    folder.keep_config(old)
    lines = folder.config.read_text().splitlines(keepends=True)
    folder.config.write_text("".join(line for line in lines if "decay_embeddings" not in line))  # as it was written
    assert folder.check_config(old) is None
    with pytest.raises(HanseError, match="decay_embeddings was True, now False; give it the same again"):
        folder.check_config(new)
    assert config_sha256(folder.read_config()) == config_sha256(old) != config_sha256(new)


def test_the_average_begins_with_the_first_weights_and_warms_up():
    average = AverageConfig(decay=0.99)
    assert [average.decay_after(taken) for taken in (0, 1, 8, 10_000)] == [0, 2 / 11, 9 / 18, 0.99]
    assert AverageConfig(decay=0.99, warmup=False).decay_after(1) == 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sgd"}, "optimizer.kind=sgd: one of adamw, muon, ademamix"),
        ({"momentum": 1.0}, "optimizer.momentum=1.0: must be in [0, 1)"),
        ({"weight_decay": -1}, "optimizer.weight_decay=-1: must be 0 or more"),
        ({"kind": "ademamix", "slow_beta": 0.5}, "optimizer.slow_beta=0.5: must not be below betas[0]=0.9"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan: must be above 0"),
    ],
)
def test_wrong_numbers_are_named(change, message):
    (line,) = OptimizerConfig(**{"learning_rate": 1e-3, **change}).problems()
    assert line.startswith(message)
