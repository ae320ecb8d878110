"""How far a run can be repeated bit for bit, and what each level asks for.

D0: as fast as it gets. D1: the same bits on the same layout, software and hardware. D2: the same bits on any number of
data-parallel ranks and at every ZeRO stage (:mod:`train.invariant`). The order of data is the same at all of them.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from train.config import DETERMINISM

# What torch and the libraries beneath it read when they start: one algorithm, one order.
# (cuBLAS: CUDA toolkit documentation, "Results reproducibility"; NCCL: NCCL_ALGO, NCCL_PROTO.)
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
LAYOUT = ("batch.micro_batch_size", "engine.precision", "engine.fp16", "model.attention", "threads_per_rank",
          "engine.gradient_accumulation", "engine.communication", "engine.offload_optimizer", "engine.offload_adamw",
          "engine.compile", "engine.quantized_weights", "engine.quantized_gradients")  # fmt: skip
FROZEN = {"D0": (), "D1": (*LAYOUT, "ranks", "engine.zero_stage", "engine.sequence_parallel"),
          "D2": LAYOUT}  # keys that a run is held to  # fmt: skip


def set_variables(level: str, environment: MutableMapping[str, str]) -> None:
    """Set what libraries read before they are loaded; ranks inherit it."""
    if level != DETERMINISM[0]:
        environment.update(VARIABLES)


def enforce(level: str) -> None:
    """From here on an operation that has no deterministic form is an error, not a different result."""
    import torch  # not at the top: the variables above must be set before it is loaded

    on = level != DETERMINISM[0]
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = False
    if on and torch.cuda.is_available():
        missing = [f"{key}={value}" for key, value in VARIABLES.items() if os.environ.get(key) != value]
        assert not missing, f"set before torch was loaded: {', '.join(missing)}"
