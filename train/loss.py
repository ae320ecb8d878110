"""Cross-entropy of a linear head without the logits: they exist for some rows at a time, and only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.compiling import compiled
from train.ops import can_compile
from train.stream import IGNORED

# transformers' model types whose logits are the output embedding of the last hidden state and nothing more: no scaling,
# no soft cap. The others get the plain way; a test holds that both agree for each of these.
PLAIN_HEADS = frozenset({"apertus", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})

ROWS_ON_CPU = 384  # at once: with fewer what is added to the weight's gradient once a block outweighs the products,
# and what is no multiple of the tiles of a product's kernel slows it down
LOGITS_ON_GPU = 1 << 28  # at once: what its spare memory holds
OfBlock = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class LinearCrossEntropy(torch.autograd.Function):
    """``cross_entropy(hidden @ weight.T, labels)`` whose gradient is computed on the way forward.

    The logits of a large vocabulary are the largest tensor of a language model. Here a block of rows goes through the
    head, its softmax becomes the gradient in place, and both products with it are taken while it is at hand; three
    matrix products in all, as without the trick. (The idea is that of Liger Kernel, arXiv 2410.10989, section 3.2.)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, z_weight: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses and the losses themselves.

        Args:
            ctx: autograd's.
            hidden: (N, H).
            weight: (V, H), of the same type.
            labels: (N,) int64, IGNORED where none counts.
            z_weight: of the square of the softmax' log-denominator, which goes into the gradient and not into the
                losses (z-loss: Chowdhery et al., PaLM, arXiv 2204.02311, section 5).

        Returns:
            () and (N,), both fp32; only the sum carries a gradient.
        """
        needed = any(ctx.needs_input_grad[:2])
        losses = torch.zeros(len(labels), dtype=torch.float32, device=hidden.device)
        by_hidden, by_weight = torch.zeros_like(hidden) if needed else None, None
        of_block = _of_block(hidden.device)
        for rows, logits in _blocks(hidden, weight, labels, by_columns=needed and not hidden.is_cuda):
            if by_hidden is None:
                losses[rows] = _losses(logits.float(), labels[rows])[0]
                continue
            losses[rows], gradient = of_block(logits, labels[rows], z_weight)
            by_hidden[rows] = torch.mm(gradient, weight)
            by_weight = _added(by_weight, gradient.t(), hidden[rows])
        if needed:
            ctx.save_for_backward(by_hidden, by_weight)
            ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times that of the sum."""
        by_hidden, by_weight = ctx.saved_tensors
        if by_weight.is_cuda:  # written as it is computed: the product in fp32 would be as large once more
            by_weight = torch.mul(by_weight, gradients[0], out=torch.empty_like(by_weight, dtype=ctx.weight_dtype))
        else:
            by_weight = (by_weight * gradients[0]).to(ctx.weight_dtype)
        if by_hidden.dtype == torch.float16:  # the factor, a loss scale over the labels of a step, may not fit into it
            return (by_hidden.float() * gradients[0]).half(), by_weight, None, None
        return by_hidden * gradients[0].to(by_hidden.dtype), by_weight, None, None


def rows_at_once(device_type: str, vocabulary: int, tokens: int) -> int:
    """How many of the tokens of a micro-batch have their logits in memory at a time."""
    most = ROWS_ON_CPU
    if device_type != "cpu":  # blocks of one size: another shape would be compiled anew
        most = 1 << max(16, LOGITS_ON_GPU // vocabulary).bit_length() - 1
    return max(1, min(tokens, most))


def _blocks(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, by_columns: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Rows at a time with their logits (rows, V) as the product gives them, which the caller may overwrite.

    ``by_columns``: these lie one after another in memory. On CPUs all three products with them are faster then, while
    the largest of a row takes longer to find.
    """
    rows = rows_at_once(hidden.device.type, len(weight), len(labels))
    room = hidden.new_empty(rows * len(weight))
    for start in range(0, len(labels), rows):
        part = hidden[start : start + rows]
        here = room[: len(part) * len(weight)]
        logits = here.view(-1, len(part)).t() if by_columns else here.view(len(part), -1)
        yield slice(start, start + rows), torch.mm(part, weight.t(), out=logits)


@cache
def _of_block(device: torch.device) -> OfBlock:
    """What makes losses and their gradient of a block of logits here: compiled for GPUs, where that can be done."""
    return compiled(_in_one_pass) if can_compile(device) else _step_by_step


def _step_by_step(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    """(N, V) and (N,) -> losses (N,) and the gradient of their sum (N, V), which may take the place of the logits."""
    scores = logits.float()
    losses, sums, denominator = _losses(scores, labels)
    counts, places = (labels != IGNORED)[:, None], labels.clamp_min(0)[:, None]
    shares = counts / sums  # the softmax; with z-loss, more of it: its gradient is 2 z softmax
    if z_weight:
        shares *= 1 + 2 * z_weight * denominator[:, None]
    return losses, scores.mul_(shares).scatter_add_(1, places, -counts.float()).to(logits.dtype)


def _in_one_pass(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    """The same, to be compiled: logits are read as they are stored, and nothing of their size exists in fp32."""
    scores, counts = logits.float(), (labels != IGNORED)[:, None]
    denominator = scores.logsumexp(1, keepdim=True)
    of_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    losses = (denominator - scores.gather(1, labels.clamp_min(0)[:, None])) * counts
    gradient = (scores - denominator).exp() * (1 + 2 * z_weight * denominator) - of_label.float()
    return losses[:, 0], logits.copy_(gradient * counts)


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total`` (None: 0) and the product of two matrices, in fp32."""
    if left.dtype != torch.float32 and left.is_cuda and not torch.version.hip:  # cuBLAS sums and adds in fp32
        if total is None:
            return torch.mm(left, right, out_dtype=torch.float32)
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    if total is None:
        total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float32, device=left.device)
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(torch.mm(left, right))


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, V) and (N,) -> losses (N,); sums (N, 1) of what the logits become in place, and their softmax'
    log-denominator (N,)."""
    of_label = logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    highest = logits.amax(1, keepdim=True)
    sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
    denominator = sums.log()[:, 0] + highest[:, 0]
    return (denominator - of_label) * (labels != IGNORED), sums, denominator


@torch.no_grad()
def scores_of_labels(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of :class:`LinearCrossEntropy` and which labels are the likeliest token.

    To the last bit, on CPUs, those that it gives where no gradient is wanted.

    Of tokens that are equally likely the first counts as the likeliest.

    Returns:
        (N,) fp32 and (N,) bool, 0 and False where no label counts.
    """
    losses = torch.zeros(len(labels), dtype=torch.float32, device=hidden.device)
    first = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
    for rows, logits in _blocks(hidden, weight, labels):
        scores = logits.float()
        first[rows] = scores.argmax(1) == labels[rows]
        losses[rows] = _losses(scores, labels[rows])[0]
    return losses, first


class FusedHead(nn.Linear):
    """An output embedding that gives the losses of labels, and logits where there are none.

    A module, so that ZeRO-3 gathers its weight when it is called.
    """

    z_weight = 0.0

    def forward(self, hidden: Tensor, labels: Tensor | None = None, *, scored: bool = False) -> Any:
        """hidden (B, L, H); without labels logits (B, L, V), with labels (B, L) the pair of LinearCrossEntropy, or
        that of scores_of_labels."""
        if labels is None:
            return super().forward(hidden)
        if scored:
            return scores_of_labels(hidden.flatten(0, 1), self.weight, labels.flatten())
        return LinearCrossEntropy.apply(hidden.flatten(0, 1), self.weight, labels.flatten(), self.z_weight)


class AddToGradient(torch.autograd.Function):
    """A sum whose gradient is that of itself and of something more, which is not in it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, more: Tensor) -> Tensor:
        """() and (); the first."""
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


def losses_of_logits(logits: Tensor, labels: Tensor, z_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """The same pair from logits (B, L, V): for models whose logits are more than a product."""
    flat, wanted = logits.flatten(0, 1).float(), labels.flatten()
    losses = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
    total = losses.sum()
    if z_weight:
        squares = flat.logsumexp(1).square() * (wanted != IGNORED)
        total = AddToGradient.apply(total, z_weight * squares.sum())
    return total, losses.detach()


@torch.no_grad()
def scores_of_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`scores_of_labels` gives, from logits (B, L, V)."""
    return losses_of_logits(logits, labels)[1], logits.flatten(0, 1).argmax(1) == labels.flatten()
