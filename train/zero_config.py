"""DeepSpeed's configuration, from ours."""

from __future__ import annotations

from typing import Any

import torch

from common.errors import HanseError
from train.config import TrainConfig
from train.optimizers import ALL_MOMENTS

SWAPPED_ELEMENTS = 100_000_000  # of a flat tensor that travels to the disk as one; some of them lie in host memory


def deepspeed_config(config: TrainConfig, ranks: int, precision: str, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Buckets are sized from the model: the default of 5e8 elements is allocated whole and makes a small model 20 times
    slower on a CPU.
    """
    bucket = bucket_elements(parameters)
    sharers = ranks if config.engine.zero_stage > 0 else 1  # stage 0 is a stage 1 of one (train/copies.py)
    zero: dict[str, Any] = {
        "stage": max(1, config.engine.zero_stage),
        "reduce_scatter": config.engine.zero_stage > 0,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
    }
    if config.engine.zero_stage == 3:
        zero |= zero_plus_plus(config) | {
                 "stage3_prefetch_bucket_size": bucket // 4, "stage3_param_persistence_threshold": 10_000,
                 "stage3_max_live_parameters": bucket, "stage3_max_reuse_distance": bucket}  # fmt: skip
    zero |= offload(config)
    batch, clipping = config.timeline.at(0).batch, config.optimizer.gradient_clipping
    micro_batch, slices = batch.micro_batch_size, batch.global_batch_size * config.engine.sharing
    accumulation = slices // (micro_batch * ranks)
    if config.determinism == "D2":  # accumulation and clipping are ours: DeepSpeed sees one backward a step
        micro_batch, accumulation, clipping = micro_batch * accumulation, 1, 0.0
        zero["memory_efficient_linear"] = False  # ZeRO-3's: a product of its own, which may round otherwise
    accumulated, travelling = config.engine.sums(precision, config.determinism)
    return {
        "train_batch_size": slices * sharers // ranks,  # of sequences or matrices, which it takes for sequences
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clipping,
        "zero_optimization": zero,
        # A step whose gradient is not finite leaves weights and moments as they are; in fp32 it always does.
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "fp16": config.engine.fp16.deepspeed() if precision == "fp16" else {"enabled": False},
        "data_types": {"grad_accum_dtype": accumulated},
        "communication_data_type": travelling,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast there (benchmarks/host_adam.py)
        **({"tensor_parallel": {"autotp_size": parts}} if (parts := config.engine.tensor_parallel) > 1 else {}),
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a micro-batch
        "wall_clock_breakdown": False,
    }


def offload(config: TrainConfig) -> dict[str, Any]:
    """Where states lie that are not beside the GPU's weights; page-locked where there is a GPU to copy them to."""
    engine, pinned, found = config.engine, torch.cuda.is_available(), dict[str, Any]()
    disk = {"nvme_path": f"{engine.nvme_path}/{config.name}"}  # two runs may share a machine
    if engine.offload_optimizer != "none":
        found["offload_optimizer"] = {"device": engine.offload_optimizer, "pin_memory": pinned}
    if engine.offload_parameters != "none":
        found["offload_param"] = {"device": engine.offload_parameters, "pin_memory": pinned}
    for key, place in (("offload_optimizer", engine.offload_optimizer), ("offload_param", engine.offload_parameters)):
        if place == "nvme":
            found[key] |= disk
    if engine.offload_optimizer == "nvme":  # buffers hold a part of the states: master, gradient and each moment
        found["offload_optimizer"]["buffer_count"] = 2 + len(ALL_MOMENTS)
        found["sub_group_size"] = SWAPPED_ELEMENTS
    return found


def zero_plus_plus(config: TrainConfig) -> dict[str, Any]:
    """Less communication between nodes at stage 3 (Wang et al., arXiv 2306.10209).

    Raises:
        HanseError: there is no GPU, whose kernels it is made of.
    """
    engine, found = config.engine, {}
    if engine.hpz_partition_size > 1:
        found["zero_hpz_partition_size"] = engine.hpz_partition_size
    if engine.quantized_weights:
        found["zero_quantized_weights"] = True
    if engine.quantized_gradients:
        found["zero_quantized_gradients"] = True
    if found and not torch.cuda.is_available():
        raise HanseError("engine.hpz_partition_size, quantized_weights, quantized_gradients: need GPUs; leave them out "
                         "here")  # fmt: skip
    return found


def bucket_elements(parameters: int) -> int:
    """Elements of a communication bucket: the whole model at most, 1M at least."""
    return int(min(5e8, max(parameters, 1_000_000)))
