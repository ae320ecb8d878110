"""What the states of a model take under ZeRO: for plans, and for launches, which import no torch."""

from __future__ import annotations

ADAM_BYTES = 12  # a parameter: master weight and both moments in fp32


def states(
    parameters: int, ranks: int, stage: int, value_bytes: int = 2, *, gradient_bytes: int | None = None,
    optimizer_bytes: float = ADAM_BYTES,
) -> tuple[float, float, float]:  # fmt: skip
    """Bytes of weights, gradients and optimizer on one rank (Rajbhandari et al., arXiv 1910.02054, figure 1).

    Args:
        parameters: of the model; ``ranks``: that share; ``stage``: 0 shares nothing, 1 the optimizer, 2 also
            gradients, 3 all.
        value_bytes: of a weight: 2 in bf16, 4 in fp32; ``gradient_bytes``: of a gradient that is accumulated; as many
            where it is not said.
        optimizer_bytes: a parameter, of master weight, moments, and what else goes along.
    """
    weights = value_bytes * parameters / (ranks if stage == 3 else 1)
    gradients = (gradient_bytes or value_bytes) * parameters / (ranks if stage >= 2 else 1)
    return weights, gradients, optimizer_bytes * parameters / (ranks if stage >= 1 else 1)
