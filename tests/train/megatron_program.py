"""Run by two ranks beside test_megatron.py: real models of megatron-core load, compute, and save by its own code.

    python megatron_program.py REQUEST.json OUTPUT

``REQUEST.json``: {"ids": token ids, "jobs": [{"name", "tensor", "pipeline", "model": keywords of the configuration,
"vocabulary", "tied", "load": folder of an iteration or null, "args", "metadata"}]}. Into OUTPUT/NAME goes what
Megatron-LM's training/checkpointing.py writes, as ``dist`` (torch_dist) and ``classic`` (torch), and ``logits.pt``.
"""

from __future__ import annotations

import json
import sys
import warnings
from argparse import Namespace
from pathlib import Path

warnings.simplefilter("ignore")

if __name__ == "__main__":  # its writer starts processes that import this file, and need nothing of it
    import numpy as np
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.validation import StrictHandling
    from megatron.core.enums import ModelType
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
    from megatron.core.tensor_parallel.random import initialize_rng_tracker
    from megatron.core.transformer.enums import AttnBackend
    from megatron.core.transformer.transformer_config import TransformerConfig

ITERATION = 100


def without_a_gpu() -> None:
    """Megatron asks CUDA where it computes, even with ``use_cpu_initialization``."""
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda one, *_: one
    initialize_rng_tracker(inference_rng_tracker=True)  # one that keeps no states of a GPU


def build(job: dict, chunk: int | None) -> GPTModel:
    """The model, or one of the chunks that a stage of an interleaved pipeline has."""
    settings = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "add_bias_linear": False, "gated_linear_unit": True,
                "normalization": "RMSNorm", "activation_func": torch.nn.functional.silu, "init_method_std": 0.3,
                "use_cpu_initialization": True, "masked_softmax_fusion": False, "bias_activation_fusion": False,
                "bias_dropout_fusion": False, "apply_rope_fusion": False, "gradient_accumulation_fusion": False,
                "tensor_model_parallel_size": job["tensor"], "pipeline_model_parallel_size": job["pipeline"],
                "virtual_pipeline_model_parallel_size": job.get("virtual"),
                "pipeline_dtype": torch.float32}  # fmt: skip
    config = TransformerConfig(**settings, **job["model"])
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    model = GPTModel(config, spec, vocab_size=job["vocabulary"], max_sequence_length=64, position_embedding_type="rope",
                     share_embeddings_and_output_weights=job["tied"], **job.get("rope", {}),
                     pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk),
                     post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk),
                     vp_stage=chunk)  # fmt: skip
    with torch.no_grad():  # norms of ones would hide a mistake
        for name, one in model.named_parameters():
            if "norm" in name:
                one.copy_(1 + torch.linspace(-0.3, 0.4, one.numel()))
    return model.eval()


def run(job: dict, ids: list[list[int]], output: Path) -> None:
    rank = torch.distributed.get_rank()
    parallel_state.initialize_model_parallel(job["tensor"], job["pipeline"], job.get("virtual"))
    torch.manual_seed(7)
    chunks = {f"model{at}": build(job, at) for at in range(job["virtual"])} if "virtual" in job else {}
    models, metadata = chunks or {"model": build(job, None)}, job.get("metadata")
    if job["load"]:
        wanted = {key: model.sharded_state_dict(metadata=metadata) for key, model in models.items()}
        loaded, missing, unexpected = dist_checkpointing.load(wanted, job["load"], strict=StrictHandling.RETURN_ALL)
        missing = {key for key in missing if "_extra_state" not in key}  # of Transformer Engine's layers
        assert not missing, f"in the checkpoint, and not asked for: {missing}"
        assert not unexpected, f"asked for, and not in the checkpoint: {unexpected}"
        for key, model in models.items():
            model.load_state_dict(loaded[key], strict=True)
    if job["pipeline"] == 1:
        tokens = torch.tensor(ids)
        length = tokens.shape[1]
        hidden = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
        with torch.no_grad():
            logits = models["model"](tokens, torch.arange(length).expand(len(tokens), -1), hidden)
            logits = gather_from_tensor_model_parallel_region(logits)
        if rank == 0:
            torch.save(logits, output / "logits.pt")
    common = {"args": Namespace(**job["args"], params_dtype=torch.float32, model_type=ModelType.encoder_or_decoder,
                                attention_backend=AttnBackend.auto, tensor_model_parallel_size=job["tensor"],
                                pipeline_model_parallel_size=job["pipeline"]),
              "checkpoint_version": 3.0, "iteration": ITERATION}  # fmt: skip
    dist = output / "dist" / f"iter_{ITERATION:07d}"
    if rank == 0:
        dist.mkdir(parents=True)
        for name in ("dist", "classic"):
            (output / name).mkdir(exist_ok=True)
            (output / name / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    torch.distributed.barrier()
    sharded = {key: model.sharded_state_dict(metadata=metadata) for key, model in models.items()}
    dist_checkpointing.save({**common, **sharded}, str(dist))
    if parallel_state.get_data_parallel_rank() == 0:
        place = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
        if job["pipeline"] > 1:
            place += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
        classic = output / "classic" / dist.name / place
        classic.mkdir(parents=True)
        states = [{"np_rng_state": np.random.get_state(), "torch_rng_state": torch.get_rng_state()}]
        whole = {key: model.state_dict_for_save_checkpoint() for key, model in models.items()}
        torch.save({**common, **whole, "rng_state": states}, classic / "model_optim_rng.pt")
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()


def main() -> None:
    request, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    without_a_gpu()
    for job in request["jobs"]:
        place = output / job["name"]
        if torch.distributed.get_rank() == 0:
            place.mkdir()
        torch.distributed.barrier()
        run(job, request["ids"], place)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
