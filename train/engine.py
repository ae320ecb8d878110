"""DeepSpeed ZeRO behind a small door: forward, backward, step; and where each rank keeps its share of the state."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from train.config import BatchConfig, TrainConfig
from train.copies import alone, sum_over_ranks
from train.fp16 import LossScale, allowed_everywhere
from train.gloo import use_messages
from train.gradients import at_once, look_once
from train.invariant import ExactSum, Owned, isolate
from train.materialise import Landing
from train.model import PackedLanguageModel, model_inputs, set_rope
from train.muon import Matrices, Piece
from train.ops import COMMUNICATION, compile_op, prepare
from train.optimizers import Stepper, build, moments_of
from train.ranks import Place
from train.sequence_parallel import SequenceGroup, share_sequences
from train.shares import Fragment, Shares
from train.stream import MicroBatch
from train.tensor_parallel import TensorGroup
from train.zero_config import bucket_elements, deepspeed_config

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
import deepspeed  # noqa: E402  (its accelerator is chosen by the variable above)
from deepspeed.runtime.constants import BFLOAT16  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.utils import combine_grad_norm_groups  # noqa: E402
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION  # noqa: E402


def initialise_ranks(place: Place) -> torch.device:
    """Join the process group and pick this rank's device.

    Before any model is built: ZeRO's construction is silently single-rank otherwise (DeepSpeed #8084).
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # DeepSpeed's calls that torch will rename
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        compile_op(COMMUNICATION)
    with redirect_stdout(io.StringIO()):  # it says on every start that it compiled something once
        deepspeed.init_distributed(verbose=False)
    use_messages()
    assert place.ranks == dist.get_world_size()
    return device


class Engine:
    """A model under ZeRO. Every method is collective: all ranks call it, in the same order."""

    def __init__(
        self, config: TrainConfig, model: PreTrainedModel, ranks: int, precision: str,
        land: Callable[[Landing], None] | None = None,
    ):  # fmt: skip
        """``land``: gives the parameters of a model without memory their values; None: it has them."""
        self.config, self.ranks, self.precision, self.kind = config, ranks, precision, config.optimizer.kind
        prepare(config.engine)
        module = PackedLanguageModel(model, config.loss.z_weight)
        if config.determinism == "D2":
            isolate(module)
        self.group = SequenceGroup.join(config.engine.sequence_parallel)
        share_sequences(module, self.group)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.moments = moments_of(model, self.kind)  # now: ZeRO-3 leaves parameters without a shape
        parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = deepspeed_config(config, ranks, precision, parameters)
        with _one_class_of_optimizer(), allowed_everywhere() if precision == "fp16" else nullcontext():
            optimizer = build(config, model)  # before parameters are cut, and so lose their shapes
            self.tensor = TensorGroup.join(config.engine.tensor_parallel)
            self.tensor.cut(module)
            if land:
                land(Landing(module, settings, precision, self.tensor))
            self.tensor.landed(module)
            self.engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=settings, mpu=alone(config.engine.zero_stage, module)
            )
        self.zero: Any = self.engine.optimizer
        self.stage = config.engine.zero_stage
        look_once(self.zero, self.stage)
        if self.tensor.size == 1:  # else a norm counts what ranks share otherwise than what all of them have
            at_once(self.zero, self.stage, self.engine.device)
        sum_over_ranks(self.zero, self.stage)
        named = {self.names[id(one)]: one for one in self.engine.module.parameters()}
        self.shares = Shares(self.zero, self.stage, named, averaged=config.ema.decay > 0)
        self.loss_scale = LossScale(config.engine.fp16) if precision == "fp16" else None
        if self.loss_scale:
            self.zero.loss_scaler = self.loss_scale
        self.overflowed = False  # fp16 in the last step, which changed nothing but the scale
        self._let_muon_exchange()
        self._ask_before_updates()
        self.exact = self._exact_sum(parameters) if config.determinism == "D2" else None
        self.updates = self.skipped_updates = 0  # of all the run's steps
        self.averages = 0  # of the weights, that were taken into their average
        self.layer_norms: dict[str, float] | None = None  # of the last step, where they were asked for
        self._norm, self._largest_norm, self._wants_layers = math.inf, math.inf, False
        self._turn = 0  # micro-batches of the current step that were run
        self.batch: BatchConfig | None = None
        self.rope = model.config
        self.set_batch(config.timeline.at(0).batch)
        self.mark: Callable[[str], None] = lambda _: None  # told how far this rank has come (train/guards/watchdog.py)

    def _exact_sum(self, elements: int) -> ExactSum:
        owned = {part.name: Owned(part.group, part.offset, part.start, part.stop) for part in self.shares.held()}
        parameters = list(self.engine.module.parameters())
        return ExactSum(
            self.engine, parameters, [math.prod(self.shapes[self.names[id(one)]]) for one in parameters],
            {key: owned[name] for key, name in self.names.items() if name in owned}, self.shares.flats,
            sharded=self.stage >= 2,
            micro_batches=1,  # set_batch() tells
            bucket_elements=bucket_elements(elements),
            clip=self.config.optimizer.gradient_clipping,
        )  # fmt: skip

    def set_batch(self, batch: BatchConfig) -> None:
        """The sizes of the next step and those after it; between two steps only."""
        if batch == self.batch:
            return
        self.batch = batch
        readers = self.ranks // self.config.engine.sharing
        self.accumulation = batch.global_batch_size // (batch.micro_batch_size * readers)
        micro_batch, accumulation = batch.micro_batch_size, self.accumulation
        if self.exact:  # DeepSpeed sees one backward a step
            self.exact.micro_batches = batch.global_batch_size // batch.micro_batch_size
            micro_batch, accumulation = micro_batch * accumulation, 1
        self.engine.set_train_micro_batch_size(micro_batch)
        self.engine.set_train_batch_size(micro_batch * accumulation * self.engine.dp_world_size)  # it counts slices
        self.engine.micro_steps = 0  # it counts them to tell a step's last
        self.zero.gradient_accumulation_steps = accumulation

    def set_rope(self, config: PretrainedConfig) -> None:
        """Let the next steps compute with the rotary embedding of this configuration of the model."""
        if config is not self.rope:
            self.rope = config
            set_rope(self.engine.module, config)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in fp32: () of the micro-batch, for :meth:`backward`, and (B,) a sequence.

        Where ranks share sequences, all of it is of this rank's slice.
        """
        self.mark("forward")
        total, nll = self.engine(**model_inputs(batch, self.engine.device))
        return total, nll

    def scores(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Of each label, (B, L): negative log-likelihood in fp32, and whether it is the likeliest token.

        Ranks that share sequences are given the same whole ones, and get the same.
        """
        self.mark("forward")
        mine = batch.slice(self.group.index, self.group.size)
        nll, first = self.engine(**model_inputs(mine, self.engine.device), scored=True)
        nll, first = self.group.whole(torch.stack((nll, first.float())))
        return nll, first.bool()

    def backward(self, total: Tensor, global_targets: int) -> None:
        """Add the gradient of ``total / global_targets``, summed over the ranks, to what is accumulated.

        ZeRO averages over the ranks; so the loss is scaled by their number, and by nothing else before it is rounded.
        """
        self.mark("backward")
        if self.exact:  # which sums, and does not average
            self._turn += 1
            self.exact.begin(last=self._turn == self.accumulation)
            self.engine.backward(total * (1 / global_targets), scale_wrt_gas=False)
        else:
            self.engine.backward(total * (self.ranks // self.tensor.size / global_targets), scale_wrt_gas=False)

    def end_micro_batch(self) -> None:
        """To be called after each backward but a step's last."""
        if self.exact:
            self.exact.end()
        else:
            self.engine.step()

    def update(self, learning_rate: float, *, largest_norm: float = math.inf, layers: bool = False) -> bool:
        """To be called after a step's last backward: update the weights; whether that was done.

        It is not where the gradient's norm is above ``largest_norm`` or no finite number: weights and moments then stay
        as they are, to the last bit.

        Args:
            layers: also tell the norm of every layer's gradient, in :attr:`layer_norms`.
        """
        self.mark("update")
        for group in self.zero.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        self._norm, self._largest_norm, self._wants_layers = math.inf, largest_norm, layers
        self._turn, self.layer_norms = 0, None
        if self.exact:
            self.exact.end()
        self.engine.step()
        made = not self.zero.overflow
        self.overflowed = self.loss_scale is not None and self.loss_scale.note(finite=math.isfinite(self._norm))
        self.skipped_updates += not made
        self.updates += made
        if made and self.config.ema.decay and self.updates % self.config.ema.every_steps == 0:
            self.shares.average(self.config.ema.decay_after(self.averages))
            self.averages += 1
        return made

    def _ask_before_updates(self) -> None:
        """Decide on an update when ZeRO has reduced the gradient and knows its norm, but has changed nothing yet.

        ZeRO leaves out a step whose norm is no finite number (its "overflow" path, made for fp16): it clears the
        gradient and returns before the optimizer is called. To it, a norm that is too large is no number.
        """
        name = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        compute = getattr(self.zero, name)

        def judged() -> Any:
            found = compute()
            norm = combine_grad_norm_groups(found) if self.stage == 3 else found
            self._norm = float(norm) / self._scale
            if self._wants_layers:
                self.layer_norms = self._norms_by_layer()
            if self.gradient_norm() <= self._largest_norm:
                return found
            refused = torch.full_like(norm, math.inf)
            return [refused] if self.stage == 3 else refused

        setattr(self.zero, name, judged)

    def _norms_by_layer(self) -> dict[str, float]:
        """L2 norm of the reduced gradient of every layer, before clipping. Collective."""
        squares = dict.fromkeys(map(layer_of, self.shapes), 0.0)
        flat = {group: torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)
                for group, parts in self.zero.averaged_gradients.items()}  # fmt: skip
        for part in self.shares:
            if not self.tensor.counts(part.name):
                continue
            mine = flat[part.group].narrow(0, part.offset, part.stop - part.start)
            squares[layer_of(part.name)] += float(torch.linalg.vector_norm(mine.float())) ** 2
        total = torch.tensor(list(squares.values()), dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(total)
        clipped = self.exact.factor if self.exact else self._scale
        return {name: math.sqrt(value) / clipped for name, value in zip(squares, total.tolist(), strict=True)}

    def gradient_norm(self) -> float:
        """Global L2 norm of the last step's gradient, before clipping; the same on every rank."""
        return self.exact.norm if self.exact else self._norm

    @property
    def _scale(self) -> float:
        """How many times too large the gradient is until it is applied."""
        return self.loss_scale.scale if self.loss_scale else 1.0

    def replicated(self) -> dict[str, Tensor]:
        """{name: weights} of what every rank holds between two steps, or those with its parts; nothing at stage 3."""
        if self.stage == 3:
            return {}
        return {self.names[id(one)]: one for one in self.engine.module.parameters()}

    def spread_masters(self) -> None:
        """Make the weights those of the masters, which were set meanwhile. Collective."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero.checkpoint_event_prologue()
        for group in range(len(self.zero.fp16_groups)):
            with self.shares.at_hand(group):
                self.zero._reassign_or_swap_out_partitioned_parameters(group)
        self.zero.checkpoint_event_epilogue()

    def state(self) -> dict[str, Any]:
        """What a later start must know beside weights and moments; for :meth:`set_state`."""
        told: dict[str, Any] = {"exponent": self.exact.exponent} if self.exact else {}
        if self.loss_scale:
            told["loss_scale"] = self.loss_scale.state()
        if self.skipped_updates:
            told["skipped_updates"] = self.skipped_updates
        if self.kind != "adamw":
            keys = dict.fromkeys(key for kept in self.moments.values() for key in kept)
            told["optimizer"] = {"kind": self.kind, "moments": {
                key: [name for name, kept in self.moments.items() if key in kept] for key in keys}}  # fmt: skip
        if self.config.ema.decay:
            told["averages"] = self.averages
        return told

    def set_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after ``step`` steps: Adam's bias correction depends on the number of updates."""
        self.skipped_updates = int(state.get("skipped_updates", 0))
        self.updates, self.averages = step - self.skipped_updates, int(state.get("averages", 0))
        self.shares.set_step(self.updates)
        if self.exact:
            self.exact.exponent = int(state.get("exponent", self.exact.exponent))
        if self.loss_scale:
            self.loss_scale.load(state.get("loss_scale", {}))

    def endings(self, name: str) -> tuple[str, ...]:
        """What is kept of a parameter, as its names in a checkpoint end: weights, moments, average."""
        average = (".ema",) if self.config.ema.decay else ()
        return ("", *(f".{key}" for key in self.moments[name]), *average)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, evaluation mode."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.engine.train()

    def fragments(self, *, changed: bool = False) -> Iterator[Fragment]:
        """This rank's share of the whole model, in ranges of its tensors (:meth:`train.shares.Shares.each`).

        Collective, to the last one: ranks that share matrices exchange on the way. A tensor may have several ranges.
        """
        mine = self.shares.each(changed=changed)
        return self.tensor.filled(mine) if changed else self.tensor.told(mine)

    @property
    def swapped(self) -> bool:
        """Whether masters and moments lie on a disk between two steps."""
        return self.shares.swapped

    def _let_muon_exchange(self) -> None:
        """Tell Muon, if it is the optimizer, which rank owns what of each matrix."""
        optimizer = self.zero.optimizer
        if self.kind != "muon":
            return
        assert isinstance(optimizer, Stepper)
        mine = {part.name: (part.group, Piece(part.start, part.stop, part.offset)) for part in self.shares.held()
                if len(self.moments[part.name]) == 1}  # fmt: skip
        sharers = self.zero.dp_process_group
        shares: list[dict[str, tuple[int, Piece]]] = [{}] * dist.get_world_size(sharers)
        dist.all_gather_object(shares, mine, sharers)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        groups = {name: group for share in shares for name, (group, _) in share.items()}
        matrices = {
            id(flat): Matrices(
                {name: shape for name, shape in self.shapes.items() if groups.get(name) == number},
                [{name: piece for name, (group, piece) in share.items() if group == number} for share in shares],
                dist.get_rank(sharers), dtype,
            )
            for number, flat in enumerate(self.shares.flats)
        }  # fmt: skip
        matrix = {
            number for number, _ in enumerate(self.shares.flats) if self.shares.group_of(number)["method"] == "muon"
        }
        assert matrix == set(groups.values()), "all of Muon's parameters are known as matrices, and no others"
        optimizer.muon = lambda flat, update: matrices[id(flat)](update)


@contextmanager
def _one_class_of_optimizer() -> Iterator[None]:
    """Let ZeRO 1 with bf16 weights and gradients summed in fp32 be what it is with any other types.

    For this one case DeepSpeed 0.19 takes its ``BF16_Optimizer``, which keeps its shares in another form and judges the
    gradient at another place. ZeRO's usual class has all that is needed; a test holds it to plain PyTorch.
    """
    check = DeepSpeedEngine._do_optimizer_sanity_check

    def checked(self: Any, optimizer: Any) -> Any:
        found = check(self, optimizer)
        return ZERO_OPTIMIZATION if found == BFLOAT16 else found

    DeepSpeedEngine._do_optimizer_sanity_check = checked
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = check


def layer_of(name: str) -> str:
    """The layer of a parameter: ``model.layers.3`` of ``model.layers.3.mlp.up_proj.weight``, else its module."""
    match = re.match(r"(.+?\.\d+)\.", name)
    return match[1] if match else name.rpartition(".")[0] or name
