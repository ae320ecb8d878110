"""How weights come to lie where they are trained, a module at a time: nobody holds the whole model on the way.

A model of 70B is 282 GB in fp32. So it is built without memory, its parameters on the meta device, while a recipe is
kept of what ``transformers`` would have drawn (:class:`Recipe`). Then its values come into being in that order, one
module or one tensor of a file at a time, are rounded to the type of the run, and land at once (:class:`Landing`): whole
on the device up to ZeRO 2, which needs them there, cut into the ranks' shares at ZeRO 3. Only the first rank draws or
reads, and DeepSpeed sends its values to the others, as it always has.

The random stream is one over the whole model and is drawn on a host, so fresh weights are, to the last bit, those of
:func:`train.model.build_model`, on any number of ranks and at any stage. Of an architecture whose weights do not come
about module by module (GPT-2 draws some a second time), the first rank builds the whole in host memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from train.init_config import InitConfig
from train.model import build_model
from train.parametrisation import fresh_factors, scale_fresh
from train.tensor_parallel import TensorGroup

Read = Callable[[str, Tensor], None]  # (name of a parameter, its elements to be filled, flat and in fp32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Draw:
    """Random numbers that a module's construction takes from the stream, and that its initialisation replaces."""

    function: Callable[..., Any]
    shape: torch.Size
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def waste(self, room: Tensor) -> None:
        """Take them from the stream. ``room``: as many elements at least; a new tensor each time would leave holes."""
        values = room[: self.shape.numel()].view(self.shape)
        self.function(values.to(self.dtype), *self.arguments, **self.named)


@dataclass(frozen=True)
class Fill:
    """The initialisation of one module's own parameters, as the model ``of`` that it is a part of does it."""

    of: PreTrainedModel
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    shapes: dict[str, torch.Size]  # theirs, which may be cut later

    def values(self, constructed: dict[int, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its fresh values in fp32, in host memory."""
        held = dict(self.module._parameters)
        for key, one in self.parameters.items():
            begun = constructed.get(id(one))
            fresh = torch.empty(self.shapes[key], dtype=one.dtype) if begun is None else begun.clone()
            self.module._parameters[key] = nn.Parameter(fresh, requires_grad=False)
        with torch.no_grad(), guard_torch_init_functions():
            cast(Any, self.of)._init_weights(self.module)
        made = {key: cast(Tensor, self.module._parameters[key]).data for key in self.parameters}
        self.module._parameters.update(held)
        for key, one in self.parameters.items():
            yield one, made.pop(key)


@dataclass
class Recipe(TorchDispatchMode):
    """What building a model would have drawn, in order, watched while it is built without memory.

    Attributes:
        steps: what is to be done again.
        constructed: {id of a parameter: its values}, of vectors that are what their construction says.
        odd: why it cannot be followed module by module; None: it can.
    """

    steps: list[Draw | Fill] = field(default_factory=list)
    constructed: dict[int, Tensor] = field(default_factory=dict)
    odd: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self._known: dict[int, nn.Parameter] = {}  # kept, so that no other gets the id of one that was tied away
        self._changed: set[int] = set()  # parameters that are not what their construction says
        self._own: set[int] | None = None  # those of the module that is being initialised
        self._written: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Models built inside have their parameters on the meta device; buffers are real."""
        register, initialise = nn.Module.register_parameter, PreTrainedModel._initialize_weights

        def hollowed(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            register(module, name, parameter)
            if parameter is not None and parameter.device.type != "meta":
                module._parameters[name] = self._hollow(parameter)

        def noted(of: PreTrainedModel, module: nn.Module, custom: bool = False) -> None:
            if not getattr(module, "_is_hf_initialized", False):
                cast(Any, module)._is_hf_initialized = True
                self._note(of, module)

        classes: tuple[Any, Any] = nn.Module, PreTrainedModel
        classes[0].register_parameter, classes[1]._initialize_weights = hollowed, noted
        try:
            with self:
                yield
        finally:
            classes[0].register_parameter, classes[1]._initialize_weights = register, initialise

    def _hollow(self, parameter: nn.Parameter) -> nn.Parameter:
        found = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        self._known[id(found)] = found
        if parameter.dim() < 2:
            self.constructed[id(found)] = parameter.data
        return found

    def _note(self, of: PreTrainedModel, module: nn.Module) -> None:
        """See what the initialisation of a module writes."""
        own = {key: one for key, one in module._parameters.items() if one is not None}
        self._own, self._written = set(map(id, own.values())), set()
        try:
            cast(Any, of)._init_weights(module)
        except (RuntimeError, NotImplementedError):
            self.odd = f"the initialisation of {type(module).__name__} reads what it has drawn"
        finally:
            self._own = None
        for key, one in own.items():
            kept = id(one) in self.constructed and id(one) not in self._changed
            if id(one) not in self._written and not kept:
                self.odd = f"{type(module).__name__}.{key} is drawn by its construction"
        if own:
            self.steps.append(Fill(of, module, own, {key: one.shape for key, one in own.items()}))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, target = kwargs or {}, args[0] if args else None
        random = torch.Tag.nondeterministic_seeded in func.tags
        if func._schema.is_mutable and isinstance(target, Tensor) and target.device.type == "meta":
            whole = target if target._base is None else target._base
            if self._own is not None:
                if id(whole) not in self._own:
                    self.odd = "a module initialises the parameters of another"
                elif whole is target:
                    self._written.add(id(whole))
            else:
                self._changed.add(id(whole))
                if random:
                    self.steps.append(Draw(func, target.shape, target.dtype, tuple(args[1:]), named))
        elif random:
            self.odd = f"its construction draws by {func}"
        return func(*args, **named)


class Landing:
    """Where a rank's weights come to lie. Collective: all ranks land the same parameters in the same order.

    Args:
        module: what DeepSpeed will be given; ``settings``: its configuration.
        precision: of the weights; ``tensor``: who shares them with this rank.
    """

    def __init__(self, module: nn.Module, settings: dict[str, Any], precision: str, tensor: TensorGroup):
        self.dtype, self.device = DTYPES[precision], torch.device(get_accelerator().current_device_name())
        self.first, self.tensor = dist.get_rank() == 0, tensor
        self.zero, self._numbers = None, dict[int, int]()
        if settings["zero_optimization"]["stage"] == 3:
            # An empty module: with none it would leave out what it does to linear layers.
            self.zero = cast(Any, deepspeed.zero.Init)(
                module=nn.Module(), config_dict_or_path=settings,
                zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),  # of an engine before this one
            )  # fmt: skip
            begin = deepspeed.zero.Init.param_id  # numbers follow the model's order, whatever that of landing
            self._numbers = {id(one): begin + turn for turn, one in enumerate(module.parameters())}
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)

    def __call__(self, parameter: nn.Parameter, values: Tensor | None) -> None:
        """Give a parameter without memory its values: those of the first rank, whatever others pass."""
        if values is None:
            values = torch.empty(self.tensor.shape_of(parameter), dtype=self.dtype, device=self.device)
        mine = self.tensor.received(parameter, values.to(self.device, self.dtype))
        landed = nn.Parameter(mine, requires_grad=parameter.requires_grad)
        vars(landed).update(vars(parameter))  # which are swapped as well: what AutoTP noted on it stays there
        torch.utils.swap_tensors(parameter, landed)
        if self.zero:
            deepspeed.zero.Init.param_id = self._numbers[id(parameter)]
            self.zero._convert_to_zero_parameters([parameter])
            deepspeed.zero.Init.param_id = max(self._numbers.values()) + 1
        del values, mine, landed
        give_back()

    def agree_on_random_numbers(self) -> None:
        """Let all ranks go on in the first one's stream: a model with dropout draws from it."""
        state = torch.get_rng_state().to(self.device)
        dist.broadcast(state, 0)
        torch.set_rng_state(state.cpu())


def give_back() -> None:
    """Let the C library return what was freed: between shares that stay it would keep room for half a model."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


@dataclass(frozen=True)
class Beginning:
    """A model without memory, and what its weights will be.

    Attributes:
        model: its parameters lie on the meta device.
        recipe, factors, seed: how fresh weights are drawn; ``rebuild``: the whole model, where the recipe is odd.
        saved: reads the weights of a parameter; None: they are fresh.
        fresh: whether some are fresh, or are until they are read.
    """

    model: PreTrainedModel
    recipe: Recipe
    factors: dict[str, float]
    seed: int
    rebuild: Callable[[], PreTrainedModel]
    saved: Read | None = None
    fresh: bool = True

    def land(self, landing: Landing) -> None:
        """Give all parameters their values. Collective."""
        names = {id(one): name for name, one in self.model.named_parameters()}
        torch.manual_seed(self.seed)
        for parameter, values in self._each(landing.first):
            name = names.pop(id(parameter))
            if landing.first and self.saved:
                filled = torch.empty(landing.tensor.shape_of(parameter)) if values is None else values
                self.saved(name, filled.view(-1))
                landing(parameter, filled)
            else:
                landing(parameter, values)
        assert not names, f"without values: {', '.join(names.values())}"
        landing.agree_on_random_numbers()

    def _each(self, drawn: bool) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        """Every parameter once, in an order that all ranks share, with its fresh values where they are ``drawn``."""
        if not self.fresh:
            yield from ((one, None) for one in self.model.parameters())
        elif self.recipe.odd:
            whole = dict(self.rebuild().named_parameters()) if drawn else {}
            for name, one in self.model.named_parameters():
                yield one, whole.pop(name).data if drawn else None
        else:
            yield from self._drawn() if drawn else ((one, None) for one, _ in self._fills())

    def _fills(self) -> Iterator[tuple[nn.Parameter, int]]:
        """(parameter, number of the step that gives it its values)."""
        live, last = {id(one) for one in self.model.parameters()}, dict[int, int]()
        for turn, step in enumerate(self.recipe.steps):
            if isinstance(step, Fill):
                last |= {id(one): turn for one in step.parameters.values() if id(one) in live}
        for turn, step in enumerate(self.recipe.steps):
            if isinstance(step, Fill):
                yield from ((one, turn) for one in step.parameters.values() if last.get(id(one)) == turn)

    def _drawn(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        names = {id(one): name for name, one in self.model.named_parameters()}
        due = {(id(one), turn) for one, turn in self._fills()}
        room = torch.empty(max((step.shape.numel() for step in self.recipe.steps if isinstance(step, Draw)), default=0))
        for turn, step in enumerate(self.recipe.steps):
            if isinstance(step, Draw):
                step.waste(room)
                continue
            for one, values in step.values(self.recipe.constructed):
                if (id(one), turn) in due:  # else it was tied to another since
                    factor = self.factors.get(names[id(one)], 1.0)
                    yield one, values.mul_(factor) if factor != 1.0 else values


def begin(
    shape: PretrainedConfig, seed: int, attention: str, init: InitConfig, saved: Read | None = None, *,
    fresh: bool = True,
) -> Beginning:  # fmt: skip
    """A model to be landed (:meth:`Beginning.land`).

    Args:
        shape: its configuration; ``seed``, ``init``: of fresh weights; ``attention``: a back end of ours.
        saved: reads weights that take the place of fresh ones.
        fresh: whether fresh ones are needed nevertheless, because some are not read.

    Raises:
        HanseError: a setting that ``transformers`` or the parametrisation cannot make a model of.
    """
    recipe = Recipe()
    with recipe.watching():
        model = build_model(shape, seed, attention)
    factors = fresh_factors(model, init)  # what it cannot do it says now

    def rebuild() -> PreTrainedModel:
        whole = build_model(shape, seed, attention)
        scale_fresh(whole, init)
        return whole

    return Beginning(model, recipe, factors, seed, rebuild, saved, fresh or saved is None)
