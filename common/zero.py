"""What the states of a model take under ZeRO: for plans, and for launches, which import no torch."""

from __future__ import annotations

ADAM_BYTES = 12  # a parameter: master weight and both moments in fp32


def states(parameters: int, ranks: int, stage: int, value_bytes: int = 2) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer on one rank (Rajbhandari et al., arXiv 1910.02054, figure 1).

    Args:
        parameters: of the model; ``ranks``: that share; ``stage``: 1 shares the optimizer, 2 also gradients, 3 all.
        value_bytes: of a weight and of a gradient: 2 in bf16, 4 in fp32.
    """
    value = value_bytes * parameters
    weights, gradients = value / (ranks if stage == 3 else 1), value / (ranks if stage >= 2 else 1)
    return weights, gradients, ADAM_BYTES * parameters / ranks
