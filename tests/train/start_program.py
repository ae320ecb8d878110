"""Runs inside every rank of tests/train/test_materialise.py: starts that are watched, at each stage and precision.

    python start_program.py CONFIGS.json

Each rank holds what it owns against the whole model, which it builds for itself, and counts the model's elements in its
memory whenever a parameter lands: at ZeRO 3 never more than its share, and a few times the largest parameter.
"""

import gc
import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from train.config import TrainConfig
from train.engine import Engine, initialise_ranks
from train.materialise import DTYPES, Landing, begin
from train.model import build_model, model_config
from train.parametrisation import scale_fresh
from train.ranks import find_place

VOCABULARY, LENGTH = 512, 16


def held() -> int:
    """Elements in the matrices and flat tensors of this process."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type != "meta"]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() // one.element_size()
                for one in tensors if one.is_floating_point()}  # fmt: skip
    return sum(storages.values())


def check(config: TrainConfig, place) -> None:
    precision, stage = config.engine.precision, config.engine.zero_stage
    shape = model_config(config.model, VOCABULARY, LENGTH)
    gc.collect()
    gc.freeze()  # what was there before is not looked at again, with each parameter
    seen: list[int] = []

    class Watched(Landing):
        def __call__(self, parameter, values):
            super().__call__(parameter, values)
            del values
            seen.append(held())

    beginning = begin(shape, config.seed, "sdpa", config.model.init)
    sizes = {name: one.numel() for name, one in beginning.model.named_parameters()}

    def land(landing):
        landing.__class__ = Watched
        beginning.land(landing)
        for one in beginning.model.parameters():
            assert one.device == landing.device
            assert one.dtype == DTYPES[precision]
            if stage == 3:
                assert one.numel() == 0
                assert one.ds_tensor.numel() == math.ceil(one.ds_numel / place.ranks)

    engine = Engine(config, beginning.model, place.ranks, precision, land)
    whole, largest = sum(sizes.values()), max(sizes.values())
    share = whole / place.ranks if stage == 3 else whole
    assert len(seen) == len(sizes)
    # One is drawn, one is on its way, one is room for draws in vain; and buffers.
    assert max(seen) < share + 3 * largest + 2048, (max(seen), share, largest)
    assert stage < 3 or max(seen) < 0.8 * whole, (max(seen), whole)
    plain = build_model(shape, config.seed)
    scale_fresh(plain, config.model.init)
    right = {name: one.detach().to(DTYPES[precision]).float().flatten() for name, one in plain.named_parameters()}
    owned = 0
    for part in engine.fragments():
        assert torch.equal(part.master, right[part.name][part.start : part.stop]), part.name
        owned += part.stop - part.start
    for name, one in engine.replicated().items():
        assert torch.equal(one.detach().float().flatten(), right[name]), name
    total = torch.tensor(owned)
    dist.all_reduce(total)
    assert int(total) == whole
    engine.engine.destroy()


if __name__ == "__main__":
    place = find_place(os.environ)
    initialise_ranks(place)
    for case in json.loads(Path(sys.argv[1]).read_text()):
        check(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), case)), place)
    dist.destroy_process_group()
