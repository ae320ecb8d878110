"""Two kernels that the speed on a GPU hangs on, beside what else there is, forward and backward in bf16: the head with
its loss, and attention that must not look across the borders of packed documents. On a CPU the head alone, in fp32
(``benchmarks.varlen`` compares attention there).

    python -m benchmarks.kernels [--tokens 8192] [--vocabularies 32768 131072] [--lengths 4096 8192]
    python -m benchmarks.kernels --device cpu [--threads 1] [--rounds 15]

On a GPU medians of ``triton.testing.do_bench``, and as memory what lies on top of the inputs at the worst moment; on a
CPU median and least of rounds in which all take turns. Errors are of the result and of each gradient, relative to
float64 (norm of the difference over norm); ``repeats``: twice the same bits. Liger's kernels (``liger-kernel``),
FlashAttention's (``flash-attn``) and torch's own ``linear_cross_entropy`` take part where they are installed; torch's
FlashAttention (``torch.nn.attention.varlen``) is called as a model would call it that is told of documents.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from train import loss
from train.attention import SMALL_TILES, attention_mask, block_mask, sequences
from train.stream import IGNORED

GPU, CPU = torch.device("cuda"), torch.device("cpu")
HEADS_ON_CPU = ((512, 128, 16_384), (512, 512, 32_768))  # tokens, width, vocabulary; the demo's, and a larger one
Way = Callable[..., Tensor]


def heads(device: torch.device) -> Iterator[tuple[str, Way]]:
    """What computes the sum of the losses of (hidden, weight, labels)."""

    def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.t()).float(), labels, ignore_index=IGNORED, reduction="sum")

    def ours(*of: Tensor) -> Tensor:
        total: Tensor = loss.LinearCrossEntropy.apply(*of)[0]
        return total

    def ours_with(part: str, other: Any) -> Way:
        def way(*of: Tensor) -> Tensor:
            with patch.object(loss, part, other):
                return ours(*of)

        return way

    yield "cross_entropy of all logits", plain
    if device == GPU:
        yield "the same, compiled", torch.compile(plain, dynamic=False)
    yield "hanse", ours
    if device == GPU:
        yield "hanse, not compiled", ours_with("_of_block", lambda _: loss._step_by_step)
    else:
        blocks = loss._blocks
        yield "hanse, logits by rows", ours_with("_blocks", lambda *of, by_columns: blocks(*of, by_columns=False))
    if theirs := getattr(F, "linear_cross_entropy", None):
        yield "torch's linear_cross_entropy", lambda *of: theirs(*of, ignore_index=IGNORED, reduction="sum")
        chunks = torch.nn.LinearCrossEntropyOptions()
        yield "the same, in chunks", lambda *of: theirs(*of, ignore_index=IGNORED, reduction="sum", options=chunks)
    if device == CPU:
        return
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


def passes(
    way: Way, inputs: list[Tensor], rest: tuple[Tensor, ...], above: Tensor | None = None
) -> Callable[[], list[Tensor]]:
    """A function that goes forward and backward, and gives the result and the gradient of each input."""
    mine = [one.clone().requires_grad_() for one in inputs]

    def once() -> list[Tensor]:
        for one in mine:
            one.grad = None
        out = way(*mine, *rest)
        out.backward(above)
        return [out.detach(), *(one.grad for one in mine)]

    return once


def errors_of(once: Callable[[], list[Tensor]], exact: list[Tensor]) -> str:
    """Whether it repeats its bits, and how far it is from float64."""
    found = [one.clone() for one in once()]
    repeats = all(torch.equal(one, before) for one, before in zip(once()[1:], found[1:], strict=True))
    errors = [f"{(a.double() - b).norm() / b.norm():.0e}" for a, b in zip(found, exact, strict=False)]
    return f"repeats {'yes' if repeats else 'no ':3s}  errors {' '.join(errors)}"


def measure(way: Way, inputs: list[Tensor], rest: tuple[Tensor, ...], above: Tensor | None, exact: list[Tensor]) -> str:
    """A row: milliseconds, memory, errors, whether it repeats."""
    from triton.testing import do_bench

    once = passes(way, inputs, rest, above)
    right = errors_of(once, exact)
    milliseconds = do_bench(once, warmup=50, rep=300, return_mode="median")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    torch.cuda.synchronize()
    more = (torch.cuda.max_memory_allocated() - before) / 2**20
    return f"{milliseconds:8.2f} ms {more:7,.0f} MiB  {right}"


def table(ways: Iterator[tuple[str, Way]], *of: Any) -> None:
    for name, way in ways:
        try:
            print(f"  {name:30s}{measure(way, *of)}", flush=True)
        except Exception as error:  # of many types: what one of them lacks says nothing of the others
            print(f"  {name:30s} failed: {next(iter(str(error).splitlines()), type(error).__name__)[:80]}", flush=True)
        torch.cuda.empty_cache()


def compare_heads(tokens: int, width: int, vocabulary: int, device: torch.device, rounds: int) -> None:
    dtype = torch.bfloat16 if device == GPU else torch.float32
    hidden = torch.randn(tokens, width, device=device).to(dtype)
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).to(dtype)
    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    labels[::17] = IGNORED
    exact = []
    if tokens * vocabulary <= 1 << 28:
        both = [one.double().requires_grad_() for one in (hidden, weight)]
        total = F.cross_entropy(both[0] @ both[1].t(), labels, ignore_index=IGNORED, reduction="sum")
        total.backward()
        exact = [total.detach(), *(one.grad for one in both)]
    work = 6e-12 * tokens * width * vocabulary
    print(f"head: {tokens:,} tokens, width {width:,}, vocabulary {vocabulary:,}: {work:.3g} TFLOP")
    if device == GPU:
        table(heads(device), [hidden, weight], (labels,), None, exact)
    else:
        in_turns({name: passes(way, [hidden, weight], (labels,)) for name, way in heads(device)}, exact, rounds)


def in_turns(ways: dict[str, Callable[[], list[Tensor]]], exact: list[Tensor], rounds: int) -> None:
    """A row each: milliseconds by the wall clock, of rounds in which all take turns, and errors."""
    right = {name: errors_of(once, exact) for name, once in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, once in ways.items():
            before = time.perf_counter()
            once()
            found[name].append(1000 * (time.perf_counter() - before))
    for name, times in found.items():
        print(f"  {name:30s}{statistics.median(times):8.1f} ms (least {min(times):.1f})  {right[name]}", flush=True)


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
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
        print(f"torch {torch.__version__}, {options.threads} threads, fp32")
        for case in HEADS_ON_CPU:
            compare_heads(*case, CPU, options.rounds)
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for vocabulary in options.vocabularies:
        compare_heads(options.tokens, 2048, vocabulary, GPU, options.rounds)
    for length in options.lengths:
        compare_attentions(2, 32, 4, 64, length, 500)
        compare_attentions(2, 16, 2, 128, length, 700)


if __name__ == "__main__":
    main()
