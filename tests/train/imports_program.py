"""What is imported by and by as a start goes on: {what was done: which of the watched modules are there then}.

python imports_program.py FOLDER    with the sidecar of a shard called one; wandb writes there, too
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

WATCHED = ("torch", "transformers", "deepspeed", "torch._inductor.lowering", "pandas", "scipy.optimize", "datasets",
           "wandb", "wandb.sdk.launch.inputs", "sklearn", "matplotlib")  # fmt: skip
found: dict[str, list[str]] = {}


def note(what: str) -> None:
    found[what] = [name for name in WATCHED if name in sys.modules]


def main(folder: Path) -> None:
    importlib.import_module("train.start")

    note("parent")
    importlib.import_module("train.checkpoint_verb")

    note("checkpoint")
    import torch

    importlib.import_module("train.loop")

    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # as ZeRO does
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    note("rank")
    from train.tally import Origins

    shards = [SimpleNamespace(prefix=folder / "one")]
    Origins.read(SimpleNamespace(shards=shards))  # type: ignore[arg-type]
    note("sources")
    from train.config import TrainConfig
    from train.track import _start_wandb

    config = TrainConfig(name="x", run=str(folder), tokens=1)
    config.track.wandb = "offline"
    run = _start_wandb(folder, config, "x-0001")
    note("wandb")
    run.finish()

    from transformers.utils import import_utils

    spec = importlib.util.spec_from_file_location("transformers.utils.as_it_is", import_utils.__file__)
    assert spec
    assert spec.loader
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    models = str(Path(import_utils.__file__).parents[1] / "models")
    same = plain.define_import_structure(models) == import_utils.define_import_structure(models)
    print(json.dumps({"found": found, "same": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
