"""``run.lock.json``: all that decided what a run computed, written when it first starts; and how two locks differ."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from common.configuration import belongs, differences, leaves
from common.errors import HanseError
from common.files import merkle_root, read_json
from data_pipelines.manifest import fingerprint
from data_pipelines.shards import ShardsManifest
from train.change import as_changed
from train.config import TrainConfig
from train.ledger import lines
from train.ranks import Place
from train.run_folder import FREE, own_key, plain
from train.stage_config import StageConfig, StageSchedule

FORMAT = "hanse.lock/1"
ROOT = Path(__file__).parents[1]
OURS = ("common", "configs", "data_pipelines", "train", "launch", "consortium")
# Variables that can change a result or a speed. Values only of these: an environment holds secrets.
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NCCL_PROTO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
             "OMP_NUM_THREADS", "MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE",
             "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "MIOPEN_DEBUG_CONV_GEMM")  # fmt: skip
# What a repetition must share with the run that it repeats; the rest is reported.
BINDING = ("code.sha256", "config_sha256", "seed", "tokenizer_sha256", "data_merkle_root", "determinism", "precision",
           "parents", "distributions.torch", "distributions.deepspeed", "distributions.transformers")  # fmt: skip


def describe(
    config: TrainConfig,
    manifest: ShardsManifest,
    place: Place,
    precision: str,
    parents: Sequence[Mapping[str, Any]] = (),
    *,
    attention: str = "sdpa",
    compiled: bool = False,
) -> dict[str, Any]:
    """The lock of a start; JSON values, no secrets, no path of this machine. ``parents``: what the run began with."""
    import torch

    return {
        "format": FORMAT,
        "code": code(),
        "distributions": installed(),
        "container": {"image": _image(), "sha256": os.environ.get("HANSE_CONTAINER_SHA256")},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.processor() or platform.machine(),
                    "devices": _devices(torch), "cuda": torch.version.cuda, "hip": torch.version.hip},
        "environment": {key: os.environ[key] for key in VARIABLES if key in os.environ},
        "config_sha256": config_sha256(config),
        "seed": config.seed,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "data_merkle_root": manifest.merkle_root,
        **({"parents": list(parents)} if parents else {}),
        "determinism": config.determinism,
        "precision": precision,
        "layout": {"ranks": place.ranks, "zero_stage": config.engine.zero_stage,
                   "micro_batch_size": config.batch.micro_batch_size, "threads_per_rank": config.threads_per_rank,
                   "attention": attention, **({"compiled": True} if compiled else {}),
                   **{key: size for key in ("sequence_parallel", "tensor_parallel")
                      if (size := getattr(config.engine, key)) > 1}},
    }  # fmt: skip


def config_sha256(config: TrainConfig) -> str:
    """Hash of the keys that decide what is computed; how and where it is computed is left out.

    So is a key at its default: a later version's new keys change no hash, unless they are used.
    """
    usual = dict(leaves(plain(TrainConfig())))
    in_stage = dict(leaves({**asdict(StageConfig()), "schedule": asdict(StageSchedule())}))
    del in_stage["schedule.decay_fraction"]  # tells a schedule of usual values from none
    free = (*FREE, "name", "determinism")
    return fingerprint({
        key: value for key, value in leaves(plain(config))
        if not belongs(own_key(key), free)
        and (value != in_stage.get(own_key(key)) if key.startswith("stages.") else key not in usual or
             value != usual[key])
    })  # fmt: skip


@cache
def code() -> dict[str, Any]:
    """Our own source: one hash over all files; and, in a git checkout, its commit and the hash of what differs."""
    files = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
             for package in OURS for path in sorted((ROOT / package).rglob("*"))
             if path.suffix in (".py", ".yaml", ".j2")}  # fmt: skip
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    changed = _git("diff", "HEAD") if commit else None
    return {
        "sha256": merkle_root(files),
        "commit": commit.decode().strip() if commit else None,
        "diff_sha256": hashlib.sha256(changed).hexdigest() if changed else None,
    }


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def installed() -> dict[str, str]:
    """{distribution: "version sha256:..."}; the hash is that of the list of its files, which holds theirs."""
    found = {}
    for one in distributions():
        record = hashlib.sha256((one.read_text("RECORD") or "").encode()).hexdigest()[:16]
        facts = one.metadata  # parsed anew each time
        found[str(facts["Name"]).lower()] = f"{facts['Version']} sha256:{record}"
    return dict(sorted(found.items()))


def _image() -> str | None:
    path = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    return Path(path).name if path else None


def _devices(torch: Any) -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def hold_to(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare with another run's lock; what differs without deciding what is computed, a line each.

    Raises:
        HanseError: something differs that does decide it, or the file is no lock.
    """
    before = read_json(path, "lock of a run")
    if not isinstance(before, dict) or before.get("format") != FORMAT:
        raise HanseError(f"{path}: not a lock of format {FORMAT}")
    changes = [record for _, record in lines(path.with_name("ledger.jsonl"))]  # which lies beside it
    found = differences({**before, "config_sha256": as_changed(str(before.get("config_sha256")), changes)}, now)
    binding = [key for key in found if key in BINDING]
    if binding:
        told = "; ".join(f"{key} was {found[key][0]}, is {found[key][1]}" for key in binding)
        raise HanseError(f"lock={path}: this would not repeat that run: {told}; give it the same, or leave lock out "
                         "(hanse reproduce: lock=false)")  # fmt: skip
    return [f"{key}: was {was}, is {here}" for key, (was, here) in found.items()]
