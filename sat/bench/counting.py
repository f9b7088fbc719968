"""What a piece of work computes, moves and keeps, counted operation by operation as torch does it:
nothing here is timed, and tensors may have no memory at all (`meta`)."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from sat.objectives import Method
from sat.training.plan import Plan
from sat.training.schedule import Schedule
from sat.training.state import TrainState
from sat.training.step import update

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
