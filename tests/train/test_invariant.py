"""Determinism D2: one hash of all weights, moments and losses over every layout."""

import hashlib
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as some

from common.errors import HanseError
from tests.train.multirank import train_cases
from train import ledger
from train.checkpoint import PARTS, Checkpoint
from train.invariant import ExactSum, Owned
from train.run_folder import complete_steps, folder_of, read_metrics
from train.state_hash import state_of_checkpoint, tensors_under

STEPS, SEQUENCES = 4, 24  # twelve micro-batches of two sequences a step: for 1, 2, 3 and 4 ranks


def fingerprint(run) -> str:
    """One hash of the losses, the gradient norms and the state after the last step."""
    saved = Checkpoint(folder_of(run / "checkpoints", complete_steps(run / "checkpoints")[-1]))
    digest = hashlib.sha256()
    for part in PARTS:
        for name, spans in sorted(saved.slices(part).items()):
            values = torch.empty(spans[-1].stop if spans else 0)
            saved.read(spans, 0, len(values), values)
            digest.update(name.encode() + values.numpy().tobytes())
    for record in read_metrics(run / "metrics.jsonl"):
        if "loss" in record:
            digest.update(f"{record['step']} {record['loss'].hex()} {record['gradient_norm'].hex()}".encode())
    return digest.hexdigest()[:16]


def state_roots(run) -> dict[int, str]:
    """{step: root of weights and moments}; the last one is also that of the checkpoint, and its tensors were kept."""
    found = ledger.steps((record for _, record in ledger.lines(run / "ledger.jsonl")), "state")
    roots = {step: line["root"] for step, line in found.items()}
    last = complete_steps(run / "checkpoints")[-1]
    state = state_of_checkpoint(Checkpoint(folder_of(run / "checkpoints", last)))
    assert state.root == roots[last]
    assert state.tensors == tensors_under(run / "states.jsonl", state.root)
    return roots


def settings(tiny_settings, *more):
    return [
        *tiny_settings, f"tokens={STEPS * SEQUENCES * 64}", f"batch.global_batch_size={SEQUENCES}",
        f"checkpoint.every_steps={STEPS // 2}", "evaluate.every_steps=100", "evaluate.tokens_per_language=128",
        "determinism=D2", "model.settings.hidden_size=40", "model.settings.tie_word_embeddings=true",
        f"state_hash_every_steps={STEPS // 2}", "model.vocabulary_multiple=2048", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_every_number_of_ranks_and_every_stage_gives_one_hash(tiny_settings, tmp_path):
    others = ["engine.precision=fp32", "ema.decay=0.9", "optimizer.learning_rate=3e-3"]
    kinds = {"fp32": ["engine.precision=fp32"], "bf16": ["engine.precision=bf16"],
             "muon": [*others, "optimizer.kind=muon"], "ademamix": [*others, "optimizer.kind=ademamix"]}  # fmt: skip
    # Every layout in fp32; the others at one stage a number of ranks, each stage in one of them.
    once = {"bf16": {1: 1, 2: 2, 3: 3, 4: 0}, "muon": {1: 2, 2: 3, 3: 0, 4: 1}, "ademamix": {1: 3, 2: 0, 3: 2, 4: 1}}
    found, roots = {kind: {} for kind in kinds}, {kind: {} for kind in kinds}
    for ranks in (1, 2, 3, 4):
        runs = {
            (kind, stage): tmp_path / f"{kind}-{ranks}-{stage}" for kind in kinds for stage in (0, 1, 2, 3)
            if kind == "fp32" or stage == once[kind][ranks]
        }  # fmt: skip
        cases = {
            run.name: settings(tiny_settings, f"run={run}", f"engine.zero_stage={stage}", *kinds[kind])
            for (kind, stage), run in runs.items()
        }
        assert train_cases(tmp_path / f"ranks-{ranks}", ranks, cases) == dict.fromkeys(cases, 0)
        for (kind, _), run in runs.items():
            found[kind][run.name] = fingerprint(run)
            roots[kind][run.name] = state_roots(run)
    for kind, hashes in found.items():
        assert len(hashes) == (16 if kind == "fp32" else 4)
        assert len(set(hashes.values())) == 1, hashes
        assert len({tuple(sorted(one.items())) for one in roots[kind].values()}) == 1, roots
        assert next(iter(roots[kind].values())).keys() == {STEPS // 2, STEPS}


@pytest.mark.slow
def test_a_run_killed_and_resumed_on_other_layouts_ends_with_the_bits_of_a_quiet_one(tiny_settings, tmp_path, start):
    """Two ranks at ZeRO-2 all the way; and one rank at ZeRO-1, killed without warning, then three at ZeRO-3."""
    common = settings(tiny_settings, f"tokens={16 * SEQUENCES * 64}", "engine.precision=fp32")
    quiet, moved = tmp_path / "quiet", tmp_path / "moved"
    case = {"quiet": [*common, f"run={quiet}", "engine.zero_stage=2"]}
    assert train_cases(tmp_path / "two", 2, case) == {"quiet": 0}
    victim = start(moved, [*common, "ranks=1", "engine.zero_stage=1"])
    victim.wait_for_step(6)
    victim.kill()
    assert 0 < complete_steps(moved / "checkpoints")[-1] < 16
    case = {"moved": [*common, f"run={moved}", "engine.zero_stage=3"]}
    assert train_cases(tmp_path / "three", 3, case) == {"moved": 0}
    assert fingerprint(moved) == fingerprint(quiet)


# --- the sum alone, on one rank that owns everything -----------------------------------------------------------------


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1), rank=0,
                            world_size=1)  # fmt: skip
    yield
    dist.destroy_process_group()


def summed(gradients, *, clip=0.0, bucket_elements=5, sharded=True):
    """(sum, norm) of these micro-batches' gradients, each a pair of lists for two parameters of 4 and 3 elements."""
    parameters = [torch.zeros(size, requires_grad=True) for size in (4, 3)]
    zero = SimpleNamespace(averaged_gradients={}, dp_process_group=None)
    engine = SimpleNamespace(coalesce_grad_reduction=nullcontext, optimizer=zero)
    owned = {id(parameters[0]): Owned(0, 0, 0, 4), id(parameters[1]): Owned(0, 4, 0, 3)}
    exact = ExactSum(engine, parameters, [4, 3], owned, [torch.zeros(7)], sharded=sharded, micro_batches=len(gradients),
                     bucket_elements=bucket_elements, clip=clip)  # fmt: skip
    for number, pair in enumerate(gradients, 1):
        exact.begin(last=number == len(gradients))
        sum((p * torch.tensor(g)).sum() for p, g in zip(parameters, pair, strict=True)).backward()
        assert exact.end() == (number == len(gradients))
        assert all(parameter.grad is None for parameter in parameters)
    return zero.averaged_gradients[0][0], exact.norm


numbers = some.floats(-1e3, 1e3, width=32)
pairs = some.tuples(some.lists(numbers, min_size=4, max_size=4), some.lists(numbers, min_size=3, max_size=3))


@rules(deadline=None)
@given(gradients=some.lists(pairs, min_size=1, max_size=6), data=some.data())
def test_order_buckets_and_sharding_change_no_bit_of_the_sum(one_rank, gradients, data):
    first, norm = summed(gradients)
    shuffled = data.draw(some.permutations(gradients))
    again, same = summed(shuffled, bucket_elements=data.draw(some.integers(1, 9)), sharded=data.draw(some.booleans()))
    assert torch.equal(first, again)
    assert norm == same
    exactly = [math.fsum(one) for one in zip(*([*a, *b] for a, b in gradients), strict=True)]
    assert first.tolist() == pytest.approx(exactly, rel=1e-6, abs=1e-11)
    assert norm == pytest.approx(math.sqrt(math.fsum(value * value for value in exactly)), rel=1e-6, abs=1e-6)


def test_clipping_leaves_the_direction_and_takes_the_length(one_rank):
    clipped, norm = summed([([3.0, 0, 0, 0], [0.0, 4, 0])], clip=1.0)
    assert norm == 5.0
    assert clipped.tolist() == pytest.approx([0.6, 0, 0, 0, 0, 0.8, 0])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_handed_over_as_such_for_the_guard_to_see(one_rank, value):
    gradient, norm = summed([([value, 0, 0, 0], [0.0, 0, 0]), ([1.0, 0, 0, 0], [0.0, 0, 0])])
    assert math.isnan(norm)
    assert gradient.isnan().all()


def test_a_gradient_too_large_to_be_summed_exactly_is_refused_before_the_update(one_rank):
    with pytest.raises(HanseError, match="lower learning rate"):
        summed([([1e9, 0, 0, 0], [0.0, 0, 0])])
