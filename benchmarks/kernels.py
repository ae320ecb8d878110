"""Two kernels that the speed on a GPU hangs on, beside what else there is, forward and backward in bf16: the head with
its loss, and attention that must not look across the borders of packed documents.

    python -m benchmarks.kernels [--tokens 8192] [--vocabularies 32768 131072] [--lengths 4096 8192]

Medians of ``triton.testing.do_bench``. Memory is what lies on top of the inputs at the worst moment. Errors are of the
result and of each gradient, relative to float64 (norm of the difference over norm); ``repeats``: twice the same bits.
Liger's kernels (``liger-kernel``), FlashAttention's (``flash-attn``) and torch's own ``linear_cross_entropy`` take part
where they are installed; torch's FlashAttention (``torch.nn.attention.varlen``) is called as a model would call it that
is told of documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train import loss
from train.attention import SMALL_TILES, attention_mask, block_mask, sequences
from train.stream import IGNORED

GPU = torch.device("cuda")
Way = Callable[..., Tensor]


def heads() -> Iterator[tuple[str, Way]]:
    """What computes the sum of the losses of (hidden, weight, labels)."""

    def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.t()).float(), labels, ignore_index=IGNORED, reduction="sum")

    def ours(*of: Tensor) -> Tensor:
        total: Tensor = loss.LinearCrossEntropy.apply(*of)[0]
        return total

    def not_compiled(*of: Tensor) -> Tensor:
        chosen, loss._of_block = loss._of_block, lambda _: loss._step_by_step  # type: ignore[assignment]
        try:
            return ours(*of)
        finally:
            loss._of_block = chosen

    yield "cross_entropy of all logits", plain
    yield "the same, compiled", torch.compile(plain, dynamic=False)
    yield "hanse", ours
    yield "hanse, not compiled", not_compiled
    if theirs := getattr(F, "linear_cross_entropy", None):
        yield "torch's linear_cross_entropy", lambda *of: theirs(*of, ignore_index=IGNORED, reduction="sum")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger
    except ImportError:
        return
    options = (None, None, IGNORED, 0.0, 0.0, "sum", None, False)
    yield "Liger, gradient in fp32", lambda *of: Liger.apply(*of, *options, torch.float32)[0]
    yield "Liger, gradient in bf16", lambda *of: Liger.apply(*of, *options)[0]


def attentions(documents: Tensor, groups: int) -> Iterator[tuple[str, Way]]:
    """What computes attention of query (B, heads, L, D), key and value (B, heads / groups, L, D) inside documents."""
    from torch.nn.attention.flex_attention import flex_attention

    mask, blocks = attention_mask(documents, "sdpa", torch.bfloat16), block_mask(documents)
    told = sequences(documents)
    ends, longest = told["cu_seq_lens_q"], told["max_length_q"]
    flex = torch.compile(flex_attention, dynamic=False)

    def repeated(*of: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.repeat_interleave(groups, 1) for one in of)

    def one_after_another(kernel: Callable[..., Any], query: Tensor, *of: Tensor) -> Tensor:
        out = kernel(*(one.transpose(1, 2).flatten(0, 1) for one in (query, *of)))
        rows, heads, length, size = query.shape
        return out.view(rows, length, heads, size).transpose(1, 2)

    yield "sdpa", lambda q, k, v: F.scaled_dot_product_attention(q, *repeated(k, v), attn_mask=mask)
    yield "flex", lambda q, k, v: flex(q, k, v, block_mask=blocks, enable_gqa=True)
    yield "flex, small tiles", lambda q, k, v: flex(q, k, v, block_mask=blocks, enable_gqa=True,
                                                    kernel_options=SMALL_TILES)  # fmt: skip
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        pass
    else:

        def of_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0))

        yield "FlashAttention of torch", lambda q, k, v: one_after_another(of_torch, q, *repeated(k, v))
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return

    def installed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, causal=True)
        return out

    yield "flash-attn", lambda q, k, v: one_after_another(installed, q, k, v)


def measure(way: Way, inputs: list[Tensor], rest: tuple[Tensor, ...], above: Tensor | None, exact: list[Tensor]) -> str:
    """A row: milliseconds, memory, errors, whether it repeats."""
    from triton.testing import do_bench

    mine = [one.clone().requires_grad_() for one in inputs]

    def once() -> Tensor:
        for one in mine:
            one.grad = None
        out = way(*mine, *rest)
        out.backward(above)
        return out.detach()

    out = once()
    found = [out, *(one.grad for one in mine)]
    errors = [f"{(a.double() - b).norm() / b.norm():.0e}" for a, b in zip(found, exact, strict=False)]
    first = [one.clone() for one in found]
    once()
    repeats = all(torch.equal(one.grad, before) for one, before in zip(mine, first[1:], strict=True))
    milliseconds = do_bench(once, warmup=50, rep=300, return_mode="median")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    torch.cuda.synchronize()
    more = (torch.cuda.max_memory_allocated() - before) / 2**20
    return (
        f"{milliseconds:8.2f} ms {more:7,.0f} MiB  repeats {'yes' if repeats else 'no ':3s}  errors {' '.join(errors)}"
    )


def table(ways: Iterator[tuple[str, Way]], *of: Any) -> None:
    for name, way in ways:
        try:
            print(f"  {name:30s}{measure(way, *of)}", flush=True)
        except Exception as error:  # of many types: what one of them lacks says nothing of the others
            print(f"  {name:30s} failed: {next(iter(str(error).splitlines()), type(error).__name__)[:80]}", flush=True)
        torch.cuda.empty_cache()


def compare_heads(tokens: int, width: int, vocabulary: int) -> None:
    hidden = torch.randn(tokens, width, device=GPU).bfloat16()
    weight = (torch.randn(vocabulary, width, device=GPU) * width**-0.5).bfloat16()
    labels = torch.randint(0, vocabulary, (tokens,), device=GPU)
    labels[::17] = IGNORED
    exact = []
    if tokens * vocabulary <= 1 << 28:
        both = [one.double().requires_grad_() for one in (hidden, weight)]
        total = F.cross_entropy(both[0] @ both[1].t(), labels, ignore_index=IGNORED, reduction="sum")
        total.backward()
        exact = [total.detach(), *(one.grad for one in both)]
    work = 6e-12 * tokens * width * vocabulary
    print(f"head: {tokens:,} tokens, width {width:,}, vocabulary {vocabulary:,}: {work:.1f} TFLOP")
    table(heads(), [hidden, weight], (labels,), None, exact)


def compare_attentions(rows: int, heads_: int, groups: int, size: int, length: int, mean: int) -> None:
    documents = (torch.rand(rows, length, device=GPU) < 1 / mean).cumsum(1)
    shapes = [(rows, heads_, length, size)] + [(rows, heads_ // groups, length, size)] * 2
    inputs = [torch.randn(shape, device=GPU).bfloat16() for shape in shapes]
    above = torch.randn(shapes[0], device=GPU).bfloat16()
    exact = []
    if length <= 4096:
        three = [one.double().requires_grad_() for one in inputs]
        out = F.scaled_dot_product_attention(three[0], *(one.repeat_interleave(groups, 1) for one in three[1:]),
                                             attn_mask=attention_mask(documents, "sdpa", torch.float64))  # fmt: skip
        out.backward(above.double())
        exact = [out.detach(), *(one.grad for one in three)]
    print(f"attention: {rows} sequences of {length:,} tokens, documents of {mean} on average, {heads_} heads of {size}")
    table(attentions(documents, groups), inputs, (), above, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernels: needs a GPU; these kernels are not what a CPU computes with")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for vocabulary in options.vocabularies:
        compare_heads(options.tokens, 2048, vocabulary)
    for length in options.lengths:
        compare_attentions(2, 32, 4, 64, length, 500)
        compare_attentions(2, 16, 2, 128, length, 700)


if __name__ == "__main__":
    main()
