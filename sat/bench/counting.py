"""What a network and a method of training compute, move and keep, counted operation by operation as
torch does it: nothing here is timed, and tensors may have no memory at all (`meta`)."""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from sat.acceleration.auto import depthwise, multiply_adds
from sat.acceleration.recomputation import recompute
from sat.activations.surrogate import phase, phased
from sat.activations.swap import swap_activations
from sat.config import Spec, check
from sat.data.sizes import Sizes
from sat.errors import Refused, refusing
from sat.models import Classifier
from sat.models.weights import without_weights
from sat.objectives import Method
from sat.training.optimizer import build_optimizer
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

IMAGES = 64  # of the batch whose memory is counted: beside it weights count little
FEW, WIDTH = 4, 16  # of the batch and the network on which a method's work is counted


class Counted(TorchDispatchMode):
    """Counts what runs within.

    `each` has FLOP and bytes of each operation, `flop` and `bytes` are their sums: multiplications
    and additions of products and convolutions, by torch's formulas, and the tensors that it reads
    and writes. `now` are bytes of storages that are alive and were made within, `most` the most
    that were; of `held` none counts. Memory that a kernel takes for itself and gives back is not
    seen.
    """

    def __init__(self, held: Iterable[Tensor] = ()):
        super().__init__()
        self.each: list[tuple[int, int]] = []
        self.flop = self.bytes = self.now = self.most = 0
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in held})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(("empty", "new_empty")):
            formula = flop_registry.get(func._overloadpacket)
            flop = formula(*args, **(kwargs or {}), out_val=made) if formula else 0
            moved = size_of((args, kwargs)) + size_of(made)
            self.each.append((flop, moved))
            self.flop, self.bytes = self.flop + flop, self.bytes + moved
        for storage in [t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)]:
            if storage not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def size_of(found: Any) -> int:
    """Bytes of the tensors in it, each once; what is expanded is as large as it lies in memory."""
    tensors = {id(t): t for t in tree_leaves(found) if isinstance(t, Tensor)}.values()
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def limits(
    work: Sequence[tuple[int, int]], product: float, memory: float
) -> dict[str, tuple[float, float]]:
    """The roofline (Williams et al. 2009): seconds that operations need at FLOP/s and bytes/s, each
    the larger of its two; and the share of them that memory binds. By each operation itself, and
    where all that isn't a product is fused into one, and moves nothing of its own."""
    found = {}
    costs = [(flop / product, moved / memory) for flop, moved in work]
    for name, chosen in (("limit", costs), ("limit, fused", [c for c in costs if c[0]])):
        seconds = sum(map(max, chosen))
        found[name] = seconds, sum(m for f, m in chosen if m > f) / seconds
    return found


_UNITS: dict[str, float] = {}


def step_cost(method: Method) -> float:
    """Units that a step of a method takes for an image of a batch, in all views and replays of it:
    a forward, an input gradient and a weight gradient are one each. Counted on a network of matrix
    products, once for each method."""
    if (told := repr(method)) not in _UNITS:
        choices = {"precision": "fp32", "channels_last": False, "compile": False}
        plan = Plan(Schedule(batch_size=FEW, epochs=9.0), FEW, 0, choices)
        images = FEW * method.objective.views
        with torch.random.fork_rng(devices=[]):
            # what comes before the products has parameters, so an update has their gradients
            net = nn.Sequential(
                nn.Flatten(), nn.AdaptiveAvgPool1d(WIDTH), nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 10),
            )  # fmt: skip
            state = TrainState(net, method, plan)
            x, y = torch.rand(images, 3, 8, 8), torch.arange(images) % FEW
            with Counted() as step:
                update(state, x, y)
            with Counted() as forward:
                net(x[:FEW])
        _UNITS[told] = round(step.flop / forward.flop, 1)
    return _UNITS[told]


# a network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """One network on such images: what counting tells of it."""

    parameters: int
    multiply_adds: int  # of one image's forward
    depthwise: bool  # whether it has such convolutions
    state: int | None  # bytes of weights, gradients, optimiser and average
    saved: float  # bytes an image that autograd keeps for an update, in float32
    most: float  # bytes an image that are alive at once in an update, in float32


def build(spec: Spec, sizes: Sizes, device: str) -> Classifier:
    """The spec's network, its activations swapped without the proof, and no given weights loaded.
    On `meta` it has shapes and no memory."""
    family = check({**spec.config, "model": without_weights(spec.config["model"])}).model
    with refusing("model."), torch.device(device):
        backbone = family(sizes.channels, sizes.classes, sizes.pixels)
        swap_activations(backbone, spec.activation)
        net = Classifier(backbone, [0.5] * sizes.channels, [0.25] * sizes.channels)
    if spec.schedule.grad_checkpointing:
        with refusing("schedule."):
            recompute(net)
    return net


_COSTS: dict[str, Cost] = {}


def cost_of(spec: Spec, sizes: Sizes) -> Cost:
    """Counted once for all runs of a sweep that share network, activation, images and optimiser."""
    config, schedule = spec.config, spec.schedule
    rest = config["model"], config["activation"], schedule.optimizer, schedule.averages
    key = str((*rest, schedule.grad_checkpointing, sizes.classes, sizes.shape))
    if key not in _COSTS:
        model = build(spec, sizes, "meta")
        with refusing("schedule."):
            optimizer = build_optimizer(model, schedule)
        try:
            _COSTS[key] = _count(model, optimizer, schedule, sizes.shape)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Refused(
                f"dataset.image_size={sizes.pixels}: the network fails on such images ({reason});"
                " choose another size or another model"
            ) from error
    return _COSTS[key]


def _count(
    model: Classifier, optimizer: torch.optim.Optimizer, schedule: Any, shape: tuple[int, int, int]
) -> Cost:
    """The cost of a model on `meta`, its memory that of an update of a large batch. No state of
    optimisers that look at numbers before they make theirs."""
    multiplied, x = multiply_adds(model, shape), torch.zeros(IMAGES, *shape, device="meta")
    parameters, state = [*model.parameters()], None
    weights = [*parameters, *model.buffers()]
    with Counted([*weights, x]) as live, phase(phased(model), "outer"):
        loss = model.train()(x).sum()
        saved = live.now
        loss.backward()
        most = live.most
        del loss
        with suppress(RuntimeError):
            optimizer.step()
            state = live.now + size_of(weights) * (2 if schedule.averages else 1)
    if state and schedule.optimizer.startswith("lookahead_"):
        state += size_of(parameters)  # the slow weights, made later
    count = sum(p.numel() for p in parameters)
    return Cost(count, multiplied, depthwise(model), state, saved / IMAGES, most / IMAGES)
