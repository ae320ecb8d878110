"""Runs inside every rank of a test: the energy of a run on two nodes, which are two names here.

python program.py RUN ROOT...: each node has its own tree of counters
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from train.config import BatchConfig, DataConfig, TrainConfig
from train.energy.config import EnergyConfig
from train.energy.recorder import EnergyRecorder
from train.ranks import find_place
from train.run_folder import RunFolder

run, *roots = sys.argv[1:]
place = find_place(os.environ)
dist.init_process_group("gloo")
node = place.rank // 2
os.environ["SLURMD_NODENAME"] = f"nid{node}"
recorder = EnergyRecorder(EnergyConfig(), place, RunFolder(run), torch.device("cpu"), root=Path(roots[node]))
config = TrainConfig(tokens=512 * 10, data=DataConfig(sequence_length=64), batch=BatchConfig(8, 1))
recorder.begin(SimpleNamespace(first_step=0, config=config, flops_per_token=lambda stage: 1, parameters=1))
if place.rank % 2 == 0:
    energy = Path(roots[node]) / "sys/cray/pm_counters/energy"
    joules = int(energy.read_text().split()[0])
    energy.write_text(f"{joules + 1000 * (node + 1)} J 1 us\n")
recorder.record("end", 10)
print(f"rank {place.rank} reads: {recorder.reader is not None}")
dist.destroy_process_group()
