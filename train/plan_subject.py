"""What a plan is about: the run with its model, whose shapes cost no memory, and the machine."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from transformers import PretrainedConfig

from common.errors import ConfigError, HanseError
from data_pipelines.shards import ShardsManifest
from launch.site import Queue
from launch.verb import configuration_of
from train.agreement import with_model_of_weights
from train.attention_config import PLAIN
from train.config import TrainConfig
from train.hardware import GPUS, Gpu, find_gpu
from train.memory import VALUE_BYTES, Activations, activations
from train.mixture import Share
from train.model import flops_per_token, model_config, parameter_counts, shape_of_model
from train.optimizers import bytes_per_parameter
from train.plan_stages import StagePlan, plan_stages, whole
from train.scaling import SUMS_AGAIN, SUMS_BACKWARD, SUMS_FORWARD
from train.tensor_config import DIVIDED, SUMMED
from train.verb_config import PlanConfig


@dataclass(frozen=True)
class Machine:
    """The GPU that is planned for, and how many a node has."""

    name: str
    gpu: Gpu
    memory_gb: float
    gpus_per_node: int
    site: str
    network_gbit: float | None  # of a node
    storage_gb_per_second: float | None


@dataclass(frozen=True)
class Subject:
    """What is to be trained.

    Attributes:
        flops: a token, by sequence length; ``flops_per_token``: the mean of the run's stages.
        held: parameters of one rank's model, fewer where ranks share matrices; ``largest``: elements of the largest.
        exchanged: bytes of a token; ``messages``: of a micro-batch (:func:`exchanged`).
        optimizer_bytes: a parameter: master, moments, average; what a checkpoint holds.
        shares: of each language; empty where there are no shards yet.
    """

    config: TrainConfig
    vocabulary: int
    parameters: int
    held: int
    largest: int
    layers: int
    flops: dict[int, int]
    flops_per_token: int
    activations: Activations
    exchanged: float
    messages: int
    precision: str
    optimizer_bytes: float
    stages: list[StagePlan]
    shares: dict[str, Share]


def describe(config: PlanConfig) -> Subject:
    """What ``hanse train`` would make of the plan's configuration.

    Raises:
        ConfigError: it would refuse it.
    """
    found, wrong = configuration_of("train", config.train, "ranks=${engine.sequence_parallel}")
    groups = ("sequence_parallel", "tensor_parallel", "hpz_partition_size")
    if found and (fewest := math.lcm(*(found["engine"][key] for key in groups))) not in (0, found["ranks"]):
        found, wrong = configuration_of("train", config.train, f"ranks={fewest}")  # that could train it at all
    if found is None or wrong:
        raise ConfigError(wrong)
    train = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), found))
    assert isinstance(train, TrainConfig)
    return subject_of(train)


def subject_of(train: TrainConfig) -> Subject:
    """A run and its model, whose shapes are looked at on the meta device.

    Raises:
        HanseError: the model is to be that of weights that are not there, or cannot be made.
    """
    train = with_model_of_weights(train)
    shards = Path(train.data.shards)
    there = (shards / "manifest.json").is_file()
    manifest = ShardsManifest.read(shards) if there else None
    vocabulary = manifest.vocabulary_size if manifest else train.model.vocabulary_size
    longest = max(stage.length for stage in train.timeline)
    shape = model_config(train.model, vocabulary, longest)
    model, part = shape_of_model(shape), of_rank(shape, train.engine.tensor_parallel)
    held = shape_of_model(part)
    apart = sum(bool(re.match(SUMMED, name)) for name, _ in held.named_parameters())
    flops = {stage.length: flops_per_token(model, stage.length) for stage in train.timeline}
    stages, whole_run = plan_stages(train, manifest), train.timeline.tokens(train.steps)
    precision = "bf16" if train.engine.precision == "auto" else train.engine.precision
    masked = (*PLAIN, "auto") if precision == "fp32" or train.determinism != "D0" else PLAIN
    return Subject(
        train, shape.vocab_size, parameter_counts(model)[0], parameter_counts(held)[0],
        max(one.numel() for one in held.parameters()), shape.num_hidden_layers,
        flops, sum(flops[stage.length] * stage.tokens for stage in train.timeline) // whole_run,
        activations(part, longest, precision, train.engine.recompute_every_layers, train.engine.sequence_parallel,
                    masked=train.model.attention in masked),
        *exchanged(shape, train, precision, apart), precision,
        bytes_per_parameter(model, train), stages, whole(stages, train, manifest) if manifest else {},
    )  # fmt: skip


def exchanged(shape: PretrainedConfig, train: TrainConfig, precision: str, apart: int = 0) -> tuple[float, int]:
    """What ranks that share sequences or matrices exchange: (bytes of a token, messages of a micro-batch); 0: none do.

    Of a sequence, all-to-all: in each layer queries, keys and values on the way to attention and its result on the way
    back; as much in the backward pass, and once more where it computes the layer again. Of matrices, sums of the
    layer's state, in two halves, as in a ring, each as much as an all-to-all of it; and, which is little, of the
    gradients of so many norms of heads (``apart``).
    """
    shared, heads, layers = train.engine.sequence_parallel, shape.num_attention_heads, shape.num_hidden_layers
    every, value = train.engine.recompute_every_layers, VALUE_BYTES[precision]
    again = -(-layers // every) if every else 0
    if train.engine.tensor_parallel > 1:
        sums = (SUMS_FORWARD + SUMS_BACKWARD) * layers + SUMS_AGAIN * again
        return float(2 * sums * shape.hidden_size * value), 2 * (sums + apart)
    if shared == 1:
        return 0.0, 0
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    values = (2 * heads + 2 * max(shape.num_key_value_heads, shared)) * size / shared
    passes = 2 * layers + again  # of one layer
    return float(passes * values * value), 2 * passes


def of_rank(shape: PretrainedConfig, parts: int) -> PretrainedConfig:
    """The model whose shapes are those of one of the ranks that share matrices: its heads, its part of the MLP."""
    if parts == 1:
        return shape
    held = copy.deepcopy(shape)
    held.head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    for key in DIVIDED:
        setattr(held, key, getattr(shape, key) // parts)
    return held


def find_machine(config: PlanConfig) -> Machine:
    """The GPU that was asked for, or that of the site's usual queue.

    Raises:
        HanseError: the peak of the site's GPU is not known, or it has none.
    """
    site = config.site
    queue = site.queues.get(site.queue or "") or Queue()
    name = config.gpu or site.node.gpu or (None if site.node.gpus == 0 else "H100")
    found = find_gpu(name)
    if found is None:
        raise HanseError(f"site={site.name}: the peak of its GPU ({name or 'none'}) is not known here; say gpu=... "
                         f"({', '.join(GPUS)})")  # fmt: skip
    of_site = None if config.gpu else queue.gpu_memory_gb or site.node.gpu_memory_gb
    return Machine(found[0], found[1], config.gpu_memory_gb or of_site or found[1].memory_gb[0],
                   config.gpus_per_node or queue.gpus or site.node.gpus or 4, site.name,
                   config.network_gbit or site.node.network_gbit,
                   config.storage_gb_per_second or site.storage_gb_per_second)  # fmt: skip
