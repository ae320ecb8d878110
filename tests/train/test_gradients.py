"""What is done to gradients at once gives what ZeRO does one parameter at a time. (Its kernels are for GPUs, and so is
:func:`at_once`; its arithmetic is the same on a CPU.)"""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from train.gradients import INVALID, at_once, sum_of_squares

GPU = torch.device("cuda")


def zero_of(**more):
    return SimpleNamespace(
        gradient_accumulation_dtype=torch.float32, has_moe_layers=False, dp_process_group=None, **more
    )


@pytest.fixture(scope="module")
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=5))
def test_gradients_of_micro_batches_are_summed_in_fp32_to_the_same_bits(seeds):
    zero = zero_of()
    at_once(zero, 1, GPU)
    parameter, total = SimpleNamespace(grad=None, grad_accum=None), None
    for seed in seeds:
        gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).bfloat16()
        total = gradient.float() if total is None else total + gradient.float()
        parameter.grad = gradient
        zero._fill_param_grad_accum_attribute(parameter)
        assert parameter.grad is None
    assert parameter.grad_accum.dtype == torch.float32
    assert torch.equal(parameter.grad_accum, total)
    zero._fill_param_grad_accum_attribute(parameter)  # as after a pass that did not touch it
    assert torch.equal(parameter.grad_accum, total)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_norm_is_that_of_all_parts_but_padding_and_tells_of_one_bad_number(alone, bad):
    zero = zero_of()
    at_once(zero, 2, GPU)
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (7, 1, 300)]
    padding = torch.full((9,), 1e3)
    padding._zero_padding = True
    expected = torch.linalg.vector_norm(torch.cat(parts).double())
    assert zero.get_grad_norm_direct([*parts, padding], parts).item() == pytest.approx(expected.item(), rel=1e-6)
    parts[1][0] = bad
    assert zero.get_grad_norm_direct([*parts, padding], parts).item() == INVALID


def test_no_parts_have_no_squares_and_large_numbers_do_not_overflow_before_they_must():
    assert sum_of_squares([], torch.device("cpu")).item() == 0
    assert sum_of_squares([torch.full((4,), 1e18)], torch.device("cpu")).isfinite()


def test_stage_3_and_cpus_keep_their_own_way():
    for stage, device in ((3, GPU), (1, torch.device("cpu"))):
        zero = zero_of()
        at_once(zero, stage, device)
        assert not hasattr(zero, "get_grad_norm_direct")
